"""Binary masks, one bit a pixel: packing, area, boxes, IoU and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.reference import bitmask as reference

ROOM = Room("bitmask", kernels=("cpu", "cuda"))

_MASK_DTYPES = (torch.bool, torch.uint8)


@dataclass(frozen=True)
class BitMasks:
    """Binary masks packed into 64-bit words, the way every s2d operator takes them.

    Attributes:
        words: int64 ``[..., H, ceil(W / 64)]``. Pixel x of a row is bit ``x % 64`` of word ``x // 64``; the bits past
            ``width`` are zero.
        width: W, the number of pixels in a row.
    """

    words: Tensor
    width: int

    def __post_init__(self) -> None:
        if self.words.dtype != torch.int64 or self.words.dim() < 2:
            found = f"{self.words.dtype} {list(self.words.shape)}"
            raise TypeError(f"s2d::BitMasks: expected words int64 [..., H, ceil(W/64)], got {found}")
        if self.words.shape[-1] != (self.width + 63) // 64:
            raise ValueError(
                f"s2d::BitMasks: expected {(self.width + 63) // 64} words for width {self.width}, "
                f"got {self.words.shape[-1]}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(..., H, W)``: the shape of the masks in pixels."""
        return (*self.words.shape[:-1], self.width)

    @property
    def device(self) -> torch.device:
        return self.words.device

    def __len__(self) -> int:
        return self.words.shape[0]

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> BitMasks:
        """Select along the first dimension; a single mask ``[H, W]`` cannot be indexed further."""
        if self.words.dim() < 3:
            raise IndexError("s2d::BitMasks: expected masks [N, ..., H, W] to index, got a single mask [H, W]")
        return BitMasks(self.words[index], self.width)

    def to(self, device: torch.device | str) -> BitMasks:
        return BitMasks(self.words.to(device), self.width)


def as_bits(masks: BitMasks | Tensor, argument: str, op: str, impl: str | None = None) -> BitMasks:
    """What every operator accepts as masks: `BitMasks` as they are, bool or uint8 ``[..., H, W]`` packed."""
    if isinstance(masks, BitMasks):
        return masks
    if not isinstance(masks, Tensor) or masks.dtype not in _MASK_DTYPES or masks.dim() < 2:
        found = f"{masks.dtype} {list(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"s2d::{op}: expected {argument} BitMasks or a bool or uint8 tensor [..., H, W], got {found}")
    return pack_masks(masks, impl=impl)


def pack_masks(masks: Tensor, *, impl: str | None = None) -> BitMasks:
    """Pack masks into bits, 64 pixels of a row to a word.

    Args:
        masks: bool or uint8 ``[..., H, W]``, any strides; any non-zero value is set.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        `BitMasks` of the same shape on the same device, an eighth of the size.

    Raises:
        TypeError: another dtype, or fewer than two dimensions.
    """
    if masks.dtype not in _MASK_DTYPES or masks.dim() < 2:
        found = f"{masks.dtype} {list(masks.shape)}"
        raise TypeError(f"s2d::pack_masks: expected masks bool or uint8 [..., H, W], got {found}")
    if ROOM.choose(masks.device, impl) == "reference":
        return BitMasks(reference.pack(masks), masks.shape[-1])
    return BitMasks(torch.ops.s2d.pack_masks(masks.view(torch.uint8)), masks.shape[-1])


def unpack_masks(masks: BitMasks, *, impl: str | None = None) -> Tensor:
    """The inverse of `pack_masks`: bool ``[..., H, W]``."""
    if ROOM.choose(masks.device, impl) == "reference":
        return reference.unpack(masks.words, masks.width)
    return torch.ops.s2d.unpack_masks(masks.words, masks.width).view(torch.bool)


def mask_area(masks: BitMasks | Tensor, *, impl: str | None = None) -> Tensor:
    """Number of set pixels of each mask.

    Args:
        masks: `BitMasks`, or bool or uint8 ``[..., H, W]``.

    Returns:
        int64 ``[...]``.
    """
    bits = as_bits(masks, "masks", "mask_area", impl)
    if ROOM.choose(bits.device, impl) == "reference":
        return reference.area(bits.words, bits.width)
    return torch.ops.s2d.mask_area(bits.words)


