"""Multi-scale deformable attention: every query reads a few points of every level of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room, forced_impl
from s2d.ops.reference import ms_deform_attn as reference

ROOM = Room("ms_deform_attn", kernels=("cpu",))


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
    interpolates level l bilinearly, 0 outside it. Differentiable in all three tensors. Defined by Deformable DETR
    (arXiv 2010.04159).

    Args:
        value: floating point ``[N, S, M, D]``: the levels' pixels one after another, each in row-major order; M heads
            of D channels.
        spatial_shapes: ``[L, 2]``, height and width of each level; their areas add up to S.
        sampling_locations: ``[N, Lq, M, L, P, 2]``, x and y; 0 and 1 are the outer edges of the level.
        attention_weights: ``[N, Lq, M, L, P]``, used as they are.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        ``[N, Lq, M * D]``.

    Raises:
        TypeError: not floating point, or dtypes that differ.
        ValueError: shapes that do not fit each other.
    """
    shapes = torch.as_tensor(spatial_shapes, dtype=torch.int64)
    if not torch.compiler.is_compiling():
        _check(value, shapes.tolist(), sampling_locations, attention_weights)
    wanted = impl or forced_impl()
    if wanted is None and value.device.type not in ROOM.kernels:
        # Other devices run the definition until their kernels are there, as a room without kernels does.
        wanted = "reference"
    if ROOM.choose(value.device, wanted) == "reference":
        return reference.attend(value, shapes.tolist(), sampling_locations, attention_weights)
    inputs = [value, sampling_locations, attention_weights]
    if value.dtype not in (torch.float32, torch.float64):
        inputs = [tensor.float() for tensor in inputs]
    return torch.ops.s2d.ms_deform_attn(inputs[0], shapes, *inputs[1:]).to(value.dtype)


def _check(value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor) -> None:
    def refuse(expected: str, found: object) -> None:
        raise ValueError(f"s2d::ms_deform_attn: expected {expected}, got {found}")

    dtypes = {value.dtype, locations.dtype, weights.dtype}
    if len(dtypes) > 1 or not value.is_floating_point():
        found = ", ".join(str(tensor.dtype) for tensor in (value, locations, weights))
        raise TypeError(f"s2d::ms_deform_attn: expected three tensors of one floating point dtype, got {found}")
    if value.dim() != 4:
        refuse("value [N, S, M, D]", list(value.shape))
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        refuse("spatial_shapes [L, 2] of at least one pixel each", shapes)
    if sum(h * w for h, w in shapes) != value.shape[1]:
        refuse(f"spatial_shapes that add up to S = {value.shape[1]}", shapes)
    if locations.dim() != 6 or locations.shape[-1] != 2:
        refuse("sampling_locations [N, Lq, M, L, P, 2]", list(locations.shape))
    number, _, heads, levels = locations.shape[:4]
    if (number, heads, levels) != (value.shape[0], value.shape[2], len(shapes)):
        refuse(
            f"sampling_locations with N, M, L = {value.shape[0]}, {value.shape[2]}, {len(shapes)}",
            list(locations.shape),
        )
    if weights.shape != locations.shape[:-1]:
        refuse(f"attention_weights {list(locations.shape[:-1])}", list(weights.shape))


@_native.fake("ms_deform_attn")
def _(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])


@_native.fake("ms_deform_attn_backward")
def _(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (value, sampling_locations, attention_weights)
    first, second, third = (tensor.new_empty(tensor.shape) for tensor in inputs)
    return first, second, third


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = torch.ops.s2d.ms_deform_attn_backward(*ctx.saved_tensors, grad)
    return value, None, locations, weights


if _native.missing("cpu") is None:
    torch.library.register_autograd("s2d::ms_deform_attn", _backward, setup_context=_save)
