"""Average precision and recall of whole tubes, class-agnostic, as YouTube-VIS evaluates with ``useCats=0``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2d.data.types import Tracks
from s2d.metrics.tubes import tube_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class AveragePrecision:
    """The official summary over tubes of all areas, each in [0, 1]; NaN where the ground truth has no instance.

    Attributes:
        ap: mean over the IoU thresholds 0.50, 0.55, ..., 0.95, at most 100 tracks a video.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ar1: recall, mean over the thresholds, with the single best-scored track of each video.
        ar10: the same with ten tracks.
    """

    ap: float
    ap50: float
    ap75: float
    ar1: float
    ar10: float


def average_precision(pairs: Sequence[tuple[Tracks, Tracks]]) -> AveragePrecision:
    """AP, AP50, AP75, AR1 and AR10 over videos.

    In each video the tracks take turns by descending score (ties: the earlier one first) and each takes the free true
    instance with the greatest IoU of at least the threshold. Precision at 101 recall points is the greatest precision
    at that recall or a higher one. Source: the YouTube-VIS evaluator, which follows COCO's.

    Args:
        pairs: (predictions, ground truth) of every video; pass an empty `Tracks` for a video without predictions. The
            truth holds no crowd regions (`read_ytvis` has no place for them).

    Raises:
        ValueError: the two of a pair differ in number of frames or in mask size.
    """
    total = sum(len(truth) for _, truth in pairs)
    if total == 0:
        return AveragePrecision(*[float("nan")] * 5)
    scored = [_ranked(predictions, truth) for predictions, truth in pairs]
    means = _curves(scored, total, most=100)[0].mean(1)
    return AveragePrecision(
        ap=float(means.mean()),
        ap50=float(means[0]),
        ap75=float(means[5]),
        ar1=float(_curves(scored, total, most=1)[1].mean()),
        ar10=float(_curves(scored, total, most=10)[1].mean()),
    )


def _ranked(predictions: Tracks, truth: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Scores in descending order, and for each threshold whether the track in that place finds an instance.

    The k best tracks of a video are matched alike whatever follows them, so this is done once for all limits.
    """
    scores = predictions.scores.double().numpy()
    order = np.argsort(-scores, kind="stable")[:100]
    iou = tube_iou(predictions, truth).numpy()[order]
    hits = np.zeros((len(IOU_THRESHOLDS), len(order)), dtype=bool)
    for row, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(iou.shape[1], dtype=bool)
        for place in range(len(order)):
            candidates = np.where(free, iou[place], -1.0)
            # Of equal overlaps the official loop keeps the last.
            best = len(candidates) - 1 - int(np.argmax(candidates[::-1])) if len(candidates) else -1
            if best >= 0 and candidates[best] >= threshold:
                free[best] = False
                hits[row, place] = True
    return scores[order], hits


def _curves(scored: list[tuple[np.ndarray, np.ndarray]], total: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision at the recall points ``[10, 101]`` and the final recall ``[10]``, with ``most`` tracks a video."""
    scores = np.concatenate([s[:most] for s, _ in scored])
    hits = np.concatenate([h[:, :most] for _, h in scored], axis=1)[:, np.argsort(-scores, kind="stable")]
    found = hits.cumsum(1)
    recall = found / total
    precision = found / np.arange(1, hits.shape[1] + 1)
    # Precision that never rises again with recall: the maximum from the right.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sampled = np.zeros((len(IOU_THRESHOLDS), len(RECALL_POINTS)))
    for row in range(len(IOU_THRESHOLDS)):
        places = np.searchsorted(recall[row], RECALL_POINTS, side="left")
        reached = places < recall.shape[1]
        sampled[row, reached] = precision[row, places[reached]]
    return sampled, recall[:, -1] if recall.shape[1] else np.zeros(len(IOU_THRESHOLDS))
