"""The Temporal DropLoss: its formula, its drops, its choice of points."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from s2d.ops import BitMasks, pack_masks, temporal_drop_loss
from s2d.ops.reference.temporal_drop_loss import CANDIDATES, draw_points, sample, uncertain
from s2d.testing.cases.temporal_drop_loss import CASES, Case, make
from s2d.testing.numeric import assert_within_budget

pytestmark = pytest.mark.usefixtures("nan_memory")

FEW = Case("few", 2, 1, (4, 5), (6, 9), 12, kept_share=1.0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def bilinear(image: list[list[float]], x: float, y: float) -> float:
    """One sample by hand: pixel centres at half-integers, zero outside."""
    height, width = len(image), len(image[0])
    px, py = x * width - 0.5, y * height - 0.5
    total = 0.0
    for row in (math.floor(py), math.floor(py) + 1):
        for column in (math.floor(px), math.floor(px) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(py - row)) * (1 - abs(px - column)) * image[row][column]
    return total


def by_hand(logits, target, keep, points) -> tuple[float, float]:
    """The two sums with Python floats; points ``[N T, P, 2]``."""
    bce = dice = 0.0
    for n in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            if not keep[n, t]:
                continue
            row = points[n * logits.shape[1] + t].tolist()
            x = [bilinear(logits[n, t].tolist(), *p) for p in row]
            y = [bilinear(target[n, t].double().tolist(), *p) for p in row]
            s = [1 / (1 + math.exp(-v)) for v in x]
            bce += sum(math.log1p(math.exp(-abs(v))) + max(v, 0) - v * w for v, w in zip(x, y, strict=True)) / len(x)
            dice += 1 - (2 * sum(a * b for a, b in zip(s, y, strict=True)) + 1) / (sum(s) + sum(y) + 1)
    return bce, dice


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_formula(case):
    logits, target, keep = make(case, dtype=torch.float64)
    points = torch.rand(keep.numel(), min(case.num_points, 40), 2, dtype=torch.float64)
    bce, dice = temporal_drop_loss(logits, target, keep, points.shape[1], points=points)
    expected = by_hand(logits, target, keep, points)
    torch.testing.assert_close(torch.stack([bce, dice]), torch.tensor(expected, dtype=torch.float64))


def losses_and_gradient(logits, target, keep, num_points, **options):
    leaf = logits.detach().clone().requires_grad_()
    bce, dice = temporal_drop_loss(leaf, target, keep, num_points, **options)
    (bce + 2 * dice).backward()
    return torch.stack([bce, dice]).detach(), leaf.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_definition_at_given_points(case, dtype, device):
    logits, target, keep = (part.to(device) for part in make(case))
    logits = logits.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    points = torch.rand(keep.numel(), case.num_points, 2, dtype=wide).to(device)
    losses, gradient = losses_and_gradient(logits, target, keep, case.num_points, points=points)
    assert losses.dtype == wide
    assert gradient.dtype == dtype

    def definition(logits, points, part):
        found = losses_and_gradient(logits, target, keep, case.num_points, points=points, impl="reference")
        return found[part].cpu()

    if dtype == torch.float64:  # nothing is more exact
        torch.testing.assert_close(losses.cpu(), definition(logits, points, 0))
        torch.testing.assert_close(gradient.cpu(), definition(logits, points, 1))
        return
    for part, ours in enumerate((losses, gradient)):
        assert_within_budget(ours.cpu(), lambda *x, part=part: definition(*x, part), logits, points, multiple=4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_definition_at_points_drawn_here(case, device):
    """In float64 no two candidates are as uncertain as each other by rounding alone: the choice is the same."""
    logits, target, keep = (part.to(device) for part in make(case, dtype=torch.float64))
    ours, wanted = (
        losses_and_gradient(
            logits,
            target,
            keep,
            case.num_points,
            generator=torch.Generator(device=logits.device).manual_seed(7),
            impl=impl,
        )
        for impl in ("native", "reference")
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_equals_the_definition_for_any_share_of_uncertain_points(device):
    logits, target, keep = (part.to(device) for part in make(FEW, dtype=torch.float64))
    for oversample, importance in ((1.0, 1.0), (1.0, 0.3), (2.6, 0.0), (5.0, 0.99)):
        ours, wanted = (
            losses_and_gradient(
                logits,
                target,
                keep,
                301,
                oversample=oversample,
                importance=importance,
                generator=torch.Generator(device=logits.device).manual_seed(8),
                impl=impl,
            )
            for impl in ("native", "reference")
        )
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_of_equal_candidates_the_first_are_chosen_and_nan_before_all(dtype, device):
    logits, target, keep = (part.to(device) for part in make(CASES[4], dtype=dtype))
    logits = logits.relu()  # plains of 0: what is read there is 0 whatever the weights round to
    points = tuple(torch.rand(4, n, 2, dtype=dtype).to(device) for n in (768, 64))
    ours, wanted = (
        losses_and_gradient(logits, target, keep, 256, points=points, impl=impl) for impl in ("native", "reference")
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)
    logits[0, 0, 5, 5] = torch.nan
    for impl in ("native", "reference"):
        assert losses_and_gradient(logits, target, keep, 256, points=points, impl=impl)[0].isnan().all()


def test_many_candidates_are_chosen_from_part_by_part(device):
    """More of them than a program takes; those of one row are all equal."""
    logits, target, keep = (part.to(device) for part in make(FEW, dtype=torch.float64))
    logits[0] = 0
    ours, wanted = (
        losses_and_gradient(
            logits, target, keep, 2000, generator=torch.Generator(device=logits.device).manual_seed(9), impl=impl
        )
        for impl in ("native", "reference")
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [0.0, 50.0], ids=["nearest to 0", "farthest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_sample_that_misleads_changes_nothing(value, dtype):
    """Where every 32nd candidate, those that the kernel looks at first, reads the same extreme logit."""
    generator = torch.Generator().manual_seed(10)
    logits = torch.rand(2, 1, 12, 16, generator=generator, dtype=dtype) + 1
    logits[:, :, 4:8, 4:8] = value
    candidates, uniform = (torch.rand(2, n, 2, generator=generator, dtype=dtype) for n in (6000, 500))
    candidates[:, 16::32] = 6 / 12
    candidates[:, 16::32, 0] = 6 / 16
    target = torch.rand(2, 1, 12, 16, generator=generator) < 0.5
    ours, wanted = (
        losses_and_gradient(logits, target, None, 2000, points=(candidates, uniform), impl=impl)
        for impl in ("native", "reference")
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_all_of_many_candidates_may_be_chosen():
    logits, target, keep = make(FEW)
    candidates, uniform = torch.rand(2, 5000, 2), torch.rand(2, 0, 2)
    ours, wanted = (
        losses_and_gradient(logits, target, keep, 5000, points=points, oversample=1.0, importance=1.0, impl=impl)
        for points, impl in (((candidates, uniform), "native"), (candidates, "reference"))
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_drawn_points_fill_the_square_evenly():
    points = draw_points(torch.tensor(2**40 + 5), 3, 4001, CANDIDATES)
    assert points.shape == (3, 4001, 2)
    assert ((points >= 0) & (points < 1)).all()
    counts = torch.histogramdd(points.flatten(0, 1), bins=[8, 8], range=[0.0, 1.0, 0.0, 1.0]).hist
    expected = 3 * 4001 / 64
    # Chi-squared of 63 degrees of freedom: 99.9 % lie under 104.
    assert ((counts - expected) ** 2 / expected).sum() < 104
    assert len(points.flatten(0, 1).unique(dim=0)) > 3 * 4001 - 3


def test_drawn_points_are_those_of_philox():
    """Philox4x32-10's own known answers: counter and key all zeros, and all ones."""
    seed = torch.tensor(0)
    x, y = draw_points(seed, 1, 1, 0)[0, 0].tolist()
    assert (x, y) == ((0x6627E8D5 >> 8) * 2**-24, (0xE169C58D >> 8) * 2**-24)


