"""COCO json for the masks of single frames: one image a frame."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from s2d.data.files import read_json, write_json
from s2d.data.image_folder import natural_order
from s2d.data.types import FrameMasks
from s2d.data.ytvis import CATEGORIES, read_masks, shortest
from s2d.errors import InputError
from s2d.ops import RLE, rle_area, rle_bbox


def write_proposals(path: str | os.PathLike, masks: FrameMasks) -> None:
    """Write single-frame masks as a COCO dictionary: an image for every frame, an annotation with ``score`` a mask."""
    height, width = masks.size
    frames, boxes, areas = masks.frames.tolist(), rle_bbox(masks.rle).tolist(), rle_area(masks.rle).tolist()
    annotations = [
        {
            "id": n + 1,
            "image_id": frames[n] + 1,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": code,
            "bbox": boxes[n],
            "area": areas[n],
            "score": shortest(masks.scores[n]),
        }
        for n, code in enumerate(masks.rle.to_coco())
    ]
    images = [
        {"id": t + 1, "file_name": f"{masks.video}/{t:05d}.jpg", "width": width, "height": height, "frame_id": t}
        for t in range(masks.num_frames)
    ]
    info = {"description": "single-frame masks written by s2d"}
    write_json(path, {"info": info, "images": images, "categories": CATEGORIES, "annotations": annotations})


def read_proposals(path: str | os.PathLike) -> FrameMasks:
    """The masks of a COCO json whose images are the frames of one video.

    Frames are ordered by ``frame_id`` where all images have one, else by file name in natural order. A missing
    ``score`` reads 1.

    Raises:
        InputError: not such a file, images of different sizes, or an annotation that cannot be used; names it.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list) or not data["images"]:
        raise InputError(f"expected a COCO json with a list of images in {path}, got another kind of json")
    try:
        return _read(data, Path(path).stem)
    except KeyError as error:
        raise InputError(f"expected a COCO json in {path}, got one without the key {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"expected a COCO json in {path}, got one that cannot be used: {error}") from None


def _read(data: dict[str, Any], stem: str) -> FrameMasks:
    images = data["images"]
    if all("frame_id" in image for image in images):
        images = sorted(images, key=lambda image: image["frame_id"])
    else:
        images = sorted(images, key=lambda image: natural_order(image["file_name"]))
    size = int(images[0]["height"]), int(images[0]["width"])
    for image in images:
        if (image["height"], image["width"]) != size:
            found = f"{image['width']} x {image['height']} for {image['file_name']}"
            raise ValueError(f"expected images of one size, {size[1]} x {size[0]}, got {found}")
    frame_of = {image["id"]: t for t, image in enumerate(images)}
    annotations = sorted(data.get("annotations") or [], key=lambda annotation: frame_of[annotation["image_id"]])
    codes = [read_masks([a["segmentation"]], size, f"annotation {a.get('id')}") for a in annotations]
    return FrameMasks(
        video=PurePosixPath(images[0]["file_name"]).parent.name or stem,
        size=size,
        num_frames=len(images),
        rle=RLE.cat(codes),
        frames=torch.tensor([frame_of[a["image_id"]] for a in annotations], dtype=torch.int64),
        scores=torch.tensor([a.get("score", 1.0) for a in annotations], dtype=torch.float32),
    )
