"""AP and AR of whole tubes, as the YouTube-VIS API defines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from s2d import _native
from s2d.data.types import Tracks
from s2d.metrics._evaluator import Evaluator
from s2d.metrics._matching import Groups, Ranking, arrange, match, mean
from s2d.metrics.datasets import YTVOS
from s2d.metrics.tubes import overlap_counts

_host = _native.host()

# Mean area over the frames that an instance is in: small below 128^2 pixels, medium below 256^2.
AREAS = (128**2, 256**2)


class YTVOSeval(Evaluator):
    """AP and AR of tubes, to the last digit those of the YouTube-VIS API's ``YTVOSeval``.

    Used as `COCOeval`, with videos in place of images: ``params.vidIds``, ``evalVids``. The IoU of two tubes is the sum
    over the frames of their intersections by that of their unions, for crowds too. Areas are means over
    the frames that an instance is in, of the annotation's ``areas``; small below 128^2 pixels, medium below 256^2, both
    ends belonging to both.

    Args:
        cocoGt, cocoDt: `s2d.metrics.YTVOS`, the API's own class or what has its ``getAnnIds``, ``loadAnns``,
            ``getVidIds``, ``getCatIds`` and ``vids``.
        iouType: "segm".

    Raises:
        ValueError: another ``iouType``; in ``evaluate``, tubes of one video that differ in length or in mask size.
    """

    units, unit = "vidIds", "video_id"
    area = None
    areas = AREAS
    kinds = ("segm",)

    @property
    def evalVids(self) -> list:
        """A dictionary for each category, area range and video, in this order, as the API documents them."""
        return self._results()

    @evalVids.setter
    def evalVids(self, entries: Any) -> None:
        self._given = list(entries)

    def _unit_ids(self, dataset: Any) -> list:
        return dataset.getVidIds()

    def _areas(self, annotations: list[dict], column: np.ndarray) -> np.ndarray:
        return np.array([_mean_area(annotation["areas"]) for annotation in annotations], dtype=np.float64)

    def _overlaps(self, groups: Groups) -> np.ndarray:
        # Tubes that meet no other need not be read.
        met = np.diff(groups.dt_offsets).astype(bool) & np.diff(groups.gt_offsets).astype(bool)
        frames = np.zeros(len(met), dtype=np.int64)
        sides, tubes = [], []
        for side, dataset, order, group in (
            (self._dts, self.cocoDt, groups.dt_order, groups.dt_group),
            (self._gts, self.cocoGt, groups.gt_order, groups.gt_group),
        ):
            wanted = met[group]
            chosen = [side[n] for n in order[wanted].tolist()]
            for annotation, k in zip(chosen, group[wanted].tolist(), strict=True):
                length = len(annotation["segmentations"])
                frames[k] = frames[k] or length
                if length != frames[k]:
                    raise ValueError(
                        f"expected {frames[k]} masks, one a frame, got {length} for {self._name(annotation)}"
                    )
            sides.append(chosen)
            tubes.append(_read_tubes(chosen, order[wanted], dataset))
        self._check_sizes(sides, tubes)
        crowd = np.zeros(len(groups.gt_order), dtype=np.uint8)
        threads = torch.get_num_threads()
        return _host.metrics.mask_iou(*tubes, groups.dt_offsets, groups.gt_offsets, frames, crowd, threads)

    def _check_sizes(self, sides: list[list[dict]], tubes: list[tuple]) -> None:
        together = np.concatenate([sizes[index[index >= 0]] for _, _, sizes, index in tubes])
        if not len(together) or not (together != together[0]).any():
            return
        sizes_of: dict = {}
        for side, (_, _, sizes, index) in zip(sides, tubes, strict=True):
            places = iter(index.tolist())
            for annotation in side:
                for frame, place in zip(range(len(annotation["segmentations"])), places, strict=False):
                    size = sizes[place].tolist()
                    known = sizes_of.setdefault(annotation[self.unit], size) if place >= 0 else size
                    if size != known:
                        where = f"frame {frame} of {self._name(annotation)}"
                        raise ValueError(
                            f"expected masks of height and width {known} as others of the video, got {size} in {where}"
                        )


def _read_tubes(annotations: list[dict], order: np.ndarray, dataset: Any) -> tuple:
    """counts, offsets and sizes of the masks of some tubes, and the place of each frame's; -1 where it has none."""
    if isinstance(dataset, YTVOS):
        rle, places = dataset.masks
        return *rle.numpy(), np.concatenate([places[n] for n in order.tolist()] or [np.zeros(0, dtype=np.int64)])
    tubes = [annotation["segmentations"] for annotation in annotations]
    there = np.array([bool(code) for tube in tubes for code in tube], dtype=bool)
    codes = [code for tube in tubes for code in tube if code]
    sizes = None
    if set(map(type, codes)) - {dict}:
        videos = [dataset.vids[annotation["video_id"]] for annotation in annotations]
        sizes = np.array(
            [
                (video["height"], video["width"])
                for video, tube in zip(videos, tubes, strict=True)
                for code in tube
                if code
            ]
        )
    return *_host.rle.from_coco(codes, sizes), np.where(there, np.cumsum(there) - 1, -1)


