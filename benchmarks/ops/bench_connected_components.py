"""connected_components against cc3d, OpenCV and SciPy: python -m benchmarks.ops.bench_connected_components [--quick]"""

from __future__ import annotations

import cc3d
import cv2
import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from benchmarks.harness import Pair, compare, main
from s2d.ops import connected_components, fill_holes, pack_masks, remove_small, unpack_masks
from s2d.testing.cases.connected_components import blobs, noise

CONNECTIVITY, SMALLEST = 8, 50
EIGHT, FOUR = scipy.ndimage.generate_binary_structure(2, 2), scipy.ndimage.generate_binary_structure(2, 1)


def cc3d_labels(masks: np.ndarray) -> list[np.ndarray]:
    return [cc3d.connected_components(mask, connectivity=CONNECTIVITY) for mask in masks]


def cc3d_areas(masks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and the list of areas, the cheapest way to it: numpy counts faster than cc3d.statistics."""
    return [(labels, np.bincount(labels.reshape(-1))) for labels in cc3d_labels(masks)]


def cv2_areas(masks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    found = [cv2.connectedComponentsWithStats(mask, connectivity=CONNECTIVITY) for mask in masks]
    return [(labels, stats[:, cv2.CC_STAT_AREA]) for _, labels, stats, _ in found]


def scipy_areas(masks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(labels, np.bincount(labels.reshape(-1))) for labels, _ in (scipy.ndimage.label(m, EIGHT) for m in masks)]


def same_parts(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two labellings tell the same pixels apart: not every library numbers the parts in the order of ours."""
    pairs = np.unique(ours.astype(np.int64) << 32 | theirs)
    return len(pairs) == ours.max(initial=0) + 1 == theirs.max(initial=0) + 1 and np.array_equal(ours > 0, theirs > 0)


def labels_agree(ours: tuple[Tensor, Tensor], theirs: list[np.ndarray]) -> bool:
    return all(same_parts(a, b) for a, b in zip(ours[0].numpy(), theirs, strict=True))


def areas_agree(ours: tuple[Tensor, Tensor], theirs: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    areas = (np.where(labels > 0, counts[labels], 0) for labels, counts in theirs)
    return labels_agree(ours, [labels for labels, _ in theirs]) and all(
        np.array_equal(a, b) for a, b in zip(ours[1].numpy(), areas, strict=True)
    )


def cc3d_dust(masks: np.ndarray) -> list[np.ndarray]:
    return [cc3d.dust(mask, threshold=SMALLEST, connectivity=CONNECTIVITY) for mask in masks]


def scipy_fill(masks: np.ndarray) -> list[np.ndarray]:
    return [scipy.ndimage.binary_fill_holes(mask, FOUR) for mask in masks]


def dense_agree(ours, theirs: list[np.ndarray]) -> bool:
    return np.array_equal(unpack_masks(ours).numpy(), np.stack(theirs).astype(bool))


def measure(quick: bool) -> list[Pair]:
    shape = (5, 120, 214) if quick else (50, 480, 854)
    seconds = 0.3 if quick else 3.0
    pairs = []
    for kind, masks in (
        ("blobs", blobs(shape)),
        ("blobs and specks", blobs(shape) ^ noise(shape, 0.01, seed=1)),
        ("noise", noise(shape)),
    ):
        bits, pixels = pack_masks(masks), masks.view(torch.uint8).numpy()
        case = f"{shape[0]} masks {shape[1]}x{shape[2]}, {kind}"

        def add(op, ours, other, peer, agree, goal=None, case=case):
            pairs.append(compare(op, ours, other, peer=peer, agree=agree, case=case, goal=goal, seconds=seconds))

        def ours(bits=bits):
            return connected_components(bits, CONNECTIVITY)

        for function, peer, goal in (
            (cc3d_areas, "cc3d and numpy.bincount", 2),
            (cv2_areas, "cv2 with stats", None),
            (scipy_areas, "scipy and numpy.bincount", None),
        ):
            add("labels, areas", ours, lambda f=function, p=pixels: f(p), peer, areas_agree, goal)
        add("labels, areas", ours, lambda p=pixels: cc3d_labels(p), "cc3d, labels alone", labels_agree)
        add("fill_holes", lambda b=bits: fill_holes(b), lambda p=pixels: scipy_fill(p), "scipy", dense_agree, 5)
        add(
            "remove_small",
            lambda b=bits: remove_small(b, SMALLEST, CONNECTIVITY),
            lambda p=pixels: cc3d_dust(p),
            "cc3d.dust",
            dense_agree,
        )
    return pairs


if __name__ == "__main__":
    main("connected_components", measure)
