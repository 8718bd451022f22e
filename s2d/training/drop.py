"""The random drops of training: labels of frames, and frames of the student's attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s2d.data.clips import ClipTargets


def drop_labels(targets: ClipTargets, probability: float, generator: torch.Generator) -> ClipTargets:
    """Forget each kept (instance, frame) label with this probability."""
    if probability == 0:
        return targets
    stays = torch.rand(targets.keep.shape, generator=generator) >= probability
    return ClipTargets(targets.masks, targets.keep & stays.to(targets.keep.device))


def drop_frames(
    targets: Sequence[ClipTargets], frames: int, probability: float, generator: torch.Generator
) -> Tensor | None:
    """Which frames the student's cross-attention keeps: one in which nothing is annotated goes with this probability.

    Returns:
        bool ``[B, T]``, or None where every frame stays.
    """
    if probability == 0:
        return None
    annotated = torch.stack([t.keep.any(0) if len(t) else t.keep.new_zeros(frames) for t in targets]).cpu()
    stays = annotated | (torch.rand(len(targets), frames, generator=generator) >= probability)
    # A clip without any frame left would tell the student nothing at all.
    return stays | ~stays.any(1, keepdim=True)