def mask_bbox(masks: BitMasks | Tensor, *, impl: str | None = None) -> Tensor:
    """Tight bounding box of each mask, as COCO writes it.

    Args:
        masks: `BitMasks`, or bool or uint8 ``[..., H, W]``.

    Returns:
        int64 ``[..., 4]``: x, y, width, height in pixels; four zeros for an empty mask.
    """
    bits = as_bits(masks, "masks", "mask_bbox", impl)
    if ROOM.choose(bits.device, impl) == "reference":
        return reference.bbox(bits.words, bits.width)
    return torch.ops.s2d.mask_bbox(bits.words)


def mask_iou(a: BitMasks | Tensor, b: BitMasks | Tensor, *, impl: str | None = None) -> Tensor:
    """Intersection over union of every mask of ``a`` with every mask of ``b``.

    ``iou[n, m] = |a[n] & b[m]| / |a[n] | b[m]|``, both counts over all voxels: masks of one frame ``[N, H, W]``, or
    tubes ``[N, T, H, W]`` (the YouTube-VIS measure). 0 where both are empty. The counts are exact.

    Args:
        a: `BitMasks`, or bool or uint8, ``[N, ..., H, W]``.
        b: the same, ``[M, ..., H, W]``.

    Returns:
        float32 ``[N, M]``.

    Raises:
        ValueError: ``a`` and ``b`` differ in any dimension but the first, or have no first dimension.
    """
    left, right = as_bits(a, "a", "mask_iou", impl), as_bits(b, "b", "mask_iou", impl)
    if len(left.shape) < 3 or left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"s2d::mask_iou: expected a [N, ..., H, W] and b [M, ..., H, W] of equal sizes, "
            f"got {list(left.shape)} and {list(right.shape)}"
        )
    if ROOM.choose(left.device, impl) == "reference":
        return reference.iou(left.words, right.words)
    return torch.ops.s2d.mask_iou(left.words, right.words)


def mask_nms(masks: BitMasks | Tensor, scores: Tensor, threshold: float, *, impl: str | None = None) -> Tensor:
    """Greedy non-maximum suppression by mask IoU (tube IoU for ``[N, T, H, W]``).

    Masks are visited by descending score (ties: the lower index first); one is dropped if its IoU with a kept one is
    greater than ``threshold``.

    Args:
        masks: `BitMasks`, or bool or uint8, ``[N, ..., H, W]``.
        scores: floating point ``[N]``.
        threshold: in [0, 1].

    Returns:
        int64 ``[K]``: indices of the kept masks, by descending score.
    """
    bits = as_bits(masks, "masks", "mask_nms", impl)
    if len(bits.shape) < 3 or scores.shape != bits.words.shape[:1]:
        raise ValueError(
            f"s2d::mask_nms: expected masks [N, ..., H, W] and scores [N], "
            f"got {list(bits.shape)} and {list(scores.shape)}"
        )
    if ROOM.choose(bits.device, impl) == "reference":
        return reference.nms(bits.words, scores, threshold)
    order = torch.argsort(scores, descending=True, stable=True)
    kept = torch.ops.s2d.mask_nms(bits.words, order, threshold)
    return order[kept.view(torch.bool)]


@_native.fake("pack_masks")
def _(masks: Tensor) -> Tensor:
    return masks.new_empty((*masks.shape[:-1], (masks.shape[-1] + 63) // 64), dtype=torch.int64)


@_native.fake("unpack_masks")
def _(words: Tensor, width: int) -> Tensor:
    return words.new_empty((*words.shape[:-1], width), dtype=torch.uint8)


@_native.fake("mask_area")
def _(words: Tensor) -> Tensor:
    return words.new_empty(words.shape[:-2])


@_native.fake("mask_bbox")
def _(words: Tensor) -> Tensor:
    return words.new_empty((*words.shape[:-2], 4))


@_native.fake("mask_iou")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.float32)


@_native.fake("mask_nms")
def _(words: Tensor, order: Tensor, threshold: float) -> Tensor:
    return words.new_empty(words.shape[:1], dtype=torch.uint8)
