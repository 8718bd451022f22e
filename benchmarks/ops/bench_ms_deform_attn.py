"""ms_deform_attn against torch's grid_sample: python -m benchmarks.ops.bench_ms_deform_attn [--quick] [--save]"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from benchmarks.harness import Pair, compare, main
from s2d.ops import ms_deform_attn
from s2d.testing.cases.ms_deform_attn import OFFICIAL, Case, make

SMALL = Case("small, 128 x 224", 3, 588, 4, 16, ((4, 7), (8, 14), (16, 28)), 4)


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max())) for x, y in zip(a, b, strict=True))


def measure(quick: bool) -> list[Pair]:
    pairs = []
    cases = [SMALL, dataclasses.replace(OFFICIAL, queries=630) if quick else OFFICIAL]
    for case in cases:
        value, shapes, locations, weights = make(case)
        inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
        grad = torch.randn(case.number, case.queries, case.heads * case.channels)

        def forward(impl: str, inputs: list[Tensor] = inputs, shapes: Tensor = shapes) -> list[Tensor]:
            with torch.no_grad():
                return [ms_deform_attn(inputs[0], shapes, *inputs[1:], impl=impl)]

        def both(
            impl: str, inputs: list[Tensor] = inputs, shapes: Tensor = shapes, grad: Tensor = grad
        ) -> list[Tensor]:
            out = ms_deform_attn(inputs[0], shapes, *inputs[1:], impl=impl)
            return list(torch.autograd.grad(out, inputs, grad))

        for name, call, goal in (("forward", forward, 12.0), ("forward and backward", both, 8.0)):
            pairs.append(
                compare(
                    f"ms_deform_attn {name}",
                    lambda call=call: call("native"),
                    lambda call=call: call("reference"),
                    peer="torch grid_sample",
                    agree=close,
                    case=case.name,
                    goal=goal,
                    seconds=0.3 if quick else 3.0,
                )
            )
    return pairs


if __name__ == "__main__":
    main("ms_deform_attn", measure)
