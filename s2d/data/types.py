"""What flows between the stages: masks of single frames, keymasks, tracks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from s2d.ops import RLE, BitMasks, rle_decode


@dataclass(frozen=True)
class FrameMasks:
    """Masks of single frames, not yet linked in time: what `propose` makes.

    Attributes:
        video: name of the video.
        size: (H, W) of every mask, pixels.
        num_frames: T, the length of the video.
        rle: N masks, ordered by frame; masks of one frame may overlap.
        frames: int64 ``[N]``, ascending: the frame of each mask.
        scores: float32 ``[N]`` in [0, 1].
    """

    video: str
    size: tuple[int, int]
    num_frames: int
    rle: RLE
    frames: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def bits(self, index: slice | Tensor = slice(None)) -> BitMasks:
        """Some of the masks as bits ``[N, H, W]``."""
        return _decode(self.rle[index], self.size)


@dataclass(frozen=True)
class Tracks:
    """Instances followed through a video: what `predict` makes, and ground truth.

    Attributes:
        video: name of the video.
        size: (H, W) of every mask, pixels.
        rle: N * T masks, instance by instance; empty where an instance has none.
        annotated: bool ``[N, T]``: whether the instance has a mask in that frame at all (the json says null elsewhere).
        scores: float32 ``[N]`` in [0, 1].
    """

    video: str
    size: tuple[int, int]
    rle: RLE
    annotated: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return self.annotated.shape[0]

    @property
    def num_frames(self) -> int:
        return self.annotated.shape[1]

    def bits(self, frames: slice = slice(None)) -> BitMasks:
        """The tubes as bits ``[N, T, H, W]``, of all frames or of a slice of them."""
        index = torch.arange(self.annotated.numel()).view(self.annotated.shape)[:, frames]
        flat = _decode(self.rle[index.reshape(-1)], self.size)
        return BitMasks(flat.words.view(*index.shape, *flat.words.shape[1:]), flat.width)


@dataclass(frozen=True)
class Keymasks(Tracks):
    """Instances with masks on some frames only: what `discover` makes.

    Attributes:
        mask_scores: float32 ``[N, T]`` in [0, 1]: how far other frames agree with each mask; 0 where there is none.
        one2x: float32 ``[N]``: share of the instance's masks that cover two or more masks in many frames.
        visibility_ranges: per instance, inclusive (first, last) frame ranges in which it was seen.
    """

    mask_scores: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    one2x: Tensor = field(default_factory=lambda: torch.zeros(0))
    visibility_ranges: tuple[tuple[tuple[int, int], ...], ...] = ()


def _decode(rle: RLE, size: tuple[int, int]) -> BitMasks:
    height, width = size
    if len(rle) == 0:
        return BitMasks(torch.zeros(0, height, (width + 63) // 64, dtype=torch.int64), width)
    return rle_decode(rle)
