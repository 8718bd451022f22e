"""Inputs of the ``flow_warp_iou`` room: masks of two frames and the flow between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# (pairs, source masks, target masks, height, width): word edges, more than one word of masks, nothing at all.
SHAPES = [
    (2, 3, 4, 37, 70),
    (1, 70, 5, 20, 64),
    (2, 0, 3, 9, 65),
    (1, 3, 0, 8, 130),
    (0, 2, 2, 4, 4),
    (2, 2, 2, 0, 5),
    (1, 2, 2, 5, 0),
    (1, 2, 2, 1, 1),
    (1, 130, 2, 6, 17),
    (1, 20, 20, 40, 86),
]


@dataclass(frozen=True)
class Warp:
    """Masks bool ``[P, N, H, W]`` and ``[P, M, H, W]``, visible bool ``[P, H, W]``, flows ``[P, H, W, 2]``."""

    source: Tensor
    target: Tensor
    visible: Tensor
    flow: Tensor
    reverse: Tensor

    def to(self, device: str) -> Warp:
        return Warp(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def smooth_flow(shape: tuple[int, ...], strength: float, generator: torch.Generator) -> Tensor:
    """Flow such as video has, float32 ``[*shape, 2]``, shape ending in (H, W): a few pixels, bent slowly."""
    *lead, height, width = shape
    number = int(torch.Size(lead).numel())
    if number * height * width == 0:
        return torch.zeros(*shape, 2)
    knots = strength * torch.randn(number, 2, 5, 5, generator=generator)
    dense = F.interpolate(knots, (height, width), mode="bicubic", align_corners=False)
    return dense.permute(0, 2, 3, 1).reshape(*shape, 2).contiguous()


def noise(pairs: int, sources: int, targets: int, height: int, width: int, seed: int = 0) -> Warp:
    """Noise masks, smooth flow with half-pixel steps in it, and values that are not finite."""
    generator = torch.Generator().manual_seed(seed)

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    flow = smooth_flow((pairs, height, width), 3.0, generator)
    halves = (flow * 2).round() / 2
    flow = torch.where(chance(pairs, height, width, 1) < 0.2, halves, flow)
    reverse = -flow + 0.4 * torch.randn(flow.shape, generator=generator)
    if flow.numel():
        flow[0, height // 2, width // 2] = torch.nan
        flow[0, 0, 0] = torch.inf
        reverse[0, height // 2, 0] = torch.nan
        reverse[0, 0, width // 2, 1] = -torch.inf
        flow[-1, -1, -1] = 1e30
    return Warp(
        chance(pairs, sources, height, width) < 0.4,
        chance(pairs, targets, height, width) < 0.4,
        chance(pairs, height, width) < 0.7,
        flow,
        reverse,
    )


def ellipses(number: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Masks such as proposals are: bool ``[N, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(number, 4, generator=generator)
    y, x = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    masks = torch.zeros(number, height, width, dtype=torch.bool)
    for mask, (top, tall, left, wide) in zip(masks, numbers.tolist(), strict=True):
        across = (y - top * height) / (height * (0.05 + 0.2 * tall))
        along = (x - left * width) / (width * (0.05 + 0.2 * wide))
        mask[:] = across**2 + along**2 < 1
    return masks


def video(pairs: int, masks: int, height: int, width: int, seed: int = 0) -> Warp:
    """What scoring sees: compact masks and flow that its reverse confirms almost everywhere."""
    generator = torch.Generator().manual_seed(seed)
    flow = smooth_flow((pairs, height, width), 3.0, generator)
    return Warp(
        torch.stack([ellipses(masks, height, width, seed + p) for p in range(pairs)]),
        torch.stack([ellipses(masks, height, width, seed + p) for p in range(pairs)]),
        torch.ones(pairs, height, width, dtype=torch.bool),
        flow,
        -flow + 0.1 * torch.randn(flow.shape, generator=generator),
    )
