"""Definition of the ``mask_cost`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from s2d.ops.reference.temporal_drop_loss import sample


def mask_cost(logits: Tensor, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # grid_sample multiplies pixels outside by their weights: those of a point that is NaN or far away must be finite.
    points = points.to(dtype).nan_to_num(nan=-1.0).clamp(-1, 2)

    def read(maps: Tensor) -> Tensor:
        number, frames = maps.shape[:2]
        rows = maps.flatten(0, 1).to(dtype)
        return sample(rows, points.expand(len(rows), -1, -1)).view(number, frames * len(points))

    x, t = read(logits), read(target)
    bce = (F.softplus(x).sum(1)[:, None] - x @ t.T) / x.shape[1]
    s = x.sigmoid()
    dice = 1 - (2 * s @ t.T + 1) / (s.sum(1)[:, None] + t.sum(1)[None, :] + 1)
    return bce, dice
