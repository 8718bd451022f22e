"""Folders of images beside folders of label maps: DAVIS 2016 and 2017, MOSE, VIPSeg, SA-V's validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from s2d.data.datasets.sample import Sample
from s2d.data.datasets.splits import choose_split, listed_names
from s2d.data.files import read_json
from s2d.data.image_folder import SUFFIXES, list_images, natural_order
from s2d.data.label_maps import read_labels
from s2d.data.types import Tracks
from s2d.errors import InputError
from s2d.ops import RLE, rle_encode


@dataclass(frozen=True)
class Layout:
    """Where a format keeps what.

    Attributes:
        images: folder of the videos' folders of images.
        masks: folder of the videos' folders of label maps.
        lists: patterns of the lists of the videos of a split; the last word of the file's name is the split's.
        least: labels below are no instances; 0 is never one.
        dense: whether every image has a label map, or only the first of the video has (what is to be predicted).
        per_object: whether each object has a folder of its own with masks that may overlap.
        segments: pattern of the json files that say which colours of a video are things, where label maps have colours.
    """

    images: str
    masks: str
    lists: tuple[str, ...] = ()
    least: int = 1
    dense: bool = False
    per_object: bool = False
    segments: str = ""


# VIPSeg: labels up to 124 are stuff, an instance is 100 times its category and a number (README of VIPSeg-Dataset).
LAYOUTS = {
    "davis": (
        Layout("JPEGImages/480p", "Annotations/480p", ("ImageSets/2017/*.txt", "ImageSets/480p/*.txt"), dense=True),
        Layout("JPEGImages/Full-Resolution", "Annotations/Full-Resolution", ("ImageSets/2017/*.txt",), dense=True),
    ),
    "vipseg": (
        Layout("imgs", "panomasks", ("*.txt",), least=125, dense=True),
        Layout("images", "panomasks", ("*.txt",), least=125, dense=True),
        Layout("images", "panomasksRGB", ("*.txt",), dense=True, segments="panoptic_gt_VIPSeg*.json"),
    ),
    "sav-frames": (Layout("JPEGImages_24fps", "Annotations_6fps", ("sav_*.txt",), per_object=True),),
    "mose": (Layout("JPEGImages", "Annotations"),),
}


def fits(name: str, path: Path) -> bool:
    """Whether the folder, or of MOSE one of the splits in it, has the folders of format ``name``."""
    return _layout(name, path) is not None or (name == "mose" and bool(_splits(name, path)))


def _layout(name: str, path: Path) -> Layout | None:
    there = (layout for layout in LAYOUTS[name] if (path / layout.images).is_dir())
    return next((layout for layout in there if (path / layout.masks).is_dir()), None)


def _splits(name: str, path: Path) -> dict[str, Path]:
    folders = path.iterdir() if path.is_dir() else ()
    return {folder.name: folder for folder in folders if folder.is_dir() and _layout(name, folder)}


def read(name: str, path: Path, split: str | None) -> list[Sample]:
    """The videos of a folder of format ``name``; of MOSE also of the folder above the splits."""
    if name == "mose" and _layout(name, path) is None and (splits := _splits(name, path)):
        path = choose_split(splits, split, path)
    layout = _layout(name, path)
    if layout is None:
        folders = " or ".join(f"{known.images} and {known.masks}" for known in LAYOUTS[name])
        raise InputError(f"expected the folders {folders} in {path}, got none of them")
    things = _things(path, layout.segments) if layout.segments else None
    samples = []
    for video in _videos(layout, path, split):
        known = None if things is None else things.get(video, set())
        samples.append(_sample(layout, path, video, known))
    return samples


def _things(path: Path, pattern: str) -> dict[str, set[int]]:
    """By video, the labels that `read_labels` gives things, from COCO's panoptic json for videos."""
    files = sorted(path.glob(pattern))
    if not files:
        raise InputError(f"expected a json named {pattern} in {path}, which says what colours are things, got none")
    found: dict[str, set[int]] = {}
    for file in files:
        data = read_json(file)
        try:
            things = {category["id"] for category in data["categories"] if category["isthing"]}
            for video in data["annotations"]:
                known = found.setdefault(video["video_id"], set())
                for segment in (segment for image in video["annotations"] for segment in image["segments_info"]):
                    if segment["category_id"] in things:
                        # COCO's id has red in the lowest byte.
                        blue, green, red = int(segment["id"]).to_bytes(3, "big")
                        known.add(red << 16 | green << 8 | blue)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(f"expected COCO's panoptic json in {file}, got one that cannot be used: {error}") from None
    return found


