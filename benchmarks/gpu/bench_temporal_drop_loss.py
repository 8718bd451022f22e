"""temporal_drop_loss on the GPU: against the official criterion's steps, which draw points of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer
from benchmarks.ops.bench_temporal_drop_loss import QUICK, alike, official, with_gradient
from s2d.ops import BitMasks, pack_masks, unpack_masks
from s2d.ops.reference.temporal_drop_loss import temporal_drop_loss as definition
from s2d.testing.cases.temporal_drop_loss import BENCHMARKS, CASES, Case, make

FULL = [(case,) for case in BENCHMARKS]
TINY = [(QUICK,)]
SMALL = [(case,) for case in CASES]


def close(ours: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """But for candidates as uncertain as each other, between which rounding chooses."""
    sums = all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(ours[:2], other[:2], strict=True))
    return sums and all(
        a.numel() == 0 or bool(((a - b).abs() <= 1e-3 * b.abs().max()).float().mean() > 0.999)
        for a, b in zip(ours[2:], other[2:], strict=True)
    )


def entries(case: Case) -> list[Entry]:
    numbers = (case.num_points, 3 * case.num_points, int(0.75 * case.num_points))

    def start(device: str, seed: int) -> tuple:
        logits, target, keep = make(case, seed)
        if case.kept_share > 0:
            keep[:] = True  # a dropped row would be less to do
        return logits.to(device), pack_masks(target.to(device)), keep.to(device), torch.tensor(seed, device=device)

    def forward(logits: Tensor, bits: BitMasks, keep: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.s2d.temporal_drop_loss(
            logits, bits.words, bits.width, keep, seed, None, None, *numbers, False
        )[:2]

    def both(logits: Tensor, bits: BitMasks, keep: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bce, dice, slopes = torch.ops.s2d.temporal_drop_loss(
            logits, bits.words, bits.width, keep, seed, None, None, *numbers, True
        )
        one = torch.ones_like(bce)
        return bce, dice, torch.ops.s2d.temporal_drop_loss_backward(one, one, slopes, logits)

    def defined(logits: Tensor, bits: BitMasks, keep: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masks = unpack_masks(bits, impl="reference")
        return with_gradient(lambda x: definition(x, masks, keep, seed, None, *numbers), logits)

    def right(result: tuple[Tensor, ...], *inputs: Tensor | BitMasks) -> bool:
        return close(result, defined(*inputs)[: len(result)])

    def dense(logits: Tensor, bits: BitMasks, keep: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return logits, unpack_masks(bits)

    def official_forward(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return official(logits, target, case.num_points)

    def official_both(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return with_gradient(lambda x: official(x, target, case.num_points), logits)

    rows, (h, w), (height, width) = case.masks * case.frames, case.logit_size, case.target_size
    text = f"{rows} rows of {h}x{w} and {height}x{width}, P={case.num_points}"
    masks, maps = 8 * rows * height * ((width + 63) // 64), 4 * rows * h * w
    return [
        Entry(
            op,
            text,
            start,
            ours,
            right,
            bytes=maps + masks + written,
            # It asks each row whether its target is empty.
            peers={"official criterion": Peer(peer, alike, dense, capturable=False)},
        )
        for op, ours, peer, written in (
            ("temporal_drop_loss", forward, official_forward, 0),
            ("temporal_drop_loss, with gradient", both, official_both, maps),
        )
    ]
