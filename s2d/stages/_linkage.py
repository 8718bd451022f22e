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
        Groups of two masks and more, in the order of their first masks; the ranges are the frames that a member sees.
    """
    groups = []
    for members in _link(agreement, threshold):
        if len(members) > 1:
            groups.append(Group(members, runs_of(visible[members].any(0))))
    return groups


def _link(agreement: Agreement, threshold: float) -> list[np.ndarray]:
    """The members of each group, ascending; groups in the order of their first members.

    A mean of two groups' likeness to a third is never above both: joining makes nothing more alike. So whenever two
    groups are each other's most alike, they may be joined at once, whatever else is still to be joined (Murtagh 1983,
    nearest-neighbour chains), and no matrix of all pairs is needed: only what the one or two groups at hand share with
    every mask.
    """
    number = len(agreement.frames)
    labels = np.arange(number)
    groups = {mask: [mask] for mask in range(number)}

    def nearest(label: int, total: np.ndarray, count: np.ndarray) -> tuple[float, int]:
        """The most alike group, and how alike it is."""
        sums = np.bincount(labels, total, minlength=number)
        alike = sums / np.maximum(np.bincount(labels, count, minlength=number), 1)
        alike[label] = 0
        best = int(alike.argmax())
        return float(alike[best]), best

    def grow(start: int) -> int:
        """Walk from a group to ever more alike ones and join two at the end, until nothing is alike to the last."""
        here, own = start, agreement.with_every(groups[start])
        likeness, there = nearest(here, *own)
        while likeness > threshold:
            others = agreement.with_every(groups[there])
            closer, beyond = nearest(there, *others)
            if closer > likeness:
                here, own, likeness, there = there, others, closer, beyond
                continue
            labels[groups[there]] = here
            groups[here] += groups.pop(there)
            own = own[0] + others[0], own[1] + others[1]
            likeness, there = nearest(here, *own)
        return here

    # Masks that are alike to no other stay alone.
    for start in np.unique(agreement.iou.tocoo().row[agreement.iou.data > threshold]).tolist():
        while start in groups and grow(start) != start:
            pass
    return sorted((np.sort(members) for members in groups.values()), key=lambda members: int(members[0]))
