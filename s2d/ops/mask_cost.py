"""Cost of matching predicted masks to target masks, at points shared by all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, unpack_masks
from s2d.ops.reference import mask_cost as reference

ROOM = Room("mask_cost")


def mask_cost(
    logits: Tensor, target: BitMasks | Tensor, points: Tensor, *, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice cost of every predicted tube with every target tube.

    ``bce[q, g] = (sum softplus(x_q) - x_q . t_g) / (T P)`` and
    ``dice[q, g] = 1 - (2 s_q . t_g + 1) / (sum s_q + sum t_g + 1)`` with ``s = sigmoid(x)``; x_q and t_g are the T P
    values read bilinearly (0 outside, align_corners=False) at the same points of all frames (Mask2Former's matcher).

    Args:
        logits: floating point ``[Q, T, h, w]``.
        target: `BitMasks`, or bool or uint8 (any non-zero is set), ``[G, T, H, W]``; H, W need not be h, w.
        points: floating point ``[P, 2]``, (x, y) in [0, 1], P > 0.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        ``bce`` and ``dice``, ``[Q, G]`` of the dtype of ``logits``.

    Raises:
        TypeError: ``target`` of another dtype.
        ValueError: shapes that do not agree.
    """
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(
            f"s2d::mask_cost: expected logits floating point [Q, T, h, w], got {logits.dtype} {list(logits.shape)}"
        )
    dense = isinstance(target, Tensor) and target.dtype in (torch.bool, torch.uint8)
    masks = target != 0 if dense else unpack_masks(as_bits(target, "target", "mask_cost"))
    if masks.dim() != 4 or masks.shape[1] != logits.shape[1]:
        raise ValueError(f"s2d::mask_cost: expected target [G, {logits.shape[1]}, H, W], got {list(masks.shape)}")
    if points.dim() != 2 or points.shape[1] != 2 or len(points) == 0 or not points.is_floating_point():
        raise ValueError(
            f"s2d::mask_cost: expected points floating point [P, 2] with P > 0, got {points.dtype} {list(points.shape)}"
        )
    ROOM.choose(logits.device, impl)
    return reference.mask_cost(logits, masks, points)
