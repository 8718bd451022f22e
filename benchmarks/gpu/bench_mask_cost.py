"""mask_cost on the GPU: against its definition in torch, as the official matcher composes it."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer, compiled
from s2d.ops import BitMasks, mask_cost, pack_masks, unpack_masks
from s2d.ops.reference.mask_cost import mask_cost as definition
from s2d.testing.cases import mask_cost as cases
from s2d.testing.numeric import assert_within_budget

FULL = [(case,) for case in cases.BENCHMARKS]
TINY = [(cases.CASES[1],)]
SMALL = [(case,) for case in cases.CASES]

GOAL_US = 60.0  # at the matcher's own number of points


def dense(logits: Tensor, bits: BitMasks, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits, unpack_masks(bits), points


def right(result: tuple[Tensor, Tensor], *inputs: Tensor | BitMasks) -> bool:
    """Within a small multiple of the error that torch itself makes against float64."""
    inputs = dense(*inputs)
    for part, ours in enumerate(result):
        assert_within_budget(ours, lambda *x, part=part: definition(*x)[part], *inputs, multiple=4)
    return True


def close(ours: tuple[Tensor, Tensor], peer: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, peer, strict=True))


def entries(case: cases.Case) -> list[Entry]:
    def make(device: str, seed: int) -> tuple:
        logits, target, points = cases.make(case, seed)
        return logits.to(device), pack_masks(target.to(device)), points.to(device)

    queries, targets, frames = case.queries, case.targets, case.frames
    (h, w), (height, width) = case.logit_size, case.target_size
    mask_bytes, samples = 8 * height * ((width + 63) // 64), frames * case.num_points
    text = f"Q={queries}, G={targets}, T={frames}, {h}x{w} and {height}x{width}, P={case.num_points}"
    return [
        Entry(
            "mask_cost",
            text,
            make,
            mask_cost,
            right,
            bytes=frames * (4 * queries * h * w + targets * mask_bytes) + 8 * (case.num_points + queries * targets),
            operations=4 * queries * targets * samples,
            unit="flop",
            peers={
                "torch": Peer(definition, close, dense),
                "torch.compile": Peer(compiled(definition), close, dense),
            },
            goal_us=GOAL_US if case == cases.BENCHMARKS[0] else None,
        )
    ]
