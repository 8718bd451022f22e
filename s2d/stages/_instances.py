"""From groups of masks to few, distinct instances: one mask a frame, duplicates joined, the best kept."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from s2d.stages._agreement import Agreement
from s2d.stages._grouping import Group, Ranges


@dataclass(frozen=True)
class Instance:
    """One object of a scene.

    Attributes:
        masks: int64 ``[K]``, ascending: indices among the scene's masks, at most one a frame.
        ranges: inclusive (first, last) frame ranges in which it is visible.
        score: how well its masks explain the scene, in [0, 1].
        one2x: share of its masks that cover two or more masks in many frames.
    """

    masks: np.ndarray
    ranges: Ranges
    score: float
    one2x: float = 0.0


def one_per_frame(masks: np.ndarray, frames: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of several masks of a frame the one with the highest score: ascending indices."""
    order = masks[np.lexsort((masks, -scores[masks]))]
    _, first = np.unique(frames[order], return_index=True)
    return np.sort(order[first])


def instance_score(masks: np.ndarray, scores: np.ndarray, length: int) -> float:
    """Mean score of the masks times the root of the share of the scene's frames that have one."""
    return float(scores[masks].mean() * (len(masks) / length) ** 0.5)


def without_outliers(masks: np.ndarray, agreement: Agreement, least: float) -> np.ndarray:
    """Masks whose mean IoU with the others is not less than ``least * (1/2 + the median of all)``.

    Where most agree by a half, as noisy masks do, that is ``least`` itself; a mask among exact ones has to agree more.
    """
    alike = agreement.with_others(masks)
    return masks[alike >= least * (0.5 + np.median(alike))]


def join_duplicates(
    groups: list[Group], agreement: Agreement, length: int, threshold: float, outlier: float, choice: np.ndarray
) -> list[Instance]:
    """Instances from groups: the two most alike are joined while their likeness is greater than ``threshold``.

    The likeness of two instances is the mean IoU over the pairs of their masks that can be compared, 0 without any.

    Args:
        groups: from `s2d.stages._linkage` or `s2d.stages._grouping`.
        agreement: of the N masks.
        length: T, frames of the scene.
        threshold: in (0, 1]; at 1 nothing is joined.
        outlier: in the end each instance is left `without_outliers`.
        choice: float64 ``[N]``: where a frame has several masks, the one with the highest value stays.
    """
    frames, number = agreement.frames, len(groups)
    members = [one_per_frame(group.masks, frames, choice) for group in groups]
    ranges = [group.ranges for group in groups]
    # Masks that no instance holds belong to one more, which is left out of account.
    owner = np.full(len(frames), number)
    for n, masks in enumerate(members):
        owner[masks] = n
    # Joins that may be due, the most alike first; one counts if both sides are still what they were.
    due: list[tuple[float, int, int, int, int]] = []
    changes = [0] * number

    def note(n: int) -> None:
        total, count = (np.bincount(owner, x, minlength=number + 1)[:number] for x in agreement.with_every(members[n]))
        alike = total / np.maximum(count, 1)
        alike[n] = 0
        for other in np.flatnonzero(alike > threshold).tolist():
            i, j = max(n, other), min(n, other)
            heapq.heappush(due, (-float(alike[other]), i, j, changes[i], changes[j]))

    for n in range(number):
        note(n)
    while due:
        _, i, j, *seen = heapq.heappop(due)
        if seen != [changes[i], changes[j]]:
            continue
        owner[members[i]] = owner[members[j]] = number
        members[j] = one_per_frame(np.union1d(members[i], members[j]), frames, choice)
        members[i] = members[i][:0]
        owner[members[j]] = j
        ranges[j] = join_ranges(ranges[i], ranges[j])
        changes[i] += 1
        changes[j] += 1
        note(j)
    instances = []
    for masks, spans in zip(members, ranges, strict=True):
        if len(masks):
            chosen = without_outliers(masks, agreement, outlier)
            if len(chosen):
                instances.append(Instance(chosen, spans, instance_score(chosen, agreement.scores, length)))
    return instances


def join_ranges(a: Ranges, b: Ranges) -> Ranges:
    """Ranges of the frames that are in either; ranges that touch become one."""
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
    """How much of an instance's masks lies in another's: mean cover of each by the nearest mask in time it can see.

    0 where fewer than half of the masks of ``a`` can be compared with any of ``b``.
    """
    comparable = visible[np.ix_(a, frames[b])] & visible[np.ix_(b, frames[a])].T
    some = comparable.any(1)
    if some.mean() <= 0.5:
        return 0.0
    # Far frames would add what flow loses on the way.
    apart = np.where(comparable, np.abs(frames[a][:, None] - frames[b][None, :]), visible.shape[1])
    nearest = apart.argmin(1)[some]
    return float(covers[a][:, b].toarray()[np.flatnonzero(some), nearest].mean())


def confirmed_share(masks: np.ndarray, visible: np.ndarray) -> float:
    """Of the frames that see an instance, one left out, the share that has a mask of it beside the first; 0 for one."""
    return (len(masks) - 1) / max(int(visible[masks].any(0).sum()) - 1, 1)


def keep_best(
    instances: list[Instance],
    frames: np.ndarray,
    covers: sparse.csr_array,
    visible: np.ndarray,
    *,
    least_masks: int,
    least_share: float,
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
        least_share: instances with a smaller `confirmed_share` are dropped.
        inside: an instance is dropped if more than this share of it lies in a better one: it is a part of that.
        weakest: instances that score less than this share of the best are dropped.
        most: the most that are kept.
    """
    kept: list[Instance] = []
    for instance in sorted(instances, key=lambda instance: (-instance.score, int(instance.masks[0]))):
        if len(instance.masks) < least_masks or confirmed_share(instance.masks, visible) < least_share:
            continue
        if len(kept) == most or (kept and instance.score < weakest * kept[0].score):
            break
        shares = (inside_share(instance.masks, better.masks, covers, visible, frames) for better in kept)
        if all(share <= inside for share in shares):
            kept.append(instance)
    return kept


def continue_instances(before: list[Instance], after: list[Instance], frames: np.ndarray) -> list[Instance]:
    """Instances of two parts of a scene that share frames: those that hold the same masks there become one.

    Args:
        before: instances of the parts so far, masks numbered as in ``frames``.
        after: instances of the next part.
        frames: int64 ``[N]``: the frame of each mask of the video.

    Returns:
        All instances; one that goes on has the masks of both, and the mean score of its masks.
    """
    joined = list(before)
    for instance in after:
        shared = [len(np.intersect1d(other.masks, instance.masks)) for other in joined]
        best = int(np.argmax(shared)) if shared else -1
        first = frames[instance.masks[0]]
        if best < 0 or 2 * shared[best] <= (frames[joined[best].masks] >= first).sum():
            joined.append(instance)
            continue
        old = joined[best]
        fresh = instance.masks[frames[instance.masks] > frames[old.masks[-1]]]
        share = len(fresh) / (len(old.masks) + len(fresh))
        joined[best] = Instance(
            np.concatenate([old.masks, fresh]),
            join_ranges(old.ranges, instance.ranges),
            (1 - share) * old.score + share * instance.score,
            (1 - share) * old.one2x + share * instance.one2x,
        )
    return joined
