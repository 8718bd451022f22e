"""COCO's run-length encoding for whole batches of masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops._rle_batch import RLE, as_tensor, check_size
from s2d.ops.bitmask import BitMasks, as_bits, pack_masks, unpack_masks
from s2d.ops.reference import rle as reference

ROOM = Room("rle", kernels=("cpu", "cuda"))

MAX_COORDINATE = 4e8

_LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64)


def _one_size(op: str, *batches: RLE) -> tuple[int, int]:
    """The size that all masks of some batches, of which one is not empty, have in common."""
    sizes = batches[0].sizes if len(batches) == 1 else torch.cat([rle.sizes for rle in batches])
    if len(sizes) > 1 and bool((sizes != sizes[0]).any()):
        raise ValueError(f"s2d::{op}: expected masks of one size, got {sizes.unique(dim=0).tolist()}")
    return tuple(sizes[0].tolist())


def _sizes(size: tuple[int, int] | Tensor, number: int, op: str, device: torch.device | None = None) -> Tensor:
    """int32 ``[N, 2]`` from one size for all masks or one for each."""
    if not isinstance(size, Tensor):
        check_size(*size, op)
        sizes = torch.tensor([size], dtype=torch.int32, device=device)
        return sizes if number == 1 else sizes.repeat(number, 1)
    if size.shape != (number, 2):
        raise ValueError(f"s2d::{op}: expected size (H, W) or a tensor [{number}, 2], got {list(size.shape)}")
    return size.to(device, torch.int32)


def rle_encode(masks: BitMasks | Tensor | np.ndarray, *, impl: str | None = None) -> RLE:
    """Run-length codes of masks of one size.

    Args:
        masks: `BitMasks`, or bool or uint8 (any non-zero is set) ``[N, H, W]`` with any strides: a tensor, a numpy
            array, or what speaks DLPack (CuPy).

    Returns:
        `RLE` of length N; its strings are those of pycocotools.

    Raises:
        TypeError: another dtype.
        ValueError: not ``[N, H, W]``, or 2^31 pixels or more.
    """
    masks = as_tensor(masks)
    if not isinstance(masks, Tensor) or masks.dtype not in (torch.bool, torch.uint8):
        masks = as_bits(masks, "masks", "rle_encode", impl)
    if len(masks.shape) != 3:
        raise ValueError(f"s2d::rle_encode: expected masks [N, H, W], got {list(masks.shape)}")
    number, height, width = masks.shape
    sizes = _sizes((height, width), number, "rle_encode", masks.device)
    if ROOM.choose(masks.device, impl) == "reference":
        dense = masks if isinstance(masks, Tensor) else unpack_masks(masks, impl=impl)
        return RLE.from_counts([reference.encode(mask != 0) for mask in dense], sizes)
    packed = masks.view(torch.uint8) if isinstance(masks, Tensor) else masks.words
    counts, offsets = torch.ops.s2d.rle_encode(packed, width)
    return RLE(counts, offsets, sizes)


def rle_from_labels(
    labels: Tensor | np.ndarray, background: int | None = 0, *, impl: str | None = None
) -> tuple[RLE, Tensor]:
    """Run-length codes of every label of every frame of label maps.

    Args:
        labels: integers ``[T, H, W]`` (uint8, int8, int16, uint16, int32 or int64), any strides; a tensor, a numpy
            array, or what speaks DLPack.
        background: the label that gets no mask; None gives every label one.

    Returns:
        `RLE` of K masks, one for each label that a frame holds, and int64 ``[K, 2]``: the frame and the label of each
        mask, in ascending order.

    Raises:
        TypeError: not integers.
        ValueError: not ``[T, H, W]``, or 2^31 pixels a frame or more.
    """
    labels = as_tensor(labels)
    if not isinstance(labels, Tensor) or labels.dtype not in _LABEL_DTYPES:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"s2d::rle_from_labels: expected labels of integers [T, H, W], got {found}")
    if labels.dim() != 3:
        raise ValueError(f"s2d::rle_from_labels: expected labels [T, H, W], got {list(labels.shape)}")
    height, width = labels.shape[1:]
    check_size(height, width, "rle_from_labels")
    if ROOM.choose(labels.device, impl) == "reference":
        runs, which = reference.from_labels(labels, background)
        return RLE.from_counts(runs, _sizes((height, width), len(runs), "rle_from_labels", labels.device)), which
    counts, offsets, which = torch.ops.s2d.rle_from_labels(labels, background)
    return RLE(counts, offsets, _sizes((height, width), len(which), "rle_from_labels", labels.device)), which


def rle_decode(rle: RLE, *, impl: str | None = None) -> BitMasks:
    """The masks of codes of one size.

    Returns:
        `BitMasks` ``[N, H, W]``; for an empty batch ``[0, 0, 0]``.

    Raises:
        ValueError: the masks differ in size, so that they cannot be stacked.
    """
    if len(rle) == 0:
        return BitMasks(torch.zeros(0, 0, 0, dtype=torch.int64, device=rle.device), 0)
    height, width = _one_size("rle_decode", rle)
    if ROOM.choose(rle.device, impl) == "native":
        return BitMasks(torch.ops.s2d.rle_decode(rle.counts, rle.offsets, rle.sizes, height, width), width)
    parts = [reference.decode(runs, height, width) for runs in rle.each()]
    return pack_masks(torch.stack(parts), impl=impl)


def rle_area(rle: RLE, *, impl: str | None = None) -> Tensor:
    """Number of set pixels of each mask: int64 ``[N]``. The masks may differ in size."""
    if ROOM.choose(rle.device, impl) == "native":
        return torch.ops.s2d.rle_area(rle.counts, rle.offsets, rle.sizes)
    return torch.tensor([int(runs[1::2].sum()) for runs in rle.each()], dtype=torch.int64, device=rle.device)


def rle_bbox(rle: RLE, *, impl: str | None = None) -> Tensor:
    """Tight boxes: int64 ``[N, 4]``, x, y, width, height; zeros for an empty mask. The masks may differ in size."""
    if ROOM.choose(rle.device, impl) == "native":
        return torch.ops.s2d.rle_bbox(rle.counts, rle.offsets, rle.sizes)
    boxes = [reference.bbox(runs, *size) for runs, size in zip(rle.each(), rle.sizes.tolist(), strict=True)]
    return torch.tensor(boxes, dtype=torch.int64, device=rle.device).reshape(-1, 4)


def _rows_and_columns(a: RLE, b: RLE, impl: str | None) -> tuple[Tensor, Tensor]:
    rows, columns = (unpack_masks(rle_decode(rle, impl=impl), impl=impl).flatten(1) for rle in (a, b))
    return rows, columns


def rle_iou(a: RLE, b: RLE, crowd: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """IoU of every mask of ``a`` with every mask of ``b``, all of one size, as COCO computes it.

    Args:
        crowd: bool ``[M]``: where true, the intersection is divided by the area of the mask of ``a`` alone.

    Returns:
        float64 ``[N, M]``; 0 where nothing is shared. To the last bit what pycocotools gives.

    Raises:
        ValueError: the masks differ in size.
    """
    if not (len(a) and len(b)):
        return torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    _one_size("rle_iou", a, b)
    crowd = torch.zeros(len(b), dtype=torch.bool, device=b.device) if crowd is None else crowd.bool()
    if crowd.shape != (len(b),):
        raise ValueError(f"s2d::rle_iou: expected crowd bool [{len(b)}], got {list(crowd.shape)}")
    if ROOM.choose(a.device, impl) == "native":
        return torch.ops.s2d.rle_iou(a.counts, a.offsets, a.sizes, b.counts, b.offsets, b.sizes, crowd)
    return reference.iou(*_rows_and_columns(a, b, impl), crowd)


def rle_tube_iou(a: RLE, b: RLE, frames: int, *, impl: str | None = None) -> Tensor:
    """IoU of every tube of ``a`` with every tube of ``b``: the YouTube-VIS measure.

    ``iou[n, m] = sum_t |a[n, t] & b[m, t]| / sum_t |a[n, t] | b[m, t]|``, all masks of one size.

    Args:
        a: ``N * frames`` masks, one tube after another; a frame that a tube is not in is an empty mask.
        b: ``M * frames`` masks in the same order.
        frames: T, at least 1.

    Returns:
        float64 ``[N, M]``; 0 where nothing is shared.

    Raises:
        ValueError: the masks differ in size, or are no whole number of tubes.
    """
    if frames < 1 or len(a) % frames or len(b) % frames:
        raise ValueError(
            f"s2d::rle_tube_iou: expected frames that divide the numbers of masks, {len(a)} and {len(b)}, got {frames}"
        )
    number, other = len(a) // frames, len(b) // frames
    if not (number and other):
        return torch.zeros(number, other, dtype=torch.float64, device=a.device)
    _one_size("rle_tube_iou", a, b)
    if ROOM.choose(a.device, impl) == "native":
        return torch.ops.s2d.rle_tube_iou(a.counts, a.offsets, a.sizes, b.counts, b.offsets, b.sizes, frames)
    rows, columns = _rows_and_columns(a, b, impl)
    nobody = torch.zeros(other, dtype=torch.bool, device=a.device)
    return reference.iou(rows.reshape(number, -1), columns.reshape(other, -1), nobody)


def _sizes_of_groups(rle: RLE, groups: Tensor) -> Tensor:
    if groups.shape != (len(rle),) or groups.dtype != torch.int64:
        raise ValueError(f"s2d::rle_merge: expected groups int64 [{len(rle)}], got {groups.dtype} {list(groups.shape)}")
    members = torch.bincount(groups)
    if bool((members == 0).any()):
        raise ValueError(f"s2d::rle_merge: expected a mask in every group, got {members.tolist()} masks")
    sizes = rle.sizes.new_zeros(len(members), 2).index_copy(0, groups, rle.sizes)
    if bool((sizes[groups] != rle.sizes).any()):
        raise ValueError("s2d::rle_merge: expected masks of one size in a group, got others")
    return sizes


def rle_merge(rle: RLE, groups: Tensor | None = None, *, intersect: bool = False, impl: str | None = None) -> RLE:
    """The union, or the intersection, of all masks or of each group of masks.

    Args:
        groups: int64 ``[N]``, the group of each mask, from 0 on without a gap; None merges all masks to one. Groups
            may differ in size, the masks of one may not.
        intersect: pixels set in every mask of the group instead of in any.

    Returns:
        `RLE` of one mask a group, without empty runs but the first. Without a mask there is no group.

    Raises:
        ValueError: masks of a group differ in size, or a group has none.
    """
    if groups is None:
        if len(rle):
            _one_size("rle_merge", rle)
        groups, sizes = torch.zeros(len(rle), dtype=torch.int64, device=rle.device), rle.sizes[:1]
    else:
        sizes = _sizes_of_groups(rle, groups)
    if ROOM.choose(rle.device, impl) == "native":
        arguments = (rle.counts, rle.offsets, rle.sizes, groups, len(sizes), intersect)
        return RLE(*torch.ops.s2d.rle_merge(*arguments), sizes)
    merged = []
    for group, (height, width) in enumerate(sizes.tolist()):
        codes = rle[(groups == group).nonzero().flatten()].each()
        masks = torch.stack([reference.decode(runs, height, width) for runs in codes])
        merged.append(reference.encode(masks.all(0) if intersect else masks.any(0)))
    return RLE.from_counts(merged, sizes)


def rle_from_polygons(
    polygons: Sequence[Sequence[Any]], size: tuple[int, int] | Tensor, *, impl: str | None = None
) -> RLE:
    """Masks of polygons, to the pixel as COCO draws them.

    Vertices are rounded to a fifth of a pixel, and a pixel is set where its column's middle is inside
    (``rleFrPoly`` of pycocotools). A mask of several polygons is their union; one of none is empty.

    Args:
        polygons: for each mask its polygons, each a flat sequence ``x0, y0, x1, y1, ...`` in pixels or ``[K, 2]``.
        size: height and width, for all masks or ``[N, 2]``.

    Returns:
        `RLE` of one mask for each item of ``polygons``, on the CPU.

    Raises:
        ValueError: an odd number of coordinates, or one that is not finite or not below 4e8; names the mask.
    """
    parts: list[np.ndarray] = []
    lengths = []
    for index, mask in enumerate(polygons):
        lengths.append(len(mask))
        for polygon in mask:
            corners = np.asarray(polygon, dtype=np.float64).reshape(-1)
            if len(corners) % 2:
                raise ValueError(
                    f"s2d::rle_from_polygons: mask {index}: expected as many x as y, got {len(corners)} coordinates"
                )
            if not (np.abs(corners) < MAX_COORDINATE).all():
                raise ValueError(f"s2d::rle_from_polygons: mask {index}: expected finite coordinates below 4e8")
            parts.append(corners)
    vertices = torch.from_numpy(np.concatenate([np.zeros(0), *parts])).reshape(-1, 2)
    ends = torch.tensor([0, *(len(corners) // 2 for corners in parts)]).cumsum(0)
    owned = torch.tensor([0, *lengths]).cumsum(0)
    sizes = _sizes(size, len(lengths), "rle_from_polygons")
    return _from_polygons(vertices, ends, owned, sizes, impl)


def rle_from_boxes(boxes: Tensor, size: tuple[int, int] | Tensor, *, impl: str | None = None) -> RLE:
    """Masks of boxes, rounded as COCO does: a box is the polygon of its corners.

    Args:
        boxes: ``[N, 4]``: x, y, width, height in pixels, fractions allowed.
        size: height and width, for all masks or ``[N, 2]``.

    Returns:
        `RLE` of N masks on the CPU.

    Raises:
        ValueError: not ``[N, 4]``, or a coordinate that is not finite or not below 4e8.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"s2d::rle_from_boxes: expected boxes [N, 4], got {list(boxes.shape)}")
    left, top, width, height = boxes.cpu().double().unbind(1)
    right, bottom = left + width, top + height
    vertices = torch.stack([left, top, left, bottom, right, bottom, right, top], 1).view(-1, 2)
    if not bool((vertices.abs() < MAX_COORDINATE).all()):
        raise ValueError("s2d::rle_from_boxes: expected finite coordinates below 4e8")
    number = len(boxes)
    sizes = _sizes(size, number, "rle_from_boxes")
    return _from_polygons(vertices, 4 * torch.arange(number + 1), torch.arange(number + 1), sizes, impl)


