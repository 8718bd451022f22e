"""`COCOeval`: a drop-in for pycocotools' evaluation of masks and boxes."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import torch

from s2d import _native
from s2d.metrics._evaluator import Evaluator
from s2d.metrics._matching import Groups
from s2d.metrics.datasets import COCO

_native_host = _native.host()
_host = _native_host.metrics


class COCOeval(Evaluator):
    """AP and AR of masks ("segm") or boxes ("bbox"), to the last digit those of ``pycocotools.cocoeval.COCOeval``.

    ::

        evaluator = COCOeval(truth, truth.loadRes("results.json"), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()      # prints twelve numbers and keeps them in evaluator.stats

    The attributes are pycocotools': ``params``, ``evalImgs``, ``eval`` ("precision" ``[T, R, K, A, M]``, "recall"
    ``[T, K, A, M]``, "scores"), ``stats``, ``ious``. ``evalImgs`` and ``ious`` are made when they are asked for;
    ``evalImgs`` may be set, to join the results of several processes, before ``accumulate``.

    Areas: small below 32^2 pixels, medium below 96^2, both ends belonging to both. As in pycocotools a key "ignore" of
    an annotation has no effect, "iscrowd" has. Otherwise than there, annotations are not changed, a match with an
    annotation of id 0 is a match, a missing "iscrowd" reads 0, ``accumulate`` leaves ``params.catIds`` as they are, and
    there are no keypoints.

    Args:
        cocoGt, cocoDt: `s2d.metrics.COCO`, ``pycocotools.coco.COCO`` or what has their ``getAnnIds``, ``loadAnns``,
            ``getImgIds``, ``getCatIds`` and ``imgs``.
        iouType: "segm" or "bbox".

    Raises:
        ValueError: another ``iouType``.
    """

    units, unit = "imgIds", "image_id"
    areas = (32**2, 96**2)
    kinds = ("segm", "bbox")
    area = "area"

    @property
    def evalImgs(self) -> list:
        """A dictionary for each category, area range and image, in this order, as pycocotools documents them."""
        return self._results()

    @evalImgs.setter
    def evalImgs(self, entries: Any) -> None:
        self._given = list(entries)

    def _unit_ids(self, dataset: Any) -> list:
        return dataset.getImgIds()

    def _areas(self, annotations: list[dict], column: np.ndarray) -> np.ndarray:
        return column

    def _overlaps(self, groups: Groups) -> np.ndarray:
        crowd = self._crowd.astype(np.uint8)
        if self.params.iouType == "bbox":
            dt, gt = self._boxes[0].take(groups.dt_order, 0), self._boxes[1].take(groups.gt_order, 0)
            return _host.box_iou(dt, gt, groups.dt_offsets, groups.gt_offsets, crowd)
        # Masks that meet no other need not be read.
        met = np.diff(groups.dt_offsets).astype(bool) & np.diff(groups.gt_offsets).astype(bool)
        dt = _masks(self._dts, self.cocoDt, groups.dt_order, met[groups.dt_group])
        gt = _masks(self._gts, self.cocoGt, groups.gt_order, met[groups.gt_group])
        frames = np.ones(len(met), dtype=np.int64)
        return _host.mask_iou(dt, gt, groups.dt_offsets, groups.gt_offsets, frames, crowd, torch.get_num_threads())


def _masks(annotations: list[dict], dataset: Any, order: np.ndarray, wanted: np.ndarray) -> tuple:
    """counts, offsets, sizes and index of the masks in some order; index -1 for those that are not wanted."""
    if isinstance(dataset, COCO):
        return *dataset.masks.numpy(), np.where(wanted, order, -1)
    # Read in the order in which they lie in memory.
    places = np.sort(order[wanted])
    chosen = list(map(annotations.__getitem__, places.tolist()))
    codes = list(map(itemgetter("segmentation"), chosen))
    sizes = None
    if set(map(type, codes)) - {dict}:
        images = [dataset.imgs[annotation["image_id"]] for annotation in chosen]
        sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)
    index = np.where(wanted, np.searchsorted(places, order), -1)
    return *_native_host.rle.from_coco(codes, sizes), index
