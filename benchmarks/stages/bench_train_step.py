"""A whole step of training, forward, criterion and backward, against the same step on the definitions in torch.

Both match and lose at the same random points, so that they compute the same losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Comparison
from s2d import use_impl
from s2d.data.clips import ClipTargets
from s2d.models import ModelConfig, VideoMask2Former
from s2d.testing.cases.temporal_drop_loss import ellipses
from s2d.testing.small_model import SMALL
from s2d.training.criterion import clip_losses, weighted_sum
from s2d.training.settings import LossSettings

# Model, frames, height, width, points, and the goal.
FULL = [(ModelConfig(), 3, 256, 448, 160_000, 3.0), (ModelConfig(), 3, 256, 448, 12_544, None)]
QUICK = [(SMALL, 3, 64, 96, 4096, None)]


def step(model: VideoMask2Former, clip: Tensor, targets: ClipTargets, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """The loss, and how far its gradient would move the queries."""
    model.zero_grad(set_to_none=True)
    losses = clip_losses(model(clip), [targets], settings, [torch.Generator().manual_seed(0)])
    total = weighted_sum(losses, settings)
    total.backward()
    return total.detach(), model.sem_seg_head.predictor.query_feat.weight.grad.norm()


def by_definition(call: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    with use_impl("reference"):
        return call()


def near(ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Layers add up rounding, and a key at the threshold of a mask may turn."""
    return all(abs(float(a / b) - 1) < 0.02 for a, b in zip(ours, other, strict=True))


def measure(quick: bool) -> Iterator[Comparison]:
    for config, frames, height, width, points, goal in QUICK if quick else FULL:
        torch.manual_seed(0)
        model = VideoMask2Former(dataclasses.replace(config, encoder_dropout=0.0)).train()
        clip = torch.randint(0, 256, (1, frames, 3, height, width), dtype=torch.uint8)
        masks = ellipses(5, frames, (height, width), torch.Generator().manual_seed(0))
        keep = torch.ones(5, frames, dtype=torch.bool)
        keep[0, 1:] = False
        ours = partial(step, model, clip, ClipTargets(masks, keep), LossSettings(num_points=points))
        yield Comparison(
            "train_step",
            ours,
            partial(by_definition, ours),
            peer="definitions in torch",
            agree=near,
            case=f"ResNet-{config.depth}, Q={config.num_queries}, T={frames}, {height}x{width}, P={points}",
            at={"points": points},
            goal=goal,
            minimum_runs=2,
        )
