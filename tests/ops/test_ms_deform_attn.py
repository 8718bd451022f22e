"""Deformable attention: its formula, its gradients, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from s2d.ops import ms_deform_attn
from s2d.testing.cases.ms_deform_attn import CASES, make


def look_up(image, x: float, y: float):
    """Bilinear interpolation by hand at shares x, y of the size; image ``[h, w, D]``, zero outside."""
    height, width, channels = image.shape
    px, py = x * width - 0.5, y * height - 0.5
    total = torch.zeros(channels, dtype=image.dtype)
    for row in (math.floor(py), math.floor(py) + 1):
        for column in (math.floor(px), math.floor(px) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(py - row)) * (1 - abs(px - column)) * image[row, column]
    return total


def by_hand(value, shapes, locations, weights):
    number, queries, heads, levels, points = weights.shape
    out = torch.zeros(number, queries, heads, value.shape[-1], dtype=value.dtype)
    maps = value.split([h * w for h, w in shapes.tolist()], dim=1)
    for n, q, m, level, p in torch.cartesian_prod(
        *map(torch.arange, (number, queries, heads, levels, points))
    ).tolist():
        image = maps[level][n, :, m].unflatten(0, tuple(shapes[level].tolist()))
        x, y = locations[n, q, m, level, p].tolist()
        out[n, q, m] += weights[n, q, m, level, p] * look_up(image, x, y)
    return out.flatten(2)


@pytest.mark.parametrize("case", [case for case in CASES if case.queries], ids=lambda case: case.name)
def test_equals_the_formula(case):
    inputs = make(case, torch.float64)
    if case.name == "one of each":
        # cartesian_prod of single indices is flat in some versions: one look-up needs no loop.
        value, _, locations, weights = inputs
        expected = weights.item() * look_up(value.view(1, 1, 1), *locations.flatten().tolist())
        torch.testing.assert_close(ms_deform_attn(*inputs).flatten(), expected)
        return
    torch.testing.assert_close(ms_deform_attn(*inputs), by_hand(*inputs))


def test_no_queries_give_nothing():
    assert ms_deform_attn(*make(CASES[3])).shape == (1, 0, 8)


def test_gradients():
    value, shapes, locations, weights = make(CASES[1], torch.float64)
    inputs = [
        tensor[:, :2].clone() if tensor is not value else tensor.clone() for tensor in (value, locations, weights)
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda v, p, a: ms_deform_attn(v, shapes, p, a), inputs)


def test_strided_inputs_give_the_same():
    value, shapes, locations, weights = make(CASES[1])
    wanted = ms_deform_attn(value, shapes, locations, weights)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    moved = locations.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ms_deform_attn(strided, shapes.tolist(), moved, weights), wanted)


def test_equals_the_official_operator(test_data):
    stored = torch.load(test_data / "parity" / "parity_small.pt", weights_only=True)["msdeform"]
    inputs = [stored[name].clone().requires_grad_() for name in ("value", "loc", "attn")]
    out = ms_deform_attn(inputs[0], stored["shapes"].view(-1, 2), *inputs[1:])
    out.backward(stored["grad_out"])
    torch.testing.assert_close(out, stored["out"], rtol=1e-9, atol=1e-12)
    for tensor, name in zip(inputs, ("grad_value", "grad_loc", "grad_attn"), strict=True):
        torch.testing.assert_close(tensor.grad, stored[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"value": torch.zeros(2, 46, 3, 5).int()}, TypeError, "one floating point dtype, got torch.int32"),
        ({"value": torch.zeros(2, 46, 15)}, ValueError, r"expected value \[N, S, M, D\], got \[2, 46, 15\]"),
        ({"shapes": [(7, 3), (1, 9)]}, ValueError, r"spatial_shapes that add up to S = 46"),
        ({"shapes": [(7, 3), (25, 1)]}, ValueError, r"sampling_locations with N, M, L = 2, 3, 2"),
        ({"shapes": [(7, 3), (25, 1), (0, 0)]}, ValueError, "of at least one pixel each"),
        ({"locations": torch.zeros(2, 7, 3, 3, 3)}, ValueError, r"expected sampling_locations \[N, Lq, M, L, P, 2\]"),
        ({"weights": torch.zeros(2, 7, 3, 9)}, ValueError, r"attention_weights \[2, 7, 3, 3, 3\], got \[2, 7, 3, 9\]"),
    ],
)
def test_refuses(change, error, words):
    names = ("value", "shapes", "locations", "weights")
    inputs = dict(zip(names, make(CASES[1]), strict=True)) | change
    with pytest.raises(error, match=words):
        ms_deform_attn(*(inputs[name] for name in names))
