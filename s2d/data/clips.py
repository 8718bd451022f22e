"""Clips for training: a few frames around annotated ones, and augmentation that is coherent in time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.types import Tracks
from s2d.ops import RLE, BitMasks, pack_masks, rle_decode, unpack_masks


@dataclass(frozen=True)
class ClipTargets:
    """The instances of one clip.

    Attributes:
        masks: bool ``[G, T, H, W]``.
        keep: bool ``[G, T]``, on the CPU whatever device the masks are on: whether the annotation says anything about
            the instance in that frame. Kept and empty is a negative; not kept is unknown.
    """

    masks: Tensor
    keep: Tensor

    def __len__(self) -> int:
        return len(self.keep)

    @cached_property
    def bits(self) -> BitMasks:
        """The masks as bits, packed once for all that read them."""
        return pack_masks(self.masks)


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """What a step of training sees.

    Attributes:
        frames: float32 ``[B, T, 3, H, W]`` in 0..255 unless the loader normalises, on its device.
        targets: the instances of each clip that have a pixel in it; none where the dataset has no masks.
        names: of the videos.
        times: int64 ``[B, T]``, CPU: the frames' numbers in their videos.
    """

    frames: Tensor
    targets: list[ClipTargets]
    names: list[str]
    times: Tensor


@dataclass(frozen=True)
class AnnotatedFrames:
    """Frames of a video in memory, at training resolution, with instances annotated on some of them.

    Attributes:
        frames: uint8 ``[T, 3, H, W]``, RGB.
        times: int64 ``[T]``, ascending: their numbers in the video.
        masks: bits ``[N, T, H, W]``.
        keep: bool ``[N, T]``: where an instance is annotated.
        weights: float32 ``[N, T]``, at least 0: how often a frame is drawn for an instance; 0 where not kept.
    """

    frames: Tensor
    times: Tensor
    masks: BitMasks
    keep: Tensor
    weights: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.shape[-2], self.frames.shape[-1]


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn.

    Attributes:
        frames: T, frames of a clip.
        batch: B, clips of a step.
        balance: 1 draws every instance as often as any other, 0 every annotation by its weight alone, so that
            instances with many good ones come more often.
        max_gap: frames of a clip that is not consecutive lie within so many frames of the annotated one.
        consecutive: share of clips with consecutive frames.
        crop: least and greatest side of the crop, as a share of the frame's.
        flip: probability of a horizontal flip.
        color: brightness and contrast are multiplied by up to ``1 +- color``.
        rotation: up to so many degrees either way, drawn per clip.
        rotation_jitter: further degrees, drawn per frame.
        max_frames: at most so many frames are held in memory, those nearest to annotated ones.
    """

    frames: int = 3
    batch: int = 1
    balance: float = 1.0
    max_gap: int = 20
    consecutive: float = 1.0
    crop: tuple[float, float] = (0.8, 1.0)
    flip: float = 0.5
    color: float = 0.1
    rotation: float = 15.0
    rotation_jitter: float = 2.0
    max_frames: int = 300


def choose_frames(annotated: Tensor, most: int) -> Tensor:
    """At most ``most`` frames, those nearest to an annotated one; ties are spread over the video.

    Args:
        annotated: bool ``[T]``.

    Returns:
        int64, ascending.
    """
    times = torch.arange(len(annotated))
    marked = annotated.nonzero()[:, 0]
    distance = torch.zeros_like(times)
    if len(marked):
        after = torch.searchsorted(marked, times).clamp(max=len(marked) - 1)
        distance = torch.minimum((marked[after] - times).abs(), (marked[(after - 1).clamp(min=0)] - times).abs())
    # Multiples of the golden ratio fill the unit interval evenly, whatever their number.
    order = sorted(times.tolist(), key=lambda t: (int(distance[t]), t * 0.6180339887498949 % 1))
    return torch.tensor(sorted(order[:most]), dtype=torch.int64)


def read_frames(video: Iterable[Tensor], times: Tensor) -> Tensor:
    """The frames with these numbers, of a stream of uint8 ``[3, H, W]``: uint8 ``[len(times), 3, H, W]``."""
    wanted, found = set(times.tolist()), []
    for number, frame in enumerate(video):
        if number in wanted:
            found.append(frame)
            if len(found) == len(wanted):
                break
    return torch.stack(found)


def annotate(frames: Tensor, times: Tensor, tracks: Tracks, weights: Tensor | None = None) -> AnnotatedFrames:
    """Bring the masks of ``tracks`` to the resolution of ``frames`` (a pixel is set where half of its area is).

    Args:
        frames: uint8 ``[T, 3, H, W]``.
        times: int64 ``[T]``: their numbers in the video of ``tracks``.
        weights: ``[N, num_frames]``, how often a frame is drawn; None: all annotated frames alike.
    """
    keep = tracks.annotated[:, times]
    size = frames.shape[-2:]
    index = torch.arange(tracks.annotated.numel()).view(tracks.annotated.shape)[:, times]
    words = [pack_masks(torch.zeros(0, len(times), *size, dtype=torch.bool)).words]
    for kept, codes in zip(keep, index, strict=True):
        tube = torch.zeros(len(times), *size, dtype=torch.bool)
        for t in kept.nonzero()[:, 0].tolist():
            tube[t] = _shrink(tracks.rle[int(codes[t])], size)
        words.append(pack_masks(tube).words[None])
    chosen = torch.ones_like(keep, dtype=torch.float32) if weights is None else weights[:, times].float()
    masks = BitMasks(torch.cat(words), size[1])
    return AnnotatedFrames(frames, times, masks, keep, torch.where(keep, chosen, 0.0))


