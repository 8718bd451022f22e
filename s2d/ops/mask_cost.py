"""Cost of matching predicted masks to target masks, at points shared by all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, unpack_masks
from s2d.ops.reference import mask_cost as reference

ROOM = Room("mask_cost", kernels=("cpu", "triton"))


def mask_cost(
    logits: Tensor, target: BitMasks | Tensor, points: Tensor, *, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice cost of every predicted tube with every target tube.

    ``bce[q, g] = (sum softplus(x_q) - x_q . t_g) / (T P)`` and
    ``dice[q, g] = 1 - (2 s_q . t_g + 1) / (sum s_q + sum t_g + 1)`` with ``s = sigmoid(x)``; x_q and t_g are the T P
    values read bilinearly (0 outside, align_corners=False) at the same points of all frames (Mask2Former's matcher).

    Args:
        logits: float16, bfloat16, float32 or float64 ``[Q, T, h, w]``.
        target: `BitMasks`, or bool or uint8 (any non-zero is set), ``[G, T, H, W]``; H, W need not be h, w.
        points: floating point ``[P, 2]``, (x, y) in [0, 1], P > 0; one that is outside or NaN reads 0.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        ``bce`` and ``dice``, float32 ``[Q, G]``, or float64 where ``logits`` are: half precision is widened, so that
        points keep their places. Not differentiable: the matcher's choice has no gradient.

    Raises:
        TypeError: ``logits``, ``target`` or ``points`` of another dtype.
        ValueError: shapes that do not agree, or nothing to read: T, h, w, H, W or P of 0.
    """
    for name, value, shape, dims in (("logits", logits, "[Q, T, h, w]", 4), ("points", points, "[P, 2]", 2)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"s2d::mask_cost: expected {name} floating point {shape}, got {found}")
        if value.dim() != dims:
            raise ValueError(f"s2d::mask_cost: expected {name} {shape}, got {list(value.shape)}")
    if 0 in logits.shape[1:]:
        raise ValueError(f"s2d::mask_cost: expected logits with T, h, w > 0, got {list(logits.shape)}")
    if points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"s2d::mask_cost: expected points [P, 2] with P > 0, got {list(points.shape)}")
    bits = as_bits(target, "target", "mask_cost", impl)
    if len(bits.shape) != 4 or bits.shape[1] != logits.shape[1] or 0 in bits.shape[2:]:
        raise ValueError(
            f"s2d::mask_cost: expected target [G, {logits.shape[1]}, H, W] with H, W > 0, got {list(bits.shape)}"
        )
    logits, points = logits.detach(), points.detach()
    if ROOM.choose(logits.device, impl) == "reference":
        return reference.mask_cost(logits, unpack_masks(bits, impl="reference"), points)
    points = points.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.ops.s2d.mask_cost(logits, bits.words, bits.width, points)


@_native.fake("mask_cost")
def _(logits: Tensor, words: Tensor, width: int, points: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return tuple(logits.new_empty((logits.shape[0], words.shape[0]), dtype=dtype) for _ in range(2))


@_native.triton("mask_cost")
def _(logits: Tensor, words: Tensor, width: int, points: Tensor) -> tuple[Tensor, Tensor]:
    from s2d.kernels.mask_cost import launch

    with torch.cuda.device_of(logits):
        return launch(logits.contiguous(), words.contiguous(), width, points.contiguous())
