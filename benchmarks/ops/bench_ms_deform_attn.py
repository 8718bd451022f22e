"""ms_deform_attn against torch's grid_sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Comparison
from s2d.ops import ms_deform_attn
from s2d.ops.reference.ms_deform_attn import attend
from s2d.testing.cases.ms_deform_attn import OFFICIAL, Case, make

SMALL = Case("small, 128 x 224", 3, 588, 4, 16, ((4, 7), (8, 14), (16, 28)), 4)

compiled = torch.compile(attend, dynamic=False)


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max())) for x, y in zip(a, b, strict=True))


def pairs_of(case: Case, peers: dict[str, Callable], seconds: float, runs: int) -> list[Comparison]:
    value, shapes, locations, weights = make(case)
    leaves, sizes = [tensor.requires_grad_() for tensor in (value, locations, weights)], shapes.tolist()
    grad = torch.randn(case.number, case.queries, case.heads * case.channels)

    once = value.nbytes + locations.nbytes + weights.nbytes + grad.nbytes
    # Four corners, each a multiplication and an addition; backward has as many for the value, and for the rest.
    samples = weights.numel() * case.channels

    def forward(attention: Callable) -> list[Tensor]:
        with torch.no_grad():
            return [attention(leaves[0], sizes, *leaves[1:])]

    def both(attention: Callable) -> list[Tensor]:
        return list(torch.autograd.grad(attention(leaves[0], sizes, *leaves[1:]), leaves, grad))

    return [
        Comparison(
            f"ms_deform_attn {name}",
            lambda call=call: call(ms_deform_attn),
            lambda call=call, attention=attention: call(attention),
            peer=peer,
            agree=close,
            case=f"{case.name}, T={case.number}",
            goal=goal if peer == "torch grid_sample" and case.queries == OFFICIAL.queries else None,
            at={"frames": case.number},
            bytes=moved,
            flops=flops,
            seconds=seconds,
            minimum_runs=runs,
        )
        for name, call, goal, moved, flops in (
            ("forward", forward, 12.0, once, 8 * samples),
            ("forward and backward", both, 8.0, 3 * once + value.nbytes, 24 * samples),
        )
        for peer, attention in peers.items()
    ]


def measure(quick: bool) -> Iterator[Comparison]:
    torch_alone = {"torch grid_sample": attend}
    if quick:
        few = dataclasses.replace(OFFICIAL, name="an eighth of the queries, 384 x 640", queries=630)
        for case in (SMALL, few):
            yield from pairs_of(case, torch_alone, 0.3, 7)
        return
    yield from pairs_of(OFFICIAL, torch_alone | {"torch.compile of it": compiled}, 3.0, 7)
    if torch.get_num_threads() == 1:
        for frames, runs in ((8, 3), (32, 2)):  # torch takes half a minute for 32 frames
            yield from pairs_of(dataclasses.replace(OFFICIAL, number=frames), torch_alone, 1.0, runs)