def test_points_on_the_border_outside_and_nowhere(device):
    logits, target, keep = (part.to(device) for part in make(FEW))
    at = torch.tensor([-9e4, -1.0, -0.06, 0.0, 1e-9, 0.03, 0.5, 0.97, 1.0 - 1e-7, 1.0, 1.06, 2.0, 7e5], device=device)
    points = torch.cat([torch.stack(pair, 1) for pair in ((at, at), (at, at.flip(0)), (at, at * 0 + 0.4))])
    points = points.expand(2, -1, -1).contiguous()
    ours, wanted = (
        losses_and_gradient(logits, target, keep, points.shape[1], points=points, impl=impl)
        for impl in ("native", "reference")
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)
    # What is not read does not count, even where it is not finite.
    nowhere = torch.tensor([torch.nan, torch.inf, -torch.inf, -3e38], device=device)[:, None].expand(2, 4, 2)
    losses, gradient = losses_and_gradient(torch.full_like(logits, torch.inf), target, keep, 4, points=nowhere)
    assert losses.isfinite().all()
    assert gradient.abs().max() == 0


def test_bits_bytes_and_strided_targets_give_the_same():
    logits, target, keep = make(CASES[1])
    points = torch.rand(keep.numel(), 20, 2)
    wanted = temporal_drop_loss(logits, target, keep, 20, points=points)
    strided = torch.zeros(*target.shape[:-1], 2 * target.shape[-1], dtype=torch.uint8)[..., ::2]
    strided[target] = 255
    for form in (pack_masks(target), strided):
        assert temporal_drop_loss(logits, form, keep, 20, points=points) == wanted


