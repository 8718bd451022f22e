"""Region similarity J, as the DAVIS benchmark defines it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d.data.types import Tracks
from s2d.metrics.tubes import match_tubes, overlap_counts


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
