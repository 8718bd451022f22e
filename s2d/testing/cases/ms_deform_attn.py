"""Inputs of the ``ms_deform_attn`` room."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """N batches, Lq queries, M heads of D channels, levels of the given sizes, P points."""

    name: str
    number: int
    queries: int
    heads: int
    channels: int
    shapes: tuple[tuple[int, int], ...]
    points: int


CASES = [
    Case("one of each", 1, 1, 1, 1, ((1, 1),), 1),
    Case("odd sizes", 2, 7, 3, 5, ((7, 3), (1, 9), (4, 4)), 3),
    Case("a narrow pyramid", 1, 11, 2, 8, ((2, 5), (4, 10), (8, 20)), 4),
    Case("no queries", 1, 0, 2, 4, ((3, 4),), 2),
]

# What a clip of three frames of 384 x 640 asks of the official model.
OFFICIAL = Case("official, 384 x 640", 3, 5040, 8, 32, ((12, 20), (24, 40), (48, 80)), 4)


def make(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value, spatial_shapes, sampling_locations (some outside the map), attention_weights (they add up to 1)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels, places = len(case.shapes), sum(height * width for height, width in case.shapes)
    value = normal(case.number, places, case.heads, case.channels)
    lead = (case.number, case.queries, case.heads)
    locations = 0.5 + 0.4 * normal(*lead, levels, case.points, 2)
    # The slope differs on both sides of a pixel's centre: no point shall lie there to within rounding.
    shapes = torch.tensor(case.shapes)
    extents = shapes.flip(-1)[:, None]
    pixels = locations * extents - 0.5
    locations = (pixels.floor() + (pixels - pixels.floor()).clamp(1e-3, 1 - 1e-3) + 0.5) / extents
    weights = normal(*lead, levels * case.points).softmax(-1).view(*lead, levels, case.points)
    return value.to(dtype), shapes, locations.to(dtype), weights.to(dtype)
