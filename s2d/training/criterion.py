"""The losses of a clip: Temporal DropLoss on matched masks at every prediction head, and the class loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.data.clips import ClipTargets
from s2d.ops import BitMasks, temporal_drop_loss
from s2d.training.matcher import match
from s2d.training.settings import LossSettings


def clip_losses(
    outputs: dict,
    targets: Sequence[ClipTargets],
    settings: LossSettings,
    generator: torch.Generator | None = None,
    prefix: str = "",
) -> dict[str, Tensor]:
    """Every loss of a batch of clips, not yet weighted.

    Mask losses are sums over the kept (instance, frame) rows divided by the number of *instances* (at least 1), at
    the final head and at every auxiliary one. The class loss is taken at the final head only: cross-entropy with
    weight ``no_object`` on queries without a target.

    Args:
        outputs: ``pred_logits [B, Q, 2]``, ``pred_masks [B, Q, T, h, w]`` and ``aux_outputs``, a list of the same.
        targets: B clips' targets.
        settings: points and matching costs.
        generator: of all random points.
        prefix: put before every name, ``"kd_"`` for the teacher's targets.

    Returns:
        ``loss_ce``, ``loss_mask``, ``loss_dice`` and, per auxiliary head i, ``loss_mask_i``, ``loss_dice_i``.
    """
    number = max(sum(len(t) for t in targets), 1)
    losses: dict[str, Tensor] = {}
    for suffix, head in [("", outputs), *((f"_{i}", aux) for i, aux in enumerate(outputs["aux_outputs"]))]:
        pairs = [
            match(logits, masks, target, settings, generator)
            for logits, masks, target in zip(head["pred_logits"], head["pred_masks"], targets, strict=True)
        ]
        if not suffix:
            losses[f"{prefix}loss_ce"] = _class_loss(head["pred_logits"], pairs, settings.no_object)
        bce, dice = temporal_drop_loss(
            torch.cat([head["pred_masks"][b, queries] for b, (queries, _) in enumerate(pairs)]),
            _matched_bits(targets, pairs),
            torch.cat([targets[b].keep[chosen] for b, (_, chosen) in enumerate(pairs)]),
            settings.num_points,
            settings.oversample,
            settings.importance,
            generator=generator,
        )
        losses[f"{prefix}loss_mask{suffix}"], losses[f"{prefix}loss_dice{suffix}"] = bce / number, dice / number
    return losses


def _matched_bits(targets: Sequence[ClipTargets], pairs: list[tuple[Tensor, Tensor]]) -> BitMasks:
    words = [target.bits.words[chosen] for target, (_, chosen) in zip(targets, pairs, strict=True)]
    return BitMasks(torch.cat(words), targets[0].bits.width)


def weighted_sum(losses: dict[str, Tensor], settings: LossSettings) -> Tensor:
    """The number that is minimised: class, mask and dice losses of all heads and both parts, each with its weight."""
    weights = {"mask": settings.mask, "dice": settings.dice}
    classes = {"loss_ce": settings.class_loss, "kd_loss_ce": settings.distill_class}
    return sum(
        (classes[name] if name in classes else weights[name.split("loss_")[1].split("_")[0]]) * value
        for name, value in losses.items()
    )


def _class_loss(logits: Tensor, pairs: list[tuple[Tensor, Tensor]], no_object: float) -> Tensor:
    labels = torch.ones(logits.shape[:2], dtype=torch.int64, device=logits.device)
    for clip, (queries, _) in enumerate(pairs):
        labels[clip, queries] = 0
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=logits.new_tensor([1.0, no_object]))