def _mean_area(areas: list) -> float:
    present = [float(area) for area in areas if area]
    return sum(present) / len(present) if present else 0.0


@dataclass(frozen=True)
class AveragePrecision:
    """The official summary, each in [0, 1]; NaN where the ground truth has no such instance.

    Attributes:
        ap: mean over the IoU thresholds 0.50, 0.55, ..., 0.95, at most 100 tracks a video.
        ap50, ap75: at IoU 0.50 and 0.75.
        ap_small, ap_medium, ap_large: of instances whose area is small, medium or large.
        ar1, ar10, ar100: recall, mean over the thresholds, with the best-scored 1, 10, 100 tracks of each video.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float


def average_precision(pairs: Sequence[tuple[Tracks, Tracks]]) -> AveragePrecision:
    """AP and AR over videos, class-agnostic, as `YTVOSeval` with ``useCats = 0``.

    Areas are those of the masks: of official ground truth the file has areas of its own, which may differ.

    Args:
        pairs: (predictions, ground truth) of every video; pass an empty `Tracks` for a video without predictions. The
            truth holds no crowd regions (`read_ytvis` has no place for them).

    Raises:
        ValueError: the two of a pair differ in number of frames or in mask size.
    """
    counts = [overlap_counts(*pair) for pair in pairs]
    videos = np.arange(len(pairs))
    dt_video, gt_video = (np.repeat(videos, [len(pair[side]) for pair in pairs]) for side in (0, 1))
    scores = np.concatenate([predictions.scores.double().numpy() for predictions, _ in pairs] or [np.zeros(0)])
    groups = arrange(
        (np.zeros_like(dt_video), dt_video, scores),
        (np.zeros_like(gt_video), gt_video),
        categories=1,
        units=len(pairs),
        most=100,
    )
    starts = np.searchsorted(dt_video, groups.unit)
    iou = []
    for k, video in enumerate(groups.unit.tolist()):
        shared, areas, true_areas = (count.sum(-1).numpy() for count in counts[video])
        union = areas[:, None] + true_areas[None] - shared
        order = groups.dt_order[groups.dt_offsets[k] : groups.dt_offsets[k + 1]] - starts[k]
        iou.append((shared / np.maximum(union, 1))[order].ravel())
    dt_areas, gt_areas = (
        np.concatenate([_mean_areas(count[side].numpy()) for count in counts] or [np.zeros(0)]) for side in (1, 2)
    )
    matches = match(
        groups,
        np.concatenate(iou or [np.zeros(0)]),
        dt_areas=dt_areas[groups.dt_order],
        gt_areas=gt_areas[groups.gt_order],
        crowd=np.zeros(len(gt_areas), dtype=bool),
        ranges=[[0, 1e10], [0, AREAS[0]], AREAS, [AREAS[1], 1e10]],
    )
    precision, recall, _ = Ranking(groups, matches).curves(most=[1, 10, 100])
    values = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    values += [precision[..., area, 2] for area in (1, 2, 3)] + [recall[..., 0, limit] for limit in range(3)]
    means = [mean(value) for value in values]
    return AveragePrecision(*[float("nan") if value == -1 else value for value in means])


def _mean_areas(areas: np.ndarray) -> np.ndarray:
    """float64 ``[N]`` of areas ``[N, T]``: means over the frames where there is one."""
    return areas.sum(1) / np.maximum((areas > 0).sum(1), 1)
