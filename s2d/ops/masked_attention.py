"""Mask2Former's masked cross-attention with temporal drop, and the masks it attends by."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, pack_masks, unpack_masks
from s2d.ops.reference import masked_attention as reference

ROOM = Room("masked_attention")


def attention_mask(mask_logits: Tensor, size: tuple[int, int], *, impl: str | None = None) -> BitMasks:
    """Which keys of a feature level each query may attend to, from the masks it predicts.

    The logits are resized bilinearly (``align_corners=False``); a key is forbidden where ``sigmoid(x) < 0.5`` in the
    logits' dtype (for float32 that is x <= -0x1.7ffffep-23, not x < 0), so NaN attends. No fallback for rows without a
    key: `masked_attention` decides that, after frames are dropped. Nothing flows back. The rule is that of Mask2Former
    (arXiv 2112.01527).

    Args:
        mask_logits: floating point ``[B, Q, T, h, w]``.
        size: height and width of the level.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        Bits ``[B, Q, K]``, K = T * height * width keys, frame by frame, rows before columns; 1 = attend.

    Raises:
        TypeError: the logits are not floating point. ValueError: they are not ``[B, Q, T, h, w]``.
    """
    _check_float("attention_mask", mask_logits=mask_logits)
    if mask_logits.dim() != 5:
        raise ValueError(f"s2d::attention_mask: expected mask_logits [B, Q, T, h, w], got {list(mask_logits.shape)}")
    ROOM.choose(mask_logits.device, impl)
    return pack_masks(reference.attention_mask(mask_logits.detach(), tuple(size)))


def attention_mask_from_features(embed: Tensor, features_at_level: Tensor, *, impl: str | None = None) -> BitMasks:
    """The same bits from the factors of the mask logits, without the full-size masks.

    Interpolation commutes with the product over channels: interpolate the features once per level, multiply there.

    Args:
        embed: mask embeddings of the queries, floating point ``[B, Q, C]``.
        features_at_level: mask features resized bilinearly to the level, ``[B, T, C, h, w]``.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        Bits ``[B, Q, T * h * w]`` as from `attention_mask`, up to logits within rounding of the threshold.

    Raises:
        TypeError: not floating point. ValueError: shapes that do not fit each other.
    """
    _check_float("attention_mask_from_features", embed=embed, features_at_level=features_at_level)
    shape = features_at_level.shape
    if embed.dim() != 3 or len(shape) != 5 or (embed.shape[0], embed.shape[2]) != (shape[0], shape[2]):
        raise ValueError(
            "s2d::attention_mask_from_features: expected embed [B, Q, C] and features_at_level [B, T, C, h, w], "
            f"got {list(embed.shape)} and {list(shape)}"
        )
    ROOM.choose(embed.device, impl)
    return pack_masks(reference.attention_mask_from_features(embed.detach(), features_at_level.detach()))


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BitMasks | Tensor,
    frame_keep: Tensor | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """Attention of queries to the keys inside their own masks, in the frames that are kept.

    ``out[q] = sum over attended k of softmax(q . k / sqrt(D)) v[k]``. A query attends to the keys of its mask in the
    kept frames; a query left without any attends to all keys of the kept frames; where no frame is kept the result is 0
    and nothing flows back. A key that a query does not attend to has no influence on it whatever it holds, NaN and
    infinity included. Differentiable in q, k and v.

    Args:
        q: floating point ``[B, heads, Q, D]``.
        k: ``[B, heads, K, D]``, keys frame by frame.
        v: ``[B, heads, K, D]``.
        mask: bits, bool or uint8 ``[B, Q, K]``, shared by the heads; 1 = attend.
        frame_keep: bool ``[B, T]``, T divides K; false drops every key of that frame. None keeps all.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        ``[B, heads, Q, D]``.

    Raises:
        TypeError: dtypes that do not fit. ValueError: shapes that do not fit each other.
    """
    _check_float("masked_attention", q=q, k=k, v=v)
    bits = as_bits(mask, "mask", "masked_attention")
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(
            "s2d::masked_attention: expected q [B, heads, Q, D], k and v [B, heads, K, D], "
            f"got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if bits.shape != (q.shape[0], q.shape[2], k.shape[2]):
        raise ValueError(
            f"s2d::masked_attention: expected mask [B, Q, K] = {[q.shape[0], q.shape[2], k.shape[2]]}, "
            f"got {list(bits.shape)}"
        )
    if frame_keep is not None:
        _check_frames(frame_keep, q.shape[0], k.shape[2])
    ROOM.choose(q.device, impl)
    return reference.attend(q, k, v, unpack_masks(bits), frame_keep)


def _check_frames(frame_keep: Tensor, clips: int, keys: int) -> None:
    if frame_keep.dtype is not torch.bool:
        raise TypeError(f"s2d::masked_attention: expected frame_keep bool [B, T], got {frame_keep.dtype}")
    if frame_keep.dim() != 2 or frame_keep.shape[0] != clips or not frame_keep.shape[1] or keys % frame_keep.shape[1]:
        raise ValueError(
            f"s2d::masked_attention: expected frame_keep [B = {clips}, T] with T that divides K = {keys}, "
            f"got {list(frame_keep.shape)}"
        )


def _check_float(op: str, **tensors: Tensor) -> None:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(tensor.is_floating_point() for tensor in tensors.values()):
        found = ", ".join(str(tensor.dtype) for tensor in tensors.values())
        names = ", ".join(tensors)
        raise TypeError(f"s2d::{op}: expected {names} of one floating point dtype, got {found}")
