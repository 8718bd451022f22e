"""Definition of the ``temporal_drop_loss`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CANDIDATES, UNIFORM = 0, 1  # streams of random points
_WORD = 0xFFFFFFFF


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps ``[R, h, w]`` at points ``[R, P, 2]``; 0 outside, pixel centres at half-integers."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def draw_points(seed: Tensor, rows: int, number: int, stream: int) -> Tensor:
    """Uniform points ``[rows, number, 2]``, multiples of 2^-24, by Philox4x32-10 (Salmon et al., SC 2011).

    Counter (n, row, stream, 0) under the key ``seed`` gives four words: points n and n + half of the row, with half =
    number / 2 rounded up.
    """
    half = (number + 1) // 2
    n = torch.arange(half, device=seed.device).expand(rows, half)
    row = torch.arange(rows, device=seed.device)[:, None].expand(rows, half)
    words = [n, row, torch.full_like(n, stream), torch.zeros_like(n)]
    keys = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(10):
        a, b = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [_high(b) ^ words[1] ^ keys[0], b & _WORD, _high(a) ^ words[3] ^ keys[1], a & _WORD]
        keys = [(keys[0] + 0x9E3779B9) & _WORD, (keys[1] + 0xBB67AE85) & _WORD]
    units = [(word >> 8).float() * 2.0**-24 for word in words]
    return torch.cat([torch.stack(units[:2], -1), torch.stack(units[2:], -1)], dim=1)[:, :number]


def _high(product: Tensor) -> Tensor:
    """The upper 32 bits; int64 wraps as uint64 does."""
    return (product >> 32) & _WORD


def uncertain(logits: Tensor, candidates: Tensor, chosen: int) -> Tensor:
    """The ``chosen`` candidates of each row with the smallest ``|logit|``, the first of equal ones; NaN comes first."""
    with torch.no_grad():
        size = sample(logits, candidates).abs().nan_to_num(nan=-1.0, posinf=torch.inf)
        index = size.sort(dim=1, stable=True).indices[:, :chosen]
    return candidates.gather(1, index[..., None].expand(-1, -1, 2))


def temporal_drop_loss(
    logits: Tensor,
    target: Tensor,
    keep: Tensor,
    seed: Tensor,
    points: Tensor | tuple[Tensor, Tensor] | None,
    num_points: int,
    num_candidates: int,
    chosen: int,
) -> tuple[Tensor, Tensor]:
    kept = keep.flatten()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits, target = logits.flatten(0, 1)[kept], target.flatten(0, 1)[kept].to(logits.dtype)
    rows = len(logits)
    if rows == 0:
        # An empty sum: exactly zero, and connected to the graph so that backward gives zeros.
        return logits.sum(), logits.sum()
    if not isinstance(points, Tensor):
        if points is None:
            points = (
                draw_points(seed, len(kept), num_candidates, CANDIDATES),
                draw_points(seed, len(kept), num_points - chosen, UNIFORM),
            )
        candidates, uniform = (part[kept].to(logits.dtype) for part in points)
        points = torch.cat([uncertain(logits, candidates, chosen), uniform], dim=1)
    else:
        points = points[kept].to(logits.dtype)
    values, labels = sample(logits, points), sample(target, points)
    bce = F.binary_cross_entropy_with_logits(values, labels, reduction="none").mean(1).sum()
    probability = values.sigmoid()
    overlap = 2 * (probability * labels).sum(1) + 1
    dice = (1 - overlap / (probability.sum(1) + labels.sum(1) + 1)).sum()
    return bce, dice
