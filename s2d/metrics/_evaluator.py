"""What `COCOeval` and `YTVOSeval` have in common: their attributes, and the way from annotations to numbers."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from typing import Any

import numpy as np

from s2d import _native
from s2d.metrics._entries import each_iou, make_entries, read_entries
from s2d.metrics._matching import IOU_THRESHOLDS, RECALL_POINTS, Groups, Matches, Ranking, arrange, match, mean

_host = _native.host().metrics

# The twelve numbers of `summarize`: AP or AR, IoU threshold, area, place in maxDets (None: 100 detections).
SUMMARY = (
    ("AP", None, "all", None),
    ("AP", 0.5, "all", 2),
    ("AP", 0.75, "all", 2),
    ("AP", None, "small", 2),
    ("AP", None, "medium", 2),
    ("AP", None, "large", 2),
    ("AR", None, "all", 0),
    ("AR", None, "all", 1),
    ("AR", None, "all", 2),
    ("AR", None, "small", 2),
    ("AR", None, "medium", 2),
    ("AR", None, "large", 2),
)


class Params:
    """Settings of an evaluation, named as in pycocotools.

    Attributes:
        imgIds or vidIds, catIds: what is evaluated; all of the ground truth.
        iouThrs: float64 ``[T]``: 0.50, 0.55, ..., 0.95.
        recThrs: float64 ``[R]``: 0.00, 0.01, ..., 1.00.
        maxDets: detections that count in an image or video: 1, 10, 100.
        areaRng, areaRngLbl: least and greatest area, pixels, and their names.
        useCats: 0 matches all categories with each other.
        iouType: "segm" or "bbox".
    """

    def __init__(self, units: str, areas: tuple[float, float], iouType: str) -> None:
        setattr(self, units, [])
        self.catIds: list = []
        self.iouThrs = IOU_THRESHOLDS.copy()
        self.recThrs = RECALL_POINTS.copy()
        self.maxDets = [1, 10, 100]
        small, large = areas
        self.areaRng = [[0, 1e5**2], [0, small], [small, large], [large, 1e5**2]]
        self.areaRngLbl = ["all", "small", "medium", "large"]
        self.useCats = 1
        self.iouType = iouType
        self.useSegm: int | None = None

    def copy(self) -> Params:
        """The same settings in lists and arrays of their own."""
        result = copy.copy(self)
        for name, value in vars(self).items():
            setattr(result, name, copy.copy(value))
        return result


class Evaluator:
    """Base of the drop-ins.

    ``units`` names the parameter with the ids of images or videos, ``unit`` and ``area`` the keys of an annotation that
    hold one of them and its area (None: it has no single one).
    """

    units: str
    unit: str
    area: str | None
    areas: tuple[float, float]
    kinds: tuple[str, ...]

    # What a drop-in adds: the ids of all units, the area of each annotation, the IoU of all groups one after another.
    _unit_ids: Callable[[Any], list]
    _areas: Callable[[list[dict], np.ndarray], np.ndarray]
    _overlaps: Callable[[Groups], np.ndarray]

    def __init__(self, cocoGt: Any = None, cocoDt: Any = None, iouType: str = "segm") -> None:
        if iouType not in self.kinds:
            raise ValueError(f"expected iouType {' or '.join(self.kinds)}, got {iouType!r}")
        self.cocoGt, self.cocoDt = cocoGt, cocoDt
        self.params = Params(self.units, self.areas, iouType)
        self.eval: dict[str, Any] = {}
        self.stats: Any = []
        self._paramsEval: Any = {}
        self._groups: Groups | None = None
        self._matches: Matches | None = None
        # Results in the dictionaries of pycocotools: made on demand, or given in place of our own.
        self._made: list | None = None
        self._given: list | None = None
        self._iou = np.zeros(0)
        self._ious: dict | None = None
        if cocoGt is not None:
            setattr(self.params, self.units, sorted(self._unit_ids(cocoGt)))
            self.params.catIds = sorted(cocoGt.getCatIds())

    def evaluate(self) -> None:
        """Match detections to ground truth.

        Raises:
            ValueError: an annotation that lacks what is needed, a score that is not a number; names it.
        """
        p = self.params
        if p.useSegm is not None:
            p.iouType = "segm" if p.useSegm == 1 else "bbox"
        setattr(p, self.units, np.unique(getattr(p, self.units)).tolist())
        if p.useCats:
            p.catIds = np.unique(p.catIds).tolist()
        p.maxDets = sorted(p.maxDets)
        self._gts, self._dts = self._annotations(self.cocoGt), self._annotations(self.cocoDt)
        units = {unit: place for place, unit in enumerate(getattr(p, self.units))}
        categories = {category: place for place, category in enumerate(p.catIds)}
        dt, gt = (
            _host.annotations(side, self.unit, units, categories, self.area, key, otherwise, p.iouType == "bbox")
            for side, key, otherwise in ((self._dts, "score", None), (self._gts, "iscrowd", 0.0))
        )
        scores = dt[3]
        if np.isnan(scores).any():
            wrong = self._dts[int(np.isnan(scores).argmax())]
            raise ValueError(f"expected scores that are numbers, got nan for {self._name(wrong)}")
        self._groups = groups = arrange(
            (dt[0], dt[1], scores),
            (gt[0], gt[1]),
            categories=len(categories),
            units=len(units),
            most=p.maxDets[-1],
            use_categories=bool(p.useCats),
        )
        self._crowd = gt[3][groups.gt_order] != 0
        self._boxes = dt[4], gt[4]
        self._iou = self._overlaps(groups)
        self._matches = match(
            groups,
            self._iou,
            dt_areas=self._areas(self._dts, dt[2])[groups.dt_order],
            gt_areas=self._areas(self._gts, gt[2])[groups.gt_order],
            crowd=self._crowd,
            ranges=p.areaRng,
            thresholds=p.iouThrs,
        )
        self._made = self._given = self._ious = None
        self.eval = {}
        self._paramsEval = p.copy()

    def accumulate(self, p: Params | None = None) -> None:
        """Precision and recall into ``eval``.

        Args:
            p: other parameters than those of `evaluate`: fewer images, videos, categories or area ranges, other limits
                of detections. What was not evaluated reads -1.
        """
        if self._given is not None:
            self._groups, self._matches = read_entries(self._given, self._paramsEval, self.units)
        if self._groups is None:
            raise RuntimeError("expected evaluate() to be called before accumulate()")
        p, done = p or self.params, self._paramsEval
        wanted = set(getattr(p, self.units))
        weights = np.array([unit in wanted for unit in getattr(done, self.units)], dtype=np.int64)
        curves = Ranking(self._groups, self._matches).curves(most=p.maxDets, points=p.recThrs, weights=weights)
        categories = list(p.catIds) if p.useCats else [-1]
        evaluated = list(done.catIds) if done.useCats else [-1]
        areas = [tuple(area) for area in done.areaRng]
        precision, recall, scores = (
            _chosen(_chosen(curve, -3, categories, evaluated), -2, [tuple(area) for area in p.areaRng], areas)
            for curve in curves
        )
        sizes = (len(p.iouThrs), len(p.recThrs), len(categories), len(p.areaRng), len(p.maxDets))
        self.eval = {
            "params": p,
            "counts": list(sizes),
            "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "precision": precision,
            "recall": recall,
            "scores": scores,
        }

    def summarize(self) -> None:
        """Print the twelve numbers and keep them in ``stats``; -1 where there is nothing to be found."""
        if not self.eval:
            raise RuntimeError("expected accumulate() to be called before summarize()")
        self.stats = np.array([self._summarize(*row) for row in SUMMARY])

    def _summarize(self, kind: str, threshold: float | None, area: str, limit: int | None) -> float:
        p = self.params
        most = 100 if limit is None else p.maxDets[limit]
        values = self.eval["precision" if kind == "AP" else "recall"]
        if threshold is not None:
            values = values[np.where(threshold == p.iouThrs)[0]]
        areas = [i for i, label in enumerate(p.areaRngLbl) if label == area]
        limits = [i for i, number in enumerate(p.maxDets) if number == most]
        result = mean(values[..., areas, limits])
        title = "Average Precision" if kind == "AP" else "Average Recall"
        span = f"{p.iouThrs[0]:0.2f}:{p.iouThrs[-1]:0.2f}" if threshold is None else f"{threshold:0.2f}"
        print(f" {title:<18} ({kind}) @[ IoU={span:<9} | area={area:>6s} | maxDets={most:>3d} ] = {result:0.3f}")
        return result

    @property
    def ious(self) -> dict:
        """IoU ``[D, G]`` of every (image or video, category), detections by descending score; [] where one side is."""
        if self._ious is None:
            p, groups = self._paramsEval, self._groups
            if groups is None or self._given is not None:
                return {}
            categories = p.catIds if p.useCats else [-1]
            units = getattr(p, self.units)
            self._ious = {(unit, category): [] for unit in units for category in categories}
            for k, values in each_iou(groups, self._iou):
                self._ious[units[groups.unit[k]], categories[groups.category[k]]] = values
        return self._ious

    def _results(self) -> list:
        if self._given is not None:
            return self._given
        if self._made is None and self._matches is not None:
            self._made = make_entries(self)
        return self._made or []

    def _annotations(self, dataset: Any) -> list[dict]:
        if isinstance(getattr(dataset, "anns", None), dict):
            return list(dataset.anns.values())
        return list(dataset.loadAnns(dataset.getAnnIds()))

    def _name(self, annotation: dict) -> str:
        return f"annotation {annotation.get('id')} of {self.unit.removesuffix('_id')} {annotation.get(self.unit)}"


def _chosen(curve: np.ndarray, axis: int, wanted: list, available: list) -> np.ndarray:
    """Some entries along an axis, in the order wanted; -1 for those that are not available."""
    if wanted == available:
        return curve
    places = {value: place for place, value in enumerate(available)}
    index = [places.get(value, 0) for value in wanted]
    result = curve.take(index, axis)
    missing = [n for n, value in enumerate(wanted) if value not in places]
    np.moveaxis(result, axis, 0)[missing] = -1
    return result
