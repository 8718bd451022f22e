"""176 numbers of the official implementation: what holds the model to it where `test_parity` has no file to read.

Tensors stand as their norm and as their product with random numbers (`official.random_like`).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import s2d.models.transformer_decoder as decoder
from s2d.models.inference import best_queries, binary_masks
from s2d.models.position import sine_2d, sine_3d
from s2d.ops import mask_area, mask_nms, unpack_masks
from s2d.testing import official

# Of the norm: what float32 costs against float64 on both sides.
RELATIVE = 1e-5
GRADIENT_NORM, GRADIENT_PROJECTION = 5e-4, 5e-3


@pytest.fixture(scope="module")
def numbers():
    return json.loads(Path(__file__).with_name("official_numbers.json").read_text())


def assert_is(tensor, name, wanted, relative=RELATIVE):
    norm, projection = wanted
    assert tensor.double().norm().item() == pytest.approx(norm, rel=relative)
    found = (tensor.double() * official.random_like(f"number/{name}", tensor.shape)).sum().item()
    assert found == pytest.approx(projection, abs=relative * norm)


def test_features(official_model, numbers):
    with torch.no_grad():
        features = official_model.backbone(official_model._normalise(official.clip()))
        mask_features, levels = official_model.sem_seg_head.pixel_decoder(features)
    found = dict(zip(("res2", "res3", "res4", "res5"), features, strict=True), mask_features=mask_features)
    found |= {f"level_{index}": level for index, level in enumerate(levels)}
    assert found.keys() == numbers["features"].keys()
    for name, tensor in found.items():
        assert_is(tensor, name, numbers["features"][name])


def test_every_head_and_its_attention_mask(official_model, numbers, monkeypatch):
    used = []
    original = decoder.attention_mask_from_features
    monkeypatch.setattr(decoder, "attention_mask_from_features", lambda *x: used.append(original(*x)) or used[-1])
    with torch.no_grad():
        evaluated = official_model(official.clip()[None])
        masks_of_evaluation, used = used, []
        outputs = official_model.train()(official.clip()[None])
        official_model.eval()
    heads = [*outputs["aux_outputs"], outputs]
    for index, head in enumerate(heads):
        assert_is(head["pred_logits"], f"logits_{index}", numbers["heads"][f"logits_{index}"])
    for head, (mean, deviation) in zip(heads, numbers["aux_masks_mean_std"], strict=False):
        assert head["pred_masks"].double().mean().item() == pytest.approx(mean, abs=1e-5)
        assert head["pred_masks"].double().std().item() == pytest.approx(deviation, abs=1e-5)
    for last in (outputs, evaluated):
        assert_is(last["pred_logits"], "logits_9", numbers["heads"]["logits_9"])
        assert_is(last["pred_masks"], "masks_9", numbers["heads"]["masks_9"])
    for masks in (used, masks_of_evaluation):
        forbidden = [~unpack_masks(mask) for mask in masks]
        assert [int(bits.sum()) for bits in forbidden] == numbers["forbidden_keys"]
        assert [int(bits.all(-1).sum()) for bits in forbidden] == numbers["rows_without_key"]


def test_position_encodings(numbers):
    assert_is(sine_2d(6, 8, 256).permute(2, 0, 1)[None], "pixels", numbers["position"]["pixels"], 1e-6)
    assert_is(sine_3d(3, 6, 8, 256).permute(0, 3, 1, 2)[None], "frames", numbers["position"]["frames"], 1e-6)


def test_training_step(training_step, numbers):
    assert training_step.losses.keys() == numbers["losses"].keys()
    for name, loss in training_step.losses.items():
        assert loss == pytest.approx(numbers["losses"][name], rel=2e-5), name
    assert training_step.total == pytest.approx(numbers["total"], rel=1e-5)
    for name, (norm, projection) in numbers["gradients"].items():
        gradient = training_step.gradients[name].double()
        assert gradient.norm().item() == pytest.approx(norm, rel=GRADIENT_NORM), name
        found = (gradient * official.random_like(f"grad/{name}", gradient.shape)).sum().item()
        assert found == pytest.approx(projection, abs=GRADIENT_PROJECTION * norm), name


@pytest.mark.parametrize(
    ("case", "inner", "outer"), [("resized", (96, 128), (135, 180)), ("cropped", (90, 100), (180, 200))]
)
def test_inference(teacher_model, numbers, case, inner, outer):
    with torch.no_grad():
        output = teacher_model(official.clip()[None, ..., : inner[0], : inner[1]])
    scores, queries = best_queries(output["pred_logits"][0], 50)
    bits = binary_masks(output["pred_masks"][0, queries], inner, outer)
    kept = mask_nms(bits, scores, 0.82)
    wanted = numbers["inference"][case]
    assert len(kept) == wanted["kept"]
    assert scores[kept[0]].item() == pytest.approx(wanted["best_score"], abs=1e-5)
    assert int(mask_area(bits[kept]).sum()) == pytest.approx(wanted["pixels"], rel=1e-5)
