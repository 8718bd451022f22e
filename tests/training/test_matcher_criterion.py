"""Matching and losses, and what the drops change; the official numbers are in ``tests/models/test_parity.py``."""

from __future__ import annotations

import dataclasses

import torch

from s2d.data.clips import ClipTargets
from s2d.training.criterion import Totals, clip_losses, weighted_sum
from s2d.training.drop import drop_frames, drop_labels
from s2d.training.matcher import Pairs, match
from s2d.training.settings import LossSettings


def tube(*corners: tuple[int, int] | None, size: int = 32, side: int = 12) -> torch.Tensor:
    """A square that stands at a corner in each frame, or is absent."""
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for t, corner in enumerate(corners):
        if corner is not None:
            masks[t, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    return masks


def as_logits(masks: torch.Tensor) -> torch.Tensor:
    return 10 * (masks[..., ::4, ::4].float() * 2 - 1)


def heads(masks: torch.Tensor, logits: torch.Tensor | None = None, aux: int = 0) -> dict:
    logits = torch.zeros(*masks.shape[:2], 2) if logits is None else logits
    one = {"pred_logits": logits, "pred_masks": masks}
    return {**one, "aux_outputs": [one] * aux}


def all_kept(masks: torch.Tensor) -> ClipTargets:
    return ClipTargets(masks, torch.ones(masks.shape[:2], dtype=torch.bool))


def match_clip(logits: torch.Tensor, masks: torch.Tensor, target: ClipTargets, settings: LossSettings) -> Pairs:
    """Of the only head of the only clip."""
    return match([heads(masks[None], logits[None])], [target], settings)[0][0]


def test_each_target_goes_to_the_query_that_looks_like_it():
    left, right, low = tube((0, 0), (0, 2)), tube((0, 18), (0, 16)), tube((18, 8), (18, 8))
    masks = as_logits(torch.stack([right, torch.zeros_like(left), low, left]))
    targets = all_kept(torch.stack([left, right]))
    rows, columns = match_clip(torch.zeros(4, 2), masks, targets, LossSettings(num_points=500))
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 3: 0}


def test_a_target_is_matched_on_its_kept_frames_alone():
    whole, half = tube((0, 0), (18, 18)), tube((0, 0), None)
    masks = as_logits(torch.stack([half, whole]))
    # The object is there in both frames, but only the first is annotated; the first query's mask is a bit worse there.
    masks[0, 0, 0] = -10
    targets = ClipTargets(half[None], torch.tensor([[True, False]]))
    kept, _ = match_clip(torch.zeros(2, 2), masks, targets, LossSettings(num_points=500))
    assert kept.tolist() == [1]
    for change in ({"frames": "all"}, {"behaviour": "official"}):
        everywhere, _ = match_clip(torch.zeros(2, 2), masks, targets, LossSettings(num_points=500, **change))
        assert everywhere.tolist() == [0]


def test_class_scores_count_as_much_as_they_are_told_to():
    same = as_logits(torch.stack([tube((4, 4))] * 2))
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    targets = all_kept(tube((4, 4))[None])
    assert match_clip(logits, same, targets, LossSettings(num_points=64, match_class=2.0))[0].tolist() == [1]
    assert match_clip(logits, same, targets, LossSettings(num_points=64, match_class=0.0))[0].tolist() == [0]


def test_a_diverged_prediction_does_not_stop_the_matching():
    masks = torch.full((2, 1, 8, 8), float("nan"))
    rows, columns = match_clip(torch.zeros(2, 2), masks, all_kept(tube((4, 4))[None]), LossSettings(num_points=64))
    assert len(rows) == len(columns) == 1


def test_good_masks_cost_little_and_every_head_pays():
    masks = as_logits(torch.stack([tube((0, 0), (0, 2)), tube((18, 18), (16, 16))]))[None]
    targets = [all_kept(torch.stack([tube((0, 0), (0, 2))]))]
    settings = LossSettings(num_points=500, importance=0.0)
    losses = clip_losses(heads(masks, aux=2), targets, settings)
    assert set(losses) == {
        "loss_ce", *(f"loss_{kind}{suffix}" for kind in ("mask", "dice") for suffix in ("", "_0", "_1"))
    }  # fmt: skip
    wrong = clip_losses(heads(-masks, aux=2), targets, settings)
    for name in losses.keys() - {"loss_ce"}:
        assert losses[name] < 0.5 < wrong[name]


