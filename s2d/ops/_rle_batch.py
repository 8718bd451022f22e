"""`RLE`: the run-length codes of a batch of masks, and the forms other libraries have them in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import forced_impl
from s2d.ops.reference import rle as reference

MAX_PIXELS = 2**31 - 1


def check_size(height: int, width: int, op: str = "rle") -> None:
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"s2d::{op}: expected a mask of 0 to 2^31 - 1 pixels, got {height} x {width}")


def as_tensor(array: Any) -> Any:
    """A tensor that shares memory with an array of numpy or of a library that speaks DLPack; others as they are."""
    if isinstance(array, np.ndarray):
        # Torch has no negative strides, and warns of memory that it must not write to.
        fits = array.flags.writeable and all(step >= 0 for step in array.strides)
        return torch.from_numpy(array if fits else array.copy())
    if not isinstance(array, Tensor) and hasattr(array, "__dlpack__"):
        return torch.from_dlpack(array)
    return array


@dataclass(frozen=True)
class RLE:
    """Run-length codes of a batch of masks; the masks may differ in size.

    A mask has at most 2^31 - 1 pixels, and may have none. Gradients do not flow through codes. A batch takes 4 bytes a
    run and 16 bytes a mask. Making one takes 4 to 8 bytes a run and 40 bytes a mask beside it; `rle_iou` takes at most
    128 bytes a run, or 4 kB for a mask that has few.

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
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"s2d::RLE: expected an index below {len(self)}, got {index}")
            index = slice(index % len(self), index % len(self) + 1)
        if isinstance(index, slice) and index.step in (None, 1):
            begin, end, _ = index.indices(len(self))
            offsets = self.offsets[begin : max(begin, end) + 1]
            first, last = offsets[0].item(), offsets[-1].item()
            return RLE(self.counts[first:last], offsets - first, self.sizes[begin:end])
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

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``counts``, ``offsets`` and ``sizes`` as numpy arrays; on the CPU they share memory with the batch."""
        return self.counts.numpy(force=True), self.offsets.numpy(force=True), self.sizes.numpy(force=True)

    @staticmethod
    def from_arrays(counts: Any, offsets: Any, sizes: Any) -> RLE:
        """From three arrays of numpy, or of a library that speaks DLPack (CuPy), whose memory it shares.

        The other way, every attribute is a tensor that ``cupy.from_dlpack`` takes.
        """
        return RLE(*(as_tensor(array) for array in (counts, offsets, sizes)))

    def to_coco(self, *, compressed: bool = True, impl: str | None = None) -> list[dict]:
        """COCO dictionaries ``{"size": [H, W], "counts": ...}``: a str, or a list of runs where not ``compressed``."""
        if (impl or forced_impl()) != "reference":
            return _native.host().rle.to_coco(*self.numpy(), compressed)
        codes = zip(self.sizes.tolist(), self.each(), strict=True)
        return [
            {"size": size, "counts": reference.to_string(runs.tolist()) if compressed else runs.tolist()}
            for size, runs in codes
        ]

    @staticmethod
    def from_coco(
        objects: Sequence[Any],
        size: tuple[int, int] | Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        impl: str | None = None,
    ) -> RLE:
        """From what COCO's files hold, one mask an object.

        Args:
            objects: each a dictionary with ``size`` and ``counts``, compressed (str or bytes) or not (a list of
                runs); a list of polygons ``[x0, y0, x1, y1, ...]``, whose union is the mask; a box ``[x, y, width,
                height]``; or None, an empty mask.
            size: height and width of what brings none, for all or one for each object.

        Returns:
            `RLE` on the CPU.

        Raises:
            ValueError: an object that is none of these, or whose runs do not add up to its size; names its index.
        """
        if (impl or forced_impl()) == "reference":
            return _from_coco_reference(objects, size)
        sizes = None if size is None else np.asarray(size, dtype=np.int64)
        return RLE(*(torch.from_numpy(array) for array in _native.host().rle.from_coco(objects, sizes)))


def _from_coco_reference(objects: Sequence[Any], size: Any) -> RLE:
    given = None if size is None else torch.as_tensor(size).reshape(-1, 2).expand(len(objects), 2).tolist()
    counts, sizes = [], []
    for index, item in enumerate(objects):
        try:
            if isinstance(item, dict):
                (height, width), runs = item["size"], item["counts"]
                runs = runs.decode("ascii") if isinstance(runs, bytes) else runs
                check_size(height, width)
                runs = reference.from_string(runs) if isinstance(runs, str) else runs
            elif given is None:
                raise ValueError("expected a size for what brings none, got none")
            else:
                height, width = given[index]
                runs = reference.encode(reference.shape(item, height, width)).tolist()
            if min(runs, default=0) < 0:
                raise ValueError(f"expected runs of at least 0 pixels, got {min(runs)}")
            if sum(runs) != height * width:
                raise ValueError(f"expected runs that add up to {height} x {width} pixels, got {sum(runs)}")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"missing key {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"s2d::RLE.from_coco: mask {index}: {reason}") from None
        counts.append(torch.tensor(runs, dtype=torch.int32))
        sizes.append((height, width))
    return RLE.from_counts(counts, torch.tensor(sizes))
