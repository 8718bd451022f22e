"""Candidate objects of one frame: connected sets of superpixels that stand out by how they move."""

from __future__ import annotations

import numpy as np

from s2d.motion.superpixels import Superpixels, affinity, connected_parts, cut_vectors

SALIENCY_LEVELS = (0.25, 0.4, 0.55, 0.7, 0.85)
"""Shares of a frame's greatest saliency at which it is cut into candidates."""

CUES = ((1.0, 1.0), (2.0, 0.5))
"""(motion, colour): by how much the scales of the two cues are multiplied, one normalised cut each."""


def candidates(
    graph: Superpixels, *, motion_scale: float, colour_scale: float, vectors: int, smallest: float, largest: float
) -> np.ndarray:
    """Sets of superpixels that may be objects, from normalised cuts and from levels of saliency.

    A cut: each of the first eigenvectors is thresholded at its mean; the connected parts of both sides are candidates,
    and so are, for eigenvector k, the cells of the partition by vectors 1..k. So a part that vector 1 separates from the
    background is divided by the later ones, as masking out and cutting again would do.

    Args:
        graph: one frame.
        motion_scale: residual flow, in pixels per frame, that separates two superpixels clearly.
        colour_scale: the same for a distance in Lab.
        vectors: eigenvectors per cut.
        smallest: least area, a share of the frame.
        largest: greatest area.

    Returns:
        bool ``[C, N]``, every row another set.
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
    top = graph.saliency.max(initial=0)
    for level in SALIENCY_LEVELS:
        found += connected_parts(graph, graph.saliency > level * top)
    if not found:
        return np.zeros((0, len(graph)), bool)
    sets = np.unique(np.stack(found), axis=0)
    share = sets @ graph.area / graph.area.sum()
    return sets[(share >= smallest) & (share <= largest)]


def stand_out(graph: Superpixels, sets: np.ndarray, motion_scale: float) -> np.ndarray:
    """How much each set looks like an object that moves on its own: float64 ``[C]`` in [0, 1].

    The product of three shares: saliency inside; 1 - similarity of motion between the inside and the ring of superpixels
    around it; and how much of the outline does not lie on the image border.
    """
    ring_of = (graph.touching.astype(np.float32) @ (np.eye(len(graph), dtype=np.float32) + graph.touching)) > 0
    edge = np.concatenate([graph.labels[0], graph.labels[-1], graph.labels[:, 0], graph.labels[:, -1]])
    on_border = np.bincount(edge, minlength=len(graph))
    scores = np.zeros(len(sets))
    for index, chosen in enumerate(sets):
        ring = ring_of[chosen].any(0) & ~chosen
        if not ring.any():
            continue
        inside, outside = graph.area * chosen, graph.area * ring
        motion = inside @ graph.motion / inside.sum()
        distance = np.linalg.norm(graph.motion - motion, axis=1) / motion_scale
        contrast = outside @ (1 - np.exp(-(distance**2) / 2)) / outside.sum()
        agreement = inside @ np.exp(-(distance**2) / 8) / inside.sum()
        saliency = inside @ graph.saliency / inside.sum()
        border = on_border[chosen].sum() / (4 * np.sqrt(inside.sum()))
        scores[index] = contrast * agreement * saliency * np.exp(-border)
    return scores


def best_sets(graph: Superpixels, sets: np.ndarray, scores: np.ndarray, overlap: float, number: int) -> np.ndarray:
    """Greedy choice of the ``number`` best sets whose IoU is at most ``overlap``: int64 indices, best first."""
    shared = (sets * graph.area) @ sets.T.astype(np.float64)
    size = sets @ graph.area
    iou = shared / np.maximum(size[:, None] + size[None] - shared, 1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if len(kept) == number or scores[index] <= 0:
            break
        if (iou[index, kept] <= overlap).all():
            kept.append(int(index))
    return np.array(kept, np.int64)
