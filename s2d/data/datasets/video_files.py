"""A folder of videos, for each a file or a folder of images, without masks."""

from __future__ import annotations

from pathlib import Path

from s2d.data.datasets.sample import Sample
from s2d.data.datasets.splits import no_splits
from s2d.data.video_folder import list_videos
from s2d.errors import InputError


def read(path: Path, split: str | None) -> list[Sample]:
    """Its videos in natural order."""
    no_splits(split, path)
    videos = list_videos(path)
    if not videos:
        raise InputError(f"expected videos in the folder {path}, got none")
    return [Sample(name, source) for name, source in videos.items()]
