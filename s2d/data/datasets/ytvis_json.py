"""YouTube-VIS 2019, 2021 and 2022, OVIS, and what this package writes: one json beside folders of images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from s2d.data.datasets.sample import Sample
from s2d.data.datasets.splits import choose_split
from s2d.data.files import read_json
from s2d.data.types import Tracks
from s2d.data.ytvis import read_video, video_name
from s2d.errors import InputError

# Relative to the json: beside it, in a folder of the split's name, or the same one floor up.
_IMAGE_FOLDERS = (
    *("{split}/JPEGImages", "JPEGImages", "{split}", "frames", "images", ""),
    *("../{split}/JPEGImages", "../JPEGImages", "../{split}"),
)
_SPLITS = ("train", "valid", "val", "test")


def fits(path: Path) -> bool:
    """Whether there is such a json at ``path`` or in the folder ``path``."""
    return bool(_find(path))


def read(path: Path, split: str | None) -> list[Sample]:
    """The videos of the json at ``path`` or in the folder ``path``."""
    files = _find(path)
    if not files:
        raise InputError(f"expected a YouTube-VIS json in {path}, got none")
    file = path if path.is_file() else choose_split(files, split, path)
    data = read_json(file)
    if not isinstance(data, dict) or not isinstance(data.get("videos"), list):
        raise InputError(f"expected a YouTube-VIS json with a list of videos in {file}, got another kind of json")
    annotations: dict[Any, list[dict]] = {}
    try:
        for annotation in data.get("annotations") or []:
            annotations.setdefault(annotation["video_id"], []).append(annotation)
        known = data.get("annotations") is not None
        images = _image_folder(file, data["videos"])
        return [_sample(v, annotations.get(v["id"], []) if known else None, images, file) for v in data["videos"]]
    except KeyError as error:
        raise InputError(f"expected a YouTube-VIS json in {file}, got one without the key {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"expected a YouTube-VIS json in {file}, got one that cannot be used: {error}") from None


def _sample(video: dict, annotations: list[dict] | None, images: Path, file: Path) -> Sample:
    names = video["file_names"]
    return Sample(
        name=video_name(video, f"video {video['id']}"),
        source=tuple(images / name for name in names),
        size=(int(video["height"]), int(video["width"])),
        num_frames=int(video.get("length", len(names))),
        annotations=(file,),
        _tracks=None if annotations is None else partial(_tracks, video, annotations, file),
    )


def _tracks(video: dict, annotations: list[dict], file: Path) -> Tracks:
    try:
        return read_video(video, annotations)
    except KeyError as error:
        raise InputError(f"expected the masks of video {video['id']} in {file}, got none of key {error}") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"expected masks that can be used of video {video['id']} in {file}, got: {error}") from None


def _image_folder(file: Path, videos: list[dict]) -> Path:
    """Where the names of the first video that has any are files; beside the json where they are nowhere."""
    names = [video["file_names"][0] for video in videos if video.get("file_names")]
    split = file.parent.name if file.stem in ("instances", "keymasks") else file.stem
    splits = [split, *(name for name in _SPLITS if name in split)]
    for pattern in _IMAGE_FOLDERS:
        for name in splits:
            folder = file.parent / pattern.format(split=name)
            if any((folder / first).is_file() or (folder / first).parent.is_dir() for first in names[:20]):
                return folder
    return file.parent


def _find(path: Path) -> dict[str, Path]:
    """By split: the json itself, or those in the folder, in its annotations and in the folders of its splits."""
    if path.is_file():
        return {path.stem: path} if path.suffix == ".json" else {}
    folders = [path, path / "annotations", *(path / name for name in _SPLITS)]
    found: dict[str, Path] = {}
    for file in (file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))):
        if _looks_right(file):
            label = _label(file, path)
            found[file.stem if label in found else label] = file
    return found


def _label(file: Path, root: Path) -> str:
    """The split that a json is of: ``train.json``, ``annotations_train.json``, ``train/instances.json``."""
    if file.parent != root and file.parent.name in _SPLITS:
        return file.parent.name
    return next((name for name in _SPLITS if name in file.stem.lower().split("_")), file.stem)


def _looks_right(file: Path) -> bool:
    """Whether the file begins like a dictionary with "videos"; where they come late in a large file, `read` decides."""
    with file.open("rb") as opened:
        head = opened.read(1 << 16)
    complete = file.stat().st_size == len(head)
    return head.lstrip()[:1] == b"{" and b'"masklet"' not in head and (b'"videos"' in head or not complete)
