"""Multi-scale deformable attention: every query reads a few points of every level of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.reference import ms_deform_attn as reference

ROOM = Room("ms_deform_attn", kernels=("cpu", "cuda"))
HALVES = (torch.float16, torch.bfloat16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    impl: str | None = None,
) -> Tensor:
    """Weighted sum of bilinear look-ups, head by head.

    ``out[n, q, m] = sum over l, p of weight[n, q, m, l, p] * value_l[n, m](location[n, q, m, l, p])``, where value_l
    interpolates level l bilinearly, 0 outside it. A point that is a whole pixel or more outside its level, or NaN or
    infinite, reads nothing and has no gradient. Differentiable in all three tensors, once. Defined by Deformable DETR
    (arXiv 2010.04159).

    Half precision is summed in float32 and rounded once. Autocast leaves the operator alone: it takes what its
    surroundings make, value in half precision beside locations and weights in float32.

    Args:
        value: floating point ``[N, S, M, D]``: the levels' pixels one after another, each in row-major order; M heads
            of D channels.
        spatial_shapes: ``[L, 2]``, height and width of each level; their areas add up to S. From a tensor on the GPU,
            kernels read it there, so that the call does not wait for it: a level that is not within S then reads as 0.
        sampling_locations: ``[N, Lq, M, L, P, 2]``, x and y; 0 and 1 are the outer edges of the level. Of the dtype
            of value, or float32 beside half precision.
        attention_weights: ``[N, Lq, M, L, P]``, used as they are; dtype as that of the locations.
        impl: ``"native"`` or ``"reference"``; None chooses for the device. On a GPU the native kernels take at most 16
            levels, and additions to the gradient of value have no fixed order: its last bits vary.

    Returns:
        ``[N, Lq, M * D]`` of the dtype of value.

    Raises:
        TypeError: not floating point, or dtypes that do not go together.
        ValueError: shapes that do not fit each other.
    """
    shapes = torch.as_tensor(spatial_shapes, dtype=torch.int64)
    native = ROOM.choose(value.device, impl) == "native"
    if not torch.compiler.is_compiling():
        known = not (native and shapes.is_cuda)
        _check(value, shapes.tolist() if known else None, sampling_locations, attention_weights)
    if not native:
        return reference.attend(value, shapes.tolist(), sampling_locations, attention_weights)
    if sampling_locations.dtype != attention_weights.dtype:
        sampling_locations, attention_weights = sampling_locations.float(), attention_weights.float()
    return torch.ops.s2d.ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def _check(value: Tensor, shapes: list[list[int]] | None, locations: Tensor, weights: Tensor) -> None:
    """Raise what is wrong; the sizes of levels are None where they are not to be read."""

    def refuse(expected: str, found: object) -> None:
        raise ValueError(f"s2d::ms_deform_attn: expected {expected}, got {found}")

    allowed = {value.dtype} | ({torch.float32} if value.dtype in HALVES else set())
    if not value.is_floating_point() or not {locations.dtype, weights.dtype} <= allowed:
        found = ", ".join(str(tensor.dtype) for tensor in (value, locations, weights))
        raise TypeError(
            "s2d::ms_deform_attn: expected three tensors of one floating point dtype, or value in half precision "
            f"beside float32, got {found}"
        )
    if value.dim() != 4 or value.shape[3] < 1:
        refuse("value [N, S, M, D]", list(value.shape))
    if shapes is not None:
        if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
            refuse("spatial_shapes [L, 2] of at least one pixel each", shapes)
        if sum(h * w for h, w in shapes) != value.shape[1]:
            refuse(f"spatial_shapes that add up to S = {value.shape[1]}", shapes)
    if locations.dim() != 6 or locations.shape[-1] != 2:
        refuse("sampling_locations [N, Lq, M, L, P, 2]", list(locations.shape))
    number, _, heads, levels = locations.shape[:4]
    expected = (value.shape[0], value.shape[2], levels if shapes is None else len(shapes))
    if (number, heads, levels) != expected:
        refuse(f"sampling_locations with N, M, L = {', '.join(map(str, expected))}", list(locations.shape))
    if weights.shape != locations.shape[:-1]:
        refuse(f"attention_weights {list(locations.shape[:-1])}", list(weights.shape))


@_native.fake("ms_deform_attn")
def _(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


@_native.fake("ms_deform_attn_backward")
def _(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # A sum over many queries: float32 where value is in half precision.
    summed = value.new_empty(value.shape, dtype=torch.float32 if value.dtype in HALVES else value.dtype)
    return summed, *(tensor.new_empty(tensor.shape) for tensor in (sampling_locations, attention_weights))


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, *others = ctx.saved_tensors
    summed, locations, weights = torch.ops.s2d.ms_deform_attn_backward(value, *others, grad)
    return summed.to(value.dtype), None, locations, weights


_native.differentiable("ms_deform_attn", _backward, _save)
