"""Inputs of the ``rle`` room."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.testing.cases.bitmask import masks, tubes

__all__ = ["SHAPES", "blobs", "label_maps", "masks", "polygons", "tubes"]

SHAPES = [(0, 0), (0, 3), (3, 0), (1, 1), (1, 9), (9, 1), (5, 64), (33, 65), (130, 47)]


def blobs(number: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Ellipses, bool ``[N, H, W]``, of which every fourth has frayed edges and every fifth a hole."""
    dense = tubes(number, 1, height, width, seed)[:, 0]
    frayed = masks((len(dense[::4]), height, width), 0.03, seed)
    dense[::4] ^= frayed
    dense[::5, height // 3 : height // 2, width // 3 : width // 2] = False
    return dense


def label_maps(frames: int, height: int, width: int, labels: int, seed: int = 0, cell: int = 1) -> Tensor:
    """int64 ``[T, H, W]``: squares of ``cell`` pixels, each of one of some labels from 0 on."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-height // cell), -(-width // cell)
    coarse = torch.randint(0, labels, (frames, rows, columns), generator=generator)
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width].contiguous()


def polygons(number: int, height: int, width: int, corners: int = 40, seed: int = 0) -> list[list[list[float]]]:
    """Rings of as many corners, one for each mask, some of them beyond the image, to a hundredth of a pixel."""
    numbers = torch.rand(number, 4 + corners, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angle = torch.arange(corners) * (2 * torch.pi / corners)
    reach = (0.05 + 0.25 * numbers[:, 2:3]) * (0.5 + numbers[:, 4:])
    x = (numbers[:, 0:1] + reach * angle.cos()) * width
    y = (numbers[:, 1:2] + reach * angle.sin()) * height
    rings = torch.stack([x, y], 2).mul(100).round().div(100)
    return [[ring] for ring in rings.flatten(1).tolist()]
