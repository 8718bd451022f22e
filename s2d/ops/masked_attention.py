"""Mask2Former's masked cross-attention with temporal drop, and the masks it attends by."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, pack_masks, unpack_masks
from s2d.ops.reference import masked_attention as reference

ROOM = Room("masked_attention", kernels=("cpu", "triton"))

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    if 0 in mask_logits.shape[3:] or min(size) < 1:
        raise ValueError(
            "s2d::attention_mask: expected mask_logits with h, w > 0 and a size of at least one pixel, "
            f"got {list(mask_logits.shape)} and {tuple(size)}"
        )
    height, width = size
    mask_logits = mask_logits.detach()
    if ROOM.choose(mask_logits.device, impl) == "reference":
        return pack_masks(reference.attention_mask(mask_logits, (height, width)), impl=impl)
    words = torch.ops.s2d.attention_mask(mask_logits, height, width)
    return BitMasks(words, mask_logits.shape[2] * height * width)


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
    embed, features = embed.detach(), features_at_level.detach()
    native = ROOM.choose(embed.device, impl) == "native"
    # The products' signs decide: they are computed in the factors' dtype under autocast too.
    with torch.autocast(embed.device.type, enabled=False):
        if native:
            words = torch.ops.s2d.attention_mask_from_features(embed, features)
            return BitMasks(words, shape[1] * shape[3] * shape[4])
        return pack_masks(reference.attention_mask_from_features(embed, features), impl=impl)


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
    infinity included. Differentiable once in q, k and v. Autocast casts these three.

    Args:
        q: float16, bfloat16, float32 or float64 ``[B, heads, Q, D]``; sums are in float32, or float64.
        k: ``[B, heads, K, D]``, keys frame by frame.
        v: ``[B, heads, K, D]``.
        mask: bits, bool or uint8 ``[B, Q, K]``, shared by the heads; 1 = attend.
        frame_keep: bool ``[B, T]``, T divides K; false drops every key of that frame. None keeps all.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        ``[B, heads, Q, D]``.

    Raises:
        TypeError: dtypes that do not fit. ValueError: shapes that do not fit each other.
        RuntimeError: D > 128 on a GPU.
    """
    if torch.is_autocast_enabled(q.device.type):
        # As torch casts for its own attention: what is float64 stays.
        lower = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(lower) for x in (q, k, v))
    _check_float("masked_attention", q=q, k=k, v=v)
    bits = as_bits(mask, "mask", "masked_attention", impl)
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
    if ROOM.choose(q.device, impl) == "reference":
        return reference.attend(q, k, v, unpack_masks(bits, impl="reference"), frame_keep)
    return torch.ops.s2d.masked_attention(q, k, v, bits.words, frame_keep)[0]


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
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(str(tensor.dtype) for tensor in tensors.values())
        names = ", ".join(tensors)
        raise TypeError(f"s2d::{op}: expected {names} of one floating point dtype, got {found}")


@_native.fake("attention_mask")
def _(mask_logits: Tensor, height: int, width: int) -> Tensor:
    clips, queries, frames = mask_logits.shape[:3]
    return mask_logits.new_empty((clips, queries, _words(frames * height * width)), dtype=torch.int64)


@_native.fake("attention_mask_from_features")
def _(embed: Tensor, features: Tensor) -> Tensor:
    keys = features.shape[1] * features.shape[3] * features.shape[4]
    return embed.new_empty((*embed.shape[:2], _words(keys)), dtype=torch.int64)


@_native.fake("masked_attention")
def _(q: Tensor, k: Tensor, v: Tensor, words: Tensor, frame_keep: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=wide)


@_native.fake("masked_attention_backward")
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    words: Tensor,
    frame_keep: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@_native.triton("attention_mask")
def _(mask_logits: Tensor, height: int, width: int) -> Tensor:
    from s2d.kernels.masked_attention import mask_from_logits

    with torch.cuda.device_of(mask_logits):
        return mask_from_logits(mask_logits, height, width)


@_native.triton("attention_mask_from_features")
def _(embed: Tensor, features: Tensor) -> Tensor:
    from s2d.kernels.masked_attention import mask_from_features

    with torch.cuda.device_of(embed):
        return mask_from_features(embed, features)


@_native.triton("masked_attention")
def _(q: Tensor, k: Tensor, v: Tensor, words: Tensor, frame_keep: Tensor | None) -> tuple[Tensor, Tensor]:
    from s2d.kernels.masked_attention import attend

    with torch.cuda.device_of(q):
        return attend(q, k, v, words, frame_keep)


@_native.triton("masked_attention_backward")
def _(grad: Tensor, q: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    from s2d.kernels.masked_attention import backward

    with torch.cuda.device_of(q):
        return backward(grad, q, *others)


def _words(keys: int) -> int:
    return (keys + 63) // 64


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.s2d.masked_attention_backward(grad, *ctx.saved_tensors), None, None


_native.differentiable("masked_attention", _backward, _save)
