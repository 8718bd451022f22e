"""The numbers of a benchmark with what stands behind them: videos, instances, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from s2d.metrics._entries import each_iou
from s2d.metrics._evaluator import Evaluator
from s2d.metrics._matching import Ranking, mean
from s2d.metrics.davis import JAndF

LEVEL = 0.95


@dataclass(frozen=True)
class Scores:
    """The numbers of one set of predictions, NaN where there is nothing to be found.

    Attributes:
        main: name of the number that ranks methods, "ap" or "j_and_f".
        overall: the numbers of the benchmark, in its order.
        videos: of each video (of COCO: image), the numbers that are defined for one.
        instances: a row for each true instance: "video", "instance" and its numbers.
        samples: float64 ``[B]`` of some numbers of ``overall``: their values for B draws of the videos with
            replacement. Equal seeds and numbers of videos draw the same videos.
        notes: what a reader must know, one sentence each.
    """

    main: str
    overall: dict[str, float]
    videos: dict[str, dict[str, float]]
    instances: list[dict]
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The middle 95 % of the samples of each number."""
        return {name: interval(values) for name, values in self.samples.items()}


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Low and high end of the middle 95 % of some samples; NaN where none is a number."""
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def precision_scores(
    evaluator: Evaluator,
    names: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """AP and AR of a `COCOeval` or `YTVOSeval`, as their ``summarize`` gives them.

    A video's own ``ap`` and ``ap50`` are those of the benchmark if there were no other. An instance has ``iou``, the
    greatest of any prediction of its category, ``found``, the share of IoU thresholds at which it is found, and
    ``score``, of the prediction that finds it at the lowest threshold.

    Args:
        evaluator: with default thresholds and areas, before ``evaluate``.
        names: of the images or videos, in the order of the evaluator's sorted ids.
        draws: of the bootstrap; 0 for none.
    """
    evaluator.evaluate()
    groups, matches = evaluator._groups, evaluator._matches
    limits = [1, 10, 100]
    precision, recall, _ = Ranking(groups, matches).curves(most=limits)
    overall = _of_all_areas(precision[..., 0, :], recall[..., 0, :])
    for a, label in enumerate(("small", "medium", "large"), 1):
        overall[f"ap_{label}"], overall[f"ar_{label}"] = mean(precision[..., a, 2]), mean(recall[..., a, 2])
    ranking = Ranking(groups, matches.of_range(0))

    def numbers(weights: np.ndarray) -> dict[str, float]:
        precision, recall, _ = ranking.curves(most=limits, weights=weights)
        return _defined(_of_all_areas(precision[..., 0, :], recall[..., 0, :]))

    instances = _instances(evaluator, names)
    found = np.bincount(groups.unit[groups.dt_group], minlength=len(names))
    wanted = np.bincount(groups.unit[groups.gt_group], minlength=len(names))
    videos = {}
    for unit, name in enumerate(tqdm(names, desc="videos", disable=not progress)):
        own = {"ap": -1.0, "ap50": -1.0}
        if wanted[unit]:
            precision, _, _ = ranking.curves(most=limits[-1:], weights=np.arange(len(names)) == unit)
            own = {"ap": mean(precision), "ap50": mean(precision[0])}
        videos[name] = {"instances": int(wanted[unit]), "predictions": int(found[unit]), **_defined(own)}
    samples = _bootstrap(numbers, len(names), draws, seed, progress)
    return Scores("ap", _defined(overall), videos, instances, samples)


def davis_scores(sequences: Sequence[JAndF], *, draws: int = 1000, seed: int = 0, progress: bool = True) -> Scores:
    """J and F over sequences: means over all objects, as the DAVIS benchmark takes them.

    ``j_and_f`` is the mean of ``j_mean`` and ``f_mean``.
    """
    videos, instances, rows = {}, [], []
    for sequence in sequences:
        statistics = sequence.statistics()
        table = np.stack(list(statistics.values()), 1)
        rows.append(table)
        videos[sequence.video] = _j_and_f(table.mean(0), statistics)
        for n, row in enumerate(table):
            assigned = sequence.assigned[n]
            instances.append(
                {"video": sequence.video, "instance": n + 1, "track": None if assigned is None else assigned + 1}
                | _j_and_f(row, statistics)
            )
    names = sequences[0].statistics()
    sums, numbers = np.stack([table.sum(0) for table in rows]), np.array([len(table) for table in rows])

    def means(weights: np.ndarray) -> dict[str, float]:
        return _j_and_f(weights @ sums / (weights @ numbers), names)

    overall = _j_and_f(np.concatenate(rows).mean(0), names)
    return Scores("j_and_f", overall, videos, instances, _bootstrap(means, len(rows), draws, seed, progress))


def _j_and_f(values: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    result = dict(zip(names, values.tolist(), strict=True))
    return {"j_and_f": (result["j_mean"] + result["f_mean"]) / 2, **result}


def _of_all_areas(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """AP and AR of precision ``[T, R, K, M]`` and recall ``[T, K, M]``."""
    return {
        "ap": mean(precision[..., 2]),
        "ap50": mean(precision[0, ..., 2]),
        "ap75": mean(precision[5, ..., 2]),
        **{f"ar{most}": mean(recall[..., m]) for m, most in enumerate((1, 10, 100))},
    }


def _defined(numbers: dict[str, float]) -> dict[str, float]:
    return {name: float("nan") if value == -1 else value for name, value in numbers.items()}


def _bootstrap(
    numbers: Callable[[np.ndarray], dict[str, float]], videos: int, draws: int, seed: int, progress: bool
) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in tqdm(range(draws if videos else 0), desc="bootstrap", disable=not progress):
        rows.append(numbers(np.bincount(random.integers(0, videos, videos), minlength=videos)))
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _instances(evaluator: Evaluator, names: Sequence[str]) -> list[dict]:
    groups, matches = evaluator._groups, evaluator._matches.of_range(0)
    best = np.zeros(len(groups.gt_order))
    for k, iou in each_iou(groups, evaluator._iou):
        best[groups.gt_offsets[k] : groups.gt_offsets[k + 1]] = iou.max(0)
    group = groups.gt_group
    match = matches.gt[:, 0]
    found = (match >= 0).mean(1)
    score = (
        groups.scores[np.where(match[:, 0] >= 0, groups.dt_offsets[group] + match[:, 0], 0)]
        if len(groups.scores)
        else best
    )
    rows = []
    for g in np.argsort(groups.unit[group], kind="stable").tolist():
        annotation = evaluator._gts[groups.gt_order[g]]
        rows.append(
            {
                "video": names[groups.unit[group[g]]],
                "instance": annotation["id"],
                "category": annotation["category_id"],
                "iou": float(best[g]),
                "found": float(found[g]),
                "score": float(score[g]) if match[g, 0] >= 0 else float("nan"),
                "ignored": bool(matches.gt_ignored[0, g]),
            }
        )
    return rows
