"""COCO's run-length encoding for whole batches of masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room, forced_impl
from s2d.ops.bitmask import BitMasks, as_bits, pack_masks, unpack_masks
from s2d.ops.reference import rle as reference

ROOM = Room("rle", kernels=("cpu", "cuda"))

MAX_PIXELS = 2**31 - 1


@dataclass(frozen=True)
class RLE:
    """Run-length codes of a batch of masks; the masks may differ in size.

    Attributes:
        counts: int32 ``[R]``, the runs of all masks one after another. Runs go down the columns (COCO's order) and
            alternate between unset and set pixels, unset first.
        offsets: int64 ``[N + 1]``: mask n owns ``counts[offsets[n]:offsets[n + 1]]``.
        sizes: int32 ``[N, 2]``: height and width of each mask.
    """

    counts: Tensor
    offsets: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> RLE:
        """The codes of some masks, in the order asked for; an int gives a batch of one."""
        chosen = torch.arange(len(self))[index].reshape(-1)
        lengths = self.offsets.diff()[chosen]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # Position of every run: its place within its mask, moved from the new start of the mask to the old one.
        moved = torch.repeat_interleave(self.offsets[chosen] - offsets[:-1], lengths)
        return RLE(self.counts[torch.arange(int(offsets[-1])) + moved], offsets, self.sizes[chosen])

    def each(self) -> list[Tensor]:
        """The runs of every mask by itself: N times int32 ``[R_n]``."""
        return list(self.counts.split(self.offsets.diff().tolist()))

    @staticmethod
    def from_counts(counts: Sequence[Tensor], sizes: Tensor) -> RLE:
        """Join the runs of single masks (int32 ``[R_n]`` each) to a batch."""
        lengths = torch.tensor([0, *(len(c) for c in counts)])
        joined = torch.cat(list(counts)) if counts else torch.zeros(0, dtype=torch.int32)
        return RLE(joined.int(), lengths.cumsum(0), sizes.reshape(-1, 2).int())

    @staticmethod
    def cat(parts: Iterable[RLE]) -> RLE:
        """Several batches one after another."""
        parts = list(parts)
        lengths = [part.offsets.diff() for part in parts]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), *lengths]).cumsum(0)
        if not parts:
            return RLE.from_counts([], torch.zeros(0, 2))
        return RLE(torch.cat([p.counts for p in parts]), offsets, torch.cat([p.sizes for p in parts]))

    @staticmethod
    def empty(number: int, height: int, width: int) -> RLE:
        """``number`` masks of one size without a set pixel."""
        runs = torch.full((number,), height * width, dtype=torch.int32)
        return RLE(runs, torch.arange(number + 1), torch.tensor([[height, width]]).expand(number, 2).int())

    def to_coco(self, *, impl: str | None = None) -> list[dict]:
        """COCO dictionaries: ``{"size": [H, W], "counts": compressed string}`` each."""
        counts, bounds, sizes = self.counts.tolist(), self.offsets.tolist(), self.sizes.tolist()
        encode = reference.to_string if (impl or forced_impl()) == "reference" else _native.host().rle_to_string
        return [
            {"size": size, "counts": encode(counts[start:stop])}
            for size, start, stop in zip(sizes, bounds[:-1], bounds[1:], strict=True)
        ]

    @staticmethod
    def from_coco(objects: Sequence[dict], *, impl: str | None = None) -> RLE:
        """From COCO dictionaries with compressed (str or bytes) or uncompressed (list) ``counts``.

        Raises:
            ValueError: a code that is not one, or whose runs do not add up to its size; names the index of the mask.
        """
        decode = reference.from_string if (impl or forced_impl()) == "reference" else _native.host().rle_from_string
        counts, sizes = [], []
        for index, item in enumerate(objects):
            try:
                (height, width), runs = item["size"], item["counts"]
                if isinstance(runs, bytes):
                    runs = runs.decode("ascii")
                if isinstance(runs, str):
                    runs = decode(runs)
                _check_size(height, width)
                if min(runs, default=0) < 0:
                    raise ValueError(f"expected runs of at least 0 pixels, got {min(runs)}")
                if sum(runs) != height * width:
                    raise ValueError(f"expected runs that add up to {height} x {width} pixels, got {sum(runs)}")
            except (KeyError, TypeError, ValueError) as error:
                reason = f"missing key {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"s2d::RLE: mask {index}: {reason}") from None
            counts.append(torch.tensor(runs, dtype=torch.int32))
            sizes.append((height, width))
        return RLE.from_counts(counts, torch.tensor(sizes))


def _check_size(height: int, width: int) -> None:
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"s2d::rle: expected a mask of at most 2^31 - 1 pixels, got {height} x {width}")


def rle_encode(masks: BitMasks | Tensor, *, impl: str | None = None) -> RLE:
    """Run-length codes of masks of one size.

    Args:
        masks: `BitMasks`, or bool or uint8 (any non-zero is set), ``[N, H, W]``.

    Returns:
        `RLE` of length N; its strings are those of pycocotools.

    Raises:
        ValueError: not ``[N, H, W]``, or 2^31 pixels or more.
    """
    bits = as_bits(masks, "masks", "rle_encode", impl)
    if len(bits.shape) != 3:
        raise ValueError(f"s2d::rle_encode: expected masks [N, H, W], got {list(bits.shape)}")
    number, height, width = bits.shape
    _check_size(height, width)
    sizes = torch.tensor([[height, width]], dtype=torch.int32, device=bits.device).repeat(number, 1)
    if ROOM.choose(bits.device, impl) == "reference":
        return RLE.from_counts([reference.encode(mask) for mask in unpack_masks(bits, impl=impl)], sizes)
    counts, offsets = torch.ops.s2d.rle_encode(bits.words, width)
    return RLE(counts, offsets, sizes)


def rle_decode(rle: RLE, *, impl: str | None = None) -> BitMasks:
    """The masks of codes of one size.

    Returns:
        `BitMasks` ``[N, H, W]``; for an empty batch ``[0, 0, 0]``.

    Raises:
        ValueError: the masks differ in size, so that they cannot be stacked.
    """
    if len(rle) == 0:
        return BitMasks(torch.zeros(0, 0, 0, dtype=torch.int64, device=rle.counts.device), 0)
    height, width = rle.sizes[0].tolist()
    if bool((rle.sizes != rle.sizes[0]).any()):
        raise ValueError("s2d::rle_decode: expected masks of one size, got " + str(rle.sizes.unique(dim=0).tolist()))
    if ROOM.choose(rle.counts.device, impl) == "native":
        return BitMasks(torch.ops.s2d.rle_decode(rle.counts, rle.offsets, rle.sizes, height, width), width)
    parts = [reference.decode(runs, height, width) for runs in rle.each()]
    return pack_masks(torch.stack(parts), impl=impl)


def rle_area(rle: RLE, *, impl: str | None = None) -> Tensor:
    """Number of set pixels of each mask: int64 ``[N]``. The masks may differ in size."""
    if ROOM.choose(rle.counts.device, impl) == "native":
        return torch.ops.s2d.rle_area(rle.counts, rle.offsets, rle.sizes)
    return torch.tensor([int(runs[1::2].sum()) for runs in rle.each()], dtype=torch.int64)


def rle_bbox(rle: RLE, *, impl: str | None = None) -> Tensor:
    """Tight boxes: int64 ``[N, 4]``, x, y, width, height; zeros for an empty mask. The masks may differ in size."""
    if ROOM.choose(rle.counts.device, impl) == "native":
        return torch.ops.s2d.rle_bbox(rle.counts, rle.offsets, rle.sizes)
    boxes = [reference.bbox(runs, *size) for runs, size in zip(rle.each(), rle.sizes.tolist(), strict=True)]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


def rle_iou(a: RLE, b: RLE, crowd: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """IoU of every mask of ``a`` with every mask of ``b``, all of one size, as COCO computes it.

    Args:
        crowd: bool ``[M]``: where true, the intersection is divided by the area of the mask of ``a`` alone.

    Returns:
        float64 ``[N, M]``; 0 where nothing is shared.

    Raises:
        ValueError: the masks differ in size.
    """
    sizes = torch.cat([a.sizes, b.sizes])
    if len(sizes) and bool((sizes != sizes[0]).any()):
        raise ValueError("s2d::rle_iou: expected masks of one size, got " + str(sizes.unique(dim=0).tolist()))
    crowd = torch.zeros(len(b), dtype=torch.bool, device=b.counts.device) if crowd is None else crowd.bool()
    if ROOM.choose(a.counts.device, impl) == "native":
        return torch.ops.s2d.rle_iou(a.counts, a.offsets, a.sizes, b.counts, b.offsets, b.sizes, crowd)
    if not (len(a) and len(b)):
        return torch.zeros(len(a), len(b), dtype=torch.float64)
    rows, columns = (unpack_masks(rle_decode(x, impl=impl), impl=impl).flatten(1) for x in (a, b))
    return reference.iou(rows, columns, crowd)


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


@_native.fake("rle_encode")
def _(words: Tensor, width: int) -> tuple[Tensor, Tensor]:
    runs = torch.library.get_ctx().new_dynamic_size()
    return words.new_empty(runs, dtype=torch.int32), words.new_empty(words.shape[0] + 1)
