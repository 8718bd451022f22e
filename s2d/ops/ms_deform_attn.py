"""Multi-scale deformable attention: every query reads a few points of every level of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from s2d.ops._dispatch import Room
from s2d.ops.reference import ms_deform_attn as reference

ROOM = Room("ms_deform_attn")


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
    shapes = (
        spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else [list(shape) for shape in spatial_shapes]
    )
    _check(value, shapes, sampling_locations, attention_weights)
    ROOM.choose(value.device, impl)
    return reference.attend(value, shapes, sampling_locations, attention_weights)


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
