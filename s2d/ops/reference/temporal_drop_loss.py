"""Definition of the ``temporal_drop_loss`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps ``[R, h, w]`` at points ``[R, P, 2]``; 0 outside, pixel centres at half-integers."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def draw_points(
    rows: int, num_points: int, oversample: float, chosen: int, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Uniform candidates ``[R, int(oversample P), 2]`` and the uniform rest ``[R, P - chosen, 2]``."""
    candidates = torch.rand(rows, int(oversample * num_points), 2, generator=generator, device=device)
    return candidates, torch.rand(rows, num_points - chosen, 2, generator=generator, device=device)


def uncertain(logits: Tensor, candidates: Tensor, chosen: int) -> Tensor:
    """The ``chosen`` candidates of each row with the smallest ``|logit|``."""
    with torch.no_grad():
        index = (-sample(logits, candidates).abs()).topk(chosen, dim=1, sorted=False).indices
    return candidates.gather(1, index[..., None].expand(-1, -1, 2))


def temporal_drop_loss(
    logits: Tensor,
    target: Tensor,
    keep: Tensor,
    num_points: int,
    oversample: float,
    importance: float,
    points: Tensor | tuple[Tensor, Tensor] | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    kept = keep.flatten()
    logits, target = logits.flatten(0, 1)[kept], target.flatten(0, 1)[kept].to(logits.dtype)
    rows = len(logits)
    if rows == 0:
        # An empty sum: exactly zero, and connected to the graph so that backward gives zeros.
        return logits.sum(), logits.sum()
    if not isinstance(points, Tensor):
        chosen = int(importance * num_points)
        if points is None:
            points = draw_points(rows, num_points, oversample, chosen, generator, logits.device)
        candidates, uniform = (p[kept] if len(p) == len(kept) else p for p in points)
        points = torch.cat([uncertain(logits, candidates.to(logits.dtype), chosen), uniform.to(logits.dtype)], dim=1)
    elif len(points) == len(kept):
        points = points[kept]
    points = points.to(logits.dtype)
    values, labels = sample(logits, points), sample(target, points)
    bce = F.binary_cross_entropy_with_logits(values, labels, reduction="none").mean(1).sum()
    probability = values.sigmoid()
    overlap = 2 * (probability * labels).sum(1) + 1
    dice = (1 - overlap / (probability.sum(1) + labels.sum(1) + 1)).sum()
    return bce, dice
