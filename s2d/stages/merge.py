"""Merge: the YTVIS json of thousands of videos as one, read and written one after another."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from s2d.data.files import atomic_write, read_json
from s2d.data.image_folder import list_images
from s2d.data.ytvis import video_name, ytvis_dict
from s2d.errors import InputError

PRODUCTS = ("failed.json", "keymasks.json")
"""What lies beside the files of single videos in the results of a dataset."""

_IN_MEMORY = 1 << 24


@dataclass(frozen=True)
class Merged:
    """What a merged file holds: ``videos`` and ``instances``; ``dropped`` instances were ambiguous."""

    videos: int
    instances: int
    dropped: int

    def text(self) -> str:
        dropped = f", without {self.dropped:,} that are ambiguous" if self.dropped else ""
        return f"{self.instances:,} instances in {self.videos:,} videos{dropped}"


def merge(files: Sequence[Path], output: Path, *, one2x: float | None = None, progress: bool = True) -> Merged:
    """Write one YTVIS json of many; ids count from 1, in the order of the files, everything else stays as it is.

    One file is in memory at a time, so that their number does not matter.

    Args:
        files: YTVIS json, each of one video or several.
        output: appears when it is complete.
        one2x: instances are left out whose ``one2x`` (the share of their masks that cover two or more masks in many
            frames) is greater; None keeps all, and so does an instance without that number.
        progress: show a bar.

    Raises:
        InputError: a threshold outside [0, 1], no files, a file that is no such json, or a video in two of them.
    """
    check_one2x(one2x)
    if not files:
        raise InputError("expected at least one json of a video, got none")
    header = {key: value for key, value in ytvis_dict([]).items() if value}
    most = 1.0 if one2x is None else one2x
    places: dict[str, Path] = {}
    dropped = 0
    # Videos come last in the file: until then they wait, on disk where they are many.
    with (
        atomic_write(output) as temporary,
        temporary.open("w", encoding="utf-8") as target,
        tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8", dir=output.parent) as spool,
    ):
        target.write(json.dumps(header)[:-1] + ', "annotations": [')
        videos, annotations = _Items(spool), _Items(target)
        for file in tqdm(files, desc="merge", unit="file", disable=not progress):
            for name, video, instances in _read(file):
                if name in places:
                    raise InputError(
                        f"expected each video in one file, got {name} in {places[name].name} and {file.name}"
                    )
                places[name] = file
                videos.add(video)
                for instance in instances:
                    if (instance.get("one2x") or 0.0) > most:
                        dropped += 1
                    else:
                        annotations.add(instance, video_id=videos.number, category_id=1)
        target.write('], "videos": [')
        spool.seek(0)
        shutil.copyfileobj(spool, target)
        target.write("]}\n")
    return Merged(videos.number, annotations.number, dropped)


def check_one2x(most: float | None) -> None:
    """InputError for a threshold outside [0, 1]."""
    if most is not None and not 0 <= most <= 1:
        raise InputError(f"expected one2x in [0, 1], got {most}")


def list_results(folder: Path) -> list[Path]:
    """The json files of single videos in a folder, in natural order; not what else discovery of a dataset puts there.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of json files at {folder}, got no folder")
    return [path for path in list_images(folder, (".json",)) if path.name not in PRODUCTS]


class _Items:
    """Writes the items of a JSON list, with ids from 1."""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self.number = 0

    def add(self, item: dict[str, Any], **changes: Any) -> None:
        self._target.write(", " if self.number else "")
        self.number += 1
        numbered = {**item, **changes, "id": self.number}
        self._target.write(json.dumps(numbered, ensure_ascii=False, allow_nan=False))


def _read(file: Path) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Name, entry and instances of each video of a file."""
    data = read_json(file)
    try:
        instances: dict[Any, list[dict]] = {video["id"]: [] for video in data["videos"]}
        for annotation in data["annotations"]:
            instances[annotation["video_id"]].append(annotation)
        return [(video_name(video, file.stem), video, instances[video["id"]]) for video in data["videos"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"expected a YouTube-VIS json in {file}, got one that cannot be used: {error}") from None
