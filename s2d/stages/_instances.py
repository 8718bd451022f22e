"""From groups of masks to few, distinct instances: one mask a frame, duplicates joined, the best kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from s2d.stages._grouping import Group, Ranges


@dataclass(frozen=True)
class Instance:
    """One object of a scene.

    Attributes:
        masks: int64 ``[K]``, ascending: indices among the scene's masks, at most one a frame.
        ranges: inclusive (first, last) frame ranges in which it is visible.
        score: how well its masks explain the frames that see it, in [0, 1].
    """

    masks: np.ndarray
    ranges: Ranges
    score: float


def one_per_frame(masks: np.ndarray, frames: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of several masks of a frame the one with the highest score: ascending indices."""
    order = masks[np.lexsort((masks, -scores[masks]))]
    _, first = np.unique(frames[order], return_index=True)
    return np.sort(order[first])


def instance_score(masks: np.ndarray, ranges: Ranges, scores: np.ndarray) -> float:
    """Mean score of the masks times the root of the share of its visible frames that have one."""
    frames = sum(last - first + 1 for first, last in ranges)
    return float(scores[masks].mean() * min(1.0, len(masks) / max(frames, 1)) ** 0.5)


def likeness(a: np.ndarray, b: np.ndarray, mutual: sparse.csr_array, visible: np.ndarray, frames: np.ndarray) -> float:
    """Mean mutual cover of the masks of two instances, over the pairs that see each other's frames; 0 without any."""
    comparable = visible[np.ix_(a, frames[b])] & visible[np.ix_(b, frames[a])].T
    total = comparable.sum()
    return float(mutual[a][:, b].toarray()[comparable].sum() / total) if total else 0.0


def join_duplicates(
    groups: list[Group],
    frames: np.ndarray,
    scores: np.ndarray,
    mutual: sparse.csr_array,
    visible: np.ndarray,
    threshold: float,
) -> list[Instance]:
    """Instances from groups: the two most alike are joined while their likeness is greater than ``threshold``."""
    members = [one_per_frame(group.masks, frames, scores) for group in groups]
    ranges = [group.ranges for group in groups]
    alike = np.zeros((len(members), len(members)))
    for i in range(len(members)):
        for j in range(i):
            alike[i, j] = likeness(members[i], members[j], mutual, visible, frames)
    while alike.size and alike.max() > threshold:
        i, j = np.unravel_index(int(alike.argmax()), alike.shape)
        members[j] = one_per_frame(np.union1d(members[i], members[j]), frames, scores)
        ranges[j] = _union(ranges[i], ranges[j])
        members[i] = members[i][:0]
        alike[i, :] = alike[:, i] = 0
        for k in range(len(members)):
            if k != j and len(members[k]):
                alike[max(j, k), min(j, k)] = likeness(members[j], members[k], mutual, visible, frames)
    return [
        Instance(masks, spans, instance_score(masks, spans, scores))
        for masks, spans in zip(members, ranges, strict=True)
        if len(masks)
    ]


def _union(a: Ranges, b: Ranges) -> Ranges:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(a + b):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def keep_best(instances: list[Instance], least_masks: int, most: int) -> list[Instance]:
    """The highest scores first, without instances of fewer than ``least_masks`` masks."""
    enough = [instance for instance in instances if len(instance.masks) >= least_masks]
    return sorted(enough, key=lambda instance: (-instance.score, int(instance.masks[0])))[:most]
