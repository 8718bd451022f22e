"""`s2d.accelerate`: a Mask2Former of transformers gives the same values and gradients on our operators."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn

import s2d
from s2d.accelerate import AccelerateReport


def hugging_face(backbone="resnet", **changes):
    """A small random `Mask2FormerForUniversalSegmentation`."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    if backbone == "resnet":
        inner = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    else:
        inner = transformers.SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "num_attention_heads": 4,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 2,
        "decoder_layers": 5,
        "num_queries": 7,
        **changes,
    }
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=inner, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def images(*shape):
    return {"pixel_values": torch.randn(*shape, generator=torch.Generator().manual_seed(1))}


def run(model, example):
    """Logits, mask logits and the gradient of every parameter."""
    model.zero_grad()
    outputs = model(**example)
    classes, masks = outputs.class_queries_logits, outputs.masks_queries_logits
    (classes.square().mean() + masks.square().mean()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"classes": classes.detach(), "masks": masks.detach(), **gradients}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Some gradients are zero but for rounding: a bias in front of a norm.
        scale = tensor.abs().max().clamp(min=1e-6)
        assert float((found[name] - tensor).abs().max() / scale) < 1e-9, name


@pytest.mark.parametrize(("backbone", "changes"), [("resnet", {}), ("swin", {}), ("resnet", {"pre_norm": True})])
def test_values_and_gradients_are_theirs(backbone, changes):
    model = hugging_face(backbone, **changes).double()
    example = {"pixel_values": images(2, 3, 64, 96)["pixel_values"].double()}
    names, wanted = list(model.state_dict()), run(model, example)
    report = s2d.accelerate(model)
    assert list(model.state_dict()) == names
    assert Counter(report.replaced.values()) == {
        "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": 2,
        "MultiheadAttention": 4,
    }
    assert not report.left
    assert_equal(run(model, example), wanted)
    assert_equal(run(copy.deepcopy(model), example), wanted)
    report.restore()
    after = run(model, example)
    assert all(torch.equal(after[name], tensor) for name, tensor in wanted.items())


def test_values_in_single_precision():
    model, example = hugging_face(), images(2, 3, 64, 96)
    wanted = run(model, example)
    s2d.accelerate(model)
    found = run(model, example)
    for name in ("classes", "masks"):
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-4)


def test_our_operators_run(monkeypatch):
    model, calls = hugging_face(), []
    s2d.accelerate(model)
    for module, name in (("masked_cross_attention", "masked_attention"), ("ms_deform_attn", "ms_deform_attn")):
        place = f"s2d.nn.{module}.{name}"
        original = getattr(s2d.ops, name)
        monkeypatch.setattr(place, lambda *x, _name=name, _call=original: calls.append(_name) or _call(*x))
    with torch.no_grad():
        model(**images(1, 3, 64, 64))
    assert calls == ["ms_deform_attn"] * 2 + ["masked_attention"] * 4


def test_a_second_time_there_is_nothing_left_to_do():
    model = hugging_face()
    s2d.accelerate(model)
    report = s2d.accelerate(model)
    assert not report.replaced
    assert str(report) == "replaced nothing"


def test_the_example_is_timed():
    report = s2d.accelerate(hugging_face(), images(1, 3, 64, 64), runs=2)
    assert min(*report.milliseconds, report.speedup) > 0
    assert "4 MultiheadAttention" in str(report)
    assert f"{report.speedup:.2f} times as fast" in str(report)


def test_attention_weights_of_the_pixel_decoder_are_still_given():
    model, example = hugging_face(), images(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(**example, output_attentions=True).attentions
        s2d.accelerate(model)
        found = model(**example, output_attentions=True).attentions
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


class CrossAttentionLayer(nn.Module):
    """As the official Mask2Former calls it."""

    def __init__(self, **changes):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(8, 2, **changes)

    def forward(self, query, key, mask):
        return self.multihead_attn(query=query, key=key, value=key, attn_mask=mask, key_padding_mask=None)[0]


def test_the_official_layer_and_what_falls_back():
    torch.manual_seed(0)
    layer = CrossAttentionLayer(dropout=0.5).eval()
    query, key = torch.randn(5, 2, 8), torch.randn(6, 2, 8)
    bits = torch.rand(2, 5, 6) < 0.5
    bits[..., 0] = False
    masks = [bits.repeat_interleave(2, 0), bits[0], torch.where(bits[0], -1.0, 0.5), None]
    wanted = [layer(query, key, mask) for mask in masks]
    report = s2d.accelerate(layer)
    assert report.replaced == {"multihead_attn": "MultiheadAttention"}
    for mask, theirs in zip(masks, wanted, strict=True):
        torch.testing.assert_close(layer(query, key, mask), theirs)
    layer.train()
    torch.manual_seed(1)
    dropped = layer(query, key, masks[0])
    report.restore()
    torch.manual_seed(1)
    assert torch.equal(layer(query, key, masks[0]), dropped)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_first": True}, "batch first"),
        ({"bias": False}, "no bias"),
        ({"add_zero_attn": True}, "keys of its own"),
    ],
)
def test_what_is_left_alone_is_named(changes, reason):
    report = s2d.accelerate(nn.Sequential(CrossAttentionLayer(**changes)))
    assert not report.replaced
    assert reason in report.left["0.multihead_attn"]
    assert "left 0.multihead_attn: it" in str(report)


def test_the_official_deformable_attention():
    torch.manual_seed(0)
    ours = s2d.nn.MSDeformAttn(8, 2, 2, 2)

    def fails(*_):
        raise AssertionError("the original code runs")

    official = type("MSDeformAttn", (nn.Module,), {"forward": fails})()
    official.__dict__ = ours.__dict__
    model = nn.Sequential(official, ours)
    inputs = torch.randn(1, 3, 8), torch.full((1, 3, 2, 2), 0.5), torch.randn(1, 10, 8), torch.tensor([[2, 3], [2, 2]])
    assert s2d.accelerate(model).replaced == {"0": "MSDeformAttn"}
    torch.testing.assert_close(official(*inputs), ours(*inputs))


def test_an_accelerated_model_can_be_stored(tmp_path):
    layer = CrossAttentionLayer()
    s2d.accelerate(layer)
    again = pickle.loads(pickle.dumps(layer.multihead_attn))
    assert type(again) is type(layer.multihead_attn)
    assert isinstance(s2d.accelerate(nn.Linear(1, 1)), AccelerateReport)
