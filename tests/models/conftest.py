"""The official model on its deterministic inputs, run once for all tests of its numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import s2d.models.transformer_decoder as decoder
from s2d.data.clips import ClipTargets
from s2d.models import ModelConfig, VideoMask2Former
from s2d.ops import pack_masks, unpack_masks
from s2d.testing import official
from s2d.training.criterion import clip_losses, weighted_sum
from s2d.training.settings import LossSettings

# Attention bits of the training step (layer, query, key of the second clip) whose logits lie within 1e-4 of the
# threshold: what the official run made of them. Rounding decides them, and each would move logits by up to 0.4.
CLOSE_BITS = {
    (1, 19, 47): False,
    (1, 52, 34): True,
    (2, 29, 185): True,
    (2, 94, 120): False,
    (4, 72, 76): True,
    (5, 96, 508): False,
    (7, 53, 110): False,
}


@pytest.fixture(scope="session")
def official_model():
    """The official sizes and the deterministic weights; without dropout, both modes give the same numbers."""
    model = VideoMask2Former(ModelConfig(encoder_dropout=0.0))
    model.load_state_dict(official.weights(model.state_dict()))
    return model.eval()


@pytest.fixture(scope="session")
def teacher_model():
    """The teacher of the official distillation."""
    model = VideoMask2Former()
    model.load_state_dict(official.weights(model.state_dict(), teacher=True))
    return model.eval()


@pytest.fixture(scope="session")
def training_step(official_model):
    """Two clips forwards and backwards: outputs, losses, their weighted sum, and the gradient of every parameter."""
    calls = iter(range(9))

    def with_official_bits(embed, features):
        layer, bits = next(calls), unpack_masks(original(embed, features))
        for (at, query, key), bit in CLOSE_BITS.items():
            if at == layer:
                bits[1, query, key] = bit
        return pack_masks(bits)

    tubes = [official.targets(((1,), (0, 1), (0, 1, 2), (2,)), 11), official.targets(((0,), (0, 2)), 14)]
    targets = [ClipTargets(masks, masks.flatten(2).any(2)) for masks in tubes]
    settings = LossSettings(class_loss=2, match_class=2, num_points=256, behaviour="official")
    original = decoder.attention_mask_from_features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "attention_mask_from_features", with_official_bits)
        outputs = official_model.train()(torch.stack([official.clip(56), official.clip(8)]))
    rows = [[int(target.keep.sum()) for target in targets]] * 10
    with official.seeded_points(2000, rows):
        losses = clip_losses(outputs, targets, settings)
    total = weighted_sum(losses, settings)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in official_model.named_parameters()}
    official_model.zero_grad()
    official_model.eval()
    return SimpleNamespace(
        logits=outputs["pred_logits"].detach(),
        masks=outputs["pred_masks"].detach(),
        losses={name: loss.item() for name, loss in losses.items()},
        total=total.item(),
        gradients=gradients,
    )
