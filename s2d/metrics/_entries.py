"""The results of single images or videos as pycocotools keeps them: dictionaries, made of flat arrays and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from s2d.metrics._matching import Groups, Matches, arrange


def each_iou(groups: Groups, iou: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The IoU ``[D, G]`` of every group that has detections and ground truth, with its index."""
    offsets = groups.iou_offsets
    numbers = np.stack([np.diff(groups.dt_offsets), np.diff(groups.gt_offsets)], 1)
    for k in np.flatnonzero(numbers.all(1)):
        yield int(k), iou[offsets[k] : offsets[k + 1]].reshape(numbers[k])


def make_entries(evaluator: Any) -> list[dict | None]:
    """A dictionary for each category, area range and unit, in this order; None where there is no annotation.

    Args:
        evaluator: a `COCOeval` or `YTVOSeval` after ``evaluate()``.
    """
    p, groups, matches = evaluator._paramsEval, evaluator._groups, evaluator._matches
    units, categories = getattr(p, evaluator.units), list(p.catIds) if p.useCats else [-1]
    dt_ids, gt_ids = (
        np.array([side[i]["id"] for i in order])
        for side, order in ((evaluator._dts, groups.dt_order), (evaluator._gts, groups.gt_order))
    )
    entries: list[dict | None] = [None] * (groups.categories * len(p.areaRng) * groups.units)
    for k, (category, unit) in enumerate(zip(groups.category.tolist(), groups.unit.tolist(), strict=True)):
        dt, gt = (slice(offsets[k], offsets[k + 1]) for offsets in (groups.dt_offsets, groups.gt_offsets))
        for a, area in enumerate(p.areaRng):
            last = np.argsort(matches.gt_ignored[a, gt], kind="stable")
            entries[(category * len(p.areaRng) + a) * groups.units + unit] = {
                evaluator.unit: units[unit],
                "category_id": categories[category],
                "aRng": area,
                "maxDet": p.maxDets[-1],
                "dtIds": dt_ids[dt].tolist(),
                "gtIds": gt_ids[gt][last].tolist(),
                "dtMatches": _ids(matches.dt[dt, a].T, gt_ids[gt]),
                "gtMatches": _ids(matches.gt[gt, a].T[:, last], dt_ids[dt]),
                "dtScores": groups.scores[dt].tolist(),
                "gtIgnore": matches.gt_ignored[a, gt][last].astype(np.int64),
                "dtIgnore": matches.dt_ignored[dt, a].T.astype(bool),
            }
    return entries


def _ids(index: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The ids at some indices, 0 at -1: float64 as pycocotools has them."""
    return np.where(index >= 0, np.append(ids, 0)[index], 0).astype(np.float64)


def read_entries(entries: Sequence[dict | None], p: Any, units: str) -> tuple[Groups, Matches]:
    """The flat arrays of such a list, for instance one that was gathered from several processes.

    Args:
        p: the parameters it was made with.
        units: name of the parameter with the ids of images or videos.
    """
    categories, areas, number = len(p.catIds) if p.useCats else 1, len(p.areaRng), len(getattr(p, units))
    table = np.empty(len(entries), dtype=object)
    table[:] = list(entries)
    table = table.reshape(categories, areas, number)
    there = [(k, i) for k, i in np.ndindex(categories, number) if table[k, 0, i] is not None]
    first = [table[k, 0, i] for k, i in there]
    dt_place, gt_place = (
        np.repeat(np.array(there, dtype=np.int64).reshape(-1, 2), [len(entry[ids]) for entry in first], axis=0)
        for ids in ("dtIds", "gtIds")
    )
    scores = np.array([score for entry in first for score in entry["dtScores"]], dtype=np.float64)
    groups = arrange(
        (dt_place[:, 0], dt_place[:, 1], scores),
        (gt_place[:, 0], gt_place[:, 1]),
        categories=categories,
        units=number,
        most=p.maxDets[-1],
    )

    def joined(name: str, order: np.ndarray) -> np.ndarray:
        """``[A, T, N]`` or ``[A, N]`` in the order of the groups."""
        rows = [np.concatenate([table[k, a, i][name] for k, i in there], axis=-1) for a in range(areas)]
        return np.stack(rows)[..., order] if there else np.zeros((areas, len(p.iouThrs), 0))

    def by_annotation(name: str, order: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(joined(name, order).transpose(2, 0, 1))

    # Whom a match was made with is not needed to count it.
    dt, gt = (
        np.where(by_annotation(name, order) > 0, 0, -1).astype(np.int32)
        for name, order in (("dtMatches", groups.dt_order), ("gtMatches", groups.gt_order))
    )
    gt_ignored = joined("gtIgnore", groups.gt_order).reshape(areas, -1)
    return groups, Matches(
        dt, by_annotation("dtIgnore", groups.dt_order).astype(np.uint8), gt, gt_ignored.astype(np.uint8)
    )
