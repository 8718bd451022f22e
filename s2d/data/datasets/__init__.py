"""Datasets as the field has them on disk, all read into the same types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from s2d.data.datasets import label_folders, sav, video_files, ytvis_json
from s2d.data.datasets.sample import Dataset, Sample, write_dataset
from s2d.data.video_folder import holds_videos
from s2d.errors import InputError

__all__ = ["FORMATS", "Dataset", "Format", "Sample", "open_dataset", "write_dataset"]


class Format(NamedTuple):
    """Whether a path looks like the format, and what reads it: ``read(path, split)``."""

    fits: Callable[[Path], bool]
    read: Callable[[Path, str | None], list[Sample]]


def _label_folders(name: str) -> Format:
    return Format(partial(label_folders.fits, name), partial(label_folders.read, name))


# Asked in this order: YouTube-VOS, which has a json of another kind beside its label maps, is read as MOSE.
FORMATS: dict[str, Format] = {
    **{name: _label_folders(name) for name in label_folders.LAYOUTS},
    "sav": Format(sav.fits, sav.read),
    "ytvis": Format(ytvis_json.fits, ytvis_json.read),
    "videos": Format(holds_videos, video_files.read),
}


def open_dataset(path: str | Path, format: str | None = None, split: str | None = None) -> Dataset:
    """Find the videos of a dataset; pixels and masks are read when they are asked for.

    ========== =============================================================== ================================
    format     what is on disk                                                 splits
    ========== =============================================================== ================================
    ytvis      YouTube-VIS 2019/2021/2022, OVIS, or this package's own json    one json each
    davis      DAVIS 2016 and 2017: JPEGImages/480p, Annotations/480p          lists in ImageSets
    mose       JPEGImages and Annotations                                      folders above them
    vipseg     imgs and panomasks, or images and panomasksRGB; things only     train.txt, val.txt, test.txt
    sav        SA-V's mp4 and json, masks on every fourth frame                none
    sav-frames SA-V's validation and test: JPEGImages_24fps, Annotations_6fps  sav_val.txt, sav_test.txt
    videos     a folder of video files or of folders of images, without masks  none
    ========== =============================================================== ================================

    Args:
        path: the dataset's folder; for ``ytvis`` the json will do, too.
        format: None takes the first that ``path`` looks like.
        split: name of one; None takes everything, or the only one.

    Raises:
        InputError: nothing there, no format that fits, no such split, a json that cannot be read, or two videos of a
            name.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"expected a dataset at {path}, got nothing: no such file or folder")
    if format is not None and format not in FORMATS:
        raise InputError(f"expected the format to be one of {', '.join(FORMATS)}, got {format!r}")
    name = format or next((name for name, known in FORMATS.items() if known.fits(path)), None)
    if name is None:
        raise InputError(f"expected a dataset of one of the formats {', '.join(FORMATS)} at {path}, got none of them")
    samples = FORMATS[name].read(path, split)
    name_twice = next((n for n, count in Counter(sample.name for sample in samples).items() if count > 1), None)
    if name_twice is not None:
        raise InputError(f"expected videos of different names in {path}, got several named {name_twice}")
    return Dataset(name, path, tuple(samples))