def _from_polygons(vertices: Tensor, ends: Tensor, owned: Tensor, sizes: Tensor, impl: str | None) -> RLE:
    if ROOM.choose(vertices.device, impl) == "native":
        return RLE(*torch.ops.s2d.rle_from_polygons(vertices, ends, owned, sizes), sizes)
    runs = []
    for index, (height, width) in enumerate(sizes.tolist()):
        mask = torch.zeros(height, width, dtype=torch.bool)
        for k in range(int(owned[index]), int(owned[index + 1])):
            mask |= reference.polygon(vertices[ends[k] : ends[k + 1]], height, width)
        runs.append(reference.encode(mask))
    return RLE.from_counts(runs, sizes)


@_native.fake("rle_decode")
def _(counts: Tensor, offsets: Tensor, sizes: Tensor, height: int, width: int) -> Tensor:
    return counts.new_empty((sizes.shape[0], height, (width + 63) // 64), dtype=torch.int64)


@_native.fake("rle_area")
def _(counts: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    return counts.new_empty(sizes.shape[0], dtype=torch.int64)


@_native.fake("rle_bbox")
def _(counts: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    return counts.new_empty((sizes.shape[0], 4), dtype=torch.int64)


@_native.fake("rle_iou")
def _(
    counts_a: Tensor,
    offsets_a: Tensor,
    sizes_a: Tensor,
    counts_b: Tensor,
    offsets_b: Tensor,
    sizes_b: Tensor,
    crowd: Tensor,
) -> Tensor:
    return counts_a.new_empty((sizes_a.shape[0], sizes_b.shape[0]), dtype=torch.float64)


@_native.fake("rle_tube_iou")
def _(
    counts_a: Tensor,
    offsets_a: Tensor,
    sizes_a: Tensor,
    counts_b: Tensor,
    offsets_b: Tensor,
    sizes_b: Tensor,
    frames: int,
) -> Tensor:
    return counts_a.new_empty((sizes_a.shape[0] // frames, sizes_b.shape[0] // frames), dtype=torch.float64)


def _fresh_codes(like: Tensor, number: Any) -> tuple[Tensor, Tensor]:
    runs = torch.library.get_ctx().new_dynamic_size()
    return like.new_empty(runs, dtype=torch.int32), like.new_empty(number + 1, dtype=torch.int64)


@_native.fake("rle_encode")
def _(masks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return _fresh_codes(masks, masks.shape[0])


@_native.fake("rle_from_labels")
def _(labels: Tensor, background: int | None) -> tuple[Tensor, Tensor, Tensor]:
    number = torch.library.get_ctx().new_dynamic_size()
    return *_fresh_codes(labels, number), labels.new_empty((number, 2), dtype=torch.int64)


@_native.fake("rle_merge")
def _(
    counts: Tensor, offsets: Tensor, sizes: Tensor, groups: Tensor, number: int, intersect: bool
) -> tuple[Tensor, Tensor]:
    return _fresh_codes(counts, number)


@_native.fake("rle_from_polygons")
def _(vertices: Tensor, polygons: Tensor, masks: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    return _fresh_codes(vertices, sizes.shape[0])
