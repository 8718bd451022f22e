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


def instance_score(masks: np.ndarray, scores: np.ndarray, length: int) -> float:
    """Mean score of the masks times the root of the share of the scene's frames that have one."""
    return float(scores[masks].mean() * (len(masks) / length) ** 0.5)


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
    """Instances from groups: the two most alike are joined while their likeness is greater than ``threshold``.

    Args:
        groups: from `s2d.stages._linkage` or `s2d.stages._grouping`.
        frames: int64 ``[N]``: the frame of each mask.
        scores: float64 ``[N]``: how far other frames agree with each mask.
        mutual: symmetric ``[N, N]``: from `s2d.stages._agreement.mutual_cover`.
        visible: bool ``[N, T]``: in which frames each mask's points are visible.
        threshold: in (0, 1].
    """
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
        Instance(masks, spans, instance_score(masks, scores, visible.shape[1]))
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


def inside_share(
    a: np.ndarray, b: np.ndarray, covers: sparse.csr_array, visible: np.ndarray, frames: np.ndarray
) -> float:
    """How much of an instance's masks lies in another's: mean cover over the pairs that see each other's frames.

    0 where fewer than half of the masks of ``a`` can be compared with any of ``b``.
    """
    comparable = visible[np.ix_(a, frames[b])] & visible[np.ix_(b, frames[a])].T
    if comparable.any(1).mean() <= 0.5:
        return 0.0
    return float(covers[a][:, b].toarray()[comparable].sum() / comparable.sum())


def keep_best(
    instances: list[Instance],
    frames: np.ndarray,
    covers: sparse.csr_array,
    visible: np.ndarray,
    *,
    least_masks: int,
    inside: float,
    weakest: float,
    most: int,
) -> list[Instance]:
    """The best single explanation of each object, the highest score first.

    Args:
        instances: from `join_duplicates`.
        frames: int64 ``[N]``: the frame of each mask.
        covers: ``[N, N]``: share of mask i's carried points that land in mask j.
        visible: bool ``[N, T]``: in which frames each mask's points are visible.
        least_masks: instances with fewer masks are dropped.
        inside: an instance is dropped if more than this share of it lies in a better one: it is a part of that.
        weakest: instances that score less than this share of the best are dropped.
        most: the most that are kept.
    """
    kept: list[Instance] = []
    for instance in sorted(instances, key=lambda instance: (-instance.score, int(instance.masks[0]))):
        if len(instance.masks) < least_masks:
            continue
        if len(kept) == most or (kept and instance.score < weakest * kept[0].score):
            break
        shares = (inside_share(instance.masks, better.masks, covers, visible, frames) for better in kept)
        if all(share <= inside for share in shares):
            kept.append(instance)
    return kept
