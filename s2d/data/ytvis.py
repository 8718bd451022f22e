"""The json of YouTube-VIS: instance tracks and keymasks in files that people already have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2d.data.files import read_json, write_json
from s2d.data.types import Keymasks, Tracks
from s2d.errors import InputError
from s2d.ops import RLE, rle_area, rle_bbox

CATEGORIES = [{"id": 1, "name": "fg"}]


def ytvis_dict(videos: Tracks | Sequence[Tracks], *, fps: float | None = None) -> dict[str, Any]:
    """A whole YouTube-VIS dictionary: ``info``, ``videos``, ``categories`` and ``annotations``.

    Every instance is one annotation of category 1 ("fg") with a ``score``; ``segmentations``, ``bboxes`` (x, y, width,
    height) and ``areas`` have one entry a frame, null where the instance is not annotated. `Keymasks` add
    ``mask_scores``, ``one2x`` (2 decimals) and ``visibility_ranges``. Ids count from 1.

    Args:
        videos: the tracks of one video, or of several (with different names).
        fps: written into each video where given.
    """
    videos = [videos] if isinstance(videos, Tracks) else list(videos)
    annotations: list[dict] = []
    for video_id, tracks in enumerate(videos, 1):
        for annotation in _annotations(tracks):
            annotations.append({"id": len(annotations) + 1, "video_id": video_id, **annotation})
    return {
        "info": {"description": "class-agnostic instance tracks written by s2d"},
        "videos": [_video(number, tracks, fps) for number, tracks in enumerate(videos, 1)],
        "categories": CATEGORIES,
        "annotations": annotations,
    }


def write_ytvis(path: str | os.PathLike, videos: Tracks | Sequence[Tracks], *, fps: float | None = None) -> None:
    """Write `ytvis_dict` as json; the file appears when it is complete."""
    write_json(path, ytvis_dict(videos, fps=fps))


def read_ytvis(path: str | os.PathLike) -> list[Tracks]:
    """The tracks of every video in a YouTube-VIS json, in the file's order.

    Takes what `write_ytvis` wrote and official ground truth: run lengths compressed or not, null in frames without
    annotation. A missing ``score`` reads 1. Categories and ``iscrowd`` are left out: the method knows one class.
    A video whose annotations carry ``mask_scores`` is returned as `Keymasks`.

    Raises:
        InputError: not such a file, or an annotation that cannot be used; names it.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("videos"), list):
        raise InputError(f"expected a YouTube-VIS json with a list of videos in {path}, got another kind of json")
    annotations: dict[Any, list[dict]] = {}
    try:
        for annotation in data.get("annotations") or []:
            annotations.setdefault(annotation["video_id"], []).append(annotation)
        return [read_video(video, annotations.get(video["id"], [])) for video in data["videos"]]
    except KeyError as error:
        raise InputError(f"expected a YouTube-VIS json in {path}, got one without the key {error}") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"expected a YouTube-VIS json in {path}, got one that cannot be used: {error}") from None


def shortest(value: float | Tensor) -> float:
    """A float32 as the float that prints with the fewest digits and reads back as the same float32."""
    return float(np.format_float_scientific(np.float32(value), unique=True))


def video_name(video: dict[str, Any], otherwise: str) -> str:
    """The name of an entry of ``videos``; official ones have it in their file names alone."""
    files = video.get("file_names") or [""]
    return video.get("name") or PurePosixPath(files[0]).parent.name or otherwise


def _video(video_id: int, tracks: Tracks, fps: float | None) -> dict[str, Any]:
    height, width = tracks.size
    return {
        "id": video_id,
        "name": tracks.video,
        "width": width,
        "height": height,
        "length": tracks.num_frames,
        "file_names": [f"{tracks.video}/{t:05d}.jpg" for t in range(tracks.num_frames)],
        **({} if fps is None else {"fps": fps}),
    }


def _annotations(tracks: Tracks) -> list[dict[str, Any]]:
    number, length = tracks.annotated.shape
    height, width = tracks.size
    there = tracks.annotated.reshape(-1).nonzero().flatten()
    codes = tracks.rle[there]
    boxes, areas, strings = rle_bbox(codes).tolist(), rle_area(codes).tolist(), codes.to_coco()
    place = {index: n for n, index in enumerate(there.tolist())}
    rows = []
    for n in range(number):
        own = [place.get(n * length + t) for t in range(length)]
        row = {
            "category_id": 1,
            "iscrowd": 0,
            "width": width,
            "height": height,
            "length": length,
            "score": shortest(tracks.scores[n]),
            "segmentations": [None if i is None else strings[i] for i in own],
            "bboxes": [None if i is None else boxes[i] for i in own],
            "areas": [None if i is None else areas[i] for i in own],
        }
        if isinstance(tracks, Keymasks):
            row["mask_scores"] = [shortest(score) for score in tracks.mask_scores[n]]
            row["one2x"] = round(float(tracks.one2x[n]), 2)
            row["visibility_ranges"] = [list(span) for span in tracks.visibility_ranges[n]]
        rows.append(row)
    return rows


def read_video(video: dict, annotations: list[dict]) -> Tracks:
    """The tracks of one entry of ``videos``; KeyError, TypeError or ValueError for what cannot be used."""
    size = int(video["height"]), int(video["width"])
    files = video.get("file_names") or []
    length = int(video.get("length") or len(files))
    name = video_name(video, f"video {video['id']}")
    rle = RLE.cat(_read_tube(annotation, size, length) for annotation in annotations)
    present = [[item is not None for item in annotation["segmentations"]] for annotation in annotations]
    annotated = torch.tensor(present, dtype=torch.bool).reshape(len(annotations), length)
    scores = torch.tensor([annotation.get("score", 1.0) for annotation in annotations], dtype=torch.float32)
    if not any("mask_scores" in annotation for annotation in annotations):
        return Tracks(name, size, rle, annotated, scores)
    mask_scores = torch.tensor([annotation["mask_scores"] for annotation in annotations], dtype=torch.float32)
    return Keymasks(
        name,
        size,
        rle,
        annotated,
        scores,
        mask_scores=mask_scores,
        one2x=torch.tensor([annotation["one2x"] for annotation in annotations], dtype=torch.float32),
        visibility_ranges=tuple(
            tuple((int(first), int(last)) for first, last in annotation["visibility_ranges"])
            for annotation in annotations
        ),
    )


def _read_tube(annotation: dict, size: tuple[int, int], length: int) -> RLE:
    """The masks of one annotation, an empty one where the file says null."""
    items = annotation["segmentations"]
    where = f"annotation {annotation.get('id')}"
    if len(items) != length:
        raise ValueError(f"{where}: expected {length} segmentations, got {len(items)}")
    return read_masks([{"size": size, "counts": [size[0] * size[1]]} if i is None else i for i in items], size, where)


def read_masks(items: Sequence[Any], size: tuple[int, int], where: str) -> RLE:
    """COCO segmentations of one size; ValueError that begins with ``where`` for polygons, other sizes, broken codes."""
    for index, item in enumerate(items):
        if isinstance(item, list):
            raise ValueError(f"{where}: expected masks as run lengths, got polygons, which this version does not read")
        if tuple(item["size"]) != size:
            raise ValueError(f"{where}: expected masks of {size[1]} x {size[0]}, got {item['size']} for mask {index}")
    try:
        return RLE.from_coco(items)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
