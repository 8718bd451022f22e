"""s2d.rle against pycocotools.mask, call by call.

With ``$S2D_TEST_DATA`` set, real annotations are among the cases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Comparison, peer_module
from s2d import rle
from s2d.testing.cases.rle import masks, tubes

coco = peer_module("pycocotools.mask")

# A case: its name, and calls of a module with the functions of pycocotools.mask.
Calls = dict[str, Callable]


def columns(dense: torch.Tensor) -> np.ndarray:
    return np.asfortranarray(dense.permute(1, 2, 0).numpy().astype(np.uint8))


def code_calls(codes: list[dict]) -> Calls:
    no_crowd = [0] * len(codes)
    return {
        "area": lambda module: module.area(codes),
        "toBbox": lambda module: module.toBbox(codes),
        "merge": lambda module: module.merge(codes),
        "merge intersect": lambda module: module.merge(codes, 1),
        "iou": lambda module: module.iou(codes, codes, no_crowd),
        "decode": lambda module: module.decode(codes),
    }


def mask_calls(pixels: np.ndarray) -> Calls:
    return {"encode": lambda module: module.encode(pixels), **code_calls(coco.encode(pixels))}


def single_calls(pixels: np.ndarray) -> Calls:
    """Of one object, not of a list."""
    mask, code = pixels[:, :, 0], coco.encode(pixels[:, :, 0])
    uncompressed = {"size": [30, 40], "counts": [100, 30, 1070]}
    return {
        "encode": lambda module: module.encode(mask),
        "decode": lambda module: module.decode(code),
        "area": lambda module: module.area(code),
        "toBbox": lambda module: module.toBbox(code),
        "frPyObjects uncompressed": lambda module: module.frPyObjects(uncompressed, 30, 40),
    }


def star_polygons(number: int, vertices: int) -> list[list[float]]:
    numbers = np.random.default_rng(0)
    angles = np.sort(numbers.random((number, vertices))) * 2 * np.pi
    radius = (40 + 60 * numbers.random((number, 1))) * (0.7 + 0.6 * numbers.random((number, vertices)))
    centre = numbers.random((number, 1, 2)) * [640, 480]
    corners = centre + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=2)
    return corners.reshape(number, -1).tolist()


def shape_calls(polygons: list[list[float]], boxes: np.ndarray) -> Calls:
    listed, no_crowd = boxes.tolist(), [0] * len(boxes)
    return {
        "frPyObjects polygons": lambda module: module.frPyObjects(polygons, 480, 640),
        "frPyObjects boxes": lambda module: module.frPyObjects(boxes, 480, 640),
        "iou boxes, lists": lambda module: module.iou(listed, listed, no_crowd),
        "iou boxes, arrays": lambda module: module.iou(boxes, boxes, no_crowd),
    }


def real_calls(folder: Path) -> Calls:
    """The annotations of 100 images, image by image, as an evaluation has them."""
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    annotations = [(item["segmentation"], *sizes[item["image_id"]]) for item in data["annotations"]]
    groups: dict[int, list[dict]] = {image: [] for image in sizes}
    for item, arguments in zip(data["annotations"], annotations, strict=True):
        code = coco.frPyObjects(*arguments)
        groups[item["image_id"]].append(coco.merge(code) if isinstance(code, list) else code)
    codes = [code for group in groups.values() for code in group]
    return {
        "frPyObjects": lambda module: [module.frPyObjects(*arguments) for arguments in annotations],
        "area": lambda module: module.area(codes[:255]),
        "toBbox": lambda module: module.toBbox(codes),
        "merge": lambda module: [module.merge(group) for group in groups.values()],
        "iou": lambda module: [module.iou(group, group, [0] * len(group)) for group in groups.values()],
        "decode": lambda module: [module.decode(code) for code in codes[:100]],
    }


def cases(quick: bool) -> Iterator[tuple[str, Calls]]:
    number, height, width = (10, 120, 214) if quick else (100, 480, 854)
    small = columns(tubes(1, 1, 30, 40)[:, 0])
    yield "one object 30x40", single_calls(small)
    yield "a list of one 30x40", mask_calls(small)
    yield f"{number} blobs {height}x{width}", mask_calls(columns(tubes(number, 1, height, width)[:, 0]))
    yield f"{number // 5} noisy {height}x{width}", mask_calls(columns(masks((number // 5, height, width), 0.02)))
    boxes = np.random.default_rng(1).random((5 * number, 4)) * 100
    yield "one shape", shape_calls(star_polygons(1, 40), boxes[:1])
    yield f"{10 * number} polygons of 40, {len(boxes)} boxes", shape_calls(star_polygons(10 * number, 40), boxes)
    if data := os.environ.get("S2D_TEST_DATA"):
        yield "COCO val2014, 100 images", real_calls(Path(data) / "data/eval/coco_val2014_100")


def equal(ours, theirs) -> bool:
    if isinstance(theirs, (np.ndarray, np.generic)):
        return np.array_equal(ours, theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def measure(quick: bool) -> Iterator[Comparison]:
    if torch.get_num_threads() > 1:
        return  # neither side has threads
    for case, calls in cases(quick):
        for op, call in calls.items():
            yield Comparison(
                f"s2d.rle.{op}",
                lambda call=call: call(rle),
                lambda call=call: call(coco),
                peer="pycocotools",
                agree=equal,
                case=case,
                seconds=0.2 if quick else 1.0,
            )
