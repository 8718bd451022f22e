"""The losses of a step: Temporal DropLoss on matched masks at every prediction head, and the class loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.clips import ClipTargets
from s2d.ops import BitMasks, temporal_drop_loss
from s2d.training.matcher import Pairs, match
from s2d.training.settings import LossSettings


@dataclass(frozen=True)
class Totals:
    """What the losses are divided by: numbers of all clips of a step, whoever computes them.

    Attributes:
        instances: targets.
        matched: queries that answer for one.
        queries: all of them.
    """

    instances: float
    matched: float
    queries: float

    @staticmethod
    def of(targets: Sequence[ClipTargets], queries: int) -> Totals:
        """Of clips that a model with so many queries looks at."""
        instances = sum(len(target) for target in targets)
        return Totals(instances, sum(min(len(target), queries) for target in targets), queries * len(targets))


def clip_losses(
    outputs: dict,
    targets: Sequence[ClipTargets],
    settings: LossSettings,
    generators: Sequence[torch.Generator] | None = None,
    totals: Totals | None = None,
    *,
    teacher: bool = False,
) -> dict[str, Tensor]:
    """Every loss of a batch of clips, not yet weighted; those of the parts of a step add up to the step's.

    Mask losses are sums over the kept (instance, frame) rows divided by the number of *instances* (at least 1), at
    the final head and at every auxiliary one. The class loss is taken at the final head only: cross-entropy with
    weight ``no_object`` on queries without a target.

    Args:
        outputs: ``pred_logits [B, Q, 2]``, ``pred_masks [B, Q, T, h, w]`` and ``aux_outputs``, a list of the same.
        targets: B clips' targets.
        settings: points, matching costs and the frames that count.
        generators: of all random points of each clip, on the device of the masks.
        totals: of the whole step; None: these clips are all of it.
        teacher: whether the targets are the teacher's; every name then begins with ``kd_``.

    Returns:
        ``loss_ce``, ``loss_mask``, ``loss_dice`` and, per auxiliary head i, ``loss_mask_i``, ``loss_dice_i``.
    """
    totals = totals or Totals.of(targets, outputs["pred_logits"].shape[1])
    heads = [outputs, *outputs["aux_outputs"]]
    pairs = match(heads, targets, settings, generators)
    prefix = "kd_" if teacher else ""
    losses = {f"{prefix}loss_ce": _class_loss(outputs["pred_logits"], pairs[0], settings.no_object, totals)}
    for number, (head, matched) in enumerate(zip(heads, pairs, strict=True)):
        suffix = f"_{number - 1}" if number else ""
        sums = [
            temporal_drop_loss(
                masks[queries],
                BitMasks(target.bits.words[chosen], target.bits.width),
                _kept(target, settings, teacher, auxiliary=number > 0)[chosen],
                settings.num_points,
                settings.oversample,
                settings.importance,
                generator=generators[clip] if generators else None,
            )
            for clip, (masks, target, (queries, chosen)) in enumerate(
                zip(head["pred_masks"], targets, matched, strict=True)
            )
        ]
        for name, values in zip(("mask", "dice"), zip(*sums, strict=True), strict=True):
            losses[f"{prefix}loss_{name}{suffix}"] = sum(values) / max(totals.instances, 1)
    return losses


def weighted_sum(losses: dict[str, Tensor], settings: LossSettings) -> Tensor:
    """The number that is minimised: class, mask and dice losses of all heads and both parts, each with its weight."""
    weights = {"mask": settings.mask, "dice": settings.dice}
    classes = {"loss_ce": settings.class_loss, "kd_loss_ce": settings.distill_class}
    return sum(
        (classes[name] if name in classes else weights[name.split("loss_")[1].split("_")[0]]) * value
        for name, value in losses.items()
    )


def _kept(target: ClipTargets, settings: LossSettings, teacher: bool, auxiliary: bool) -> Tensor:
    """bool ``[G, T]`` on the device of the masks: the rows that count."""
    official, device = settings.behaviour == "official", target.bits.words.device
    frames = settings.distill_frames if teacher and not (official and auxiliary) else settings.frames
    if frames == "all":
        return torch.ones(target.keep.shape, dtype=torch.bool, device=device)
    if official:
        return target.bits.words.flatten(2).ne(0).any(2)
    return target.keep.to(device, non_blocking=True)


def _class_loss(logits: Tensor, pairs: Sequence[Pairs], no_object: float, totals: Totals) -> Tensor:
    labels = torch.ones(logits.shape[:2], dtype=torch.int64, device=logits.device)
    for clip, (queries, _) in enumerate(pairs):
        labels[clip, queries] = 0
    weight = logits.new_tensor([1.0, no_object])
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight, reduction="sum")
    return total / (totals.matched + no_object * (totals.queries - totals.matched))
