"""What a training clip shows, drawn before anything is decoded, and what is done to its pixels, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.clips import ClipSettings, ClipTargets
from s2d.errors import InputError

# Rec. 601 luma: what is left of a colour without saturation.
_LUMA = np.array([0.299, 0.587, 0.114])

# A pixel of a mask is set where half of it is; who rounds how must not decide about exactly half.
HALF = 0.5 - 1e-4


@dataclass(frozen=True)
class ClipFormat:
    """How clips are delivered.

    Attributes:
        size: (H, W), pixels.
        mean: subtracted from red, green and blue, which lie in 0..255.
        std: what they are then divided by.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """One clip of a video. What is said of each frame is the same for all, but for the jitter of the angle, unless the
    behaviour is the official one.

    Attributes:
        times: int64 ``[T]``, ascending: numbers of its frames.
        corner: int64 ``[T, 2]``: (top, left) of the crop, pixels.
        extent: int64 ``[T, 2]``: (height, width) of the crop, pixels.
        angle: float64 ``[T]``: the rotation around the centre of the resized crop, degrees.
        mirrored: whether it is then flipped.
        color: float32 ``[T, 3, 4]``: red, green and blue become this matrix times (red, green, blue, 1).
    """

    times: np.ndarray
    corner: np.ndarray
    extent: np.ndarray
    angle: np.ndarray
    mirrored: bool
    color: np.ndarray

    @staticmethod
    def whole(times: np.ndarray, size: tuple[int, int]) -> ClipPlan:
        """These frames of a video of size (H, W) as they are."""
        number = len(times)
        color = np.tile(np.eye(3, 4, dtype=np.float32), (number, 1, 1))
        extent = np.tile(np.array(size, np.int64), (number, 1))
        return ClipPlan(times, np.zeros_like(extent), extent, np.zeros(number), False, color)

    def rotations(self, size: tuple[int, int]) -> np.ndarray:
        """Float32 ``[T, 2, 3]``: (x, y, 1) of a pixel's centre in the rotated frame to (x, y) in the one before it."""
        cosine, sine = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        linear = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
        center = np.array([[size[1] / 2], [size[0] / 2]])
        return np.concatenate([linear, center - linear @ center], -1).astype(np.float32)


