"""Masks to instances by average linkage: joined as long as they agree on average wherever they can be compared.

The paper clusters the rows of a match matrix, which asks that points are followed through most of the video and that an
object has many masks. Flow follows points for a while only; here two groups are compared over the pairs of masks that
see each other's frames, so agreement is handed on from frame to frame, and two masks are enough to begin.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from s2d.stages._grouping import Group, runs_of


def linkage_groups(mutual: sparse.csr_array, visible: np.ndarray, frames: np.ndarray, threshold: float) -> list[Group]:
    """Groups of masks whose likeness, joined greedily from the most alike on, stays greater than ``threshold``.

    The likeness of two groups is the mean mutual cover over the pairs of their masks that see each other's frames.

    Args:
        mutual: symmetric ``[N, N]``: from `s2d.stages._agreement.mutual_cover`.
        visible: bool ``[N, T]``: in which frames each mask's points are visible.
        frames: int64 ``[N]``: the frame of each mask.
        threshold: in (0, 1).

    Returns:
        Groups of two masks and more; the ranges are the frames that a member sees.
    """
    pairs = mutual.tocoo()
    strong = (pairs.data > threshold) & (pairs.row != pairs.col)
    # A mask that agrees with no other stays alone.
    chosen = np.unique(pairs.row[strong])
    labels = _link(mutual[chosen][:, chosen].toarray(), visible[chosen][:, frames[chosen]], threshold)
    groups = []
    for label in np.unique(labels):
        members = chosen[labels == label]
        if len(members) > 1:
            groups.append(Group(members, runs_of(visible[members].mean(0) * len(members) >= 1)))
    return groups


def _link(agreement: np.ndarray, sees: np.ndarray, threshold: float) -> np.ndarray:
    """Group number of each of N items, from dense agreement and comparability ``[N, N]``."""
    number = len(agreement)
    labels = np.arange(number)
    if number < 2:
        return labels
    count = (sees & sees.T).astype(np.float32)
    total = agreement.astype(np.float32) * count
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
