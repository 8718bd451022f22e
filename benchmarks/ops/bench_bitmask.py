"""bitmask against numpy and torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Comparison
from s2d.ops import mask_area, mask_iou, pack_masks, unpack_masks
from s2d.testing.cases.bitmask import tubes


def numpy_iou(packed: np.ndarray) -> torch.Tensor:
    """Bits of numpy's packbits, counted pair by pair with bitwise_count."""
    words = packed.view(np.uint64)
    area = np.bitwise_count(words).sum(1, dtype=np.int64)
    shared = np.stack([np.bitwise_count(words & row).sum(1, dtype=np.int64) for row in words])
    return torch.from_numpy(shared / (area[:, None] + area[None, :] - shared)).float()


def matmul_iou(masks: torch.Tensor) -> torch.Tensor:
    """Mask2Former's way: masks as floats and a matrix product."""
    flat = masks.flatten(1).float()
    shared = flat @ flat.T
    area = flat.sum(1)
    return shared / (area[:, None] + area[None, :] - shared)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def pairs_of(number: int, frames: int, height: int, width: int, seconds: float, goal: float | None) -> list[Comparison]:
    masks = tubes(number, frames, height, width) | (torch.rand(number, frames, height, width) < 0.001)
    packed = np.packbits(masks.flatten(1).numpy(), axis=1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    bits = pack_masks(masks)
    pixels, held = masks.numel(), bits.words.nbytes
    common = {"case": f"P={number}, T={frames}, {height}x{width}", "at": {"pixels": pixels}, "seconds": seconds}
    return [
        Comparison(
            "mask_iou from bits",
            lambda: mask_iou(bits, bits),
            lambda: numpy_iou(packed),
            peer="numpy bitwise_count",
            agree=close,
            goal=goal,
            bytes=held + 4 * number**2,
            **common,
        ),
        Comparison(
            "mask_iou from bool",
            lambda: mask_iou(masks, masks),
            lambda: matmul_iou(masks),
            peer="torch fp32 matmul",
            agree=close,
            bytes=pixels + 4 * number**2,
            **common,
        ),
        Comparison(
            "pack_masks",
            lambda: pack_masks(masks),
            lambda: np.packbits(masks.numpy(), axis=-1, bitorder="little"),
            peer="numpy packbits",
            agree=lambda ours, theirs: np.array_equal(
                ours.words.numpy().view(np.uint8)[..., : theirs.shape[-1]], theirs
            ),
            bytes=pixels + held,
            **common,
        ),
        Comparison(
            "mask_area from bits",
            lambda: mask_area(bits),
            lambda: masks.sum((2, 3)),
            peer="torch sum of bool",
            agree=torch.equal,
            bytes=held + 8 * number * frames,
            **common,
        ),
        Comparison(
            "unpack_masks",
            lambda: unpack_masks(bits),
            lambda: np.unpackbits(packed, axis=1, bitorder="little"),
            peer="numpy unpackbits",
            agree=lambda a, b: bool((a.flatten(1).numpy() == b[:, : a[0].numel()]).all()),
            bytes=held + pixels,
            **common,
        ),
    ]


def measure(quick: bool) -> Iterator[Comparison]:
    if not quick:
        yield from pairs_of(50, 8, 360, 640, 3.0, goal=8)
    yield from pairs_of(10, 4, 120, 214, 0.3, goal=None)
