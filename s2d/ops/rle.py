"""COCO's run-length encoding for whole batches of masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room, forced_impl
from s2d.ops.bitmask import BitMasks, pack_masks, unpack_masks
from s2d.ops.reference import rle as reference

ROOM = Room("rle")

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
    ROOM.choose(masks.device, impl)
    dense = unpack_masks(masks) if isinstance(masks, BitMasks) else masks != 0
    if dense.dim() != 3:
        raise ValueError(f"s2d::rle_encode: expected masks [N, H, W], got {list(dense.shape)}")
    number, height, width = dense.shape
    _check_size(height, width)
    sizes = torch.tensor([[height, width]]).expand(number, 2)
    return RLE.from_counts([reference.encode(mask) for mask in dense], sizes)


def rle_decode(rle: RLE, *, impl: str | None = None) -> BitMasks:
    """The masks of codes of one size.

    Returns:
        `BitMasks` ``[N, H, W]``; for an empty batch ``[0, 0, 0]``.

    Raises:
        ValueError: the masks differ in size, so that they cannot be stacked.
    """
    ROOM.choose(rle.counts.device, impl)
    if len(rle) == 0:
        return BitMasks(torch.zeros(0, 0, 0, dtype=torch.int64), 0)
    height, width = rle.sizes[0].tolist()
    if bool((rle.sizes != rle.sizes[0]).any()):
        raise ValueError("s2d::rle_decode: expected masks of one size, got " + str(rle.sizes.unique(dim=0).tolist()))
    bounds = rle.offsets.tolist()
    parts = [reference.decode(rle.counts[i:j], height, width) for i, j in itertools.pairwise(bounds)]
    return pack_masks(torch.stack(parts))


def rle_area(rle: RLE, *, impl: str | None = None) -> Tensor:
    """Number of set pixels of each mask: int64 ``[N]``."""
    ROOM.choose(rle.counts.device, impl)
    bounds = rle.offsets.tolist()
    return torch.tensor([int(rle.counts[i + 1 : j : 2].sum()) for i, j in itertools.pairwise(bounds)])


def rle_bbox(rle: RLE, *, impl: str | None = None) -> Tensor:
    """Tight boxes: int64 ``[N, 4]``, x, y, width, height; zeros for an empty mask."""
    ROOM.choose(rle.counts.device, impl)
    bounds, sizes = rle.offsets.tolist(), rle.sizes.tolist()
    boxes = [reference.bbox(rle.counts[bounds[n] : bounds[n + 1]], *sizes[n]) for n in range(len(rle))]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


def rle_iou(a: RLE, b: RLE, crowd: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """IoU of every mask of ``a`` with every mask of ``b``, all of one size, as COCO computes it.

    Args:
        crowd: bool ``[M]``: where true, the intersection is divided by the area of the mask of ``a`` alone.

    Returns:
        float64 ``[N, M]``; 0 where nothing is shared.
    """
    ROOM.choose(a.counts.device, impl)
    rows, columns = (unpack_masks(rle_decode(x)).flatten(1) for x in (a, b))
    if len(a) and len(b) and not torch.equal(a.sizes[0], b.sizes[0]):
        raise ValueError(f"s2d::rle_iou: expected equal sizes, got {a.sizes[0].tolist()} and {b.sizes[0].tolist()}")
    if not (len(a) and len(b)):
        return torch.zeros(len(a), len(b), dtype=torch.float64)
    return reference.iou(rows, columns, torch.zeros(len(b), dtype=torch.bool) if crowd is None else crowd.bool())
