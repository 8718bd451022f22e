"""Gradient checkpointing: layers that keep their input and compute the rest again when it is needed."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from s2d.models.backbone import BasicBlock, Bottleneck
from s2d.models.pixel_decoder import EncoderLayer
from s2d.models.transformer_decoder import CrossAttentionLayer, FeedForwardLayer, SelfAttentionLayer

_LAYERS = (BasicBlock, Bottleneck, EncoderLayer, CrossAttentionLayer, SelfAttentionLayer, FeedForwardLayer)


def checkpoint_layers(model: nn.Module) -> None:
    """Make every layer of the model keep its input alone; outputs and gradients are the same to the last bit."""
    for module in model.modules():
        if isinstance(module, _LAYERS):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
