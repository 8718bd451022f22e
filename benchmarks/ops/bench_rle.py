"""rle against pycocotools: python -m benchmarks.ops.bench_rle [--quick] [--save]"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco

from benchmarks.harness import Pair, compare, main
from s2d.ops import RLE, rle_area, rle_bbox, rle_decode, rle_encode, rle_iou, unpack_masks
from s2d.testing.cases.rle import masks, tubes


def coco_encode(dense: torch.Tensor) -> list[dict]:
    """From masks as torch has them, row by row: pycocotools wants columns."""
    return coco.encode(np.asfortranarray(dense.permute(1, 2, 0).numpy().view(np.uint8)))


def measure(quick: bool) -> list[Pair]:
    number, height, width = (10, 120, 214) if quick else (100, 480, 854)
    seconds = 0.3 if quick else 2.0
    pairs = []
    for kind, dense in (
        ("blobs", tubes(number, 1, height, width)[:, 0]),
        ("noisy", masks((number // 5, height, width), 0.02)),
    ):
        case = f"{len(dense)} {kind} {height}x{width}"
        rle, codes = rle_encode(dense), coco_encode(dense)

        def pair(op, ours, other, agree, goal=None, case=case):
            return compare(op, ours, other, peer="pycocotools", agree=agree, case=case, goal=goal, seconds=seconds)

        pairs += [
            pair(
                "rle_encode to strings",
                lambda dense=dense: rle_encode(dense).to_coco(),
                lambda dense=dense: coco_encode(dense),
                lambda a, b: [x["counts"].encode() for x in a] == [x["counts"] for x in b],
                goal=8,
            ),
            pair(
                "rle_decode from strings",
                lambda codes=codes: unpack_masks(rle_decode(RLE.from_coco(codes))),
                lambda codes=codes: coco.decode(codes),
                lambda a, b: np.array_equal(a.permute(1, 2, 0).numpy(), b),
            ),
            pair(
                "rle_area",
                lambda rle=rle: rle_area(rle),
                lambda codes=codes: coco.area(codes),
                lambda a, b: np.array_equal(a.numpy(), b),
                goal=3,
            ),
            pair(
                "rle_bbox",
                lambda rle=rle: rle_bbox(rle),
                lambda codes=codes: coco.toBbox(codes),
                lambda a, b: np.array_equal(a.numpy(), b),
                goal=3,
            ),
            pair(
                "rle_iou",
                lambda rle=rle: rle_iou(rle, rle),
                lambda codes=codes: coco.iou(codes, codes, [0] * len(codes)),
                lambda a, b: np.array_equal(a.numpy(), b),
                goal=8 if kind == "blobs" else 50,
            ),
        ]
    return pairs


if __name__ == "__main__":
    main("rle", measure)
