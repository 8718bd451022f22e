"""The matcher's cost: its formula, values within torch's own error, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from s2d.ops import BitMasks, mask_cost, pack_masks
from s2d.ops.reference.mask_cost import mask_cost as definition
from s2d.ops.reference.temporal_drop_loss import sample
from s2d.testing.cases.mask_cost import CASES, Case, make
from s2d.testing.numeric import assert_within_budget

pytestmark = pytest.mark.usefixtures("nan_memory")

WIDE = Case("wide", 37, 6, 2, (40, 33), (35, 51), 1500)  # more than a band of rows, a register and a run of points
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def assert_equals_definition(result, logits, target, points):
    logits, target, points = (part.cpu() for part in (logits, target, points))
    if logits.dtype == torch.float64:  # nothing is more exact
        torch.testing.assert_close([ours.cpu() for ours in result], list(definition(logits, target, points)))
        return
    for part, ours in enumerate(result):
        assert_within_budget(ours.cpu(), lambda *x, part=part: definition(*x)[part], logits, target, points, multiple=4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_definition_is_the_losses_of_each_pair(case):
    logits, target, points = make(case, dtype=torch.float64)
    bce, dice = mask_cost(logits, target, points, impl="reference")
    assert bce.shape == dice.shape == (case.queries, case.targets)
    for q in range(case.queries):
        for g in range(case.targets):
            rows = points.expand(case.frames, -1, -1)
            x, t = sample(logits[q], rows), sample(target[g].double(), rows)
            torch.testing.assert_close(bce[q, g], F.binary_cross_entropy_with_logits(x, t))
            s = x.sigmoid()
            torch.testing.assert_close(dice[q, g], 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_definition(case, dtype, device):
    logits, target, points = (part.to(device) for part in make(case))
    logits = logits.to(dtype)
    if dtype == torch.float64:
        points = points.double() + 1e-9  # a place between those of float32
    bits = pack_masks(target)
    result = mask_cost(logits, bits, points)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [part.dtype for part in result] == [wide, wide]
    assert all(part.device == logits.device for part in result)
    assert_equals_definition(result, logits, target, points)
    for form in (target, target.to(torch.uint8) * 7):
        assert all(torch.equal(a, b) for a, b in zip(mask_cost(logits, form, points), result, strict=True))


def test_points_on_the_border_outside_and_nowhere(device):
    logits, target, _ = (part.to(device) for part in make(CASES[1]))
    edge = [-1e30, -1.0, -0.06, 0.0, 1e-9, 0.03, 0.5, 0.97, 1.0 - 1e-7, 1.0, 1.06, 2.0, 3e38]
    at = torch.tensor([*edge, float("nan"), float("inf"), -float("inf")])
    points = torch.cat([torch.stack(pair, 1) for pair in ((at, at), (at, at.flip(0)), (at, at * 0 + 0.4))]).to(device)
    assert_equals_definition(mask_cost(logits, target, points), logits, target, points)
    # What is not read does not count, even where it is not finite: all these points are outside.
    logits.fill_(float("inf"))
    bce, dice = mask_cost(
        logits, target, points[points.isnan().any(1) | (points < -0.5).any(1) | (points > 1.5).any(1)]
    )
    assert torch.allclose(bce.cpu(), torch.tensor(2.0).log())
    assert bool(dice.isfinite().all())


@pytest.mark.parametrize("value", [500.0, -500.0, 88.0, -30.0, float("inf"), -float("inf"), float("nan")])
def test_large_logits(value, device):
    logits = torch.full((1, 1, 4, 4), value, device=device)
    nothing, points = torch.zeros(1, 1, 4, 4, dtype=torch.bool, device=device), torch.full((3, 2), 0.5, device=device)
    (bce, dice), wanted = mask_cost(logits, nothing, points), definition(logits, nothing, points)
    # exp(-500) is no float32: a cost of 0 may be the smallest that is one.
    torch.testing.assert_close(bce, wanted[0], rtol=1e-5, atol=1e-37, equal_nan=True)
    torch.testing.assert_close(dice, wanted[1], equal_nan=True)


def test_one_pixel_maps_and_words_at_their_end(device):
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(9, 2, generator=generator).to(device)
    for width in (1, 63, 64, 65):
        logits = torch.randn(17, 2, 1, 1, generator=generator).to(device)
        target = (torch.rand(9, 2, 1, width, generator=generator) < 0.5).to(device)
        assert_equals_definition(mask_cost(logits, target, points), logits, target, points)


def test_any_strides(device):
    logits, target, points = (part.to(device) for part in make(CASES[1]))
    wanted = mask_cost(logits, target, points)
    words = pack_masks(target).words
    strided = [
        logits.transpose(0, 1).contiguous().transpose(0, 1),
        BitMasks(words.transpose(0, 2).contiguous().transpose(0, 2), target.shape[-1]),
        torch.cat([points, points], 1)[:, 1:3].flip(1),
    ]
    assert all(torch.equal(a, b) for a, b in zip(mask_cost(*strided), wanted, strict=True))


def test_more_than_a_block_of_everything(device, monkeypatch):
    """More of all than a block on the GPU takes, and few blocks: each sums points in many steps."""
    if device != "cpu" or os.environ.get("TRITON_INTERPRET") == "1":
        from s2d.kernels import mask_cost as kernels

        monkeypatch.setattr(kernels, "PROGRAMS", 12)
    generator = torch.Generator().manual_seed(6)
    logits = (2 * torch.randn(131, 1, 5, 37, generator=generator)).to(device)
    target = (torch.rand(9, 1, 7, 70, generator=generator) < 0.3).to(device)
    points = torch.rand(133, 2, generator=generator).to(device)
    assert_equals_definition(mask_cost(logits, target, points), logits, target, points)


def test_more_chunks_than_are_added_at_once(device):
    logits, target, points = (part.to(device) for part in make(Case("long", 2, 2, 44, (3, 5), (6, 9), 11)))
    assert_equals_definition(mask_cost(logits, target, points), logits, target, points)


def test_nothing_flows_back(device):
    logits, target, points = (part.to(device) for part in make(CASES[1]))
    for impl in ("native", "reference"):
        result = mask_cost(logits.requires_grad_(), target, points.requires_grad_(), impl=impl)
        assert not any(part.requires_grad for part in result)


def test_operators_are_registered_properly(device):
    logits, target, points = (part.to(device) for part in make(Case("few", 3, 2, 1, (4, 5), (6, 9), 5)))
    bits = pack_masks(target)
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.s2d.mask_cost.default, (logits.to(dtype), bits.words, bits.width, points))


def test_compiles_without_a_break(device):
    logits, target, points = (part.to(device) for part in make(CASES[1]))
    compiled = torch.compile(lambda *inputs: mask_cost(*inputs)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, target, points), mask_cost(logits, target, points)[0] + 1)


def test_runs_are_equal_and_threads_change_nothing():
    logits, target, points = make(CASES[1])
    many = torch.rand(5000, 2, generator=torch.Generator().manual_seed(7))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(mask_cost(logits.repeat(5, 1, 1, 1), target, many))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
    # A query's costs do not depend on which others there are.
    assert torch.equal(results[0][0][7:14], results[0][0][:7])
    assert torch.equal(mask_cost(logits[3:4], target, points)[1], mask_cost(logits, target, points)[1][3:4])


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_digits(isa):
    inputs = make(WIDE)
    ours = mask_cost(*inputs)
    code = (
        "from s2d.ops import mask_cost\n"
        "from s2d.testing.cases.mask_cost import Case, make\n"
        f"print([part.tolist() for part in mask_cost(*make({WIDE}))])\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120, capture_output=True)
    assert result.stdout.decode().strip() == str([part.tolist() for part in ours])
    assert_equals_definition(ours, *inputs)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.zeros(2, 8, 8)}, ValueError, r"logits \[Q, T, h, w\], got \[2, 8, 8\]"),
        ({"logits": torch.zeros(2, 3, 0, 8)}, ValueError, r"logits with T, h, w > 0, got \[2, 3, 0, 8\]"),
        (
            {"logits": torch.zeros(2, 3, 8, 8).int()},
            TypeError,
            r"logits floating point \[Q, T, h, w\], got torch.int32",
        ),
        ({"target": torch.zeros(1, 3, 8, 8)}, TypeError, "target BitMasks or a bool"),
        ({"target": torch.zeros(1, 2, 8, 8, dtype=torch.bool)}, ValueError, r"target \[G, 3, H, W\] with H, W > 0"),
        ({"target": torch.zeros(1, 3, 8, 0, dtype=torch.bool)}, ValueError, r"H, W > 0, got \[1, 3, 8, 0\]"),
        ({"target": torch.zeros(3, 8, 8, dtype=torch.bool)}, ValueError, r"target \[G, 3, H, W\]"),
        ({"points": torch.rand(0, 2)}, ValueError, "P > 0"),
        ({"points": torch.rand(4, 3)}, ValueError, r"points \[P, 2\] with P > 0, got \[4, 3\]"),
        ({"points": torch.rand(1, 4, 2)}, ValueError, r"points \[P, 2\], got \[1, 4, 2\]"),
        ({"points": torch.zeros(4, 2).int()}, TypeError, r"points floating point \[P, 2\], got torch.int32"),
        ({"impl": "fast"}, ValueError, "native, reference, got 'fast'"),
    ],
)
def test_what_is_refused(change, error, words):
    arguments = {
        "logits": torch.zeros(2, 3, 8, 8),
        "target": torch.zeros(1, 3, 8, 8, dtype=torch.bool),
        "points": torch.rand(4, 2),
    }
    with pytest.raises(error, match=words):
        mask_cost(**{**arguments, **change})


def test_the_operator_itself_refuses_what_it_cannot_read():
    logits, target, points = make(CASES[1])
    words, width = pack_masks(target).words, target.shape[-1]
    for inputs, expected in (
        ((logits[0], words, width, points), r"logits \[Q, T, h, w\]"),
        ((logits, words[:, 1:], width, points), "words int64"),
        ((logits, words, width + 64, points), "words int64"),
        ((logits, words, width, points.double()), "points float32"),
        ((logits.int(), words, width, points), "logits float16, bfloat16, float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=f"s2d::mask_cost: expected .*{expected}"):
            torch.ops.s2d.mask_cost(*inputs)
