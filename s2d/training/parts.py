"""The clips of a step, in the parts that go through the model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.clip_plan import seeded
from s2d.data.clips import ClipBatch, ClipTargets
from s2d.models.video_mask2former import padded_size
from s2d.training.drop import drop_frames, drop_labels
from s2d.training.recipe import Recipe

_LABELS, _POINTS, _DROPOUT = 10, 11, 12  # streams of random numbers, beside those of the loaders


@dataclass(frozen=True, eq=False)
class Part:
    """Some clips on the model's device, with everything that is drawn for them.

    Attributes:
        clips: float32 ``[B, T, 3, H, W]``.
        size: (H, W) that the model pads them to, and that the targets have.
        targets: of B clips, dropped labels left out.
        frame_keep: bool ``[B, T]``, what the student's attention sees; None: everything.
        seeds: of the random points of each clip.
        dropout: seed of what dropout draws.
    """

    clips: Tensor
    size: tuple[int, int]
    targets: list[ClipTargets]
    frame_keep: Tensor | None
    seeds: list[int]
    dropout: int

    def generators(self) -> list[torch.Generator]:
        """Of the random points of each clip."""
        return [torch.Generator(self.clips.device).manual_seed(seed) for seed in self.seeds]


def make_parts(batch: ClipBatch, numbers: Sequence[int], recipe: Recipe, device: torch.device) -> list[Part]:
    """Cut a process's clips of a step into parts.

    Args:
        batch: the clips.
        numbers: of each, among all clips of the run: with it and the seed of the recipe everything random is fixed.
    """
    size = padded_size((batch.frames.shape[-2], batch.frames.shape[-1]))
    together = recipe.execution.micro_batch or len(numbers)
    parts = []
    for first in range(0, len(numbers), together):
        chosen = slice(first, first + together)
        draws = [seeded(recipe.seed, _LABELS, n) for n in numbers[chosen]]
        labels = [
            drop_labels(target, recipe.loss.label_drop, draw)
            for target, draw in zip(batch.targets[chosen], draws, strict=True)
        ]
        keep = None
        if recipe.loss.frame_drop > 0:
            kept = [
                drop_frames(target, recipe.loss.frame_drop, draw) for target, draw in zip(labels, draws, strict=True)
            ]
            keep = torch.stack(kept).to(device, non_blocking=True)
        parts.append(
            Part(
                batch.frames[chosen].to(device, non_blocking=True),
                size,
                [_padded(target, size, device) for target in labels],
                keep,
                [seeded(recipe.seed, _POINTS, n).initial_seed() for n in numbers[chosen]],
                seeded(recipe.seed, _DROPOUT, numbers[first]).initial_seed(),
            )
        )
    return parts


def _padded(targets: ClipTargets, size: tuple[int, int], device: torch.device) -> ClipTargets:
    """The targets as the model sees the clip: padded below and to the right, on its device."""
    height, width = targets.masks.shape[-2:]
    masks = F.pad(targets.masks, (0, size[1] - width, 0, size[0] - height))
    return ClipTargets(masks.to(device, non_blocking=True), targets.keep)
