"""temporal_drop_loss against the official criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Comparison
from s2d.ops import pack_masks, temporal_drop_loss
from s2d.ops.reference.temporal_drop_loss import sample
from s2d.testing.cases.temporal_drop_loss import BENCHMARKS, Case, make

QUICK = Case("quick", 2, 2, (24, 32), (96, 128), 4096)


def official(logits: Tensor, target: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """The official steps: rows with an empty target are dropped one by one, points are drawn and sorted by torch."""
    rows, masks = logits.flatten(0, 1), target.flatten(0, 1)
    full = [row for row in range(len(masks)) if bool(masks[row].any())]
    rows, masks = rows[full], masks[full].to(rows.dtype)
    with torch.no_grad():
        chosen = int(0.75 * num_points)
        candidates = torch.rand(len(rows), 3 * num_points, 2, device=rows.device)
        index = (-sample(rows, candidates).abs()).topk(chosen, dim=1).indices
        uniform = torch.rand(len(rows), num_points - chosen, 2, device=rows.device)
        points = torch.cat([candidates.gather(1, index[..., None].expand(-1, -1, 2)), uniform], dim=1)
        labels = sample(masks, points)
    values = sample(rows, points)
    bce = F.binary_cross_entropy_with_logits(values, labels, reduction="none").mean(1).sum()
    s = values.sigmoid()
    dice = (1 - (2 * (s * labels).sum(1) + 1) / (s.sum(1) + labels.sum(1) + 1)).sum()
    return bce, dice


def with_gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor]], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    bce, dice = loss(leaf)
    (bce + dice).backward()
    return bce.detach(), dice.detach(), leaf.grad


def alike(ours: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Both draw points of their own: sums, and gradients by blocks of pixels, agree roughly."""
    sums = all(torch.allclose(a, b, rtol=0.05) for a, b in zip(ours[:2], other[:2], strict=True))
    return sums and all(
        F.cosine_similarity(*(F.avg_pool2d(grad, 8).flatten() for grad in pair), dim=0) > 0.9
        for pair in zip(ours[2:], other[2:], strict=True)
    )


def pairs_of(case: Case, quick: bool) -> list[Comparison]:
    logits, target, _ = make(case)
    bits, points = pack_masks(target), case.num_points
    read = logits.nbytes + bits.words.nbytes
    common = {
        "peer": "official criterion",
        "agree": alike,
        "case": f"{case.masks * case.frames} rows of {case.logit_size[0]}x{case.logit_size[1]}, P={points}",
        "at": {"points": points},
        "seconds": 0.3 if quick else 4.0,
        "goal": None if quick else 5,
    }

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        return temporal_drop_loss(x, bits, None, points)

    def theirs(x: Tensor) -> tuple[Tensor, Tensor]:
        return official(x, target, points)

    return [
        Comparison("temporal_drop_loss", lambda: ours(logits), lambda: theirs(logits), bytes=read, **common),
        Comparison(
            "temporal_drop_loss, with gradient",
            lambda: with_gradient(ours, logits),
            lambda: with_gradient(theirs, logits),
            bytes=read + logits.nbytes,
            **common,
        ),
    ]


def measure(quick: bool) -> Iterator[Comparison]:
    for case in (QUICK,) if quick else BENCHMARKS:
        yield from pairs_of(case, quick)
