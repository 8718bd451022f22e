"""What a training clip shows, drawn before anything is decoded, and what is done to its pixels, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.errors import InputError

# Rec. 601 luma: what is left of a colour without saturation.
_LUMA = np.array([0.299, 0.587, 0.114])

# A pixel of a mask is set where half of it is; who rounds how must not decide about exactly half.
HALF = 0.5 - 1e-4


@dataclass(frozen=True)
class LoaderSettings:
    """How clips are drawn from a dataset, decoded and delivered.

    Attributes:
        size: (H, W) of the clips, pixels.
        frames: T, frames of a clip.
        stride: distance of neighbouring ones in the video.
        batch: B, clips of a step on each process.
        crop: least and greatest side of the crop, as a share of the largest box of the clips' shape in the frame.
        flip: probability of a horizontal flip.
        color: brightness, contrast and saturation are multiplied by up to ``1 +- color``.
        mean: subtracted from red, green and blue, which lie in 0..255.
        std: what they are then divided by.
        decoder: ``"pyav"``, ``"dali"``, or ``"auto"``: DALI where its frames are PyAV's, else PyAV.
        short: of a video shorter than a clip, ``"repeat"`` the last frame or treat it as an ``"error"``.
        on_error: of what cannot be read, ``"refuse"`` ends the iteration, ``"skip"`` draws another clip in its place.
        timeout: seconds after which a batch that does not come is an error.
    """

    size: tuple[int, int]
    frames: int = 3
    stride: int = 1
    batch: int = 1
    crop: tuple[float, float] = (0.8, 1.0)
    flip: float = 0.5
    color: float = 0.1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    decoder: str = "auto"
    short: str = "repeat"
    on_error: str = "refuse"
    timeout: float = 120.0

    def __post_init__(self) -> None:
        choices = {
            "decoder": ("auto", "pyav", "dali"),
            "short": ("repeat", "error"),
            "on_error": ("refuse", "skip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if min(*self.size, self.frames, self.stride, self.batch) < 1:
            raise InputError(f"expected size, frames, stride and batch of at least 1, got {self}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise InputError(f"expected crop to be two shares in (0, 1], the smaller first, got {self.crop}")


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """One clip of a video.

    Attributes:
        times: int64 ``[T]``, ascending: numbers of its frames.
        corner: (top, left) of the crop, pixels.
        extent: (height, width) of the crop, pixels.
        mirrored: whether it is flipped.
        color: float32 ``[3, 4]``: red, green and blue become this matrix times (red, green, blue, 1).
    """

    times: np.ndarray
    corner: tuple[int, int]
    extent: tuple[int, int]
    mirrored: bool
    color: np.ndarray


def draw_plan(
    length: int,
    size: tuple[int, int],
    annotated: np.ndarray | None,
    settings: LoaderSettings,
    draw: np.random.Generator,
) -> ClipPlan:
    """Draw a clip.

    Args:
        length: frames of the video.
        size: (H, W) of its frames.
        annotated: bool ``[length]``: a clip shows one of these frames if there are any; None: any clip will do.

    Raises:
        InputError: the video is shorter than a clip, and ``settings.short`` says that this is an error.
    """
    # Everything is drawn whatever the video is like, so that one setting does not change what another one draws.
    where, anchor, share, down, right, flip, *colors = draw.random(9).tolist()
    times = _times(length, annotated, settings, where, anchor)
    box = min(size[0] / settings.size[0], size[1] / settings.size[1])
    scale = box * (settings.crop[0] + (settings.crop[1] - settings.crop[0]) * share)
    extent = tuple(max(1, min(whole, round(side * scale))) for whole, side in zip(size, settings.size, strict=True))
    corner = tuple(int(d * (w - e + 1)) for d, w, e in zip((down, right), size, extent, strict=True))
    return ClipPlan(times, corner, extent, flip < settings.flip, _color(settings.color, colors))


def _times(
    length: int, annotated: np.ndarray | None, settings: LoaderSettings, where: float, anchor: float
) -> np.ndarray:
    steps = np.arange(settings.frames) * settings.stride
    last = length - 1 - int(steps[-1])
    if last < 0:
        if settings.short == "error":
            raise InputError(f"expected a video of at least {steps[-1] + 1} frames, got {length}")
        return np.minimum(steps, length - 1)
    marked = np.flatnonzero(annotated) if annotated is not None else []
    if len(marked) == 0:
        return int(where * (last + 1)) + steps
    shown = marked[int(anchor * len(marked))]
    starts = (shown - steps)[(shown - steps >= 0) & (shown - steps <= last)]
    # In a video hardly longer than a clip the stride may step over the frame whatever the start is.
    start = starts[int(where * len(starts))] if len(starts) else min(last, max(0, int(shown)))
    return int(start) + steps


def _color(strength: float, draws: list[float]) -> np.ndarray:
    brightness, contrast, saturation = (1 + strength * (2 * d - 1) for d in draws)
    mixed = saturation * np.eye(3) + (1 - saturation) * _LUMA[None]
    grey = np.full((3, 1), 127.5 * (1 - contrast))
    return (brightness * np.concatenate([contrast * mixed, grey], 1)).astype(np.float32)


def transform_frames(frames: Tensor, plan: ClipPlan, settings: LoaderSettings) -> Tensor:
    """Crop, resize (antialiased, linear), flip, colour and normalisation: uint8 to float32 ``[T, 3, h, w]``."""
    clip = _placed(frames, plan, settings)
    color = torch.from_numpy(plan.color).to(clip.device)
    clip = torch.einsum("oc,tchw->tohw", color[:, :3], clip) + color[:, 3, None, None]
    mean, std = (torch.tensor(v, device=clip.device)[:, None, None] for v in (settings.mean, settings.std))
    return (clip.clamp_(0, 255) - mean) / std


def transform_masks(masks: Tensor, plan: ClipPlan, settings: LoaderSettings) -> Tensor:
    """The same crop, resize and flip; a pixel is set where half of it is: uint8 of 0 and 1 to bool ``[G, T, h, w]``."""
    if len(masks) == 0:
        return torch.zeros(0, masks.shape[1], *settings.size, dtype=torch.bool, device=masks.device)
    return _placed(masks, plan, settings) >= HALF


def _placed(planes: Tensor, plan: ClipPlan, settings: LoaderSettings) -> Tensor:
    (top, left), (height, width) = plan.corner, plan.extent
    box = planes[..., top : top + height, left : left + width].float()
    resized = F.interpolate(box, size=settings.size, mode="bilinear", antialias=True, align_corners=False)
    return resized.flip(-1) if plan.mirrored else resized