def _shrink(rle: RLE, size: tuple[int, int]) -> Tensor:
    dense = unpack_masks(rle_decode(rle))[:, None].float()
    return F.interpolate(dense, size=size, mode="area")[0, 0] >= 0.5


def draw_clip(data: AnnotatedFrames, settings: ClipSettings, generator: torch.Generator) -> tuple[Tensor, ClipTargets]:
    """One augmented clip and its targets.

    A random instance is chosen (see ``settings.balance``), then one of its annotated frames (by ``data.weights``), then
    the other frames.
    Instances without a pixel in the clip are left out.

    Returns:
        ``[T, 3, H, W]`` float32 in 0..255 and `ClipTargets`.
    """
    index = draw_frames(data, settings, generator)
    masks = unpack_masks(BitMasks(data.masks.words[:, index], data.masks.width))
    clip, masks = augment(data.frames[index], masks, settings, generator)
    present = masks.flatten(1).any(1)
    return clip, ClipTargets(masks[present], data.keep[:, index][present])


def draw_frames(data: AnnotatedFrames, settings: ClipSettings, generator: torch.Generator) -> Tensor:
    """Indices of the frames of a clip into ``data.frames``: int64 ``[T]``, ascending (repeated in a short video)."""
    total, length = len(data.times), settings.frames
    sums = data.weights.sum(1)
    if not bool((sums > 0).any()):
        raise ValueError("expected at least one annotated frame to draw clips around, got none")
    shares = torch.where(sums > 0, sums ** (1 - settings.balance), 0.0)
    instance = int(torch.multinomial(shares, 1, generator=generator))
    anchor = int(torch.multinomial(data.weights[instance], 1, generator=generator))
    if total < length:
        return torch.arange(length).clamp(max=total - 1)
    if torch.rand((), generator=generator) < settings.consecutive:
        starts = torch.arange(max(0, anchor - length + 1), min(anchor, total - length) + 1)
        annotated = data.keep[instance].unfold(0, length, 1).sum(1)[starts]
        best = starts[annotated == annotated.max()]
        start = int(best[torch.randint(len(best), (), generator=generator)])
        return torch.arange(start, start + length)
    gap = (data.times - data.times[anchor]).abs()
    # In a video that was thinned out, or a narrow gap, the nearest frames must do.
    reach = max(settings.max_gap, int(gap.sort().values[length - 1]))
    others = ((gap <= reach) & (gap > 0)).nonzero()[:, 0]
    chosen = others[torch.randperm(len(others), generator=generator)[: length - 1]]
    return torch.cat([chosen, torch.tensor([anchor])]).sort().values


def augment(frames: Tensor, masks: Tensor, settings: ClipSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crop, flip, rotation and colour, drawn once for all frames of the clip (rotation with a jitter per frame).

    Args:
        frames: uint8 ``[T, 3, H, W]``.
        masks: bool ``[G, T, H, W]``.

    Returns:
        Frames float32 in 0..255 and masks, of the same sizes; what lies outside the frame is 0 and not in any mask.
    """
    number, _, height, width = frames.shape
    draw = torch.rand(7 + number, generator=generator).tolist()
    scale = settings.crop[0] + (settings.crop[1] - settings.crop[0]) * draw[0]
    mirror = -1.0 if draw[1] < settings.flip else 1.0
    shift_x, shift_y = ((1 - scale) * (2 * d - 1) for d in draw[2:4])
    thetas = []
    for jitter in draw[7:]:
        degrees = settings.rotation * (2 * draw[4] - 1) + settings.rotation_jitter * (2 * jitter - 1)
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        # Rotation in pixels, written for coordinates that span [-1, 1] along each side.
        thetas.append(
            [
                [scale * mirror * cosine, -scale * sine * height / width, shift_x],
                [scale * mirror * sine * width / height, scale * cosine, shift_y],
            ]
        )
    grid = F.affine_grid(torch.tensor(thetas), [number, 1, height, width], align_corners=False)
    clip = F.grid_sample(frames.float(), grid, align_corners=False)
    brightness, contrast = (1 + settings.color * (2 * d - 1) for d in draw[5:7])
    mean = clip.mean()
    clip = ((clip - mean) * contrast + mean * brightness).clamp(0, 255)
    planes = masks.transpose(0, 1).float()
    moved = F.grid_sample(planes, grid, mode="nearest", align_corners=False) if len(masks) else planes
    return clip, moved.transpose(0, 1) > 0.5
