"""Inputs of the ``masked_attention`` room."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """B clips of T frames of h x w keys, Q queries, heads of D channels; the share of keys in a query's mask."""

    name: str
    clips: int
    frames: int
    size: tuple[int, int]
    queries: int
    heads: int
    channels: int
    density: float = 0.3


CASES = [
    Case("one of each", 1, 1, (1, 1), 1, 1, 1, 1.0),
    Case("odd sizes", 2, 3, (3, 7), 5, 3, 5),
    Case("sparse", 1, 5, (4, 16), 9, 2, 8, 0.02),
    Case("all masked", 1, 2, (3, 4), 3, 2, 4, 0.0),
    Case("no queries", 1, 2, (2, 2), 0, 2, 4),
    Case("32 frames", 1, 32, (3, 5), 7, 1, 64),
    Case("one query", 2, 1, (5, 13), 1, 2, 16),
    Case("many queries", 1, 3, (7, 11), 300, 1, 128, 0.1),
    Case("many keys", 1, 3, (29, 47), 6, 1, 32, 0.05),
]

# The stride-8 level of three frames of 384 x 640 in the official model.
OFFICIAL = Case("official, stride 8", 1, 3, (48, 80), 100, 8, 32, 0.12)


def make_logits(case: Case, stride: int = 2, seed: int = 0) -> Tensor:
    """Mask logits ``[B, Q, T, stride * h, stride * w]`` of soft shapes with ragged borders that cover the density."""
    generator = torch.Generator().manual_seed(seed)
    size = [stride * side for side in case.size]
    coarse = torch.randn(case.clips * case.queries, case.frames, 6, 10, generator=generator)
    shapes = F.interpolate(coarse, size, mode="bicubic")
    shapes += 0.05 * torch.randn(shapes.shape, generator=generator)
    flat = shapes.flatten(1)
    lowest = flat.sort(1).values[:, min(int((1 - case.density) * flat.shape[1]), flat.shape[1] - 1)]
    return 5 * (flat - lowest[:, None]).view(case.clips, case.queries, case.frames, *size)


def make(
    case: Case, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, mask bool ``[B, Q, K]`` and frame_keep bool ``[B, T]``, which drops the first of several frames."""
    generator = torch.Generator().manual_seed(seed)
    keys = case.frames * case.size[0] * case.size[1]

    def normal(count: int) -> Tensor:
        shape = (case.clips, case.heads, count, case.channels)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.rand(case.clips, case.queries, keys, generator=generator) < case.density
    keep = torch.ones(case.clips, case.frames, dtype=torch.bool)
    keep[:, 0] = case.frames == 1
    return normal(case.queries), normal(keys), normal(keys), mask, keep
