"""The averaged model, its targets, and the schedule of the optimizer."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from s2d.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from s2d.training.settings import OptimizerSettings, RoundSettings
from s2d.training.teacher import Teacher, confident_targets


class Small(nn.Module):
    """A module with every kind of parameter the groups tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
        self.embed = nn.Embedding(4, 8)
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(value)


def test_the_average_follows_with_a_momentum_that_grows():
    student = Small()
    teacher = Teacher(student, momentum=0.75)
    expected = None
    for step, value in enumerate([4.0, 8.0, 2.0, 6.0, 1.0, 3.0]):
        set_all(student, value)
        teacher.update(student, step)
        momentum = min(0.75, 1 - 1 / (step + 1))
        expected = value if step == 0 else momentum * expected + (1 - momentum) * value
        for parameter in teacher.model.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
        assert teacher.model.seen.item() == value, "buffers are copied, not averaged"


def test_the_teacher_is_in_evaluation_mode_and_learns_nothing_by_itself():
    teacher = Teacher(Small().train(), momentum=0.9)
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_confident_targets_are_the_best_and_not_empty():
    logits = torch.tensor([[[3.0, 0.0], [0.5, 0.0], [5.0, 0.0], [9.0, 0.0]]])
    masks = torch.full((1, 4, 2, 4, 4), -5.0)
    masks[0, 0, :, :2] = 5.0
    masks[0, 1] = 5.0
    masks[0, 2, 0, 0, 0] = 5.0
    (found,) = confident_targets(logits, masks, (16, 16), threshold=0.75)
    assert len(found) == 2, "the unsure one and the one without a pixel are left out"
    assert found.keep.all()
    assert found.masks.shape == (2, 2, 16, 16)
    assert found.masks[1, 0, :6].all()
    assert not found.masks[1, 0, 10:].any()
    (most,) = confident_targets(logits, masks, (16, 16), threshold=0.0, most=2)
    assert len(most) == 1, "the best by score are taken before the empty ones go"


def test_groups_have_their_own_rate_and_decay():
    model = Small()
    optimizer = make_optimizer(model, OptimizerSettings(learning_rate=1.0, backbone_multiplier=0.1, weight_decay=0.05))
    set_learning_rate(optimizer, 2.0)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found[id(model.backbone[0].weight)] == pytest.approx((0.2, 0.05))
    assert found[id(model.backbone[0].bias)] == pytest.approx((0.2, 0.0))
    assert found[id(model.backbone[1].weight)] == pytest.approx((0.2, 0.0))
    assert found[id(model.embed.weight)] == pytest.approx((2.0, 0.0))
    assert found[id(model.linear.weight)] == pytest.approx((2.0, 0.05))
    assert len(found) == len(list(model.parameters()))


def test_the_rate_warms_up_and_falls():
    settings = OptimizerSettings(learning_rate=1.0, schedule="cosine", warmup=10, final=0.1)
    rates = [learning_rate(settings, RoundSettings("r", "keymasks", 100), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    halved = learning_rate(settings, RoundSettings("r", "keymasks", 100, rate=0.5), 50)
    assert halved == pytest.approx(rates[50] / 2)
    steps = OptimizerSettings(learning_rate=1.0, schedule="step", milestones=(3, 5), final=0.1)
    current = RoundSettings("r", "keymasks", 8)
    assert [learning_rate(steps, current, s) for s in (0, 2, 3, 5)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
