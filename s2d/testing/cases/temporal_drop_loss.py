"""Inputs of ``temporal_drop_loss`` shared by its tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sizes of one call: N masks on T frames, logits ``[N, T, h, w]``, targets ``[N, T, H, W]``, P points."""

    name: str
    masks: int
    frames: int
    logit_size: tuple[int, int]
    target_size: tuple[int, int]
    num_points: int
    kept_share: float = 0.7


CASES = (
    Case("one_mask_one_frame", 1, 1, (4, 5), (16, 20), 16),
    Case("odd_sizes", 3, 3, (9, 13), (35, 51), 40),
    Case("nothing_kept", 2, 3, (8, 8), (32, 32), 16, kept_share=0.0),
    Case("no_masks", 0, 3, (8, 8), (32, 32), 16),
    Case("all_kept", 2, 2, (24, 32), (96, 128), 256, kept_share=1.0),
)

BENCHMARKS = (
    Case("videocutler", 5, 3, (90, 160), (360, 640), 12_544),
    Case("paper", 5, 3, (90, 160), (360, 640), 160_000),
)


def ellipses(number: int, frames: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random ellipses that drift a little from frame to frame: bool ``[N, T, H, W]``."""
    height, width = size
    y = (torch.arange(height) + 0.5).view(height, 1) / height
    x = (torch.arange(width) + 0.5).view(1, width) / width
    shape = torch.rand(number, 4, 1, 1, 1, generator=generator)
    cy, cx = 0.2 + 0.6 * shape[:, 0], 0.2 + 0.6 * shape[:, 1]
    ry, rx = 0.1 + 0.2 * shape[:, 2], 0.1 + 0.2 * shape[:, 3]
    t = torch.arange(frames).view(1, frames, 1, 1)
    return ((y - cy - 0.02 * t) / ry) ** 2 + ((x - cx + 0.03 * t) / rx) ** 2 <= 1


def make(case: Case, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """``logits`` that roughly follow the targets, ``target`` bool, ``keep`` bool."""
    generator = torch.Generator().manual_seed(seed)
    target = ellipses(case.masks, case.frames, case.target_size, generator)
    coarse = ellipses(case.masks, case.frames, case.logit_size, generator)
    noise = torch.randn(coarse.shape, generator=generator, dtype=dtype)
    keep = torch.rand(case.masks, case.frames, generator=generator) < case.kept_share
    return 2 * (coarse.to(dtype) * 2 - 1) + noise, target, keep
