"""The Temporal DropLoss: its formula, its drops, its choice of points."""

from __future__ import annotations

import math

import pytest
import torch

from s2d.ops import pack_masks, temporal_drop_loss
from s2d.ops.reference.temporal_drop_loss import sample, uncertain
from s2d.testing.cases.temporal_drop_loss import CASES, make


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


def test_bits_bytes_and_strided_targets_give_the_same():
    logits, target, keep = make(CASES[1])
    points = torch.rand(keep.numel(), 20, 2)
    wanted = temporal_drop_loss(logits, target, keep, 20, points=points)
    strided = torch.zeros(*target.shape[:-1], 2 * target.shape[-1], dtype=torch.uint8)[..., ::2]
    strided[target] = 255
    for form in (pack_masks(target), strided):
        assert temporal_drop_loss(logits, form, keep, 20, points=points) == wanted


def test_dropped_rows_say_nothing_whatever_they_hold():
    logits, target, keep = make(CASES[1])
    keep[0, 1] = False
    keep[0, 0] = True
    points = torch.rand(keep.numel(), 20, 2)
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


def test_gradient_is_that_of_the_formula():
    logits, target, keep = make(CASES[1], dtype=torch.float64)
    points = torch.rand(keep.numel(), 12, 2, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: temporal_drop_loss(x, target, keep, 12, points=points), logits)


def test_the_most_uncertain_candidates_are_chosen():
    logits, target, keep = make(CASES[4])
    candidates, uniform = torch.rand(4, 768, 2), torch.rand(4, 64, 2)
    chosen = uncertain(logits.flatten(0, 1), candidates, 192)
    size = sample(logits.flatten(0, 1), candidates).abs()
    picked = sample(logits.flatten(0, 1), chosen).abs()
    assert torch.equal(picked.sort(1).values, size.sort(1).values[:, :192])
    final = torch.cat([chosen, uniform], dim=1)
    wanted = temporal_drop_loss(logits, target, keep, 256, points=final)
    assert temporal_drop_loss(logits, target, keep, 256, points=(candidates, uniform)) == wanted


def test_points_of_the_kept_rows_alone_are_the_same_as_points_of_all():
    logits, target, keep = make(CASES[1])
    points = torch.rand(keep.numel(), 10, 2)
    wanted = temporal_drop_loss(logits, target, keep, 10, points=points)
    assert temporal_drop_loss(logits, target, keep, 10, points=points[keep.flatten()]) == wanted


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
        ({"points": torch.rand(3, 16, 2)}, ValueError, r"points \[R, 16, 2\] with R = 4"),
        ({"points": (torch.rand(4, 48, 2), torch.rand(4, 5, 2))}, ValueError, r"\[R, 48, 2\] and \[R, 4, 2\]"),
        ({"impl": "native"}, RuntimeError, "reference-only"),
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