def test_dropped_rows_say_nothing_whatever_they_hold(device):
    logits, target, keep = (part.to(device) for part in make(CASES[1]))
    keep[0, 1] = False
    keep[0, 0] = True
    points = torch.rand(keep.numel(), 20, 2).to(device)
    wanted = temporal_drop_loss(logits, target, keep, 20, points=points)
    poisoned = logits.clone()
    poisoned[~keep] = float("nan")
    poisoned.requires_grad_()
    bce, dice = temporal_drop_loss(poisoned, target, keep, 20, points=points)
    assert (bce.item(), dice.item()) == (wanted[0].item(), wanted[1].item())
    (bce + dice).backward()
    assert poisoned.grad[~keep].abs().max() == 0
    assert poisoned.grad[keep].isfinite().all()
    assert poisoned.grad[0, 0].abs().sum() > 0


def test_a_kept_row_with_an_empty_target_is_a_negative_and_keep_none_drops_it():
    logits, target, _ = make(CASES[4])
    target[0, 1] = False
    everything = torch.ones(2, 2, dtype=torch.bool)
    points = torch.rand(4, 256, 2)
    with_negative, _ = temporal_drop_loss(logits, target, everything, 256, points=points)
    official, _ = temporal_drop_loss(logits, target, None, 256, points=points)
    nonempty = everything.clone()
    nonempty[0, 1] = False
    assert official == temporal_drop_loss(logits, target, nonempty, 256, points=points)[0]
    assert with_negative > official


@pytest.mark.parametrize("index", [2, 3])
def test_nothing_kept_is_exactly_zero_with_zero_gradient(index):
    logits, target, keep = make(CASES[index])
    logits.requires_grad_()
    bce, dice = temporal_drop_loss(logits, target, keep, 16)
    assert bce.item() == 0
    assert dice.item() == 0
    (bce + dice).backward()
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_gradient_is_that_of_the_formula(impl, device, emulated):
    logits, target, keep = (part.to(device) for part in make(FEW if emulated else CASES[1], dtype=torch.float64))
    points = torch.rand(keep.numel(), 12, 2, dtype=torch.float64).to(device)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: temporal_drop_loss(x, target, keep, 12, points=points, impl=impl), logits, fast_mode=emulated
    )


def test_each_loss_flows_back_alone_and_nothing_where_nothing_is_asked(device):
    logits, target, keep = (part.to(device) for part in make(FEW, dtype=torch.float64))
    points = torch.rand(keep.numel(), 12, 2, dtype=torch.float64).to(device)
    for part in (0, 1):
        gradients = []
        for impl in ("native", "reference"):
            leaf = logits.clone().requires_grad_()
            temporal_drop_loss(leaf, target, keep, 12, points=points, impl=impl)[part].backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert not temporal_drop_loss(leaf, target, keep, 12, points=points)[0].requires_grad


