"""Inputs of the ``point_tracks`` room: a scene's flow, points and masks in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2d.testing.cases.flow_warp_iou import ellipses, smooth_flow

# (frames, height, width, masks): one frame, one pixel, word edges, more than one word of masks in a frame, none.
SHAPES = [(5, 37, 70, 12), (1, 20, 33, 3), (4, 1, 1, 2), (1, 9, 64, 70), (6, 24, 65, 0), (2, 9, 130, 5)]


@dataclass(frozen=True)
class SceneCase:
    """Flow ``[T - 1, H, W, 2]`` both ways, points ``[G, 2]`` with frames, masks bool ``[N, H, W]`` with frames."""

    forward: Tensor
    backward: Tensor
    points: Tensor
    point_frames: Tensor
    masks: Tensor
    mask_frames: Tensor

    def to(self, device: str) -> SceneCase:
        return SceneCase(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def scene(frames: int, height: int, width: int, masks: int, *, points: int = 300, seed: int = 0) -> SceneCase:
    """Smooth flow that its reverse confirms in most places; some points start outside, some flow is not finite."""
    generator = torch.Generator().manual_seed(seed)
    forward = smooth_flow((frames - 1, height, width), 3.0, generator)
    backward = -forward + 0.3 * torch.randn(forward.shape, generator=generator)
    if frames > 1:
        forward[0, height // 2, width // 2] = torch.nan
        backward[-1, 0, width // 2] = torch.inf
    places = torch.rand(points, 2, generator=generator) * torch.tensor([1.1 * width, 1.1 * height]) - 1
    if points:
        places[0] = torch.nan
    return SceneCase(
        forward,
        backward,
        places,
        torch.randint(0, frames, (points,), generator=generator),
        ellipses(masks, height, width, seed),
        torch.randint(0, frames, (masks,), generator=generator).sort().values,
    )


def video(frames: int, height: int, width: int, masks: int, *, points: int, seed: int = 0) -> SceneCase:
    """What discovery sees: most points survive, all of them belong to frame 0, in the order of rows; masks in turn."""
    generator = torch.Generator().manual_seed(seed)
    forward = smooth_flow((frames - 1, height, width), 3.0, generator)
    backward = -forward + 0.05 * torch.randn(forward.shape, generator=generator)
    places = torch.rand(points, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    return SceneCase(
        forward,
        backward,
        places[torch.argsort(places[:, 1].round() * width + places[:, 0])].contiguous(),
        torch.zeros(points, dtype=torch.int64),
        ellipses(masks, height, width, seed),
        torch.arange(masks) * frames // max(masks, 1),
    )


@dataclass(frozen=True)
class TracksCase:
    """Tracks ``[G, T, 2]``, visible ``[G, T]``, masks bool ``[N, H, W]`` with frames."""

    tracks: Tensor
    visible: Tensor
    masks: Tensor
    mask_frames: Tensor

    def to(self, device: str) -> TracksCase:
        return TracksCase(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def given(frames: int, height: int, width: int, masks: int, *, points: int = 300, seed: int = 0) -> TracksCase:
    """Points that wander, out of the frame too, and hide now and then; places that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(points, 1, 2, generator=generator) * torch.tensor([1.1 * width, 1.1 * height]) - 1
    steps = 0.05 * torch.randn(points, frames, 2, generator=generator) * torch.tensor([width, height])
    tracks = ((starts + steps.cumsum(1)) * 2).round() / 2
    tracks[torch.rand(points, frames, generator=generator) < 0.05] = torch.nan
    if points:
        tracks[0, 0, 0] = -torch.inf
    return TracksCase(
        tracks,
        torch.rand(points, frames, generator=generator) < 0.8,
        ellipses(masks, height, width, seed),
        torch.randint(0, frames, (masks,), generator=generator).sort().values,
    )


def translation(frames: int, height: int, width: int, dx: float, dy: float) -> tuple[Tensor, Tensor]:
    """Forward and backward flow of a picture that moves by (dx, dy) pixels a frame."""
    forward = torch.tensor([dx, dy]).expand(frames - 1, height, width, 2).contiguous()
    return forward, -forward
