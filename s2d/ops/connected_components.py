"""Connected components of binary masks, and what is made from them: filled holes, removed specks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, pack_masks, unpack_masks
from s2d.ops.reference import connected_components as reference

ROOM = Room("connected_components", kernels=("cpu", "cuda"))

MOST_PIXELS = 2**30 - 1  # of one mask: a kernel counts the ends of runs in 31 bits


def connected_components(
    masks: BitMasks | Tensor, connectivity: int = 8, *, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Number the connected parts of every mask.

    Args:
        masks: `BitMasks`, or bool or uint8 (any non-zero is set), ``[..., H, W]``.
        connectivity: 4 (pixels that share a side) or 8 (or a corner).
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        labels: int32 ``[..., H, W]``: 0 where unset, else 1, 2, ... in the order of their first pixels, row by row.
        areas: int32 ``[..., H, W]``: the number of pixels of the part a pixel belongs to, 0 where unset.

    Raises:
        TypeError: masks of another dtype.
        ValueError: another connectivity, or masks of 2^30 pixels or more.
    """
    bits = _checked(masks, connectivity, "connected_components", impl)
    if ROOM.choose(bits.device, impl) == "reference":
        labels, areas = reference.components(_dense(bits, impl), connectivity)
        return labels.view(bits.shape), areas.view(bits.shape)
    return torch.ops.s2d.connected_components(bits.words, bits.width, connectivity)


def fill_holes(
    masks: BitMasks | Tensor, largest: int | None = None, connectivity: int = 8, *, impl: str | None = None
) -> BitMasks | Tensor:
    """Set the unset parts that a mask encloses: those that do not reach the image border.

    Args:
        masks: `BitMasks`, or bool or uint8, ``[..., H, W]``.
        largest: holes of more pixels stay; None fills all.
        connectivity: of the mask, 4 or 8; holes are connected the other way (8 or 4), as a closed curve requires.

    Returns:
        As given: `BitMasks`, or bool ``[..., H, W]``.

    Raises:
        TypeError, ValueError: see `connected_components`.
    """
    bits = _checked(masks, connectivity, "fill_holes", impl)
    if ROOM.choose(bits.device, impl) == "reference":
        filled = reference.fill_holes(_dense(bits, impl), connectivity, largest).view(bits.shape)
        return pack_masks(filled, impl=impl) if isinstance(masks, BitMasks) else filled
    limit = MOST_PIXELS if largest is None else largest
    filled = BitMasks(torch.ops.s2d.fill_holes(bits.words, bits.width, limit, connectivity), bits.width)
    return filled if isinstance(masks, BitMasks) else unpack_masks(filled)


def remove_small(
    masks: BitMasks | Tensor, smallest: int, connectivity: int = 8, *, impl: str | None = None
) -> BitMasks | Tensor:
    """Unset the connected parts of fewer than ``smallest`` pixels.

    Args:
        masks: `BitMasks`, or bool or uint8, ``[..., H, W]``.
        smallest: pixels.
        connectivity: 4 or 8.

    Returns:
        As given: `BitMasks`, or bool ``[..., H, W]``.

    Raises:
        TypeError, ValueError: see `connected_components`.
    """
    bits = _checked(masks, connectivity, "remove_small", impl)
    if ROOM.choose(bits.device, impl) == "reference":
        kept = reference.remove_small(_dense(bits, impl), smallest, connectivity).view(bits.shape)
        return pack_masks(kept, impl=impl) if isinstance(masks, BitMasks) else kept
    kept = BitMasks(torch.ops.s2d.remove_small(bits.words, bits.width, smallest, connectivity), bits.width)
    return kept if isinstance(masks, BitMasks) else unpack_masks(kept)


def _checked(masks: BitMasks | Tensor, connectivity: int, op: str, impl: str | None) -> BitMasks:
    if connectivity not in (4, 8):
        raise ValueError(f"s2d::{op}: expected connectivity 4 or 8, got {connectivity}")
    bits = as_bits(masks, "masks", op, impl)
    height, width = bits.shape[-2:]
    if height * width > MOST_PIXELS:
        raise ValueError(f"s2d::{op}: expected masks of fewer than 2^30 pixels, got {height} x {width}")
    return bits


def _dense(bits: BitMasks, impl: str | None) -> Tensor:
    """bool ``[N, H, W]``, as the definition takes masks."""
    return unpack_masks(bits, impl=impl).reshape(math.prod(bits.shape[:-2]), *bits.shape[-2:])


@_native.fake("connected_components")
def _(words: Tensor, width: int, connectivity: int) -> tuple[Tensor, Tensor]:
    shape = (*words.shape[:-1], width)
    return words.new_empty(shape, dtype=torch.int32), words.new_empty(shape, dtype=torch.int32)


@_native.fake("fill_holes")
def _(words: Tensor, width: int, largest: int, connectivity: int) -> Tensor:
    return words.new_empty(words.shape)


@_native.fake("remove_small")
def _(words: Tensor, width: int, smallest: int, connectivity: int) -> Tensor:
    return words.new_empty(words.shape)