def seeded(*numbers: int) -> torch.Generator:
    """A generator that these numbers, at least 0, determine."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def draw_frames(
    times: Tensor, keep: Tensor, weights: Tensor, settings: ClipSettings, generator: torch.Generator
) -> Tensor:
    """The frames of a clip around an annotated one.

    A random instance is chosen (see ``settings.balance``), then one of its annotated frames, then the others: T
    consecutive ones (every ``settings.stride``-th) of which as many as possible are annotated, or any within
    ``settings.max_gap``.

    Args:
        times: int64 ``[L]``, ascending: numbers of the frames that there are.
        keep: bool ``[N, L]``: where an instance is annotated.
        weights: float32 ``[N, L]``, at least 0: how often a frame is drawn for an instance.

    Returns:
        Indices into ``times``: int64 ``[T]``, ascending (the last is repeated in a short video).

    Raises:
        InputError: the video is shorter than a clip, and ``settings.short`` says that this is an error.
        ValueError: no weight is above 0.
    """
    total, length = len(times), settings.frames
    steps = torch.arange(length) * settings.stride
    last = total - 1 - int(steps[-1])
    sums = weights.sum(1)
    if not bool((sums > 0).any()):
        raise ValueError("expected at least one annotated frame to draw clips around, got none")
    shares = torch.where(sums > 0, sums ** (1 - settings.balance), 0.0)
    instance = int(torch.multinomial(shares, 1, generator=generator))
    anchor = int(torch.multinomial(weights[instance], 1, generator=generator))
    if last < 0:
        if settings.short == "error":
            raise InputError(f"expected a video of at least {steps[-1] + 1} frames, got {total}")
        return steps.clamp(max=total - 1)
    if torch.rand((), generator=generator) < settings.consecutive:
        starts = (anchor - steps)[(anchor - steps >= 0) & (anchor - steps <= last)]
        if len(starts) == 0:
            # In a video hardly longer than a clip the stride may step over the frame whatever the start is.
            return min(anchor, last) + steps
        annotated = keep[instance][starts[:, None] + steps].sum(1)
        best = starts[annotated == annotated.max()]
        return best[torch.randint(len(best), (), generator=generator)] + steps
    gap = (times - times[anchor]).abs()
    # In a video that was thinned out, or a narrow gap, the nearest frames must do.
    reach = max(settings.max_gap, int(gap.sort().values[length - 1]))
    others = ((gap <= reach) & (gap > 0)).nonzero()[:, 0]
    chosen = others[torch.randperm(len(others), generator=generator)[: length - 1]]
    return torch.cat([chosen, torch.tensor([anchor])]).sort().values


def draw_plan(
    times: Tensor,
    source: tuple[int, int],
    size: tuple[int, int],
    settings: ClipSettings,
    generator: torch.Generator,
) -> ClipPlan:
    """Draw what is done to frames ``times``, int64 ``[T]``, of size ``source`` to make a clip of size ``size``."""
    draws = torch.rand(len(times), 9, generator=generator, dtype=torch.float64).numpy()
    jitter = settings.rotation_jitter * (2 * draws[:, 8] - 1)
    if settings.behaviour == "corrected":
        draws = np.tile(draws[:1], (len(times), 1))
    else:
        jitter = 0.0
    scale = settings.crop[0] + (settings.crop[1] - settings.crop[0]) * draws[:, :1]
    scale *= min(source[0] / size[0], source[1] / size[1])
    extent = (scale * size).round().clip(1, source).astype(np.int64)
    corner = (draws[:, 1:3] * (source - extent + 1)).astype(np.int64)
    angle = settings.rotation * (2 * draws[:, 3] - 1) + jitter
    color = np.stack([_color(*(1 + settings.color * (2 * row - 1))) for row in draws[:, 4:7]])
    return ClipPlan(times.numpy(), corner, extent, angle, bool(draws[0, 7] < settings.flip), color)


def _color(brightness: float, contrast: float, saturation: float) -> np.ndarray:
    mixed = saturation * np.eye(3) + (1 - saturation) * _LUMA[None]
    grey = np.full((3, 1), 127.5 * (1 - contrast))
    return (brightness * np.concatenate([contrast * mixed, grey], 1)).astype(np.float32)


def transform_frames(frames: Tensor, plan: ClipPlan, form: ClipFormat) -> Tensor:
    """Crop, resize (antialiased, linear), colour, rotation (0 outside), flip and normalisation.

    Args:
        frames: uint8 ``[T, 3, H, W]``.

    Returns:
        Float32 ``[T, 3, h, w]``.
    """
    clip = _resized(frames, plan, form.size)
    color = torch.from_numpy(plan.color).to(clip.device)
    clip = torch.baddbmm(color[:, :, 3:], color[:, :, :3], clip.flatten(2)).view(clip.shape)
    clip = _turned(clip.clamp_(0, 255), plan)
    mean, std = (torch.tensor(v, device=clip.device)[:, None, None] for v in (form.mean, form.std))
    return (clip - mean) / std


def transform_masks(masks: Tensor, plan: ClipPlan, size: tuple[int, int]) -> Tensor:
    """The same crop, resize, rotation and flip; a pixel is set where half of it is.

    Args:
        masks: uint8 ``[G, T, H, W]`` of 0 and 1, or bool.

    Returns:
        Bool ``[G, T, h, w]``.
    """
    if len(masks) == 0:
        return torch.zeros(0, masks.shape[1], *size, dtype=torch.bool, device=masks.device)
    return (_turned(_resized(masks.transpose(0, 1), plan, size), plan) >= HALF).transpose(0, 1)


def _resized(planes: Tensor, plan: ClipPlan, size: tuple[int, int]) -> Tensor:
    """The crop of each frame at the size of the clip: ``[T, C, H, W]`` to float32 ``[T, C, h, w]``."""
    boxes = zip(planes, plan.corner.tolist(), plan.extent.tolist(), strict=True)
    crops = [frame[:, y : y + h, x : x + w].float() for frame, (y, x), (h, w) in boxes]
    if all(crop.shape == crops[0].shape for crop in crops):
        return F.interpolate(torch.stack(crops), size=size, mode="bilinear", antialias=True, align_corners=False)
    resize = [F.interpolate(c[None], size=size, mode="bilinear", antialias=True, align_corners=False) for c in crops]
    return torch.cat(resize)


def _turned(planes: Tensor, plan: ClipPlan) -> Tensor:
    """Rotation and flip of float32 ``[T, C, h, w]``."""
    if plan.angle.any():
        height, width = planes.shape[-2:]
        # Rotation in pixels, written for coordinates that span [-1, 1] along each side.
        spans = np.array([[1, height / width, 0], [width / height, 1, 0]], np.float32)
        theta = torch.from_numpy(plan.rotations((height, width)) * spans).to(planes.device)
        planes = F.grid_sample(
            planes, F.affine_grid(theta, list(planes.shape), align_corners=False), align_corners=False
        )
    return planes.flip(-1) if plan.mirrored else planes


def paste(frames: Tensor, targets: ClipTargets, donor: Tensor, pasted: ClipTargets) -> tuple[Tensor, ClipTargets]:
    """Lay the instances of a donor clip over a clip, frame by frame; what they cover is taken from those below.

    Args:
        frames: ``[T, 3, H, W]``.
        donor: of the same shape.
        pasted: its instances.
    """
    cover = pasted.masks.any(0)
    masks = torch.cat([targets.masks & ~cover, pasted.masks])
    return torch.where(cover[:, None], donor, frames), ClipTargets(masks, torch.cat([targets.keep, pasted.keep]))


def present(targets: ClipTargets) -> ClipTargets:
    """Those that have a pixel in the clip."""
    seen = targets.masks.flatten(1).any(1)
    return ClipTargets(targets.masks[seen], targets.keep[seen.cpu()])
