"""Which query answers for which target: the assignment of least cost, per head and clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s2d.data.clips import ClipTargets
from s2d.ops import BitMasks, mask_cost
from s2d.training.settings import LossSettings

Pairs = tuple[Tensor, Tensor]
"""Queries and their targets: int64 ``[min(Q, G)]`` each, queries ascending."""


@torch.no_grad()
def match(
    heads: Sequence[dict[str, Tensor]],
    targets: Sequence[ClipTargets],
    settings: LossSettings,
    generators: Sequence[torch.Generator | None] | None = None,
) -> list[list[Pairs]]:
    """Assign every target of every clip to a query of its own, for each prediction head.

    ``cost = w_mask BCE + w_dice dice - w_class p(object)``, the mask terms at random points that all pairs of a clip
    share. All costs of a step go to the CPU at once: the only time that a device is waited for.

    Args:
        heads: ``pred_logits [B, Q, 2]``, whose first class is "object", and ``pred_masks [B, Q, T, h, w]`` of each.
        targets: of B clips. With ``settings.frames == "annotated"`` a target is compared on those frames alone;
            officially, and with ``"all"``, on every one (a missing keymask then reads as an empty mask).
        generators: of the random points of each clip.

    Returns:
        By head and clip, `Pairs` on the device of the masks.
    """
    everywhere = settings.frames == "all" or settings.behaviour == "official"
    costs = []
    for head in heads:
        for clip, (logits, masks, target) in enumerate(
            zip(head["pred_logits"], head["pred_masks"], targets, strict=True)
        ):
            generator = generators[clip] if generators else None
            points = torch.rand(1, settings.num_points, 2, generator=generator, device=masks.device)[0]
            bce, dice = _mask_costs(masks, target, points, everywhere)
            costs.append(settings.mask * bce + settings.dice * dice - settings.match_class * logits.softmax(-1)[:, :1])
    found = iter(_assign(costs))
    return [[next(found) for _ in targets] for _ in heads]


def _assign(costs: list[Tensor]) -> list[Pairs]:
    # A diverged prediction must not stop the run here: its loss is not finite, and the trainer skips the step.
    flat = torch.nan_to_num(torch.cat([cost.flatten() for cost in costs]), nan=1e6, posinf=1e6, neginf=-1e6)
    parts = flat.cpu().split([cost.numel() for cost in costs])
    solved = [
        torch.from_numpy(np.stack(linear_sum_assignment(part.view(cost.shape).numpy())))
        for part, cost in zip(parts, costs, strict=True)
    ]
    moved = torch.cat(solved, 1).to(flat.device, non_blocking=True)
    return [(pairs[0], pairs[1]) for pairs in moved.split([pairs.shape[1] for pairs in solved], 1)]


def _mask_costs(masks: Tensor, targets: ClipTargets, points: Tensor, everywhere: bool) -> tuple[Tensor, Tensor]:
    bits, keep = targets.bits, targets.keep
    if everywhere or bool(keep.all()):
        return mask_cost(masks, bits, points)
    dtype = torch.promote_types(masks.dtype, torch.float32)
    bce, dice = masks.new_zeros(2, len(masks), len(targets), dtype=dtype).unbind(0)
    # Targets with the same annotated frames are compared together: choosing frames copies the logits.
    patterns, group = keep.unique(dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        frames = pattern.nonzero()[:, 0].to(masks.device, non_blocking=True)
        if len(frames):
            members = (group == index).nonzero()[:, 0].to(masks.device, non_blocking=True)
            chosen = BitMasks(bits.words[members][:, frames], bits.width)
            bce[:, members], dice[:, members] = mask_cost(masks[:, frames], chosen, points)
    return bce, dice
