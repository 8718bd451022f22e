"""ms_deform_attn on the GPU: forward and backward, against its definition in torch and the CUDA operators there are."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer, compiled, size_of
from s2d.ops import ms_deform_attn
from s2d.ops.reference.ms_deform_attn import attend
from s2d.testing.cases import ms_deform_attn as cases
from s2d.testing.numeric import assert_within_budget

LONG = dataclasses.replace(cases.OFFICIAL, name="official, 8 frames", number=8)

# Case, dtype of value; locations and weights are float32.
FULL = [(case, dtype) for case in (cases.OFFICIAL, LONG) for dtype in (torch.float32, torch.float16)]
TINY = [(cases.CASES[2], torch.float32)]
SMALL = [(case, dtype) for case in cases.CASES[:3] for dtype in (torch.float32, torch.float16, torch.bfloat16)]


def gradients(attention: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The values and all three gradients of an attention for ``value, locations, weights, grad``."""

    def run(value: Tensor, locations: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        out = attention(*leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype)))

    return run


def near(ours, peer) -> bool:
    """To within some units in the last place of the largest: sums have orders of their own."""
    pairs = zip(ours, peer, strict=True) if isinstance(ours, tuple) else [(ours, peer)]
    return all(
        bool((a.float() - b.float()).abs().max() <= 64 * torch.finfo(a.dtype).eps * b.float().abs().max())
        for a, b in pairs
        if a.numel()
    )


def right(attention: Callable[..., Tensor]) -> Callable[..., bool]:
    """A check: within a small multiple of the error that the definition itself makes against float64."""

    def forward(result: Tensor, *inputs: Tensor) -> bool:
        assert_within_budget(result, attention, *inputs, multiple=4)
        return True

    return forward


def all_right(attention: Callable[..., Tensor]) -> Callable[..., bool]:
    def both(result: tuple[Tensor, ...], *inputs: Tensor) -> bool:
        for part, ours in enumerate(result):
            assert_within_budget(ours, lambda *x, part=part: gradients(attention)(*x)[part], *inputs, multiple=8)
        return True

    return both


def mmcv(sizes: list[list[int]], dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """mmcv's build of the official CUDA operator, where it is installed; of one dtype, so in float32 only."""
    if importlib.util.find_spec("mmcv") is None or dtype != torch.float32:
        return {}
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(sizes, device=value.device)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)

    return {"official (mmcv)": run}


def entries(case: cases.Case, dtype: torch.dtype) -> list[Entry]:
    sizes = [list(shape) for shape in case.shapes]

    def make(device: str, seed: int) -> tuple:
        value, _, locations, weights = cases.make(case, seed=seed)
        return value.to(device, dtype), locations.to(device), weights.to(device)

    def make_both(device: str, seed: int) -> tuple:
        generator = torch.Generator().manual_seed(seed + 1)
        grad = torch.randn(case.number, case.queries, case.heads * case.channels, generator=generator)
        return *make(device, seed), grad.to(device, dtype)

    def ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, sizes, locations, weights)

    def definition(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return attend(value, sizes, locations, weights)

    # Meta tensors have sizes and no data: listing entries allocates nothing.
    places = sum(height * width for height, width in case.shapes)
    row, points = case.heads * case.channels, case.heads * len(sizes) * case.points

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(case.number, *shape, dtype=of, device="meta")

    value, out, numbers = empty(places, row), empty(case.queries, row), empty(case.queries, points, 3, of=torch.float32)
    once = size_of([value, out, numbers])
    peers = {"torch": definition, **mmcv(sizes, dtype)}
    text = f"{case.name}, {str(dtype).removeprefix('torch.')}"

    def with_compiled(calls: dict[str, Callable], wrap: Callable) -> dict[str, Peer]:
        plain = {name: Peer(wrap(call), near, capturable=name == "torch") for name, call in calls.items()}
        return plain | {"torch.compile": Peer(wrap(compiled(definition)), near)}

    return [
        Entry(
            "ms_deform_attn",
            text,
            make,
            ours,
            right(definition),
            bytes=once,
            peers=with_compiled(peers, lambda call: call),
        ),
        Entry(
            "ms_deform_attn and gradients",
            text,
            make_both,
            gradients(ours),
            all_right(definition),
            # Backward reads what forward does, the gradient for the result, and writes two gradients.
            bytes=2 * once + size_of([value, numbers]),
            peers=with_compiled(peers, gradients),
        ),
    ]
