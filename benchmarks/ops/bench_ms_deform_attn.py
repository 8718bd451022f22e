"""ms_deform_attn against torch's grid_sample: python -m benchmarks.ops.bench_ms_deform_attn [--quick] [--save]

``--save`` also draws the time against the number of frames, ``benchmarks/results/ms_deform_attn.png``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, Pair, compare, main
from s2d.ops import ms_deform_attn
from s2d.ops.reference.ms_deform_attn import attend
from s2d.testing.cases.ms_deform_attn import OFFICIAL, Case, make

FRAMES = (3, 8, 32)
SMALL = Case("small, 128 x 224", 3, 588, 4, 16, ((4, 7), (8, 14), (16, 28)), 4)

compiled = torch.compile(attend, dynamic=False)


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max())) for x, y in zip(a, b, strict=True))


def pairs_of(case: Case, peers: dict[str, Callable], seconds: float, runs: int) -> list[Pair]:
    value, shapes, locations, weights = make(case)
    leaves, sizes = [tensor.requires_grad_() for tensor in (value, locations, weights)], shapes.tolist()
    grad = torch.randn(case.number, case.queries, case.heads * case.channels)

    def forward(attention: Callable) -> list[Tensor]:
        with torch.no_grad():
            return [attention(leaves[0], sizes, *leaves[1:])]

    def both(attention: Callable) -> list[Tensor]:
        return list(torch.autograd.grad(attention(leaves[0], sizes, *leaves[1:]), leaves, grad))

    return [
        compare(
            f"ms_deform_attn {name}",
            lambda call=call: call(ms_deform_attn),
            lambda call=call, attention=attention: call(attention),
            peer=peer,
            agree=close,
            case=f"{case.name}, T={case.number}",
            goal=goal if peer == "torch grid_sample" else None,
            seconds=seconds,
            minimum_runs=runs,
        )
        for name, call, goal in (("forward", forward, 12.0), ("forward and backward", both, 8.0))
        for peer, attention in peers.items()
    ]


def measure(quick: bool) -> list[Pair]:
    torch_alone = {"torch grid_sample": attend}
    if quick:
        few = dataclasses.replace(OFFICIAL, name="an eighth of the queries, 384 x 640", queries=630)
        return [pair for case in (SMALL, few) for pair in pairs_of(case, torch_alone, 0.3, 7)]
    pairs = pairs_of(OFFICIAL, torch_alone | {"torch.compile of it": compiled}, 3.0, 7)
    if torch.get_num_threads() == 1:
        for frames, runs in ((8, 3), (32, 2)):  # torch takes half a minute for 32 frames
            pairs += pairs_of(dataclasses.replace(OFFICIAL, number=frames), torch_alone, 1.0, runs)
    return pairs


def plot() -> None:
    """Milliseconds of one thread against the number of frames, from the saved results."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = json.loads((RESULTS / "ms_deform_attn.json").read_text())["pairs"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for op, colour in (("forward", "C0"), ("forward and backward", "C1")):
        mine = [p for p in pairs if p["op"] == f"ms_deform_attn {op}" and p["threads"] == 1]
        mine = [p for p in mine if p["peer"] == "torch grid_sample"]
        axes.plot(FRAMES, [p["peer_ms"] for p in mine], f"{colour}o--", label=f"{op}: torch grid_sample")
        axes.plot(FRAMES, [p["ours_ms"] for p in mine], f"{colour}o-", label=f"{op}: s2d")
    axes.set(xscale="log", yscale="log", xlabel="frames T", ylabel="ms, one thread", xticks=FRAMES)
    axes.set_xticklabels(FRAMES)
    axes.minorticks_off()
    axes.set_title("Deformable attention, 384 x 640, strides 32, 16, 8", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "ms_deform_attn.png", dpi=110)


if __name__ == "__main__":
    main("ms_deform_attn", measure)
    if "--save" in sys.argv:
        plot()
