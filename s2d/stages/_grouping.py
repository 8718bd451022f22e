"""Masks to instances: by when they are visible, then by what they match (steps 2 to 4 of the paper's discovery)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.cluster import DBSCAN

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Group:
    """Masks that one label holds.

    Attributes:
        masks: int64 ``[K]``, ascending: indices among the scene's masks; a frame may have several.
        ranges: inclusive (first, last) frame ranges in which the group is visible.
    """

    masks: np.ndarray
    ranges: Ranges


def dbscan(rows: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN labels of binary rows ``[N, D]`` under the Hamming distance (share of entries that differ); -1 is noise.

    Equal rows are clustered once, with their number as weight: the labels are those of the full problem.
    """
    if len(rows) == 0:
        return np.zeros(0, dtype=np.int64)
    _, first, inverse, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    # Labels are numbered by first appearance, as they would be without the merging of equal rows.
    order = np.argsort(first)
    position = np.argsort(order)[inverse.reshape(-1)]
    unique = rows[first[order]].astype(np.float32)
    set_bits = unique.sum(1)
    differ = set_bits[:, None] + set_bits[None, :] - 2 * (unique @ unique.T)
    distance = differ.astype(np.float64) / rows.shape[1]
    model = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    return model.fit(distance, sample_weight=counts[order]).labels_[position]


def runs_of(flags: np.ndarray) -> Ranges:
    """Inclusive (first, last) ranges of the true entries of bool ``[T]``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return tuple((int(start), int(stop) - 1) for start, stop in edges.reshape(-1, 2))


def visibility_groups(
    visible: np.ndarray, frames: np.ndarray, eps: float, min_samples: int, share: float
) -> list[Group]:
    """Masks that are visible in the same frames, with the runs their majority sees.

    Args:
        visible: bool ``[N, T]``: in which frames each mask's points are visible.
        frames: int64 ``[N]``: the frame of each mask.
        eps: DBSCAN's radius.
        min_samples: DBSCAN's number of neighbours.
        share: a mask is a candidate of a run that holds its frame if it is visible in more than this share of it.

    Returns:
        One `Group` of candidates per cluster that has any.
    """
    labels = dbscan(visible, eps, min_samples)
    groups = []
    for label in range(labels.max(initial=-1) + 1):
        members = np.flatnonzero(labels == label)
        ranges = runs_of(visible[members].mean(0) > 0.5)
        candidate = np.zeros(len(members), dtype=bool)
        for first, last in ranges:
            own = (frames[members] >= first) & (frames[members] <= last)
            candidate |= own & (visible[members, first : last + 1].mean(1) > share)
        if candidate.any():
            groups.append(Group(members[candidate], ranges))
    return groups


def temporal_groups(group: Group, covers: sparse.csr_array, frames: np.ndarray, share: float) -> list[Group]:
    """The candidates of one visibility group split into instances by which masks they match.

    Args:
        group: from `visibility_groups`.
        covers: ``[N, N]``: share of mask i's carried points that land in mask j.
        frames: int64 ``[N]``: the frame of each mask, ascending.
        share: a pair matches if it covers more than this.

    Returns:
        One `Group` per label; masks of the group that match nothing are in none.
    """
    first, last = group.ranges[0][0], group.ranges[-1][1]
    chosen = covers[group.masks].tocoo()
    keep = (chosen.data > share) & (frames[chosen.col] >= first) & (frames[chosen.col] <= last)
    rows, columns = group.masks[chosen.row[keep]], chosen.col[keep]
    if len(rows) == 0:
        return []
    top, left = rows.min(), columns.min()
    # Rows of masks that are no candidates stay empty, and take part: through them labels can chain.
    matches = np.zeros((rows.max() - top + 1, columns.max() - left + 1), dtype=bool)
    matches[rows - top, columns - left] = True
    labels = dbscan(matches, *_density(matches.shape[1]))
    labels[~matches.any(1)] = -1
    return [
        Group(np.flatnonzero(labels == label) + top, group.ranges) for label in np.unique(labels[labels >= 0]).tolist()
    ]


def _density(columns: int) -> tuple[float, int]:
    """The paper's (eps, min_samples) for a match matrix of so many columns."""
    if columns > 50:
        return 0.05, 5
    return (0.1, 3) if columns < 10 else (0.1, 5)
