"""Masks to instances by average linkage: joined as long as they agree on average wherever they can be compared.

The paper clusters the rows of a match matrix, which asks that points are followed through most of the video and that an
object has many masks. Flow follows points for a while only; here two groups are compared over the pairs of masks that
see each other's frames, so agreement is handed on from frame to frame, and two masks are enough to begin.
"""

from __future__ import annotations

import numpy as np

from s2d.stages._agreement import Agreement
from s2d.stages._grouping import Group, runs_of


def linkage_groups(agreement: Agreement, visible: np.ndarray, threshold: float) -> list[Group]:
    """Groups of masks whose likeness, joined greedily from the most alike on, stays greater than ``threshold``.

    The likeness of two groups is the mean IoU over the pairs of their masks that can be compared.

    Args:
        agreement: of N masks.
        visible: bool ``[N, T]``: in which frames each mask's points are visible.
        threshold: in (0, 1).

    Returns:
        Groups of two masks and more; the ranges are the frames that a member sees.
    """
    strong = (agreement.iou > threshold) & agreement.comparable
    np.fill_diagonal(strong, False)
    # A mask that agrees with no other stays alone.
    chosen = np.flatnonzero(strong.any(1))
    part = np.ix_(chosen, chosen)
    labels = _link(agreement.iou[part], agreement.comparable[part], threshold)
    groups = []
    for label in np.unique(labels):
        members = chosen[labels == label]
        if len(members) > 1:
            groups.append(Group(members, runs_of(visible[members].any(0))))
    return groups


def _link(iou: np.ndarray, comparable: np.ndarray, threshold: float) -> np.ndarray:
    """Group number of each of N items."""
    number = len(iou)
    labels = np.arange(number)
    if number < 2:
        return labels
    count = comparable.astype(np.float32)
    total = iou.astype(np.float32) * count
    for matrix in (total, count):
        np.fill_diagonal(matrix, 0)
    alike = total / np.maximum(count, 1)
    best = alike.argmax(1)
    top = alike[np.arange(number), best]
    while True:
        i = int(top.argmax())
        if top[i] <= threshold:
            return labels
        j = int(best[i])
        labels[labels == labels[j]] = labels[i]
        for matrix in (total, count):
            matrix[i] += matrix[j]
            matrix[i, i] = 0
            matrix[:, i] = matrix[i]
            matrix[j] = matrix[:, j] = 0
        alike[j] = alike[:, j] = 0
        alike[i] = total[i] / np.maximum(count[i], 1)
        alike[:, i] = alike[i]
        stale = (best == i) | (best == j)
        stale[[i, j]] = True
        best[stale] = alike[stale].argmax(1)
        better = alike[:, i] > alike[np.arange(number), best]
        best[better] = i
        top = alike[np.arange(number), best]
