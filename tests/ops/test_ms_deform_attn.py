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


def on(device, tensors):
    """A tensor, or some, on a device."""
    return tensors.to(device) if isinstance(tensors, torch.Tensor) else [tensor.to(device) for tensor in tensors]


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
def test_equals_the_formula(case, impl, device):
    inputs = make(case, torch.float64)
    if case.name == "one of each":
        # cartesian_prod of single indices is flat in some versions: one look-up needs no loop.
        value, _, locations, weights = inputs
        expected = (weights.item() * look_up(value.view(1, 1, 1), *locations.flatten().tolist())).view(1, 1, 1)
    else:
        expected = by_hand(*inputs)
    torch.testing.assert_close(ms_deform_attn(*on(device, inputs), impl=impl).cpu(), expected)


# Every number of channels that is compiled with a known length or as vectors, and some that are not; the last is more
# than a warp holds at once.
CHANNELS = [1, 8, 12, 16, 17, 32, 40, 64, 132]


def gradient(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def results(inputs, grad, impl="native"):
    """The values and the gradients of value, locations and weights."""
    value, shapes, locations, weights = inputs
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    out = ms_deform_attn(leaves[0], shapes, *leaves[1:], impl=impl)
    out.backward(grad.to(out))
    return [out.detach(), *(tensor.grad for tensor in leaves)]


# Not of a single point: where its few terms cancel, the error that torch makes is luck.
@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
@pytest.mark.parametrize("channels", CHANNELS)
def test_native_is_as_exact_as_torch(case, channels, device):
    inputs = make(dataclasses.replace(case, channels=channels))
    grad = gradient(case.number, case.queries, case.heads * channels)
    for index, result in enumerate(results(on(device, inputs), grad.to(device))):

        def definition(value, locations, weights, index=index):
            return results((value, inputs[1], locations, weights), grad, "reference")[index]

        assert_within_budget(result.cpu(), definition, inputs[0], *inputs[2:], multiple=4)


def test_no_queries_and_no_batches_give_nothing(device):
    value, shapes, locations, weights = on(device, make(CASES[3]))
    out, grad_value, *others = results((value, shapes, locations, weights), torch.zeros(1, 0, 8, device=device))
    assert out.shape == (1, 0, 8)
    assert not grad_value.any()
    assert [tensor.shape for tensor in others] == [locations.shape, weights.shape]
    none = results((value[:0], shapes, locations[:0], weights[:0]), torch.zeros(0, 0, 8, device=device))
    assert [tensor.shape[0] for tensor in none] == [0] * 4


@both
def test_gradients(impl, device):
    value, shapes, locations, weights = on(
        device, make(Case("gradients", 1, 2, 2, 2, ((3, 2), (1, 4)), 2), torch.float64)
    )
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    # On a GPU the order of additions is not fixed.
    assert torch.autograd.gradcheck(
        lambda v, p, a: ms_deform_attn(v, shapes, p, a, impl=impl), inputs, nondet_tol=1e-12
    )


@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("numbers", ["half", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, numbers, channels, device):
    value, shapes, locations, weights = make(dataclasses.replace(CASES[2], channels=channels))
    inputs = [value.to(dtype), locations, weights]
    if numbers == "half":
        inputs[1:] = [tensor.to(dtype) for tensor in inputs[1:]]
    grad = gradient(1, 11, 2 * channels).to(dtype)
    found = results((on(device, inputs[0]), shapes, *on(device, inputs[1:])), grad.to(device))
    exact = results((inputs[0].double(), shapes, *(x.double() for x in inputs[1:])), grad.double(), "reference")
    assert [tensor.dtype for tensor in found] == [dtype, *(tensor.dtype for tensor in inputs)]
    for ours, wanted in zip(found, exact, strict=True):
        # Half a unit in the last place, and what float32 loses where sums cancel.
        torch.testing.assert_close(
            ours.cpu().double(), wanted, rtol=torch.finfo(ours.dtype).eps, atol=2e-6 * float(wanted.abs().max())
        )


def test_rounding_to_half_precision(device):
    """All kinds of numbers, halfway ones and those too large or too small among them."""
    steps = torch.arange(0, 2**16, 41, dtype=torch.int32)
    numbers = torch.cat([steps << 16, (steps << 16) + 0x1000, (steps << 16) + 0x8000, (steps << 16) + 0x8FFF])
    numbers = torch.cat([numbers.view(torch.float32), torch.linspace(-7e4, 7e4, 99), torch.linspace(-1e-4, 1e-4, 99)])
    numbers = numbers[numbers.abs() < 1e30]  # one factor below must not overflow
    # Value 1 with these weights gives them back, widened to float32 before they are rounded.
    weights = numbers.view(1, -1, 1, 1, 1).to(device)
    middle = torch.full((1, len(numbers), 1, 1, 1, 2), 0.5, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        one = torch.ones(1, 1, 1, 1, dtype=dtype, device=device)
        assert torch.equal(ms_deform_attn(one, [(1, 1)], middle, weights).flatten().cpu(), numbers.to(dtype))


def test_autocast_leaves_it_alone(device):
    inputs = make(CASES[2])
    mixed = (inputs[0].bfloat16(), *inputs[1:3], inputs[3].bfloat16())
    for given in (inputs, mixed):
        for impl in ("native", "reference"):
            wanted = ms_deform_attn(*on(device, given), impl=impl)
            with torch.autocast(device, torch.bfloat16):
                found = ms_deform_attn(*on(device, given), impl=impl)
            assert found.dtype == given[0].dtype
            assert torch.equal(found, wanted)


@both
def test_points_outside_read_nothing(impl, device):
    value, shapes, locations, weights = on(device, make(CASES[2]))
    value = torch.full_like(value, math.nan)  # which would show
    grad = torch.ones(1, 11, 16, device=device)
    beyond = [(3.0, 0.5), (-3.0, 0.5), (0.5, 3.0), (0.5, -3.0), (2.0**40, 0.5), (0.5, -(2.0**70))]
    if impl == "native":
        # Exactly one pixel outside the smallest level, more in the others; torch leaves open what the rest give.
        beyond += [(1.1, 0.5), (0.5, -0.25)]
        beyond += [(math.nan, 0.5), (0.5, math.nan), (math.inf, 0.5), (0.5, -math.inf)]
    for point in beyond:
        far = torch.tensor(point, device=device).expand(locations.shape)
        for result in results((value, shapes, far, weights), grad, impl):
            assert not result.any()


@both
def test_points_at_the_border_read_what_is_inside(impl, device):
    at = torch.tensor([-0.2, -0.125, 0.0, 0.125, 1 / 6, 0.5, 0.875, 1.0, 1.1], dtype=torch.float64)
    locations = torch.cartesian_prod(at, at).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(locations.shape[:-1], dtype=torch.float64)
    value, shapes, *_ = make(Case("border", 1, 1, 1, 8, ((3, 4),), 1), torch.float64)
    found = ms_deform_attn(*on(device, (value, shapes, locations, weights)), impl=impl)
    torch.testing.assert_close(found.cpu(), by_hand(value, shapes, locations, weights))


def test_the_number_of_threads_changes_nothing():
    value, shapes, locations, weights = make(dataclasses.replace(CASES[2], number=2, queries=300, channels=16))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(results((value, shapes, locations, weights), torch.ones(2, 300, 32)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_sizes_on_the_device_are_read_there(device, emulated, request):
    """And a level that is not within the places reads nothing."""
    value, shapes, locations, weights = on(device, make(CASES[1]))
    if device == "cpu" and not emulated:
        pytest.skip("the CPU's kernel reads the sizes itself")
    wanted = torch.ops.s2d.ms_deform_attn(value, shapes.cpu(), locations, weights)
    broken = torch.tensor([(7, 3), (1 << 40, 1 << 40), (-1, 4)], device=device)
    only_first = weights.clone()
    only_first[:, :, :, 1:] = 0
    first = torch.ops.s2d.ms_deform_attn(value, shapes.cpu(), locations, only_first)
    if emulated:
        request.config.emulators["ms_deform_attn"].set_on_gpu(True)
    try:
        assert torch.equal(torch.ops.s2d.ms_deform_attn(value, shapes, locations, weights), wanted)
        assert torch.equal(torch.ops.s2d.ms_deform_attn(value, broken, locations, weights), first)
    finally:
        if emulated:
            request.config.emulators["ms_deform_attn"].set_on_gpu(False)


def test_registered_as_torch_expects(device):
    value, shapes, locations, weights = on(device, make(Case("one", 1, 3, 2, 3, ((3, 2), (1, 4)), 2), torch.float64))
    inputs = (value.requires_grad_(), shapes, locations.requires_grad_(), weights.requires_grad_())
    torch.library.opcheck(torch.ops.s2d.ms_deform_attn.default, inputs)
    half = value.detach().half()
    numbers = [tensor.detach().float() for tensor in (locations, weights)]
    for given in ((half, shapes, *numbers), (half.float(), shapes, *numbers)):
        grad = torch.ones(1, 3, 6, dtype=given[0].dtype, device=device)
        torch.library.opcheck(
            torch.ops.s2d.ms_deform_attn_backward.default, (*given, grad), test_utils=("test_schema", "test_faketensor")
        )


def test_compiles_without_a_break(device):
    value, shapes, locations, weights = on(device, make(CASES[1]))
    grad = gradient(2, 7, 15).to(device)
    wanted = results((value, shapes, locations, weights), grad)
    compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager")
    for form in (shapes, CASES[1].shapes):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        out = compiled(leaves[0], form, *leaves[1:])
        out.backward(grad)
        for ours, theirs in zip([out, *(tensor.grad for tensor in leaves)], wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@both
def test_strided_inputs_give_the_same(impl, device):
    value, shapes, locations, weights = on(device, make(dataclasses.replace(CASES[1], channels=8)))
    grad = gradient(2, 7, 24).to(device)

    moved = value.transpose(1, 2).contiguous().transpose(1, 2), locations.transpose(1, 2).contiguous().transpose(1, 2)
    inputs = [moved[0], shapes, moved[1], weights.transpose(0, 3).contiguous().transpose(0, 3)]
    wanted = results((value, shapes, locations, weights), grad, impl)
    moved_grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    for ours, theirs in zip(results(inputs, moved_grad, impl), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)

    def begun_late(tensor):
        """In a buffer, beginning where no vector does."""
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)

    out = ms_deform_attn(begun_late(value), shapes.tolist(), begun_late(locations), begun_late(weights), impl=impl)
    assert torch.equal(out, wanted[0])


def test_a_second_derivative_is_refused(device):
    value, shapes, locations, weights = on(device, make(CASES[1]))
    out = ms_deform_attn(value.requires_grad_(), shapes, locations, weights)
    (first,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="s2d::ms_deform_attn: expected one backward pass, got a second derivative"):
        first.sum().backward()


@both
def test_equals_the_official_operator(test_data, impl, device):
    stored = torch.load(test_data / "parity" / "parity_small.pt", weights_only=True)["msdeform"]
    names = ("value", "loc", "attn")
    value, locations, weights = on(device, [stored[name] for name in names])
    found = results((value, stored["shapes"].view(-1, 2), locations, weights), stored["grad_out"].to(device), impl)
    for ours, name in zip(found, ("out", "grad_value", "grad_loc", "grad_attn"), strict=True):
        torch.testing.assert_close(ours.cpu(), stored[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"value": torch.zeros(2, 46, 3, 5).int()}, TypeError, "one floating point dtype, .*, got torch.int32"),
        ({"value": torch.zeros(2, 46, 3, 5).double()}, TypeError, "beside float32, got torch.float64, torch.float32"),
        (
            {"locations": torch.zeros(2, 7, 3, 3, 3, 2).half()},
            TypeError,
            "got torch.float32, torch.float16",
        ),
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
