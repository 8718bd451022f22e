"""Evaluate: predictions against ground truth, by a summary of our own or as the benchmarks do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from s2d.data.types import Tracks
from s2d.data.ytvis import read_ytvis
from s2d.errors import InputError
from s2d.metrics import (
    COCOeval,
    Evaluator,
    Scores,
    YTVOSeval,
    at_size,
    average_precision,
    davis_scores,
    j_and_f,
    mean_tube_iou,
    precision_scores,
    region_similarity,
)
from s2d.stages._compare import compare, comparison_text, most_changed, write_overlays
from s2d.stages._evaluate_inputs import listed, read_results, read_sequences, read_tracks, read_truth
from s2d.stages._score_files import check_suffix, scores_text, write_scores
from s2d.viz.table import text_table

METRICS = ("all", "tube", "j", "ytvis")
BENCHMARKS = ("ytvis", "coco", "davis", "davis-semi", "davis16")
# Masks are brought to the size of the truth if the two shapes agree up to rounding.
_ASPECT_TOLERANCE = 0.02
MOST_OVERLAYS = 4


@dataclass(frozen=True)
class Report:
    """Numbers of an evaluation, all in [0, 1].

    Attributes:
        videos: per video, the numbers that are defined for a single one: ``mean_tube_iou``, ``j``, ``j_recall``.
        overall: their means over the videos, and the YouTube-VIS numbers ``ap``, ``ap50``, ``ap75``, ``ar1``, ``ar10``.
        notes: what a reader of the numbers must know, one sentence each.
    """

    videos: dict[str, dict[str, float]]
    overall: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    def text(self) -> str:
        """A table for the terminal."""
        names = list(next(iter(self.videos.values()), {}))
        blocks = []
        if names:
            rows = [[video, *(f"{values[name]:.3f}" for name in names)] for video, values in self.videos.items()]
            if len(rows) > 1:
                rows.append(["mean", *(f"{self.overall[name]:.3f}" for name in names)])
            blocks.append(text_table(["video", *names], rows))
        others = {name: value for name, value in self.overall.items() if name not in names}
        if others:
            blocks.append(text_table(["all videos", *others], [["", *(f"{v:.3f}" for v in others.values())]]))
        return "\n\n".join([*blocks, *self.notes])


def evaluate(predictions: Sequence[Tracks], ground_truth: Sequence[Tracks], metric: str = "all") -> Report:
    """Measure tracks against the truth.

    Args:
        predictions: the tracks of each video; a video is found in the truth by its name, or by being the only one on
            both sides. Masks of another size of the same shape are brought to the size of the truth.
        ground_truth: the true instances of each video; videos without predictions are left out, with a note.
        metric: ``"tube"`` (mean tube IoU by best assignment), ``"j"`` (region similarity of the best-matching track),
            ``"ytvis"`` (class-agnostic AP and AR), or ``"all"``.

    Raises:
        InputError: an unknown metric, a video that the truth does not have, or one of another length or shape.
    """
    if metric not in METRICS:
        names = dict.fromkeys((*METRICS, *BENCHMARKS))
        raise InputError(f"expected the metric to be one of {', '.join(names)}, got {metric!r}")
    pairs, notes = _pair(predictions, ground_truth)
    videos: dict[str, dict[str, float]] = {}
    for predicted, truth in pairs:
        values: dict[str, float] = {}
        if metric in ("all", "tube") and len(truth):
            values["mean_tube_iou"] = mean_tube_iou(predicted, truth)
        if metric in ("all", "j") and len(truth):
            similarity = region_similarity(predicted, truth)
            values |= {"j": similarity.mean, "j_recall": similarity.recall}
        if values:
            videos[truth.video] = values
    overall = {
        name: sum(values[name] for values in videos.values()) / len(videos) for name in next(iter(videos.values()), {})
    }
    if metric in ("all", "ytvis"):
        overall |= vars(average_precision(pairs))
    return Report(videos, overall, tuple(notes))


@dataclass(frozen=True)
class Benchmark:
    """The scores of one set of predictions, and its tracks by the name of a video (None where these are images)."""

    scores: Scores
    tracks: Callable[[str], Tracks] | None


def benchmark(
    predictions: Path | Sequence[Tracks],
    ground_truth: Path | Sequence[Tracks],
    metric: str,
    *,
    video: str | None = None,
    classes: bool | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Benchmark:
    """The numbers of a benchmark. A video that has no predictions counts as one in which nothing was found.

    Args:
        predictions, ground_truth: json files, folders of label maps, folders of `s2d run`, or tracks in memory.
        metric: ``"ytvis"`` (AP of tubes), ``"coco"`` (AP of masks, of boxes where results have no masks), ``"davis"``
            (DAVIS-2017 unsupervised), ``"davis-semi"`` (semi-supervised: track n is object n) or ``"davis16"`` (all
            objects are one).
        video: name of the one video that is evaluated.
        classes: whether a prediction must have the category of the truth; None: for COCO.
        draws: of videos, for the intervals; 0 for none.

    Raises:
        InputError: another metric, or input that does not fit; names the video, the instance and the frame.
    """
    if metric not in BENCHMARKS:
        raise InputError(f"expected the metric to be one of {', '.join(BENCHMARKS)}, got {metric!r}")
    options = {"draws": draws, "seed": seed, "progress": progress}
    if metric.startswith("davis"):
        assign, single = metric == "davis", metric == "davis16"
        pairs = read_sequences(ground_truth, predictions, assign=assign, single=single, video=video)
        measured = []
        for own, true in tqdm(pairs, desc="sequences", disable=not progress):
            try:
                void = true.void if assign else None
                measured.append(j_and_f(own.tracks, true.tracks, void=void, assign=assign, drop_ends=not assign))
            except ValueError as error:
                raise InputError(str(error)) from None
        tracks = {true.tracks.video: own.tracks for own, true in pairs}
        return Benchmark(davis_scores(measured, **options), tracks.__getitem__)
    truth = read_truth(ground_truth, metric, video)
    classes = metric == "coco" if classes is None else classes
    found = read_results(predictions, truth, classes=classes)
    notes = ["Categories count." if classes else "Categories do not count: all are one."]
    ignored = {unit for unit, item in truth._units.items() if item.get("ignore")}
    if ignored:
        notes.append(f"{len(ignored)} {truth.units} that the ground truth marks with 'ignore' do not count.")
    if metric == "ytvis":
        evaluator: Evaluator = YTVOSeval(truth, found)
    else:
        evaluator = COCOeval(truth, found, "bbox" if found.boxes_only else "segm")
    evaluator.params.useCats = int(classes)
    units = [unit for unit in getattr(evaluator.params, evaluator.units) if unit not in ignored]
    setattr(evaluator.params, evaluator.units, units)
    names = [truth.name(unit) for unit in units]
    try:
        scores = precision_scores(evaluator, names, **options)
    except ValueError as error:
        raise InputError(str(error)) from None
    ids = dict(zip(names, units, strict=True))
    tracks_of = (lambda name: found.tracks(ids[name])) if metric == "ytvis" else None
    return Benchmark(dataclasses.replace(scores, notes=tuple(notes)), tracks_of)


@dataclass(frozen=True)
class EvaluateSettings:
    """What `s2d evaluate` is asked for; see `benchmark` for ``metric``, ``video``, ``classes``, ``draws`` and ``seed``.

    Attributes:
        output: file for everything: .json, .csv or .md.
        compare: other predictions.
        frames, overlays: folders of the videos, and of the pictures of what changed most.
    """

    metric: str
    video: str | None = None
    classes: bool | None = None
    output: Path | None = None
    compare: Path | None = None
    frames: Path | None = None
    overlays: Path | None = None
    draws: int = 1000
    seed: int = 0


def run_benchmark(predictions: Path, ground_truth: Path, settings: EvaluateSettings, *, progress: bool = True) -> str:
    """Evaluate, compare, write what was asked for, and return tables for the terminal.

    Raises:
        InputError: as `benchmark`, or settings that do not go together.
    """
    if settings.output is not None:
        check_suffix(settings.output)
    if settings.overlays is not None and (settings.compare is None or settings.frames is None):
        raise InputError("expected --compare and --frames for --overlays, got it without them")
    if settings.overlays is not None and settings.metric == "coco":
        raise InputError("expected a metric of videos for --overlays, got coco")

    def measure(path: Path) -> Benchmark:
        return benchmark(
            path,
            ground_truth,
            settings.metric,
            video=settings.video,
            classes=settings.classes,
            draws=settings.draws,
            seed=settings.seed,
            progress=progress,
        )

    after = measure(predictions)
    blocks, comparison = [scores_text(after.scores)], None
    if settings.compare is not None:
        before = measure(settings.compare)
        comparison = compare(before.scores, after.scores)
        blocks.append(comparison_text(comparison, after.scores.main))
        if settings.overlays is not None:
            names = most_changed(comparison, MOST_OVERLAYS)
            sides = [side.tracks for side in (before, after)]
            written = write_overlays(settings.overlays, settings.frames, names, sides, progress=progress)
            blocks.append(f"overlays of {len(written)} videos, before and after, are in {settings.overlays}")
    if settings.output is not None:
        write_scores(settings.output, after.scores, comparison)
    return "\n\n".join(blocks)


def summary(predictions: Path, ground_truth: Path, metric: str = "all", video: str | None = None) -> str:
    """The table of `evaluate` for files: YTVIS json, or folders of `s2d run` as predictions."""
    truth = read_ytvis(ground_truth)
    if video is not None:
        truth = select_video(truth, video)
    return evaluate(read_tracks(predictions), truth, metric).text()


def select_video(ground_truth: Sequence[Tracks], name: str) -> list[Tracks]:
    """The one video of that name; InputError where there is none."""
    chosen = [truth for truth in ground_truth if truth.video == name]
    if not chosen:
        raise InputError(
            f"expected a video of the ground truth ({listed([truth.video for truth in ground_truth])}), got {name!r}"
        )
    return chosen


def _pair(
    predictions: Sequence[Tracks], ground_truth: Sequence[Tracks]
) -> tuple[list[tuple[Tracks, Tracks]], list[str]]:
    by_name = {truth.video: truth for truth in ground_truth}
    names = [predicted.video for predicted in predictions]
    if len(set(names)) < len(names):
        raise InputError(
            f"expected one set of predictions for each video, got several of {max(names, key=names.count)!r}"
        )
    pairs, notes = [], []
    for predicted in predictions:
        alone = len(predictions) == len(ground_truth) == 1
        truth = ground_truth[0] if alone else by_name.get(predicted.video)
        if truth is None:
            names = listed([item.video for item in ground_truth])
            raise InputError(
                f"expected predictions for videos of the ground truth ({names}), "
                f"got {predicted.video!r}: say which one it is with --video"
            )
        pairs.append((_comparable(predicted, truth, notes), truth))
    missing = len(ground_truth) - len(pairs)
    if missing > 0:
        notes.append(
            f"{missing} of {len(ground_truth)} videos of the ground truth have no predictions and do not count."
        )
    return pairs, notes


def _comparable(predicted: Tracks, truth: Tracks, notes: list[str]) -> Tracks:
    if predicted.num_frames != truth.num_frames:
        raise InputError(
            f"expected predictions for the {truth.num_frames} frames of {truth.video!r}, got {predicted.num_frames}"
        )
    if predicted.size == truth.size:
        return predicted
    (height, width), (true_height, true_width) = predicted.size, truth.size
    if abs(height * true_width / (width * true_height) - 1) > _ASPECT_TOLERANCE:
        raise InputError(
            f"expected masks of the shape of {truth.video!r}, {true_height} x {true_width}, got {height} x {width}"
        )
    notes.append(f"{truth.video}: masks of {height} x {width} were brought to {true_height} x {true_width}.")
    return at_size(predicted, truth.size)