def test_a_second_derivative_is_refused(device):
    logits, target, keep = (part.to(device) for part in make(FEW))
    logits.requires_grad_()
    bce, _ = temporal_drop_loss(logits, target, keep, 40)
    (slope,) = torch.autograd.grad(bce, logits, create_graph=True)
    with pytest.raises(
        RuntimeError, match="s2d::temporal_drop_loss: expected one backward pass, got a second derivative"
    ):
        slope.square().sum().backward()


def test_operators_are_registered_properly(device):
    logits, target, keep = (part.to(device) for part in make(CASES[0]))
    bits, seed = pack_masks(target), torch.tensor(3, device=device)
    for dtype, gradient in ((torch.float32, True), (torch.bfloat16, False)):
        leaf = logits.detach().to(dtype).requires_grad_(gradient)
        inputs = (leaf, bits.words, bits.width, keep, seed, None, None, 12, 36, 9, gradient)
        torch.library.opcheck(torch.ops.s2d.temporal_drop_loss.default, inputs)


def test_compiles_without_a_break(device):
    logits, target, keep = (part.to(device) for part in make(FEW))
    points = torch.rand(keep.numel(), 40, 2).to(device)

    def total(x):
        return sum(temporal_drop_loss(x, target, keep, 40, points=points))

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    results = [call(leaf) for call, leaf in zip((compiled, total), leaves, strict=True)]
    for result in results:
        result.backward()
    assert torch.equal(*results)
    assert torch.equal(*(leaf.grad for leaf in leaves))


def test_any_strides(device):
    logits, target, keep = (part.to(device) for part in make(CASES[1]))
    points = torch.rand(keep.numel(), 20, 2).to(device)
    wanted = losses_and_gradient(logits, target, keep, 20, points=points)
    words = pack_masks(target).words
    strided = [
        logits.transpose(0, 2).contiguous().transpose(0, 2),
        BitMasks(words.transpose(0, 2).contiguous().transpose(0, 2), target.shape[-1]),
        keep.T.contiguous().T,
    ]
    turned = points.transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in zip(losses_and_gradient(*strided, 20, points=turned), wanted, strict=True):
        assert torch.equal(a, b)


def test_runs_are_equal(device, emulated):
    case = FEW if emulated else Case("many", 6, 5, (24, 32), (48, 64), 9000)
    logits, target, keep = (part.to(device) for part in make(case))
    first, again = (
        losses_and_gradient(
            logits, target, keep, case.num_points, generator=torch.Generator(device=logits.device).manual_seed(1)
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_threads_change_nothing():
    logits, target, keep = make(Case("many", 6, 5, (24, 32), (48, 64), 9000))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            generator = torch.Generator().manual_seed(1)
            results.append(losses_and_gradient(logits, target, keep, 9000, generator=generator))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_digits(isa):
    code = (
        "import torch\n"
        "from s2d.ops import temporal_drop_loss\n"
        "from s2d.testing.cases.temporal_drop_loss import CASES, make\n"
        "generator = torch.Generator().manual_seed(2)\n"
        "logits, target, keep = make(CASES[4])\n"
        "losses = temporal_drop_loss(logits.requires_grad_(), target, keep, 1000, generator=generator)\n"
        "sum(losses).backward()\n"
        "print([x.item() for x in losses], logits.grad.double().abs().sum().item())\n"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "S2D_CPU_ISA": name},
            check=True,
            timeout=120,
            capture_output=True,
        ).stdout
        for name in (isa, "")
    ]
    assert run[0] == run[1]


def test_the_most_uncertain_candidates_are_chosen():
    logits, target, keep = make(CASES[4])
    candidates, uniform = torch.rand(4, 768, 2), torch.rand(4, 64, 2)
    chosen = uncertain(logits.flatten(0, 1), candidates, 192)
    size = sample(logits.flatten(0, 1), candidates).abs()
    picked = sample(logits.flatten(0, 1), chosen).abs()
    assert torch.equal(picked.sort(1).values, size.sort(1).values[:, :192])
    final = torch.cat([chosen, uniform], dim=1)
    wanted = temporal_drop_loss(logits, target, keep, 256, points=final)
    torch.testing.assert_close(temporal_drop_loss(logits, target, keep, 256, points=(candidates, uniform)), wanted)


