"""How far other frames agree with a mask: by carried points and by masks warped along flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from torch import Tensor

from s2d.ops import BitMasks, TrackCoverage, flow_compose, flow_warp_counts, mask_area


def cover_matrix(coverage: TrackCoverage) -> sparse.csr_array:
    """``[N, N]``: share of mask i's carried points that land in mask j, from its compressed rows."""
    number = len(coverage.offsets) - 1
    parts = (coverage.values.numpy(), coverage.columns.numpy(), coverage.offsets.numpy())
    return sparse.csr_array(parts, shape=(number, number))


def mutual_cover(covers: sparse.csr_array) -> sparse.csr_array:
    """The IoU that two masks' shares of each other imply, ``1 / (1 / c_ij + 1 / c_ji - 1)``: symmetric ``[N, N]``.

    Where i covers j by c_ij = |i & j| / |i| and j covers i by c_ji = |i & j| / |j|, that is |i & j| / |i | j|.
    """
    both = covers.multiply(covers.T) > 0
    there, back = (sparse.csr_array(half.multiply(both)) for half in (covers, covers.T.tocsr()))
    there.sort_indices()
    back.sort_indices()
    product = there.data * back.data
    return sparse.csr_array((product / (there.data + back.data - product), there.indices, there.indptr), covers.shape)


def trajectory_scores(mutual: sparse.csr_array, visible: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Mean over the other frames that see a mask of its best mutual cover there: float64 ``[N]`` in [0, 1].

    Args:
        mutual: from `mutual_cover`.
        visible: bool ``[N, T]``.
        frames: int64 ``[N]``.
    """
    number, length = visible.shape
    pairs = mutual.tocoo()
    best = np.zeros((number, length))
    np.maximum.at(best, (pairs.row, frames[pairs.col]), pairs.data)
    seen = visible.copy()
    seen[np.arange(number), frames] = False
    return (best * seen).sum(1) / np.maximum(seen.sum(1), 1)


class ChainedFlow:
    """Flow over several frames, composed from neighbours' and kept only as long as it is needed.

    Args:
        forward: ``[T - 1, H, W, 2]``, frame t to t + 1.
        backward: ``[T - 1, H, W, 2]``, frame t + 1 to t.
    """

    def __init__(self, forward: Tensor, backward: Tensor) -> None:
        self._forward, self._backward = forward, backward
        self._made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def between(self, t: int, step: int) -> tuple[Tensor, Tensor]:
        """Flow ``[H, W, 2]`` from frame t to t + step and back. Frames before t are forgotten."""
        self._made = {key: flows for key, flows in self._made.items() if key[0] >= t}
        return self._chain(t, step)

    def _chain(self, t: int, step: int) -> tuple[Tensor, Tensor]:
        if step == 1:
            return self._forward[t].float(), self._backward[t].float()
        if (t, step) not in self._made:
            # Halves that are powers of two serve the next frames too.
            half = 1 << ((step - 1).bit_length() - 1)
            there, back = self._chain(t, half)
            onward, homeward = self._chain(t + half, step - half)
            self._made[t, step] = flow_compose(there, onward), flow_compose(homeward, back)
        return self._made[t, step]


@dataclass(frozen=True)
class Agreement:
    """What masks of different frames share, and which can be compared at all.

    Two masks are comparable if enough of each is seen in the other's frame, by one kind of evidence at least: so all
    pairs are told from an array of masks and frames.

    Attributes:
        iou: float64 symmetric ``[N, N]`` in (0, 1], of comparable pairs that share anything.
        sees: for each kind of evidence, the finest last, bool ``[N, T]``: whether enough of a mask is seen in a frame.
        frames: int64 ``[N]``, ascending: the frame of each mask.
        scores: float64 ``[N]`` in [0, 1]: how far other frames agree with each mask.
    """

    iou: sparse.csr_array
    sees: tuple[np.ndarray, ...]
    frames: np.ndarray
    scores: np.ndarray

    def comparable(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Bool ``[A, B]``, of every mask of one list with every mask of another."""
        kinds = [sees[a][:, self.frames[b]] & sees[b][:, self.frames[a]].T for sees in self.sees]
        return np.logical_or.reduce(kinds)

    def with_others(self, masks: np.ndarray) -> np.ndarray:
        """Mean IoU of each of some masks with the others of them, float64 ``[K]``; 0 where none can be compared.

        Of several kinds of evidence the finest one that compares a mask with any other speaks for it alone.
        """
        iou = self.iou[masks][:, masks].toarray()
        alike = np.zeros(len(masks))
        for sees in self.sees:
            known = sees[masks][:, self.frames[masks]]
            known = known & known.T & ~np.eye(len(masks), dtype=bool)
            number = known.sum(1)
            alike = np.where(number > 0, (iou * known).sum(1) / np.maximum(number, 1), alike)
        return alike

    def with_every(self, masks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Of some masks together, for each of all N: the sum of IoU and the number of comparable pairs, float64."""
        starts = self.iou.indptr
        parts = [slice(starts[mask], starts[mask + 1]) for mask in masks]
        columns, values = (np.concatenate([x[part] for part in parts]) for x in (self.iou.indices, self.iou.data))
        known = self.comparable(np.asarray(masks), np.arange(len(self.frames)))
        return np.bincount(columns, values, minlength=len(self.frames)), known.sum(0, dtype=np.float64)


def trajectory_agreement(covers: sparse.csr_array, visible: np.ndarray, frames: np.ndarray) -> Agreement:
    """Agreement by carried points: all pairs of masks that see each other's frames."""
    mutual = mutual_cover(covers)
    return Agreement(
        _where(mutual, both_see(visible, frames, mutual)),
        (visible,),
        frames,
        trajectory_scores(mutual, visible, frames),
    )


def both_see(sees: np.ndarray, frames: np.ndarray, pairs: sparse.csr_array) -> np.ndarray:
    """For each stored pair of masks whether both are seen in the other's frame."""
    i, j = np.repeat(np.arange(len(frames)), np.diff(pairs.indptr)), pairs.indices
    return sees[i, frames[j]] & sees[j, frames[i]]


def _where(pairs: sparse.csr_array, keep: np.ndarray) -> sparse.csr_array:
    """Only the stored pairs for which ``keep`` is true."""
    starts = np.concatenate([[0], np.cumsum(keep)])[pairs.indptr]
    return sparse.csr_array((pairs.data[keep], pairs.indices[keep], starts), pairs.shape)


def flow_agreement(
    masks: BitMasks, frames: np.ndarray, forward: Tensor, backward: Tensor, offsets: Sequence[int], seen: float
) -> Agreement:
    """Agreement by masks warped along flow: pairs of masks that lie one of ``offsets`` apart.

    ``score(i) = mean over k of max_j IoU(warp(i), mask j)`` for k in +- ``offsets``, those outside the scene left out.
    Pixels that fail the forward-backward check do not count; two masks are comparable if more than the share ``seen``
    of both is left.

    Args:
        masks: ``[N, H, W]``.
        frames: int64 ``[N]``, ascending: the frame of each.
        forward, backward: ``[T - 1, H, W, 2]``, as `s2d.ops.track_points` takes them.
        offsets: positive distances in frames.
        seen: in [0, 1).
    """
    number, length = len(frames), len(forward) + 1
    sees = np.zeros((number, length), dtype=bool)
    total, compared = np.zeros(number), np.zeros(number)
    bounds = np.searchsorted(frames, np.arange(length + 1))
    area = mask_area(masks).numpy()
    chain = ChainedFlow(forward, backward)
    none = np.zeros(0, dtype=np.int64)
    rows, columns, values = [none], [none], [np.zeros(0)]
    for t in range(length):
        for step in (k for k in offsets if t + k < length):
            here, there = slice(bounds[t], bounds[t + 1]), slice(bounds[t + step], bounds[t + step + 1])
            compared[here] += 1
            compared[there] += 1
            if here.start == here.stop or there.start == there.stop:
                continue
            ahead, back = (flow[None] for flow in chain.between(t, step))
            first, second = (BitMasks(masks.words[part][None], masks.width) for part in (here, there))
            onto_second, left_of_second = _warped(first, second, back, ahead)
            onto_first, left_of_first = _warped(second, first, ahead, back)
            total[here] += onto_second.max(1)
            total[there] += onto_first.max(1)
            sees[here, t + step] = left_of_first / np.maximum(area[here], 1) > seen
            sees[there, t] = left_of_second / np.maximum(area[there], 1) > seen
            iou = (onto_second + onto_first.T) / 2
            i, j = np.nonzero(iou * sees[here, t + step, None] * sees[None, there, t])
            rows += [i + here.start, j + there.start]
            columns += [j + there.start, i + here.start]
            values += [iou[i, j]] * 2
    pairs = (np.concatenate(rows), np.concatenate(columns))
    iou = sparse.csr_array((np.concatenate(values), pairs), shape=(number, number))
    return Agreement(iou, (sees,), frames, total / np.maximum(compared, 1))


def _warped(source: BitMasks, target: BitMasks, flow: Tensor, reverse: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """IoU ``[N, M]`` of one frame's masks warped onto another's, and what the check leaves of the latter's area."""
    counts = flow_warp_counts(source, target, flow, None, reverse)
    shared, warped, area = (count[0].double().numpy() for count in counts)
    return shared / np.maximum(warped[:, None] + area[None, :] - shared, 1), area


def joint_agreement(trajectory: Agreement | None, flow: Agreement | None) -> Agreement:
    """Both kinds of evidence as one: pixels decide where they were compared, points elsewhere; scores are averaged."""
    if trajectory is None or flow is None:
        return trajectory or flow
    (seen_by_pixels,) = flow.sees
    by_points = _where(trajectory.iou, ~both_see(seen_by_pixels, flow.frames, trajectory.iou))
    return Agreement(
        sparse.csr_array(flow.iou + by_points),
        trajectory.sees + flow.sees,
        flow.frames,
        (trajectory.scores + flow.scores) / 2,
    )


def ambiguous_frames(covers: sparse.csr_array, frames: np.ndarray, length: int) -> np.ndarray:
    """In which frames each mask covers two or more masks: bool ``[N, T]``."""
    pairs = covers.tocoo()
    cells = pairs.row.astype(np.int64) * length + frames[pairs.col]
    return (np.bincount(cells, minlength=len(frames) * length) > 1).reshape(len(frames), length)
