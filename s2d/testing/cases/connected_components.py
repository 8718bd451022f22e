"""Inputs of ``connected_components`` shared by its tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = ((1, 1, 1), (3, 1, 70), (3, 70, 1), (2, 5, 64), (4, 33, 65), (0, 8, 8), (2, 0, 7))


def noise(shape: tuple[int, int, int], density: float = 0.5, seed: int = 0) -> Tensor:
    """Bool ``shape``: every pixel set by chance, so that there are many small parts."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def blobs(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Bool ``shape``: a few large parts with smooth outlines and holes."""
    number, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, 1, max(1, height // 16) + 1, max(1, width // 16) + 1, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[:, 0] > 0


def spiral(size: int) -> Tensor:
    """Bool ``[size, size]``: one part a pixel wide that winds to the middle, the longest way for a label to travel."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for length in [size - 1] + [step for step in range(size - 1, 1, -2) for _ in range(2)]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask
