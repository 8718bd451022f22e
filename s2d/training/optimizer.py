"""AdamW with the parameter groups and schedules of the recipes."""

from __future__ import annotations

import math

import torch
from torch import nn

from s2d.training.settings import OptimizerSettings, RoundSettings

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """One group for each learning rate and weight decay; a group's ``scale`` is its factor on the learning rate.

    The backbone (parameters under ``backbone.``) has its multiplier; norms, biases, embeddings and other vectors have
    no weight decay.
    """
    undecayed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (*_NORMS, nn.Embedding))
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = settings.backbone_multiplier if name.startswith("backbone.") else 1.0
        plain = id(parameter) in undecayed or parameter.dim() < 2 or name.endswith("level_embed")
        groups.setdefault((scale, 0.0 if plain else settings.weight_decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": found, "scale": scale, "weight_decay": decay} for (scale, decay), found in groups.items()],
        lr=settings.learning_rate,
        # The fused kernel leaves a step out by a number on the device; nobody has to wait for it.
        fused=True,
    )


def learning_rate(settings: OptimizerSettings, round_settings: RoundSettings, step: int) -> float:
    """The rate of step ``step`` (from 0) of a round: linear warm-up, then the schedule."""
    rate = settings.learning_rate * round_settings.rate * min(1.0, (step + 1) / max(settings.warmup, 1))
    if settings.schedule == "step":
        return rate * settings.final ** sum(step >= milestone for milestone in settings.milestones)
    done = step / max(round_settings.steps - 1, 1)
    return rate * (settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
