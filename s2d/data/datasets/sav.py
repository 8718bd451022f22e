"""SA-V's training set: mp4 files of 24 frames a second, masks on every fourth frame as run lengths in json."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from s2d.data.datasets.sample import Sample
from s2d.data.datasets.splits import no_splits
from s2d.data.files import read_json
from s2d.data.types import Tracks
from s2d.data.ytvis import read_masks
from s2d.errors import InputError
from s2d.ops import RLE

# README of sav_dataset in facebookresearch/sam2: videos of 24 frames a second are annotated at 6.
EVERY = 4
_KINDS = ("manual", "auto")


def find_videos(path: Path) -> list[Path]:
    """The mp4 files in the folder or one floor below that have a json of masks."""
    files = sorted([*path.glob("*.mp4"), *path.glob("*/*.mp4")])
    return [file for file in files if any(_json(file, kind).is_file() for kind in _KINDS)]


def fits(path: Path) -> bool:
    """Whether there is such a video."""
    return path.is_dir() and bool(find_videos(path))


def read(path: Path, split: str | None) -> list[Sample]:
    """The annotated videos; manual and automatic masks are instances alike, manual ones first."""
    no_splits(split, path)
    videos = find_videos(path)
    if not videos:
        raise InputError(f"expected videos with masks in {path}, such as sav_000001.mp4 and sav_000001_manual.json")
    samples = []
    for video in videos:
        files = tuple(file for kind in _KINDS if (file := _json(video, kind)).is_file())
        samples.append(Sample(video.stem, video, annotations=files, _tracks=partial(_tracks, video.stem, files)))
    return samples


def _json(video: Path, kind: str) -> Path:
    return video.with_name(f"{video.stem}_{kind}.json")


def _tracks(name: str, files: tuple[Path, ...]) -> Tracks:
    parts = [_part(file, name) for file in files]
    sizes = {(part.size, part.num_frames) for part in parts}
    if len(sizes) > 1:
        raise InputError(f"expected the json files of {name} to be of one video, got {sorted(sizes)}")
    return Tracks(
        name,
        parts[0].size,
        RLE.cat(part.rle for part in parts),
        torch.cat([part.annotated for part in parts]),
        torch.cat([part.scores for part in parts]),
    )


def _part(file: Path, name: str) -> Tracks:
    data = read_json(file)
    try:
        size = int(data["video_height"]), int(data["video_width"])
        length, masklets = int(data["video_frame_count"]), data["masklet"]
        number = int(data["masklet_num"])
        if len(masklets) > -(-length // EVERY) or any(len(row) != number for row in masklets):
            raise ValueError(f"{len(masklets)} frames of masks for a video of {length} and {number} objects")
        annotated = torch.zeros(number, length, dtype=torch.bool)
        annotated[:, : len(masklets) * EVERY : EVERY] = True
        nothing = {"size": size, "counts": [size[0] * size[1]]}
        rows = [masklets[t // EVERY][n] if annotated[n, t] else nothing for n in range(number) for t in range(length)]
        return Tracks(name, size, read_masks(rows, size, str(file.name)), annotated, torch.ones(number))
    except KeyError as error:
        raise InputError(f"expected masks as SA-V has them in {file}, got a json without the key {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"expected masks as SA-V has them in {file}, got: {error}") from None
