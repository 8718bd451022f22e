"""The teacher: an exponential moving average of the student, and the targets it gives."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s2d.data.clips import ClipTargets


class Teacher:
    """A copy of the student whose weights follow it slowly.

    After optimizer step n (counted from 0) the momentum is ``min(momentum, 1 - 1 / (n + 1))``, so that the first step
    copies the student and early weights are soon forgotten. Buffers are copied. The copy is in evaluation mode: its
    dropout is off.
    """

    def __init__(self, student: nn.Module, momentum: float) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        momentum = min(self.momentum, 1 - 1 / (step + 1))
        mine, theirs = list(self.model.parameters()), list(student.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)
        for buffer, source in zip(self.model.buffers(), student.buffers(), strict=True):
            buffer.copy_(source)

    @torch.no_grad()
    def targets(self, clips: Tensor, size: tuple[int, int], threshold: float, most: int = 100) -> list[ClipTargets]:
        """What the teacher sees in a batch of clips, as targets that count on every frame.

        Args:
            clips: ``[B, T, 3, H, W]``.
            size: (H, W) of the masks returned.
            threshold: least class probability of a prediction that becomes a target, in [0, 1].
            most: at most so many per clip, the best by score.
        """
        outputs = self.model(clips)
        return confident_targets(outputs["pred_logits"], outputs["pred_masks"], size, threshold, most)


def confident_targets(
    logits: Tensor, masks: Tensor, size: tuple[int, int], threshold: float, most: int = 100
) -> list[ClipTargets]:
    """Predictions ``[B, Q, 2]``, ``[B, Q, T, h, w]`` that reach ``threshold`` and have a pixel, set where logit > 0."""
    found = []
    for scores, tubes in zip(logits.softmax(-1)[..., 0], masks, strict=True):
        best = scores.argsort(descending=True, stable=True)[:most]
        best = best[scores[best] >= threshold]
        dense = F.interpolate(tubes[best], size=size, mode="bilinear", align_corners=False) > 0
        dense = dense[dense.flatten(1).any(1)]
        found.append(ClipTargets(dense, torch.ones(dense.shape[:2], dtype=torch.bool)))
    return found
