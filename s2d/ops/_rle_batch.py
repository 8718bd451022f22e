"""`RLE`: the run-length codes of a batch of masks, and the forms other libraries have them in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import forced_impl
from s2d.ops.reference import rle as reference

MAX_PIXELS = 2**31 - 1


def check_size(height: int, width: int, op: str = "rle") -> None:
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"s2d::{op}: expected a mask of at most 2^31 - 1 pixels, got {height} x {width}")


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

    @property
    def device(self) -> torch.device:
        return self.counts.device

    def to(self, device: torch.device | str) -> RLE:
        return RLE(self.counts.to(device), self.offsets.to(device), self.sizes.to(device))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> RLE:
        """The codes of some masks, in the order asked for; an int gives a batch of one."""
        chosen = torch.arange(len(self), device=self.device)[index].reshape(-1)
        lengths = self.offsets.diff()[chosen]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # Position of every run: its place within its mask, moved from the new start of the mask to the old one.
        moved = torch.repeat_interleave(self.offsets[chosen] - offsets[:-1], lengths)
        return RLE(self.counts[torch.arange(len(moved), device=self.device) + moved], offsets, self.sizes[chosen])

    def each(self) -> list[Tensor]:
        """The runs of every mask by itself: N times int32 ``[R_n]``."""
        return list(self.counts.split(self.offsets.diff().tolist()))

    @staticmethod
    def from_counts(counts: Sequence[Tensor], sizes: Tensor) -> RLE:
        """Join the runs of single masks (int32 ``[R_n]`` each) to a batch."""
        lengths = torch.tensor([0, *(len(c) for c in counts)], device=sizes.device)
        joined = torch.cat(list(counts)) if counts else torch.zeros(0, device=sizes.device)
        return RLE(joined.int(), lengths.cumsum(0), sizes.reshape(-1, 2).int())

    @staticmethod
    def cat(parts: Iterable[RLE]) -> RLE:
        """Several batches one after another."""
        parts = list(parts)
        if not parts:
            return RLE.from_counts([], torch.zeros(0, 2))
        lengths = [part.offsets.diff() for part in parts]
        offsets = torch.cat([lengths[0].new_zeros(1), *lengths]).cumsum(0)
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
                check_size(height, width)
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
