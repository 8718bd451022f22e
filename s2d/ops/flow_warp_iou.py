"""IoU of masks warped along optical flow with the masks of another frame; no warped mask is ever stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, unpack_masks
from s2d.ops.reference import _flow as flow_reference
from s2d.ops.reference import flow_warp_iou as reference

ROOM = Room("flow_warp_iou", kernels=("cpu", "cuda"))

MODES = ("nearest", "bilinear")


class WarpCounts(NamedTuple):
    """Pixel counts of warped masks against target masks, exact.

    Attributes:
        intersection: int64 ``[P, N, M]``.
        warped_area: int64 ``[P, N]``: target pixels that read a set source pixel.
        target_area: int64 ``[P, M]``.
    """

    intersection: Tensor
    warped_area: Tensor
    target_area: Tensor


def flow_warp_iou(
    source: BitMasks | Tensor,
    target: BitMasks | Tensor,
    flow: Tensor,
    visible: BitMasks | Tensor | None = None,
    reverse: Tensor | None = None,
    mode: str = "nearest",
    *,
    impl: str | None = None,
) -> Tensor:
    """IoU of every source mask, warped onto the target's frame, with every target mask.

    ``iou[p, n, m] = |w_n & t_m| / |w_n | t_m|`` with ``w_n(x) = source_n(x + flow(x))``, over the pixels x of the
    target's frame that are visible; 0 where both are empty. Arguments and errors are those of `flow_warp_counts`.
    Not differentiable: the result carries no gradient.

    Returns:
        float32 ``[P, N, M]``.
    """
    counts = flow_warp_counts(source, target, flow, visible, reverse, mode, impl=impl)
    union = counts.warped_area[:, :, None] + counts.target_area[:, None, :] - counts.intersection
    return torch.where(union > 0, counts.intersection.double() / union.clamp(min=1), 0.0).float()


def flow_warp_counts(
    source: BitMasks | Tensor,
    target: BitMasks | Tensor,
    flow: Tensor,
    visible: BitMasks | Tensor | None = None,
    reverse: Tensor | None = None,
    mode: str = "nearest",
    *,
    impl: str | None = None,
) -> WarpCounts:
    """The counts behind `flow_warp_iou`: what masks share once one frame's are warped onto the other's.

    Pixel centres are integers and a position is ``float32(x + dx)``. ``"nearest"`` rounds it half to even;
    ``"bilinear"`` interpolates the mask, zero outside the frame, and counts where that is > 0.5. A position that is
    outside or not finite reads 0. Pixels that are not visible are left out of every count.

    Args:
        source: `BitMasks`, or bool or uint8, ``[P, N, H, W]``: masks of the frame that is read.
        target: the same, ``[P, M, H, W]``: masks of the frame that is warped onto.
        flow: float32 (or float16, converted) ``[P, H, W, 2]``: (dx, dy) in pixels from each target pixel to its place
            in the source's frame.
        visible: `BitMasks`, or bool or uint8, ``[P, H, W]``: target pixels that count; None for all.
        reverse: as ``flow``, on the source's grid and leading to the target's frame: where given, pixels that
            `flow_consistency` rejects do not count either.
        mode: ``"nearest"`` or ``"bilinear"``.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Raises:
        TypeError: masks or flow of another dtype.
        ValueError: shapes that do not fit together, or another mode.

    Not differentiable: counts carry no gradient.
    """
    left, right = as_bits(source, "source", "flow_warp_iou"), as_bits(target, "target", "flow_warp_iou")
    shown = None if visible is None else as_bits(visible, "visible", "flow_warp_iou")
    flow = as_flow(flow, "flow", "flow_warp_iou", "[P, H, W, 2]", dims=4)
    pairs, height, width = flow.shape[:3]
    for name, masks in (("source", left), ("target", right)):
        if len(masks.shape) != 4 or (masks.shape[0], *masks.shape[2:]) != (pairs, height, width):
            raise ValueError(
                f"s2d::flow_warp_iou: expected {name} [{pairs}, masks, {height}, {width}] as flow has it, "
                f"got {list(masks.shape)}"
            )
    if shown is not None and shown.shape != (pairs, height, width):
        raise ValueError(
            f"s2d::flow_warp_iou: expected visible [{pairs}, {height}, {width}] as flow has it, got {list(shown.shape)}"
        )
    if reverse is not None:
        reverse = _as_reverse(reverse, flow, "flow_warp_iou")
    if mode not in MODES:
        raise ValueError(f"s2d::flow_warp_iou: expected mode {' or '.join(MODES)}, got {mode!r}")
    if ROOM.choose(flow.device, impl) == "reference":
        kept = None if shown is None else unpack_masks(shown, impl="reference")
        masks = [unpack_masks(bits, impl="reference") for bits in (left, right)]
        return WarpCounts(*reference.counts(*masks, flow, kept, reverse, mode))
    words = None if shown is None else shown.words
    return WarpCounts(
        *torch.ops.s2d.flow_warp_counts(left.words, right.words, width, flow, words, reverse, MODES.index(mode))
    )


def flow_consistency(flow: Tensor, reverse: Tensor, *, impl: str | None = None) -> Tensor:
    """Where two flows agree: the forward-backward check.

    ``|f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5`` with ``f = flow(x)`` and ``b = reverse(x + f)`` (bilinear, the border
    repeated). Not visible: where the nearest pixel of ``x + f`` lies outside the frame, and where a flow is not finite.

    Args:
        flow: float32 (or float16, converted) ``[..., H, W, 2]``: (dx, dy) in pixels to the other frame.
        reverse: the same shape: the way back, on the other frame's grid.

    Returns:
        bool ``[..., H, W]``, on the grid of ``flow``.

    Raises:
        TypeError: another dtype.
        ValueError: the two differ in shape or do not end in ``[H, W, 2]``.

    Source: UnFlow, arXiv 1711.07837, its constants included. Not differentiable.
    """
    flow = as_flow(flow, "flow", "flow_consistency", "[..., H, W, 2]")
    reverse = _as_reverse(reverse, flow, "flow_consistency")
    shape = flow.shape[:-1]
    flow, reverse = (f.reshape(shape[:-2].numel(), *shape[-2:], 2) for f in (flow, reverse))
    if ROOM.choose(flow.device, impl) == "reference":
        empty = flow.new_zeros((0, *shape[-2:]), dtype=torch.bool)
        fields = [flow_reference.consistency(f, r) for f, r in zip(flow, reverse, strict=True)]
        return (torch.stack(fields) if fields else empty).view(shape)
    return torch.ops.s2d.flow_consistency(flow, reverse).view(torch.bool).view(shape)


def flow_compose(first: Tensor, second: Tensor, *, impl: str | None = None) -> Tensor:
    """Two steps of flow as one: ``first(x) + second(x + first(x))``.

    The second is read bilinearly, the border repeated. NaN where the first leaves the frame (its nearest pixel is
    outside, or it is not finite): every operator here takes that as not visible.

    Args:
        first: float32 (or float16, converted) ``[..., H, W, 2]``: (dx, dy) in pixels from frame a to frame b.
        second: the same shape: from frame b to frame c.

    Returns:
        float32 of the same shape: from frame a to frame c. Not differentiable.

    Raises:
        TypeError: another dtype.
        ValueError: the two differ in shape or do not end in ``[H, W, 2]``.
    """
    first = as_flow(first, "first", "flow_compose", "[..., H, W, 2]")
    second = as_flow(second, "second", "flow_compose", "[..., H, W, 2]")
    if first.shape != second.shape:
        raise ValueError(f"s2d::flow_compose: expected second {list(first.shape)} as first, got {list(second.shape)}")
    shape = first.shape
    first, second = (f.reshape(shape[:-3].numel(), *shape[-3:]) for f in (first, second))
    if ROOM.choose(first.device, impl) == "reference":
        fields = [reference.compose(a, b) for a, b in zip(first, second, strict=True)]
        return (torch.stack(fields) if fields else first.clone()).view(shape)
    return torch.ops.s2d.flow_compose(first, second).view(shape)


def as_flow(flow: Tensor, argument: str, op: str, expected: str, dims: int | None = None) -> Tensor:
    """Flow as every operator takes it: float32, contiguous, detached; ``expected`` is its shape in words."""
    if not isinstance(flow, Tensor) or flow.dtype not in (torch.float32, torch.float16):
        found = flow.dtype if isinstance(flow, Tensor) else type(flow).__name__
        raise TypeError(f"s2d::{op}: expected {argument} float32 or float16 {expected}, got {found}")
    if flow.dim() < 3 or flow.shape[-1] != 2 or (dims is not None and flow.dim() != dims):
        raise ValueError(f"s2d::{op}: expected {argument} {expected}, got {list(flow.shape)}")
    return flow.detach().float().contiguous()


def _as_reverse(reverse: Tensor, flow: Tensor, op: str) -> Tensor:
    reverse = as_flow(reverse, "reverse", op, "as flow")
    if reverse.shape != flow.shape:
        raise ValueError(f"s2d::{op}: expected reverse {list(flow.shape)} as flow, got {list(reverse.shape)}")
    return reverse


@_native.fake("flow_warp_counts")
def _(
    source: Tensor, target: Tensor, width: int, flow: Tensor, visible: Tensor | None, reverse: Tensor | None, mode: int
) -> tuple[Tensor, Tensor, Tensor]:
    pairs, rows, columns = source.shape[0], source.shape[1], target.shape[1]
    return source.new_empty((pairs, rows, columns)), source.new_empty((pairs, rows)), source.new_empty((pairs, columns))


@_native.fake("flow_consistency")
def _(flow: Tensor, reverse: Tensor) -> Tensor:
    return flow.new_empty(flow.shape[:-1], dtype=torch.uint8)


@_native.fake("flow_compose")
def _(first: Tensor, second: Tensor) -> Tensor:
    return torch.empty_like(first)
