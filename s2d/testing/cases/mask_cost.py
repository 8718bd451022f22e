"""Inputs of ``mask_cost`` shared by its tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2d.testing.cases.temporal_drop_loss import ellipses


@dataclass(frozen=True)
class Case:
    """Sizes of one call: Q predictions, G targets, T frames, logits ``[h, w]``, targets ``[H, W]``, P points."""

    name: str
    queries: int
    targets: int
    frames: int
    logit_size: tuple[int, int]
    target_size: tuple[int, int]
    num_points: int


CASES = (
    Case("one_of_each", 1, 1, 1, (4, 5), (16, 20), 1),
    Case("odd_sizes", 7, 3, 3, (9, 13), (35, 51), 37),
    Case("no_targets", 5, 0, 3, (8, 8), (32, 32), 16),
    Case("no_queries", 0, 2, 3, (8, 8), (32, 32), 16),
)

BENCHMARKS = (
    Case("videocutler", 100, 5, 3, (90, 160), (360, 640), 12_544),
    Case("paper", 100, 5, 3, (90, 160), (360, 640), 160_000),
)


def make(case: Case, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """``logits``, ``target`` bool and ``points``."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(case.queries, case.frames, *case.logit_size, generator=generator, dtype=dtype)
    target = ellipses(case.targets, case.frames, case.target_size, generator)
    return logits, target, torch.rand(case.num_points, 2, generator=generator, dtype=dtype)