def _videos(layout: Layout, path: Path, split: str | None) -> list[str]:
    lists: dict[str, Path] = {}
    for pattern in layout.lists:
        for file in sorted(path.glob(pattern)):
            lists.setdefault(file.stem.split("_")[-1], file)
    if split is None or not lists:
        folders = (p for p in (path / layout.images).iterdir() if p.is_dir() and p.name[0] != ".")
        return sorted((p.name for p in folders), key=natural_order)
    # DAVIS 2016 lists pairs of files, /JPEGImages/480p/bear/00000.jpg first: their folders are the videos.
    names = [line.split()[0] for line in listed_names(choose_split(lists, split, path))]
    return list(dict.fromkeys(Path(name).parent.name if Path(name).suffix in SUFFIXES else name for name in names))


def _sample(layout: Layout, path: Path, video: str, things: set[int] | None) -> Sample:
    folder, masks = path / layout.images / video, path / layout.masks / video
    images = tuple(list_images(folder, SUFFIXES)) if folder.is_dir() else ()
    objects: list[list[Path]] = []
    if masks.is_dir():
        parts = sorted((p for p in masks.iterdir() if p.is_dir()), key=lambda p: natural_order(p.name))
        objects = [list_images(part, (".png",)) for part in (parts if layout.per_object else [masks])]
    files = tuple(file for part in objects for file in part)
    tracks = partial(_tracks, layout, video, images, objects, things) if files else None
    return Sample(video, images, annotations=files, _tracks=tracks)


def _tracks(
    layout: Layout, video: str, images: Sequence[Path], objects: list[list[Path]], things: set[int] | None
) -> Tracks:
    """Every label of every list of label maps is an instance, annotated on the frames that its list has a map of.

    Args:
        things: only these labels; None: all from ``layout.least`` on.
    """
    frame_of = {image.stem: t for t, image in enumerate(images)}
    if layout.dense and any(1 < len(files) < len(images) for files in objects):
        number = sum(map(len, objects))
        raise InputError(f"expected a label map for each of the {len(images)} images of {video}, got {number}")
    rows: list[RLE] = []
    annotated: list[torch.Tensor] = []
    size: tuple[int, int] | None = None
    for files in objects:
        found: dict[int, dict[int, RLE]] = {}
        seen = torch.zeros(len(frame_of), dtype=torch.bool)
        for file in files:
            if file.stem not in frame_of:
                raise InputError(f"expected an image for every label map, got none for {file}")
            labels = read_labels(file)
            size = size or labels.shape
            if labels.shape != size:
                (h, w), (height, width) = labels.shape, size
                raise InputError(f"expected label maps of one size, {width} x {height}, got {w} x {h} in {file}")
            t = frame_of[file.stem]
            seen[t] = True
            values = np.unique(labels)
            values = values[values >= layout.least if things is None else np.isin(values, list(things))]
            codes = rle_encode(torch.from_numpy(labels[None] == values[:, None, None]))
            for n, value in enumerate(values.tolist()):
                found.setdefault(value, {})[t] = codes[n]
        nothing = rle_encode(torch.zeros(1, *size, dtype=torch.bool))
        for _, own in sorted(found.items()):
            rows += [own.get(t, nothing) for t in range(len(frame_of))]
            annotated.append(seen)
    seen = torch.stack(annotated) if annotated else torch.zeros(0, len(frame_of), dtype=torch.bool)
    return Tracks(video, size, RLE.cat(rows), seen, torch.ones(len(annotated)))
