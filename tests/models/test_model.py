"""VideoMask2Former with small numbers: sizes, padding, hidden frames, gradients, repeatability."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from s2d.errors import InputError
from s2d.models import ModelConfig, VideoMask2Former
from s2d.models.inference import best_queries, input_size, upsample_masks
from s2d.models.video_mask2former import padded_size
from s2d.testing import small_model

SMALL = dataclasses.replace(
    small_model.SMALL,
    encoder_dropout=0.0,
    decoder_layers=4,
    num_queries=6,
    input_short_side=ModelConfig().input_short_side,
)


def build(**changes):
    torch.manual_seed(0)
    return VideoMask2Former(dataclasses.replace(SMALL, **changes))


def clip_of(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 18, "norm": "FrozenBN"},
        {"depth": 50},
        {"num_feature_levels": 2, "decoder_layers": 3},
        {"num_feature_levels": 1, "encoder_layers": 0},
        {"num_classes": 3, "decoder_layers": 0},
    ],
    ids=str,
)
def test_sizes(changes):
    model = build(**changes)
    output = model(clip_of(2, 3, 3, 40, 70))
    config = model.config
    assert output["pred_logits"].shape == (2, 6, config.num_classes + 1)
    assert output["pred_masks"].shape == (2, 6, 3, 16, 24)
    assert len(output["aux_outputs"]) == config.decoder_layers
    for head in output["aux_outputs"]:
        assert head["pred_masks"].shape == (2, 6, 3, 16, 24)


def test_every_parameter_learns():
    model = build()
    # The offsets of the deformable attention start without weights: nothing would flow through them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    output = model(clip_of(1, 2, 3, 32, 64))
    heads = [output, *output["aux_outputs"]]
    sum(head["pred_masks"].square().mean() + head["pred_logits"].square().mean() for head in heads).backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not still


def test_bytes_and_floats_are_the_same():
    model = build().eval()
    clip = clip_of(1, 2, 3, 32, 32)
    assert torch.equal(model(clip)["pred_masks"], model(clip.float())["pred_masks"])


def test_clips_of_a_batch_do_not_see_each_other():
    model = build().eval()
    first, second = clip_of(1, 2, 3, 32, 64), clip_of(1, 2, 3, 32, 64, seed=1)
    together = model(torch.cat([first, second]))
    torch.testing.assert_close(together["pred_masks"][:1], model(first)["pred_masks"], atol=1e-4, rtol=1e-4)


def test_hidden_frames_do_not_move_the_queries():
    model = build().eval()
    clip = clip_of(1, 4, 3, 32, 64)
    keep = torch.tensor([[True, True, False, True]])
    with_noise = clip.clone()
    with_noise[0, 2] = clip_of(3, 32, 64, seed=1)
    shown, hidden = model(clip, keep), model(with_noise, keep)
    torch.testing.assert_close(shown["pred_logits"], hidden["pred_logits"], atol=1e-5, rtol=1e-5)
    seen = [0, 1, 3]
    torch.testing.assert_close(shown["pred_masks"][:, :, seen], hidden["pred_masks"][:, :, seen], atol=1e-4, rtol=1e-4)
    assert (shown["pred_masks"][:, :, 2] - hidden["pred_masks"][:, :, 2]).abs().max() > 0.01
    assert (shown["pred_logits"] - model(clip)["pred_logits"]).abs().max() > 1e-4


def test_same_seed_same_numbers():
    gradients = []
    for _ in range(2):
        model = build()
        output = model(clip_of(1, 3, 3, 64, 64))
        output["pred_masks"].square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
def test_autocast(dtype, error):
    model, clip = build().eval(), clip_of(1, 2, 3, 64, 64)
    wanted = model(clip)["pred_masks"]
    with torch.autocast("cpu", dtype):
        half = model(clip)["pred_masks"]
    assert (half - wanted).abs().max() < error * wanted.abs().max()
    half.float().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.bfloat16, 1e-1), (torch.float16, 2e-2)])
def test_a_whole_model_of_another_dtype(dtype, error):
    model, clip = build().eval(), clip_of(1, 2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(clip)["pred_masks"]
        found = model.to(dtype)(clip)["pred_masks"]
    assert found.dtype == dtype
    assert (found - wanted).abs().max() < error * wanted.abs().max()


def test_a_compiled_model_gives_the_same():
    model, clip = build(decoder_layers=1), clip_of(1, 2, 3, 64, 64)
    torch._dynamo.reset()
    wanted, found = model(clip), torch.compile(model, backend="eager")(clip)
    heads = zip([wanted, *wanted["aux_outputs"]], [found, *found["aux_outputs"]], strict=True)
    for theirs, ours in heads:
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(ours[name], theirs[name])


def test_attention_compiles_whole():
    model = build()
    torch._dynamo.reset()
    decoder, features = model.sem_seg_head.pixel_decoder, model.backbone(torch.randn(1, 3, 64, 64))
    mask_features, levels = torch.compile(decoder, backend="aot_eager", fullgraph=True)(features)
    wanted_features, wanted_levels = decoder(features)
    for found, wanted in zip([mask_features, *levels], [wanted_features, *wanted_levels], strict=True):
        torch.testing.assert_close(found, wanted)
    clip = clip_of(1, 2, 3, 64, 64)
    torch.testing.assert_close(
        torch.compile(model, backend="aot_eager", fullgraph=True)(clip)["pred_masks"], model(clip)["pred_masks"]
    )


def test_masks_come_back_to_the_size_of_the_source():
    assert padded_size((33, 64)) == (64, 64)
    # A ramp along x in the padded quarter-size map stays a ramp of the frame.
    ramp = torch.linspace(-1, 1, 24).expand(1, 1, 16, 24)
    up = upsample_masks(ramp, (50, 70), (100, 140))
    assert up.shape == (1, 1, 100, 140)
    zero = int((up[0, 0, 50] > 0).nonzero()[0])
    assert abs(zero - 96) <= 1


def test_input_size_never_enlarges():
    config = dataclasses.replace(SMALL, input_short_side=120, input_long_side=200)
    assert input_size((240, 320), config) == (120, 160)
    assert input_size((320, 240), config) == (160, 120)
    assert input_size((64, 90), config) == (64, 90)
    assert input_size((240, 960), config) == (50, 200)


def test_best_queries():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    scores, queries = best_queries(logits, 3)
    assert queries.tolist() == [3, 1, 0]
    torch.testing.assert_close(scores, logits.softmax(-1)[queries, 0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depth": 20}, r"model.depth: expected one of \(10, 18, 34, 50, 101\), got 20"),
        ({"norm": "BN"}, "model.norm: expected one of"),
        ({"hidden_dim": 36}, "model.hidden_dim: expected a multiple of"),
        ({"num_queries": 0}, "model.num_queries: expected a whole number of at least 1, got 0"),
        ({"width": 32.5}, "model.width: expected a whole number"),
        ({"dropout": 1.5}, r"model.dropout: expected a number in \[0, 1\), got 1.5"),
        ({"queries": 10}, "expected model settings among .*; got queries"),
    ],
)
def test_config_refuses(values, words):
    with pytest.raises(InputError, match=words):
        ModelConfig.from_dict({**SMALL.to_dict(), **values})


def test_a_clip_has_five_dimensions():
    with pytest.raises(ValueError, match=r"expected a clip \[B, T, 3, H, W\], got \[3, 3, 8, 8\]"):
        build()(torch.zeros(3, 3, 8, 8))
