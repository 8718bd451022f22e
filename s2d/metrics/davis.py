"""The measures of DAVIS: region similarity J and boundary accuracy F."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2d import _native
from s2d.data.types import Tracks
from s2d.metrics.tubes import CHUNK, check_comparable, match_tubes, overlap_counts
from s2d.ops import RLE, rle_decode

# How far two outlines may lie apart, as a share of the diagonal of the frame.
TOLERANCE = 0.008

_host = _native.host().metrics


@dataclass(frozen=True)
class RegionSimilarity:
    """J of every true object of one sequence.

    Attributes:
        video: name of the sequence.
        frames: float64 ``[M, T']``: J of the assigned track in each frame that counts; zeros where none was assigned.
        assigned: per object, the index of its track, or None.
    """

    video: str
    frames: Tensor
    assigned: tuple[int | None, ...]

    @property
    def mean(self) -> float:
        """Mean over the frames, then over the objects."""
        return float(self.frames.mean(1).mean())

    @property
    def recall(self) -> float:
        """Share of frames with J above 0.5, mean over the objects."""
        return float((self.frames > 0.5).double().mean(1).mean())

    @property
    def decay(self) -> float:
        """J of the first quarter of the frames minus J of the last quarter (neighbouring quarters share a frame)."""
        number = self.frames.shape[1]
        bounds = (torch.linspace(1, number, 5, dtype=torch.float64) + 1e-10).round().long() - 1
        quarters = [self.frames[:, a : b + 1].mean(1) for a, b in itertools.pairwise(bounds.tolist())]
        return float((quarters[0] - quarters[-1]).mean())


def frame_j(predictions: Tracks, truth: Tracks) -> Tensor:
    """IoU in each frame, 1 where both masks are empty (the DAVIS rule): float64 ``[N, M, T]``.

    Raises:
        ValueError: the two differ in number of frames or in mask size.
    """
    shared, areas, true_areas = overlap_counts(predictions, truth)
    union = areas[:, None] + true_areas[None] - shared
    return torch.where(union == 0, 1.0, shared.double() / union.clamp(min=1).double())


def region_similarity(predictions: Tracks, truth: Tracks, *, drop_ends: bool = False) -> RegionSimilarity:
    """J of the best-matching track of each true object.

    Tracks are assigned to objects one to one, so that the sum of mean J is greatest (DAVIS-2017 unsupervised); with a
    single object this is the best track of the sequence. An object without a track has J 0 in every frame.

    Args:
        predictions: any number of tracks.
        truth: M >= 1 objects of the same frames.
        drop_ends: leave out the first and the last frame (the semi-supervised protocol).

    Raises:
        ValueError: no object, or sizes that differ.
    """
    if len(truth) == 0:
        raise ValueError(f"expected ground truth with at least one object in {truth.video!r}, got none")
    quality = frame_j(predictions, truth)
    if drop_ends:
        quality = quality[:, :, 1:-1]
    frames = torch.zeros(quality.shape[1:], dtype=torch.float64)
    assigned: list[int | None] = [None] * len(truth)
    for n, m in match_tubes(quality.mean(2)):
        frames[m], assigned[m] = quality[n, m], n
    return RegionSimilarity(truth.video, frames, tuple(assigned))


@dataclass(frozen=True)
class JAndF:
    """J and F of every true object of one sequence.

    Attributes:
        video: name of the sequence.
        j, f: float64 ``[M, T']``: in each frame that counts, of the assigned track, or of an empty one.
        assigned: per object, the index of its track, or None.
    """

    video: str
    j: np.ndarray
    f: np.ndarray
    assigned: tuple[int | None, ...]

    def statistics(self) -> dict[str, np.ndarray]:
        """``j_mean``, ``j_recall``, ``j_decay``, ``f_mean``, ``f_recall`` and ``f_decay`` of each object, ``[M]``."""
        return {
            f"{name}_{statistic}": measure(values)
            for name, values in (("j", self.j), ("f", self.f))
            for statistic, measure in (("mean", lambda v: v.mean(1)), ("recall", recall), ("decay", decay))
        }


def recall(values: np.ndarray) -> np.ndarray:
    """Share of frames above 0.5: ``[M]`` of ``[M, T]``."""
    return (values > 0.5).mean(1)


def decay(values: np.ndarray) -> np.ndarray:
    """Mean of the first quarter of the frames minus that of the last; neighbouring quarters share a frame: ``[M]``."""
    bounds = np.round(np.linspace(1, values.shape[1], 5) + 1e-10).astype(np.int64) - 1
    quarters = [values[:, a : b + 1].mean(1) for a, b in itertools.pairwise(bounds)]
    return quarters[0] - quarters[-1]


def j_and_f(
    predictions: Tracks, truth: Tracks, *, void: RLE | None = None, assign: bool = True, drop_ends: bool = False
) -> JAndF:
    """J and F of every true object, as the DAVIS-2016 and DAVIS-2017 benchmarks define them.

    J is the IoU of two masks, 1 where both are empty. F is the harmonic mean of precision and recall of outlines: an
    outline pixel is right if it lies in the other outline dilated by a disk with a radius of 0.8 % of the diagonal,
    rounded up. The outline of a mask are the pixels that differ from the one to the right, below, or both. Where one
    mask has no outline F is 0, where both have none 1.

    Args:
        predictions: N tracks.
        truth: M >= 1 objects of the same frames.
        void: T masks whose pixels are taken out of all masks.
        assign: find the assignment of tracks to objects, one to one, for which the sum of mean J and mean F is greatest
            (DAVIS-2017 unsupervised); else track n is object n (semi-supervised, DAVIS-2016).
        drop_ends: leave out the first and the last frame (semi-supervised, DAVIS-2016).

    Raises:
        ValueError: no object or no frame, sizes that differ, or without ``assign`` more tracks than objects.
    """
    length = truth.num_frames - (2 if drop_ends else 0)
    if len(truth) == 0 or length < 1:
        raise ValueError(f"expected an object and a frame that counts in {truth.video!r}, got {len(truth)}, {length}")
    if not assign and len(predictions) > len(truth):
        raise ValueError(f"expected at most {len(truth)} tracks of {truth.video!r}, got {len(predictions)}")
    span = slice(1, -1) if drop_ends else slice(None)
    j, f = (values[:, :, span] for values in _frame_j_and_f(predictions, truth, void))
    if assign:
        pairs = match_tubes(torch.from_numpy((j.mean(2) + f.mean(2)) / 2))
    else:
        pairs = [(n, n) for n in range(len(truth))]
    row, column = (list(index) for index in zip(*pairs, strict=True))
    assigned = tuple(n if n < len(predictions) else None for n in row)
    return JAndF(truth.video, j[row, column], f[row, column], assigned)


def _frame_j_and_f(predictions: Tracks, truth: Tracks, void: RLE | None) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``[max(N, M), M, T]``: tracks that are short of the objects are empty."""
    check_comparable(predictions, truth)
    height, width = truth.size
    radius = int(np.ceil(TOLERANCE * np.linalg.norm((height, width))))
    number, parts = max(len(predictions), len(truth)), []
    for start in range(0, truth.num_frames, CHUNK):
        span = slice(start, start + CHUNK)
        wanted = truth.bits(span).words
        found = wanted.new_zeros(number, *wanted.shape[1:])
        if len(predictions):
            found[: len(predictions)] = predictions.bits(span).words
        if void is not None:
            counted = ~rle_decode(void[span]).words
            found, wanted = found & counted, wanted & counted
        threads = torch.get_num_threads()
        parts.append(_host.region_and_boundary(found.numpy(), wanted.numpy(), width, radius, threads))
    shared, areas, true_areas, right, recovered, outline, true_outline = (
        np.concatenate(part, -1) for part in zip(*parts, strict=True)
    )
    union = areas[:, None] + true_areas[None] - shared
    j = np.where(union == 0, 1.0, shared / np.maximum(union, 1))
    outline, true_outline = outline[:, None], true_outline[None]
    precision, recalled = right / np.maximum(outline, 1), recovered / np.maximum(true_outline, 1)
    # Nothing that was drawn is wrong, nothing that was to be drawn is missing.
    precision, recalled = np.where(outline == 0, 1.0, precision), np.where(true_outline == 0, 1.0, recalled)
    total = precision + recalled
    return j, np.where(total == 0, 0.0, 2 * precision * recalled / np.where(total == 0, 1, total))
