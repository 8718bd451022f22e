"""Inputs of ``connected_components`` shared by its tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = ((1, 1, 1), (3, 1, 70), (3, 70, 1), (2, 5, 64), (4, 33, 65), (0, 8, 8), (2, 0, 7), (2, 7, 0))

# Masks of more than one of the tiles that the CUDA kernels cut them into: of one word a row and more tiles than a group
# has, of two words a row, and so wide that a row is more than a tile.
TILED = ((1, 17000, 1), (1, 300, 65), (1, 3, 64 * 260 + 5))


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


def comb(height: int, width: int) -> Tensor:
    """Bool ``[height, width]``: teeth that only the last row joins, so that every one begins as a part of its own."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, ::2] = True
    mask[-1] = True
    return mask


def checkerboard(height: int, width: int) -> Tensor:
    """Bool ``[height, width]``: one part by corners, as many parts as there can be by sides."""
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


def hard(height: int = 70, width: int = 130) -> dict[str, Tensor]:
    """Masks ``[height, width]`` that are hard for union-find, by name: parts that meet late or grow step by step."""
    size = min(height, width)
    padded = F.pad(spiral(size), (0, width - size, 0, height - size))
    teeth = comb(height, width)
    return {
        "spiral": padded,
        "spiral, turned": padded.flip(0, 1),
        "comb": teeth,
        "comb, upside down": teeth.flip(0),
        "comb, lying": comb(width, height).T.contiguous(),
        "checkerboard": checkerboard(height, width),
        "stairs": (torch.arange(height)[:, None] // 2 + torch.arange(width) // 2) % 3 == 0,
        "all": torch.ones(height, width, dtype=torch.bool),
        "none": torch.zeros(height, width, dtype=torch.bool),
    }
