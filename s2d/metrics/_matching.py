"""COCO's matching and its curves, on flat arrays: what images and videos, boxes and masks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from s2d import _native

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)

_host = _native.host().metrics


@dataclass(frozen=True)
class Groups:
    """Detections and ground truth by category and unit (an image or a video); a group is what belongs to one of each.

    Groups are sorted by category, then by unit. Group k owns the detections ``dt_offsets[k]:dt_offsets[k + 1]``, by
    descending score, and the ground truth ``gt_offsets[k]:gt_offsets[k + 1]``.

    Attributes:
        categories, units: how many there are, with or without a group.
        category, unit: int64 ``[K]`` of each group.
        dt_order, gt_order: int64 ``[D]``, ``[G]``: the place of each in the lists that were arranged.
        dt_offsets, gt_offsets: int64 ``[K + 1]``.
        scores: float64 ``[D]``.
    """

    categories: int
    units: int
    category: np.ndarray
    unit: np.ndarray
    dt_order: np.ndarray
    gt_order: np.ndarray
    dt_offsets: np.ndarray
    gt_offsets: np.ndarray
    scores: np.ndarray

    @property
    def dt_group(self) -> np.ndarray:
        """int64 ``[D]``: the group of each detection."""
        return np.repeat(np.arange(len(self.unit)), np.diff(self.dt_offsets))

    @property
    def gt_group(self) -> np.ndarray:
        """int64 ``[G]``: the group of each ground truth."""
        return np.repeat(np.arange(len(self.unit)), np.diff(self.gt_offsets))

    @property
    def iou_offsets(self) -> np.ndarray:
        """int64 ``[K + 1]``: where the IoU ``[D_k, G_k]`` of each group begins."""
        return np.concatenate([[0], np.cumsum(np.diff(self.dt_offsets) * np.diff(self.gt_offsets))])


def arrange(
    dt: tuple[np.ndarray, np.ndarray, np.ndarray],
    gt: tuple[np.ndarray, np.ndarray],
    *,
    categories: int,
    units: int,
    most: int,
    use_categories: bool = True,
) -> Groups:
    """Sort detections and ground truth into groups; those whose category or unit is -1 are left out.

    Args:
        dt: int64 category and unit and float64 score of each detection. Of a group the ``most`` best ones are kept.
        gt: int64 category and unit of each ground truth.
        use_categories: False puts all categories of a unit into one group, sorted by category before score.
    """
    chosen, keys = [], []
    for category, unit, *scores in (dt, gt):
        order = np.flatnonzero((category >= 0) & (unit >= 0))
        if not use_categories:
            order = order[_stable_order(category[order])]
        if scores:
            order = order[_descending_order(scores[0][order])]
        chosen.append(order)
        keys.append(category[order] * units + unit[order] if use_categories else unit[order])
    number = len(chosen[0])
    key = np.concatenate(keys)
    place = _stable_order(key)
    begins = np.diff(key[place], prepend=-1) != 0
    group = np.cumsum(begins) - 1
    is_dt = place < number
    dt_place, gt_place = place[is_dt], place[~is_dt] - number
    dt_offsets, gt_offsets = (
        np.concatenate([[0], np.cumsum(np.bincount(group[side], minlength=begins.sum()))]) for side in (is_dt, ~is_dt)
    )
    kept = np.arange(number) - dt_offsets[group[is_dt]] < most
    dt_order, gt_order = chosen[0][dt_place[kept]], chosen[1][gt_place]
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    category, unit = np.divmod(key[place][begins], max(units, 1))
    return Groups(
        categories if use_categories else 1,
        units,
        category,
        unit,
        dt_order,
        gt_order,
        kept_before[dt_offsets],
        gt_offsets,
        dt[2][dt_order],
    )


def _stable_order(key: np.ndarray) -> np.ndarray:
    """The order of some integers that are not negative; many times as fast as argsort, which knows no such tie."""
    number = max(len(key), 1)
    return np.sort(key.astype(np.int64) * number + np.arange(len(key))) % number


def _descending_order(scores: np.ndarray) -> np.ndarray:
    """The order of some scores from the greatest on, ties as they are; twice as fast as a stable argsort."""
    # The bits of positive numbers are in their order, those of negative ones in the opposite one.
    bits = (-scores + 0.0).view(np.int64)
    bits = np.where(bits < 0, np.invert(bits), bits | np.int64(-(2**63))).view(np.uint64)
    low = _stable_order(bits & np.uint64(2**32 - 1))
    return low[_stable_order((bits >> np.uint64(32))[low])]


@dataclass(frozen=True)
class Matches:
    """Who was matched with whom, for each area range and IoU threshold.

    Attributes:
        dt: int32 ``[D, A, T]``: index within its group of the ground truth, or -1.
        dt_ignored: uint8 ``[D, A, T]``: whether the detection counts neither as right nor as wrong.
        gt: int32 ``[G, A, T]``: index within its group of the detection, or -1.
        gt_ignored: uint8 ``[A, G]``: whether the ground truth need not be found.
    """

    dt: np.ndarray
    dt_ignored: np.ndarray
    gt: np.ndarray
    gt_ignored: np.ndarray

    def of_range(self, a: int) -> Matches:
        """Those of one area range."""
        own = slice(a, a + 1)
        return Matches(
            *(np.ascontiguousarray(array[:, own]) for array in (self.dt, self.dt_ignored, self.gt)),
            self.gt_ignored[own],
        )


def match(
    groups: Groups,
    iou: np.ndarray,
    *,
    dt_areas: np.ndarray,
    gt_areas: np.ndarray,
    crowd: np.ndarray,
    ranges: Sequence[Sequence[float]],
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> Matches:
    """Match detections to ground truth, group by group, as COCO defines it.

    By descending score each detection takes the free ground truth with the greatest IoU of at least the threshold (of
    equal ones the last). Ground truth that is ignored, a crowd or one whose area lies outside the range, is taken only
    where no other fits; a crowd can be taken by many. Who took one that is ignored is ignored, and so is who took none
    and has an area outside the range.

    Args:
        iou: float64, one ``[D_k, G_k]`` after another.
        dt_areas, gt_areas: float64 ``[D]``, ``[G]``, pixels.
        crowd: bool ``[G]``.
        ranges: A pairs of the least and the greatest area.
        thresholds: float64 ``[T]``.
    """
    return Matches(
        *_host.match(
            iou,
            groups.dt_offsets,
            groups.gt_offsets,
            dt_areas,
            gt_areas,
            crowd.astype(np.uint8),
            np.asarray(ranges, dtype=np.float64),
            np.asarray(thresholds, dtype=np.float64),
            torch.get_num_threads(),
        )
    )


class Ranking:
    """Detections of all groups by category and descending score, ready for their curves."""

    def __init__(self, groups: Groups, matches: Matches) -> None:
        self.groups, self.matches = groups, matches
        dt_group, gt_group = groups.dt_group, groups.gt_group
        category = groups.category[dt_group]
        best = _descending_order(groups.scores)
        bounds = np.arange(groups.categories + 1)
        self._dt_unit, self._gt_unit = groups.unit[dt_group], groups.unit[gt_group]
        self._ranks = np.arange(len(dt_group)) - groups.dt_offsets[dt_group]
        self._order = best[_stable_order(category[best])]
        self._dt_categories = np.searchsorted(category, bounds)
        self._gt_categories = np.searchsorted(groups.category[gt_group], bounds)

    def curves(
        self, *, most: Sequence[int], points: np.ndarray = RECALL_POINTS, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision over recall, as COCO defines it.

        Args:
            most: M numbers of detections that count in each group, the best ones.
            points: float64 ``[R]``: recalls at which precision is read off.
            weights: int64 ``[units]``: how many times each image or video is there; None: once.

        Returns:
            precision ``[T, R, K, A, M]``, recall ``[T, K, A, M]`` and scores ``[T, R, K, A, M]`` (of the detection at
            which the recall is reached), with K all categories; -1 where there is nothing to be found.
        """
        weights = np.ones(self.groups.units, dtype=np.int64) if weights is None else weights
        precision, recall, scores = _host.accumulate(
            self.matches.dt,
            self.matches.dt_ignored,
            self.matches.gt_ignored,
            self.groups.scores,
            self._ranks,
            weights[self._dt_unit],
            weights[self._gt_unit],
            self._order,
            self._dt_categories,
            self._gt_categories,
            np.asarray(points, dtype=np.float64),
            np.asarray(most, dtype=np.int64),
            torch.get_num_threads(),
        )
        return precision.transpose(3, 4, 0, 1, 2), recall.transpose(3, 0, 1, 2), scores.transpose(3, 4, 0, 1, 2)


def mean(values: np.ndarray) -> float:
    """Mean of what is defined (not -1), -1 where nothing is."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0
