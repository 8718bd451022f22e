"""The videos of one dataset with the annotations of another file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from s2d.data.datasets import ytvis_json
from s2d.data.datasets.sample import Sample
from s2d.errors import InputError


def with_annotations(dataset: Sequence[Sample], path: str | Path) -> list[Sample]:
    """The videos that a YouTube-VIS json has, with its masks; videos are found by their names.

    Args:
        dataset: videos; masks that they may have are not used.
        path: such as `s2d.stages.merge.merge` writes.

    Raises:
        InputError: no such json, or a video in it that the dataset does not have.
    """
    videos = {sample.name: sample for sample in dataset}
    labels = ytvis_json.read(Path(path), None)
    strange = next((label.name for label in labels if label.name not in videos), None)
    if strange is not None:
        raise InputError(f"expected annotations of videos of the dataset in {path}, got those of {strange}")
    return [
        dataclasses.replace(videos[label.name], annotations=label.annotations, _tracks=label._tracks)
        for label in labels
    ]
