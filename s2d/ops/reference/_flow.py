"""Positions, lookups and the forward-backward check: what every operator on optical flow shares.

Every product and every sum is rounded to float32 by itself, in the order written here: the compiled kernels do the
same, so that both decide alike at a threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE, ABSOLUTE = 0.01, 0.5
_LARGEST = torch.finfo(torch.float32).max


def pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """float32 x and y of every pixel centre, ``[H, W]`` each."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x, y


def inside(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Whether the nearest pixel (half to even) of each position lies in the frame; false where not finite."""
    column, row = x.round(), y.round()
    return (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)


def nearest_index(x: Tensor, y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat pixel index of each position and whether it lies in the frame (index 0 where it does not)."""
    valid = inside(x, y, height, width)
    column, row = torch.where(valid, x, 0.0).round().long(), torch.where(valid, y, 0.0).round().long()
    return row * width + column, valid


def lookup(flow: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear flow at positions ``x, y [K]`` of one field ``[H, W, 2]``, the border repeated outside: (dx, dy).

    A position that is not finite reads pixel (0, 0): callers rule it out with `inside`.
    """
    height, width = flow.shape[:2]
    finite = x.isfinite() & y.isfinite()
    x = torch.where(finite, x, 0.0).clamp(0, width - 1)
    y = torch.where(finite, y, 0.0).clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    x0, y0 = left.long(), top.long()
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    upper = flow[y0, x0] + (flow[y0, x1] - flow[y0, x0]) * fx
    lower = flow[y1, x0] + (flow[y1, x1] - flow[y1, x0]) * fx
    return tuple((upper + (lower - upper) * fy).unbind(-1))


def agrees(dx: Tensor, dy: Tensor, back_x: Tensor, back_y: Tensor) -> Tensor:
    """The forward-backward check |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5; false where a flow is not finite."""
    x, y = dx + back_x, dy + back_y
    bound = RELATIVE * ((dx * dx + dy * dy) + (back_x * back_x + back_y * back_y)) + ABSOLUTE
    return x * x + y * y <= bound.clamp(max=_LARGEST)


def consistency(flow: Tensor, reverse: Tensor) -> Tensor:
    """Which pixels of one field ``[H, W, 2]`` lead into the other frame and are led back: bool ``[H, W]``."""
    height, width = flow.shape[:2]
    if height * width == 0:
        return flow.new_zeros((height, width), dtype=torch.bool)
    x, y = pixel_grid(height, width, flow.device)
    dx, dy = flow.unbind(-1)
    there_x, there_y = (x + dx).flatten(), (y + dy).flatten()
    back_x, back_y = lookup(reverse, there_x, there_y)
    good = agrees(dx.flatten(), dy.flatten(), back_x, back_y)
    return (good & inside(there_x, there_y, height, width)).view(height, width)
