"""Clips for training: their settings, what a step sees, and the annotated frames that they are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.types import Keymasks, Tracks
from s2d.errors import InputError
from s2d.ops import RLE, BitMasks, pack_masks, rle_decode, unpack_masks

# A keymask that no other frame agreed with is still drawn now and then: agreement is evidence, not truth.
_LEAST_WEIGHT = 0.05


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
        name: of the video.
    """

    frames: Tensor
    times: Tensor
    masks: BitMasks
    keep: Tensor
    weights: Tensor
    name: str = "video"

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.shape[-2], self.frames.shape[-1]


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn, read and changed: the table ``[clips]`` of a recipe.

    Attributes:
        frames: T, frames of a clip.
        batch: B, clips of an optimizer step, those of all processes and all accumulated parts together.
        stride: distance of neighbouring frames of a clip with consecutive ones.
        balance: 1 draws every instance as often as any other, 0 every annotation by its weight alone, so that
            instances with many good ones come more often.
        max_gap: frames of a clip that is not consecutive lie within so many frames of the annotated one.
        consecutive: share of clips with consecutive frames.
        crop: least and greatest side of the crop, as a share of the largest box of the clip's shape in the frame.
        flip: probability of a horizontal flip.
        color: brightness, contrast and saturation are multiplied by up to ``1 +- color``.
        rotation: up to so many degrees either way, drawn per clip.
        rotation_jitter: further degrees, drawn per frame.
        copy_paste: probability that the instances of another clip are pasted onto a clip, frame by frame.
        max_frames: of a video that is held in memory at most so many frames are, those nearest to annotated ones.
        size: (H, W) of the clips of a dataset, pixels; None leaves it to the caller.
        decoder: ``"pyav"``, ``"dali"``, or ``"auto"``: DALI where its frames are PyAV's, else PyAV.
        workers: threads that open, decode and transform the videos of a dataset.
        short: of a video shorter than a clip, ``"repeat"`` the last frame or treat it as an ``"error"``.
        on_error: of what cannot be read, ``"refuse"`` ends the iteration, ``"skip"`` draws another clip in its place.
        timeout: seconds after which a batch that does not come is an error.
        behaviour: ``"corrected"``, or ``"official"``: crop, colour and rotation are drawn for each frame, as the
            released code does.

    Raises:
        InputError: a value outside its range.
    """

    frames: int = 3
    batch: int = 1
    stride: int = 1
    balance: float = 1.0
    max_gap: int = 20
    consecutive: float = 1.0
    crop: tuple[float, float] = (0.8, 1.0)
    flip: float = 0.5
    color: float = 0.1
    rotation: float = 15.0
    rotation_jitter: float = 2.0
    copy_paste: float = 0.0
    max_frames: int = 300
    size: tuple[int, int] | None = None
    decoder: str = "auto"
    workers: int = 2
    short: str = "repeat"
    on_error: str = "refuse"
    timeout: float = 120.0
    behaviour: str = "corrected"

    def __post_init__(self) -> None:
        choices = {
            "decoder": ("auto", "pyav", "dali"),
            "short": ("repeat", "error"),
            "on_error": ("refuse", "skip"),
            "behaviour": ("corrected", "official"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("frames", "batch", "stride", "max_gap", "max_frames", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"expected size of at least 1, got {self.size}")
        for name in ("balance", "consecutive", "flip", "color", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise InputError(f"expected crop to be two shares in (0, 1], the smaller first, got {self.crop}")

    def share(self, world: int) -> int:
        """Clips of a batch for each of ``world`` processes; InputError where they cannot share it equally."""
        if self.batch % world:
            raise InputError(f"expected a batch that {world} processes can share equally, got {self.batch} clips")
        return self.batch // world


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
        weights: ``[N, num_frames]``, how often a frame is drawn; None: `frame_weights`.
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
    chosen = (frame_weights(tracks) if weights is None else weights)[:, times].float()
    masks = BitMasks(torch.cat(words), size[1])
    return AnnotatedFrames(frames, times, masks, keep, torch.where(keep, chosen, 0.0), tracks.video)


def frame_weights(tracks: Tracks) -> Tensor:
    """Float32 ``[N, T]``: how often a frame is drawn for an instance: keymasks by their scores, other masks alike."""
    scores = tracks.mask_scores.clamp(min=_LEAST_WEIGHT) if isinstance(tracks, Keymasks) else 1.0
    return torch.where(tracks.annotated, scores, 0.0)


def _shrink(rle: RLE, size: tuple[int, int]) -> Tensor:
    dense = unpack_masks(rle_decode(rle))[:, None].float()
    return F.interpolate(dense, size=size, mode="area")[0, 0] >= 0.5
