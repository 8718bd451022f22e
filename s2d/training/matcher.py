"""Which query answers for which target: the assignment of least cost, per clip."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s2d.data.clips import ClipTargets
from s2d.ops import BitMasks, mask_cost
from s2d.training.settings import LossSettings


@torch.no_grad()
def match(
    logits: Tensor,
    masks: Tensor,
    targets: ClipTargets,
    settings: LossSettings,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Assign every target of a clip to a query of its own.

    ``cost = w_mask BCE + w_dice dice - w_class p(object)``, the mask terms at random points that all pairs share.

    Args:
        logits: ``[Q, 2]``; the first class is "object".
        masks: mask logits ``[Q, T, h, w]``.
        targets: G targets on T frames.
        settings: ``match_frames`` decides whether a target is compared on its kept frames or, as the official code
            does, on all of them (a missing keymask then reads as an empty mask).
        generator: of the random points.

    Returns:
        int64 query and target indices, ``[min(Q, G)]`` each, queries ascending.
    """
    points = torch.rand(1, settings.num_points, 2, generator=generator, device=masks.device)[0]
    bce, dice = _pairs(masks, targets, points, settings.match_frames)
    cost = settings.mask * bce + settings.dice * dice - settings.match_class * logits.softmax(-1)[:, :1]
    # A diverged prediction must not stop the run here: its loss is not finite, and the trainer skips the step.
    rows, columns = linear_sum_assignment(torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy())
    return torch.as_tensor(rows, device=masks.device), torch.as_tensor(columns, device=masks.device)


def _pairs(masks: Tensor, targets: ClipTargets, points: Tensor, frames: str) -> tuple[Tensor, Tensor]:
    bits = targets.bits
    if frames == "all" or bool(targets.keep.all()):
        return mask_cost(masks, bits, points)
    dtype = torch.promote_types(masks.dtype, torch.float32)
    bce, dice = masks.new_zeros(2, len(masks), len(targets), dtype=dtype).unbind(0)
    patterns, group = targets.keep.unique(dim=0, return_inverse=True)
    for index, keep in enumerate(patterns):
        members = (group == index).nonzero()[:, 0]
        if keep.any():
            chosen = BitMasks(bits.words[members][:, keep], bits.width)
            # Choosing frames copies the logits.
            bce[:, members], dice[:, members] = mask_cost(masks if keep.all() else masks[:, keep], chosen, points)
    return bce, dice
