"""mask_cost against the matcher of Mask2Former."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Comparison
from s2d.ops import mask_cost, pack_masks
from s2d.ops.reference.temporal_drop_loss import sample
from s2d.testing.cases.mask_cost import BENCHMARKS, CASES, Case, make


def samples(maps: Tensor, points: Tensor) -> Tensor:
    """Values ``[N, T P]`` of maps ``[N, T, h, w]`` by grid_sample, as the official matcher reads them."""
    rows = maps.flatten(0, 1).float()
    return sample(rows, points.expand(len(rows), -1, -1)).view(len(maps), -1)


def official_cost(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The official costs of sampled logits and labels: two losses of each query, four products."""
    ones = torch.ones_like(x)
    positive = F.binary_cross_entropy_with_logits(x, ones, reduction="none")
    negative = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
    bce = (torch.einsum("qp,gp->qg", positive, t) + torch.einsum("qp,gp->qg", negative, 1 - t)) / x.shape[1]
    s = x.sigmoid()
    overlap = 2 * torch.einsum("qp,gp->qg", s, t)
    dice = 1 - (overlap + 1) / (s.sum(-1)[:, None] + t.sum(-1)[None, :] + 1)
    return bce, dice


def official(logits: Tensor, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    return official_cost(samples(logits, points), samples(target, points))


def close(ours: tuple[Tensor, Tensor], peer: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, peer, strict=True))


compiled = torch.compile(official, dynamic=False)


def pairs_of(case: Case, quick: bool) -> list[Comparison]:
    logits, target, points = make(case)
    bits, sampled = pack_masks(target), (samples(logits, points), samples(target, points))
    sampled_points = case.frames * case.num_points
    read = logits.nbytes + points.nbytes + 8 * case.queries * case.targets
    common = {
        "agree": close,
        "case": f"Q={case.queries}, G={case.targets}, T={case.frames}, P={case.num_points}",
        "at": {"points": case.num_points},
        "seconds": 0.3 if quick else 3.0,
    }
    pairs = [
        Comparison(
            f"mask_cost from {form}",
            lambda masks=masks: mask_cost(logits, masks, points),
            lambda: official(logits, target, points),
            peer="official matcher",
            goal=None if quick else 5,
            bytes=read + held,
            flops=4 * case.queries * case.targets * sampled_points,
            **common,
        )
        for form, masks, held in (("bits", bits, bits.words.nbytes), ("bool", target, target.nbytes))
    ]
    # Ours reads the maps as well: the official costs are given their samples.
    pairs.append(
        Comparison(
            "mask_cost from bits",
            lambda: mask_cost(logits, bits, points),
            lambda: official_cost(*sampled),
            peer="official costs of samples",
            goal=None if quick else 8,
            **common,
        )
    )
    if not quick:  # compiling takes longer than all the rest
        pairs.append(
            Comparison(
                "mask_cost from bits",
                lambda: mask_cost(logits, bits, points),
                lambda: compiled(logits, target, points),
                peer="torch.compile of the matcher",
                **common,
            )
        )
    return pairs


def measure(quick: bool) -> Iterator[Comparison]:
    for case in CASES[1:2] if quick else BENCHMARKS:
        yield from pairs_of(case, quick)
