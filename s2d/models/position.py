"""Sine position encodings of pixels and of frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_1d(length: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encodings ``[length, channels]`` of the places 1 .. length, scaled so that the last is 2 pi.

    Channels 2i and 2i + 1 hold the sine and the cosine of ``place / 10000^(2i / channels)``. Defined by DETR (arXiv
    2005.12872).
    """
    places = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    places = places / (length + 1e-6) * (2 * math.pi)
    pairs = torch.arange(channels, device=device).div(2, rounding_mode="floor")
    angles = places[:, None] / 10000 ** (2 * pairs / channels)
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)


def sine_2d(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encodings ``[height, width, channels]``: the first half of the channels says y, the second x."""
    y = sine_1d(height, channels // 2, device)[:, None].expand(-1, width, -1)
    x = sine_1d(width, channels // 2, device)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1)


def sine_3d(frames: int, height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encodings ``[frames, height, width, channels]``: that of the pixel plus that of the frame. Defined by the video
    Mask2Former (arXiv 2112.10764)."""
    return sine_1d(frames, channels, device)[:, None, None] + sine_2d(height, width, channels, device)