def test_the_generator_decides_the_points():
    logits, target, keep = make(CASES[1])
    first, again, other = (
        temporal_drop_loss(logits, target, keep, 40, generator=torch.Generator().manual_seed(s))[0].item()
        for s in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"keep": torch.ones(2, 2)}, TypeError, "keep bool"),
        ({"keep": torch.ones(2, 3, dtype=torch.bool)}, ValueError, r"keep \[2, 2\], got \[2, 3\]"),
        ({"target": torch.zeros(2, 2, 8, 8)}, TypeError, "target BitMasks or a bool"),
        ({"target": torch.zeros(2, 3, 8, 8, dtype=torch.bool)}, ValueError, r"target \[2, 2, H, W\]"),
        ({"num_points": 0}, ValueError, "num_points > 0"),
        ({"oversample": 0.5}, ValueError, "oversample >= 1"),
        ({"points": torch.rand(3, 16, 2)}, ValueError, r"points \[4, 16, 2\], got \[\[3, 16, 2\]\]"),
        ({"points": (torch.rand(4, 48, 2), torch.rand(4, 5, 2))}, ValueError, r"\[4, 48, 2\] and \[4, 4, 2\]"),
        (
            {"logits": torch.zeros(2, 2, 0, 8)},
            ValueError,
            r"H, W, h, w > 0, got \[2, 2, 8, 8\] for logits \[2, 2, 0, 8\]",
        ),
        ({"impl": "fast"}, ValueError, "native, reference, got 'fast'"),
    ],
)
def test_what_is_refused(change, error, words):
    arguments = {
        "logits": torch.zeros(2, 2, 8, 8),
        "target": torch.zeros(2, 2, 8, 8, dtype=torch.bool),
        "keep": torch.ones(2, 2, dtype=torch.bool),
        "num_points": 16,
    }
    with pytest.raises(error, match=words):
        temporal_drop_loss(**{**arguments, **change})


def test_points_are_given_or_drawn_on_a_gpu(device, emulated):
    if device == "cpu" and not emulated:
        pytest.skip("the CPU kernel takes one of both")
    logits, target, keep = (part.to(device) for part in make(FEW))
    candidates, seed = torch.rand(keep.numel(), 36, 2, device=device), torch.tensor(3, device=device)
    words, numbers = pack_masks(target).words, (12, 36, 9, False)
    with pytest.raises(RuntimeError, match=r"s2d::temporal_drop_loss: expected .* both given or both drawn"):
        torch.ops.s2d.temporal_drop_loss(logits, words, 9, keep, seed, candidates, None, *numbers)


def test_the_operator_itself_refuses_what_it_cannot_read():
    logits, target, keep = make(CASES[4])
    words, width, seed = pack_masks(target).words, target.shape[-1], torch.tensor(1)
    numbers = (16, 48, 12, False)
    for inputs, expected in (
        ((logits[0], words, width, keep, seed, None, None, *numbers), r"logits \[N, T, h, w\]"),
        ((logits, words[:, 1:], width, keep, seed, None, None, *numbers), "words int64"),
        ((logits, words, width + 64, keep, seed, None, None, *numbers), "words int64"),
        ((logits, words, width, keep.int(), seed, None, None, *numbers), "keep bool"),
        ((logits, words, width, keep, seed, None, None, 16, 8, 12, False), "chosen"),
        ((logits, words, width, keep, seed, torch.rand(3, 48, 2), None, *numbers), r"points \[N T, P, 2\]"),
        ((logits, words, width, keep, seed, torch.rand(4, 48, 2).double(), None, *numbers), "points float32"),
        (
            (logits.int(), words, width, keep, seed, None, None, *numbers),
            "logits float16, bfloat16, float32 or float64",
        ),
    ):
        with pytest.raises(RuntimeError, match=f"s2d::temporal_drop_loss: expected .*{expected}"):
            torch.ops.s2d.temporal_drop_loss(*inputs)
