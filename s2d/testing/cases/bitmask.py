"""Inputs of the ``bitmask`` room."""

from __future__ import annotations

import torch
from torch import Tensor

# Widths around the edges of a 64-pixel word, and what video has.
SHAPES = [(0, 3, 5), (1, 1, 1), (3, 5, 63), (2, 4, 64), (4, 3, 65), (2, 1, 130), (5, 0, 7), (3, 7, 0), (6, 48, 86)]


def masks(shape: tuple[int, ...], density: float = 0.4, seed: int = 0) -> Tensor:
    """Noise: bool of the given shape, each pixel set with probability ``density``."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def tubes(number: int, frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Moving ellipses, bool ``[N, T, H, W]``: what instance tracks look like."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(number, 6, generator=generator)
    y = torch.arange(height).view(1, 1, -1, 1) / height
    x = torch.arange(width).view(1, 1, 1, -1) / width
    t = torch.arange(frames).view(1, -1, 1, 1) / max(frames, 1)
    centre_y, centre_x, radius_y, radius_x, step_y, step_x = numbers.view(number, 6, 1, 1, 1).unbind(1)
    inside = ((y - centre_y - 0.3 * t * (step_y - 0.5)) / (0.05 + 0.25 * radius_y)) ** 2
    inside = inside + ((x - centre_x - 0.3 * t * (step_x - 0.5)) / (0.05 + 0.25 * radius_x)) ** 2
    return inside <= 1
