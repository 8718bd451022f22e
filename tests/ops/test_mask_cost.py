"""The matcher's cost: its formula, shared points, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from s2d.ops import mask_cost, pack_masks
from s2d.ops.reference.temporal_drop_loss import sample
from s2d.testing.cases.mask_cost import CASES, make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_losses_of_each_pair(case):
    logits, target, points = make(case, dtype=torch.float64)
    bce, dice = mask_cost(logits, target, points)
    assert bce.shape == dice.shape == (case.queries, case.targets)
    for q in range(case.queries):
        for g in range(case.targets):
            rows = points.expand(case.frames, -1, -1)
            x, t = sample(logits[q], rows), sample(target[g].double(), rows)
            torch.testing.assert_close(bce[q, g], F.binary_cross_entropy_with_logits(x, t))
            s = x.sigmoid()
            torch.testing.assert_close(dice[q, g], 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1))


def test_bits_and_bytes_give_the_same():
    logits, target, points = make(CASES[1])
    wanted = mask_cost(logits, target, points)
    for form in (pack_masks(target), target.to(torch.uint8) * 7):
        assert all(torch.equal(a, b) for a, b in zip(mask_cost(logits, form, points), wanted, strict=True))


def test_large_logits_stay_finite():
    logits = torch.full((1, 1, 4, 4), 500.0)
    bce, dice = mask_cost(logits, torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.full((3, 2), 0.5))
    assert bce.item() == pytest.approx(500)
    assert dice.item() == pytest.approx(1 - 1 / 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.zeros(2, 8, 8)}, ValueError, r"logits floating point \[Q, T, h, w\]"),
        ({"target": torch.zeros(1, 3, 8, 8)}, TypeError, "target BitMasks or a bool"),
        ({"target": torch.zeros(1, 2, 8, 8, dtype=torch.bool)}, ValueError, r"target \[G, 3, H, W\]"),
        ({"points": torch.rand(0, 2)}, ValueError, "P > 0"),
        ({"points": torch.rand(1, 4, 2)}, ValueError, r"points floating point \[P, 2\]"),
        ({"impl": "native"}, RuntimeError, "reference-only"),
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
