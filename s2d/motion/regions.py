"""Candidate objects of one frame: regions that a normalised cut finds, and regions that move more than others."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from s2d.motion.superpixels import Superpixels, affinity, connected_parts, cut_vectors
from s2d.ops import mask_nms

LEVELS = np.arange(1, 10) / 10
"""Shares of a frame's greatest motion at which level sets are taken."""

CUES = ((1.0, 1.0), (2.0, 0.5))
"""(motion, colour): by how much the scales of the two cues are multiplied, one normalised cut each."""


def cut_regions(graph: Superpixels, *, motion_scale: float, colour_scale: float, vectors: int) -> np.ndarray:
    """Regions found by normalised cuts.

    Each of the first eigenvectors is thresholded at its mean; the connected parts of both sides are candidates, and so
    are, for eigenvector k, the cells of the partition by vectors 1..k. So a part that vector 1 separates from the
    background is divided by the later ones, as masking it out and cutting again would do.

    Args:
        graph: one frame.
        motion_scale: residual flow, in pixels per frame, that separates two superpixels clearly.
        colour_scale: the same for a distance in Lab.
        vectors: eigenvectors per cut.

    Returns:
        bool ``[C, H, W]``, every one another region.
    """
    found = []
    for motion_factor, colour_factor in CUES:
        weights = affinity(graph, motion_scale=motion_scale * motion_factor, colour_scale=colour_scale * colour_factor)
        cell = np.zeros(len(graph), np.int64)
        for vector in cut_vectors(weights, vectors).T:
            side = vector > vector.mean()
            cell = np.unique(cell * 2 + side, return_inverse=True)[1]
            for partition in (side.astype(np.int64), cell):
                for value in range(partition.max() + 1):
                    found += connected_parts(graph, partition == value)
    if not found:
        return np.zeros((0, *graph.labels.shape), bool)
    return np.unique(np.stack(found), axis=0)[:, graph.labels]


def level_regions(values: np.ndarray, smallest: float) -> np.ndarray:
    """Connected parts of the level sets of a map: bool ``[C, H, W]``.

    Args:
        values: float32 ``[H, W]``, at least 0; levels are shares of its 99.5th percentile.
        smallest: parts with fewer pixels are left out.
    """
    found = []
    top = float(np.percentile(values, 99.5))
    for level in LEVELS * top:
        number, labels, facts, _ = cv2.connectedComponentsWithStats((values > level).astype(np.uint8))
        found += [labels == n for n in range(1, number) if facts[n, cv2.CC_STAT_AREA] >= smallest]
    return np.stack(found) if found else np.zeros((0, *values.shape), bool)


def without_twins(masks: np.ndarray, overlap: float) -> np.ndarray:
    """The masks whose IoU with no earlier kept one is above ``overlap``, judged on every fourth pixel each way."""
    first_is_best = -torch.arange(len(masks), dtype=torch.float32)
    coarse = torch.from_numpy(np.ascontiguousarray(masks[:, ::4, ::4]))
    return masks[np.sort(mask_nms(coarse, first_is_best, overlap).numpy())]