def test_masks_are_normalised_by_instances_of_the_batch():
    masks = as_logits(torch.stack([tube((0, 0), (0, 2))]))[None]
    target = all_kept(torch.stack([tube((2, 2), (4, 4))]))
    none = ClipTargets(target.masks[:0], target.keep[:0])
    settings = LossSettings(num_points=20_000, importance=0.0)
    one = clip_losses(heads(masks), [target], settings)
    two = clip_losses(heads(masks.expand(2, -1, -1, -1, -1)), [target, target], settings)
    with_empty = clip_losses(heads(masks.expand(2, -1, -1, -1, -1)), [target, none], settings)
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(one[name], two[name], rtol=0.1, atol=0.02)
        torch.testing.assert_close(one[name], with_empty[name], rtol=0.1, atol=0.02)


def test_no_target_at_all_leaves_the_class_loss_alone():
    masks = as_logits(torch.stack([tube((0, 0), (0, 2))]))[None].requires_grad_()
    none = ClipTargets(torch.zeros(0, 2, 32, 32, dtype=torch.bool), torch.zeros(0, 2, dtype=torch.bool))
    losses = clip_losses(heads(masks, aux=1), [none], LossSettings(num_points=64))
    weighted_sum(losses, LossSettings()).backward()
    assert losses["loss_ce"] > 0
    assert sum(v for n, v in losses.items() if n != "loss_ce") == 0
    assert masks.grad.abs().sum() == 0


def test_the_sum_uses_the_weight_of_each_loss():
    losses = {
        name: torch.tensor(1.0) for name in ("loss_ce", "loss_mask", "loss_dice_3", "kd_loss_ce", "kd_loss_mask_0")
    }
    settings = LossSettings(mask=3, dice=7, class_loss=100, distill_class=1000)
    assert weighted_sum(losses, settings) == 3 + 7 + 100 + 1000 + 3


def test_drops_of_labels_and_frames():
    generator = torch.Generator().manual_seed(0)
    targets = ClipTargets(torch.zeros(50, 4, 1, 1, dtype=torch.bool), torch.ones(50, 4, dtype=torch.bool))
    targets.keep[:, 0] = False
    assert drop_labels(targets, 0.0, generator) is targets
    dropped = drop_labels(targets, 0.25, generator).keep
    assert not (dropped & ~targets.keep).any()
    assert 0.6 < dropped[:, 1:].float().mean() < 0.9
    assert drop_frames(targets, 0.0, generator).all()
    assert drop_frames(targets, 1.0, generator).tolist() == [False, True, True, True]
    nothing = ClipTargets(targets.masks[:0], targets.keep[:0])
    assert drop_frames(nothing, 1.0, generator).tolist() == [True] * 4, "a clip keeps at least one frame"


def test_what_the_official_behaviour_does_otherwise():
    """The rows that count: officially those with a pixel, and the teacher's by two rules at two kinds of heads."""
    masks = as_logits(torch.stack([tube((0, 0), (0, 2), (0, 4))]))[None]
    cut_away = ClipTargets(torch.stack([tube((0, 0), None, None)]), torch.tensor([[True, True, False]]))
    settings = LossSettings(num_points=2000, importance=0.0)
    official = dataclasses.replace(settings, behaviour="official")

    def loss(settings: LossSettings, teacher: bool = False) -> list[float]:
        found = clip_losses(heads(masks, aux=1), [cut_away], settings, teacher=teacher)
        return [round(value.item()) for name, value in found.items() if "dice" in name]

    # Of three rows one agrees, one is a negative, one unknown; a negative costs 1 of dice.
    assert loss(settings) == [1, 1]
    assert loss(official) == [0, 0]
    assert loss(dataclasses.replace(settings, frames="all")) == [2, 2]
    assert loss(settings, teacher=True) == [2, 2]
    assert loss(official, teacher=True) == [2, 0]
    assert loss(dataclasses.replace(official, distill_frames="annotated", frames="all"), teacher=True) == [0, 2]


def test_parts_of_a_step_add_up_to_it():
    masks = as_logits(torch.stack([tube((0, 0), (0, 2)), tube((18, 18), (16, 16))])).expand(3, -1, -1, -1, -1)
    targets = [
        all_kept(torch.stack([tube((2, 2), (4, 4))])),
        all_kept(tube((9, 9), (9, 9))[None].expand(2, -1, -1, -1)),
    ]
    targets.append(ClipTargets(targets[0].masks[:0], targets[0].keep[:0]))
    settings = LossSettings(num_points=64)

    def generators(clips: range) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(clip) for clip in clips]

    whole = clip_losses(heads(masks, aux=1), targets, settings, generators(range(3)))
    totals = Totals.of(targets, 2)
    parts = [
        clip_losses(heads(masks[i : i + 1], aux=1), targets[i : i + 1], settings, generators(range(i, i + 1)), totals)
        for i in range(3)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
