"""connected_components against cc3d, OpenCV and SciPy."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from benchmarks.harness import Comparison, peer_module
from s2d.ops import connected_components, fill_holes, pack_masks, remove_small, unpack_masks
from s2d.testing.cases.connected_components import blobs, noise

cc3d = peer_module("cc3d")
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


def pairs_of(shape: tuple[int, int, int], seconds: float, goals: bool) -> Iterator[Comparison]:
    for kind, masks in (
        ("blobs", blobs(shape)),
        ("blobs and specks", blobs(shape) ^ noise(shape, 0.01, seed=1)),
        ("noise", noise(shape)),
    ):
        bits, pixels = pack_masks(masks), masks.view(torch.uint8).numpy()
        case = f"{shape[0]} masks {shape[1]}x{shape[2]}, {kind}"
        held, number = bits.words.nbytes, masks.numel()
        varied = {"pixels": number} if kind == "blobs" else {}

        def against(op, ours, other, peer, agree, moved, goal=None, case=case, at=varied):
            goal = goal if goals else None
            return Comparison(op, ours, other, peer, agree, case, goal, at=at, bytes=moved, seconds=seconds)

        def ours(bits=bits):
            return connected_components(bits, CONNECTIVITY)

        moved = held + 8 * number
        for function, peer, goal in (
            (cc3d_areas, "cc3d and numpy.bincount", 2),
            (cv2_areas, "cv2 with stats", None),
            (scipy_areas, "scipy and numpy.bincount", None),
        ):
            yield against("labels, areas", ours, lambda f=function, p=pixels: f(p), peer, areas_agree, moved, goal)
        alone = "cc3d, labels alone"
        yield against("labels, areas", ours, lambda p=pixels: cc3d_labels(p), alone, labels_agree, moved)
        yield against(
            "fill_holes",
            lambda b=bits: fill_holes(b),
            lambda p=pixels: scipy_fill(p),
            "scipy",
            dense_agree,
            2 * held,
            goal=5,
        )
        yield against(
            "remove_small",
            lambda b=bits: remove_small(b, SMALLEST, CONNECTIVITY),
            lambda p=pixels: cc3d_dust(p),
            "cc3d.dust",
            dense_agree,
            2 * held,
        )


def measure(quick: bool) -> Iterator[Comparison]:
    if not quick:
        yield from pairs_of((50, 480, 854), 3.0, goals=True)
    yield from pairs_of((5, 120, 214), 0.3, goals=False)
