"""Connected components of binary masks, and what is made from them: filled holes, removed specks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, pack_masks, unpack_masks
from s2d.ops.reference import connected_components as reference

ROOM = Room("connected_components")


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
        ValueError: another connectivity.
    """
    flat, shape, _ = _prepare(masks, connectivity, "connected_components", impl)
    labels, areas = reference.components(flat, connectivity)
    return labels.view(shape), areas.view(shape)


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
    flat, shape, packed = _prepare(masks, connectivity, "fill_holes", impl)
    filled = reference.fill_holes(flat, connectivity, largest).view(shape)
    return pack_masks(filled) if packed else filled


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
    flat, shape, packed = _prepare(masks, connectivity, "remove_small", impl)
    kept = reference.remove_small(flat, smallest, connectivity).view(shape)
    return pack_masks(kept) if packed else kept


def _prepare(masks: BitMasks | Tensor, connectivity: int, op: str, impl: str | None) -> tuple[Tensor, torch.Size, bool]:
    """The masks as bool ``[N, H, W]``, their shape as given, and whether they came as bits."""
    if connectivity not in (4, 8):
        raise ValueError(f"s2d::{op}: expected connectivity 4 or 8, got {connectivity}")
    bits = as_bits(masks, "masks", op)
    ROOM.choose(bits.device, impl)
    dense = unpack_masks(bits).bool()
    number = math.prod(dense.shape[:-2])
    return dense.reshape(number, *dense.shape[-2:]), dense.shape, isinstance(masks, BitMasks)
