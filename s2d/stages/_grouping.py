"""Masks to instances: by when they are visible, then by what they match (steps 2 to 4 of the paper's discovery)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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


# Rows whose distances to all others are in memory at once.
_BLOCK = 256


def dbscan(rows: sparse.csr_array, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN labels of binary rows ``[N, D]`` under the Hamming distance (share of entries that differ); -1 is noise.

    Equal rows are clustered once, with their number as weight: the labels are those of the full problem.
    """
    rows = sparse.csr_array(rows, dtype=np.float32)
    rows.sort_indices()
    # Numbered by first appearance, as labels would be without the merging of equal rows.
    place: dict[bytes, int] = {}
    position = np.zeros(rows.shape[0], dtype=np.int64)
    for i, (start, stop) in enumerate(itertools.pairwise(rows.indptr.tolist())):
        position[i] = place.setdefault(rows.indices[start:stop].tobytes(), len(place))
    if not place:
        return position
    counts = np.bincount(position)
    unique = rows[np.unique(position, return_index=True)[1]]
    model = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    return model.fit(_close(unique, eps), sample_weight=counts).labels_[position]


def _close(rows: sparse.csr_array, eps: float) -> sparse.csr_array:
    """Hamming distances ``[U, U]`` of different binary rows, those of at most ``eps``."""
    set_bits, width = rows.sum(1), rows.shape[1]
    columns, distances, starts = [], [], [0]
    for start in range(0, rows.shape[0], _BLOCK):
        block = slice(start, start + _BLOCK)
        differ = set_bits[block, None] + set_bits[None, :] - 2 * (rows[block] @ rows.T).toarray()
        distance = differ.astype(np.float64) / width
        near = distance <= eps
        columns.append(np.nonzero(near)[1])
        distances.append(distance[near])
        starts += (starts[-1] + near.sum(1).cumsum()).tolist()
    return sparse.csr_array((np.concatenate(distances), np.concatenate(columns), starts), (rows.shape[0],) * 2)


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
    labels = dbscan(sparse.csr_array(visible), eps, min_samples)
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


def temporal_groups(
    group: Group,
    covers: sparse.csr_array,
    frames: np.ndarray,
    share: float,
    density: Sequence[tuple[int, float, int]],
) -> list[Group]:
    """The candidates of one visibility group split into instances by which masks they match.

    Args:
        group: from `visibility_groups`.
        covers: ``[N, N]``: share of mask i's carried points that land in mask j.
        frames: int64 ``[N]``: the frame of each mask, ascending.
        share: a pair matches if it covers more than this.
        density: (columns, eps, min_samples) of DBSCAN: of the first with fewer columns than the match matrix.

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
    shape = int(rows.max() - top + 1), int(columns.max() - left + 1)
    matches = sparse.csr_array((np.ones(len(rows), dtype=bool), (rows - top, columns - left)), shape=shape)
    eps, min_samples = next(rest for columns, *rest in density if shape[1] > columns)
    labels = dbscan(matches, eps, min_samples)
    labels[np.diff(matches.indptr) == 0] = -1
    return [
        Group(np.flatnonzero(labels == label) + top, group.ranges) for label in np.unique(labels[labels >= 0]).tolist()
    ]
