"""Deformable attention: its formula, its gradients, what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from s2d.ops import ms_deform_attn
from s2d.testing.cases.ms_deform_attn import CASES, Case, make
from s2d.testing.numeric import assert_within_budget

pytestmark = pytest.mark.usefixtures("nan_memory")
both = pytest.mark.parametrize("impl", ["native", "reference"])


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


@both
@pytest.mark.parametrize("case", [case for case in CASES if case.queries], ids=lambda case: case.name)
def test_equals_the_formula(case, impl):
    inputs = make(case, torch.float64)
    if case.name == "one of each":
        # cartesian_prod of single indices is flat in some versions: one look-up needs no loop.
        value, _, locations, weights = inputs
        expected = weights.item() * look_up(value.view(1, 1, 1), *locations.flatten().tolist())
        torch.testing.assert_close(ms_deform_attn(*inputs, impl=impl).flatten(), expected)
        return
    torch.testing.assert_close(ms_deform_attn(*inputs, impl=impl), by_hand(*inputs))


# Every number of channels that is compiled with a known length, and some that are not.
CHANNELS = [1, 8, 12, 16, 17, 32, 40, 64]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("channels", CHANNELS)
def test_native_is_as_exact_as_torch(case, channels):
    value, shapes, locations, weights = make(dataclasses.replace(case, channels=channels))
    grad = torch.randn(ms_deform_attn(value, shapes, locations, weights).shape)

    def gradients(impl):
        def run(*tensors):
            inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
            out = ms_deform_attn(inputs[0], shapes, *inputs[1:], impl=impl)
            out.backward(grad.to(out.dtype))
            return [out.detach(), *(tensor.grad for tensor in inputs)]

        return run

    found = gradients("native")(value, locations, weights)
    for index, result in enumerate(found):
        assert_within_budget(
            result, lambda *x, index=index: gradients("reference")(*x)[index], value, locations, weights, multiple=4
        )


@both
def test_no_queries_give_nothing(impl):
    assert ms_deform_attn(*make(CASES[3]), impl=impl).shape == (1, 0, 8)


@both
def test_gradients(impl):
    value, shapes, locations, weights = make(Case("gradients", 1, 2, 2, 2, ((3, 2), (1, 4)), 2), torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, a: ms_deform_attn(v, shapes, p, a, impl=impl), inputs)


def test_half_precision_is_rounded_once():
    value, shapes, locations, weights = (x.half() if x.is_floating_point() else x for x in make(CASES[2]))
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    out = ms_deform_attn(inputs[0], shapes, *inputs[1:])
    exact = ms_deform_attn(value.double(), shapes, locations.double(), weights.double())
    torch.testing.assert_close(out, exact.half(), rtol=2.0**-10, atol=1e-4)
    out.sum().backward()
    assert all(tensor.grad.dtype == torch.float16 for tensor in inputs)


@both
def test_points_outside_and_nan_points_read_nothing(impl):
    value, shapes, locations, weights = make(CASES[2])
    far = locations + torch.tensor([3.0, 0.0])
    assert not ms_deform_attn(value, shapes, far, weights, impl=impl).any()
    if impl == "native":
        far = far.fill_(math.nan).requires_grad_()
        out = ms_deform_attn(value, shapes, far, weights, impl=impl)
        out.sum().backward()
        assert not out.any()
        assert not far.grad.any()


def test_the_number_of_threads_changes_nothing():
    value, shapes, locations, weights = make(dataclasses.replace(CASES[2], number=2, queries=300, channels=16))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            inputs = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
            out = ms_deform_attn(inputs[0], shapes, *inputs[1:], impl="native")
            out.square().sum().backward()
            results.append([out, *(tensor.grad for tensor in inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_registered_as_torch_expects():
    value, shapes, locations, weights = make(Case("one", 1, 3, 2, 3, ((3, 2), (1, 4)), 2), torch.float64)
    inputs = (value.requires_grad_(), shapes, locations.requires_grad_(), weights.requires_grad_())
    torch.library.opcheck(torch.ops.s2d.ms_deform_attn.default, inputs)


def test_compiles_without_a_break():
    value, shapes, locations, weights = make(CASES[1])
    compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager")
    wanted = ms_deform_attn(value, shapes, locations, weights)
    for form in (shapes, CASES[1].shapes):
        assert torch.equal(compiled(value, form, locations, weights), wanted)


@both
def test_strided_inputs_give_the_same(impl):
    value, shapes, locations, weights = make(CASES[1])
    wanted = ms_deform_attn(value, shapes, locations, weights, impl=impl)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    moved = locations.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ms_deform_attn(strided, shapes.tolist(), moved, weights, impl=impl), wanted)


@both
def test_equals_the_official_operator(test_data, impl):
    stored = torch.load(test_data / "parity" / "parity_small.pt", weights_only=True)["msdeform"]
    inputs = [stored[name].clone().requires_grad_() for name in ("value", "loc", "attn")]
    out = ms_deform_attn(inputs[0], stored["shapes"].view(-1, 2), *inputs[1:], impl=impl)
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
