"""Evaluate: predicted tracks against ground truth, both from YTVIS json files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from s2d.data.types import Tracks
from s2d.data.ytvis import read_ytvis
from s2d.errors import InputError
from s2d.metrics import at_size, average_precision, mean_tube_iou, region_similarity
from s2d.viz.table import text_table

METRICS = ("all", "tube", "j", "ytvis")
# Masks are brought to the size of the truth if the two shapes agree up to rounding.
_ASPECT_TOLERANCE = 0.02


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
        raise InputError(f"expected the metric to be one of {', '.join(METRICS)}, got {metric!r}")
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


def load_predictions(path: Path) -> list[Tracks]:
    """Tracks from a YTVIS json, from a folder that `s2d run` wrote, or from a folder of such folders.

    Raises:
        InputError: nothing of that kind is there.
    """
    if not path.is_dir():
        return read_ytvis(path)
    files = [path / "tracks.json"] if (path / "tracks.json").is_file() else sorted(path.glob("*/tracks.json"))
    if not files:
        raise InputError(f"expected a json of tracks or a folder with tracks.json at {path}, got a folder without one")
    return [tracks for file in files for tracks in read_ytvis(file)]


def select_video(ground_truth: Sequence[Tracks], name: str) -> list[Tracks]:
    """The one video of that name; InputError where there is none."""
    chosen = [truth for truth in ground_truth if truth.video == name]
    if not chosen:
        raise InputError(f"expected a video of the ground truth ({_names(ground_truth)}), got {name!r}")
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
            raise InputError(
                f"expected predictions for videos of the ground truth ({_names(ground_truth)}), "
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


def _names(tracks: Sequence[Tracks]) -> str:
    names = [item.video for item in tracks]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
