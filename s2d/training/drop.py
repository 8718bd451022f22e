"""The random drops of training: labels of frames, and frames of the student's attention."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.data.clips import ClipTargets


def drop_labels(targets: ClipTargets, probability: float, generator: torch.Generator) -> ClipTargets:
    """Forget each kept (instance, frame) label with this probability."""
    if probability == 0:
        return targets
    stays = torch.rand(targets.keep.shape, generator=generator) >= probability
    return ClipTargets(targets.masks, targets.keep & stays)


def drop_frames(targets: ClipTargets, probability: float, generator: torch.Generator) -> Tensor:
    """Which frames the student's cross-attention keeps: one in which nothing is annotated goes with this probability.

    Returns:
        bool ``[T]``.
    """
    annotated = targets.keep.any(0)
    stays = annotated | (torch.rand(annotated.shape, generator=generator) >= probability)
    # A clip without any frame left would tell the student nothing at all.
    return stays if bool(stays.any()) else torch.ones_like(stays)
