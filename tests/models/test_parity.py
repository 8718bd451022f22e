"""The official numbers: deterministic weights and a deterministic clip through our model give the stored results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from s2d.data.clips import ClipTargets
from s2d.models import ModelConfig, load_checkpoint
from s2d.models.inference import best_queries, binary_masks
from s2d.models.position import sine_2d, sine_3d
from s2d.ops import attention_mask, mask_iou, mask_nms, unpack_masks
from s2d.testing import official
from s2d.training.criterion import clip_losses, weighted_sum
from s2d.training.matcher import match
from s2d.training.settings import LossSettings
from s2d.training.teacher import confident_targets

# What float32 costs against float64, on our side and on theirs.
FEATURES, MASKS, LOGITS = 4e-5, 1e-4, 4e-5
# Sampling positions and the choice of points are not smooth: gradients bear less than values do.
GRADIENT_NORM, GRADIENT_PROJECTION = 5e-4, 5e-3
# Of 192 points chosen by how uncertain they are, rounding exchanges one here and there.
AUXILIARY = 3e-3


@pytest.fixture(scope="module")
def stored(test_data):
    return torch.load(test_data / "parity" / "parity_small.pt", weights_only=True)


@pytest.fixture(scope="module")
def names(test_data):
    """Names and shapes of the official models, plain and distillation, one after the other."""
    text = (test_data / "parity" / "state_dict.txt").read_text()
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    return [(row[0], tuple(int(n) for n in row[1].strip("()").split(",") if n.strip())) for row in rows]


@pytest.fixture(scope="module")
def files(names, tmp_path_factory):
    """A plain and a distillation checkpoint with the deterministic weights, every official name in them."""
    folder = tmp_path_factory.mktemp("parity")
    layouts = {"plain": {}, "distillation": {}}
    for name, shape in names:
        layout = "distillation" if name.startswith(("student", "teacher")) or layouts["distillation"] else "plain"
        half, _, rest = name.partition(".")
        whole = rest.replace("0.", "backbone.", 1) if rest.startswith("0.") else rest.replace("1.", "sem_seg_head.", 1)
        template = {whole if half in ("student", "teacher") else name: torch.empty(shape)}
        (layouts[layout][name],) = official.weights(template, teacher=half == "teacher").values()
    for layout, state in layouts.items():
        torch.save({"model": state, "iteration": 7, "trainer": {"iteration": 7}}, folder / f"{layout}.pth")
    return folder


@pytest.fixture(scope="module")
def model(files):
    # Without dropout, training mode gives the same numbers and all ten heads.
    return load_checkpoint(files / "plain.pth", ModelConfig(encoder_dropout=0.0))


@pytest.fixture(scope="module")
def clip(stored):
    clip = official.clip()[None]
    assert torch.equal(clip[0].to(torch.uint8), stored["clip_uint8"].view(clip[0].shape))
    return clip


@pytest.fixture(scope="module")
def outputs(model, clip):
    model.train()
    with torch.no_grad():
        outputs = model(clip)
    model.eval()
    return outputs


def assert_near(found, wanted, tolerance):
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance


def test_names_and_shapes_are_the_official_ones(names, model):
    wanted = {name: shape for name, shape in names if name.startswith(("backbone.", "sem_seg_head."))}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == wanted
    assert not model.load_report
    assert sum(parameter.numel() for parameter in model.parameters()) == 43_949_954


def test_weights_are_the_stored_ones(model, stored):
    for name, tensor in model.state_dict().items():
        total, absolute = stored["weights_check"][name]
        assert tensor.double().sum().item() == pytest.approx(total, abs=1e-6 * absolute)
        assert tensor.double().abs().sum().item() == pytest.approx(absolute, rel=1e-6)


def test_backbone_and_pixel_decoder(model, clip, stored):
    wanted = stored["forward"]
    with torch.no_grad():
        normalised = model._normalise(clip[0])
        features = model.backbone(normalised)
        mask_features, levels = model.sem_seg_head.pixel_decoder(features)
    assert_near(normalised, wanted["x"], 1e-6)
    for name, feature in zip(("res2", "res3", "res4", "res5"), features, strict=True):
        assert_near(feature, wanted[name], FEATURES)
    assert_near(mask_features, wanted["mask_features"], FEATURES)
    for level, stored_level in zip(levels, wanted["multi_scale"], strict=True):
        assert_near(level, stored_level, FEATURES)


def test_every_head(outputs, stored):
    wanted = stored["forward"]
    assert_near(outputs["pred_logits"], wanted["pred_logits"], LOGITS)
    assert_near(outputs["pred_masks"], wanted["pred_masks"], MASKS)
    assert_near(outputs["pred_masks"], wanted["pred_masks_f64"], MASKS)
    assert len(outputs["aux_outputs"]) == len(wanted["aux"]) == 9
    for head, stored_head in zip(outputs["aux_outputs"], wanted["aux"], strict=True):
        assert_near(head["pred_logits"], stored_head["pred_logits"], LOGITS)
        # These masks are stored in half precision: half a unit in its last place on top.
        rounding = stored_head["pred_masks"].float().abs() * 2.0**-11
        excess = (head["pred_masks"] - stored_head["pred_masks"].float()).abs() - rounding
        assert float(excess.max()) <= MASKS
        assert head["pred_masks"].double().mean().item() == pytest.approx(stored_head["mean"], abs=1e-5)
        assert head["pred_masks"].double().std().item() == pytest.approx(stored_head["std"], abs=1e-5)


def test_every_bit_of_the_attention_masks(outputs, stored, monkeypatch, model, clip):
    import s2d.models.transformer_decoder as decoder

    used = []
    original = decoder.attention_mask_from_features
    monkeypatch.setattr(decoder, "attention_mask_from_features", lambda *x: used.append(original(*x)) or used[-1])
    with torch.no_grad():
        model(clip)
    sizes = [(3, 4), (6, 8), (12, 16)]
    heads = [*outputs["aux_outputs"], outputs]
    for index, (packed, shape) in enumerate(stored["forward"]["attn_mask"]):
        bits = torch.from_numpy(np.unpackbits(packed.numpy()))[: torch.Size(shape).numel()]
        forbidden = bits.view(shape).bool()
        ours = unpack_masks(attention_mask(heads[index]["pred_masks"], sizes[index % 3]))
        assert torch.equal(~ours, forbidden)
        assert int(forbidden.all(-1).sum()) == stored["forward"]["all_masked_rows"][index]
        if index < 9:
            assert torch.equal(unpack_masks(used[index]), ours)


def test_evaluation_mode_gives_the_last_head_alone(model, clip, outputs):
    with torch.no_grad():
        alone = model(clip)
    assert alone["aux_outputs"] == []
    assert_near(alone["pred_masks"], outputs["pred_masks"], 1e-5)
    assert torch.equal(alone["pred_logits"], outputs["pred_logits"])


def test_position_encodings(stored):
    wanted = stored["pe2d_1x256x6x8"]
    assert_near(sine_2d(6, 8, 256).permute(2, 0, 1)[None], wanted, 1e-6)
    wanted = stored["pe3d_1x3x256x6x8"]
    assert_near(sine_3d(3, 6, 8, 256).permute(0, 3, 1, 2)[None], wanted, 1e-6)


def test_gradients_of_every_parameter(training_step, stored):
    wanted = stored["train_B2"]
    assert_near(training_step.logits, wanted["pred_logits"], LOGITS)
    for name, loss in wanted["losses"].items():
        assert training_step.losses[name] == pytest.approx(loss, rel=2e-5), name
    assert training_step.total == pytest.approx(wanted["total"], rel=1e-5)
    gradients = wanted["grads(norm, dot randn(crc32('grad/'+key)))"]
    assert gradients.keys() == training_step.gradients.keys()
    for name, (norm, projection) in gradients.items():
        gradient = training_step.gradients[name].double()
        assert gradient.norm().item() == pytest.approx(norm, rel=GRADIENT_NORM), name
        found = (gradient * official.random_like(f"grad/{name}", gradient.shape)).sum().item()
        assert found == pytest.approx(projection, abs=GRADIENT_PROJECTION * norm), name


@pytest.fixture(scope="module")
def teacher(files):
    teacher = load_checkpoint(files / "distillation.pth")
    assert not teacher.load_report
    return teacher


@pytest.mark.parametrize(
    ("case", "targets", "settings", "of_teacher"),
    [
        ("sparse_masks-only", "sparse", {}, False),
        ("sparse_full", "sparse", {"frames": "all"}, False),
        ("dense_masks-only", "dense", {}, False),
        ("allempty_masks-only", "empty", {}, False),
        ("allempty_full", "empty", {"frames": "all"}, False),
        ("none_masks-only", "none", {}, False),
        ("none_full", "none", {"frames": "all"}, False),
        # The teacher's targets, whose strategy auxiliary heads do not heed.
        ("kd_sparse_loss=full_dist=masks-only", "sparse", {"frames": "all", "distill_frames": "annotated"}, True),
    ],
)
def test_criterion(outputs, stored, case, targets, settings, of_teacher):
    """Matching, losses and gradients of all heads: the same random points give the released code's numbers."""
    wanted = stored["criterion"][case]
    heads = [
        {name: head[name].clone().requires_grad_() for name in ("pred_logits", "pred_masks")}
        for head in ({name: stored["forward"][name] for name in ("pred_logits", "pred_masks")}, *outputs["aux_outputs"])
    ]
    tubes = stored["targets"][targets]["masks"].bool() if targets != "none" else torch.zeros(0, 3, 96, 128).bool()
    # What officially counts is seen in the masks: an annotation that says something else changes nothing.
    target = ClipTargets(tubes, torch.ones(tubes.shape[:2], dtype=torch.bool))
    chosen = LossSettings(class_loss=2, distill_class=2, num_points=256, behaviour="official", **settings)
    kept = {"annotated": int(tubes.flatten(2).any(2).sum()), "all": tubes.shape[0] * tubes.shape[1]}
    rows = [[kept[chosen.distill_frames if of_teacher else chosen.frames]], *[[kept[chosen.frames]]] * 9]

    with official.seeded_points(1000, rows):
        pairs = match(heads, [target], chosen)
    for found, pair in zip(pairs, wanted["indices"], strict=True):
        assert [t.tolist() for t in found[0]] == [t.tolist() for t in pair[0]]
    with official.seeded_points(1000, rows):
        losses = clip_losses({**heads[0], "aux_outputs": heads[1:]}, [target], chosen, teacher=of_teacher)
    assert {name.removeprefix("kd_") for name in losses} == set(wanted["losses"])
    for name, value in losses.items():
        auxiliary = name[-1].isdigit()
        near = pytest.approx(wanted["losses"][name.removeprefix("kd_")], rel=AUXILIARY if auxiliary else 1e-5, abs=1e-6)
        assert value.item() == near, name
    total = weighted_sum(losses, chosen)
    assert total.item() == pytest.approx(wanted["total_weighted"], rel=1e-3)
    total.backward()
    torch.testing.assert_close(heads[0]["pred_logits"].grad, wanted["grad_pred_logits_final"], rtol=1e-4, atol=1e-6)
    if wanted["grad_pred_masks_final"] is None:
        assert heads[0]["pred_masks"].grad.abs().sum() == 0
    else:
        masks = wanted["grad_pred_masks_final"].to_dense()
        torch.testing.assert_close(heads[0]["pred_masks"].grad, masks, rtol=1e-4, atol=1e-6)
    for head, size in zip(heads[1:], wanted["grad_aux_masks_abs_sum"], strict=True):
        assert head["pred_masks"].grad.abs().sum().item() == pytest.approx(size or 0.0, rel=1e-2)


def test_distillation(outputs, teacher, clip, stored):
    """Both parts of the loss, the second on what the teacher sees."""
    wanted = stored["kd_train"]
    with torch.no_grad():
        seen = teacher(clip)
    (found,) = confident_targets(seen["pred_logits"], seen["pred_masks"], (96, 128), wanted["score_threshold"])
    packed, shape = wanted["distill_masks_packed"]
    masks = torch.from_numpy(np.unpackbits(packed.numpy()))[: math.prod(shape)].view(shape).bool()
    iou = mask_iou(masks, found.masks)
    order = iou.argmax(1)
    assert sorted(order.tolist()) == list(range(wanted["n_distill_targets"]))
    assert iou.max(1).values.min() > 0.999
    found = ClipTargets(found.masks[order], found.keep[order])

    tubes = stored["targets"]["sparse"]["masks"].bool()
    target = ClipTargets(tubes, tubes.flatten(2).any(2))
    settings = LossSettings(class_loss=2, distill_class=2, num_points=256, behaviour="official")
    rows = [[int(target.keep.sum())]] * 10
    with official.seeded_points(3000, rows):
        losses = clip_losses(outputs, [target], settings)
    with official.seeded_points(3030, [[found.keep.numel()]] * 10):
        losses |= clip_losses(outputs, [found], settings, teacher=True)
    for name, value in losses.items():
        weighted = weighted_sum({name: value}, settings).item()
        assert weighted == pytest.approx(wanted["losses_weighted"][name], rel=AUXILIARY), name
    assert losses.keys() == wanted["losses_weighted"].keys()


@pytest.mark.parametrize(
    ("case", "inner", "outer", "nms"),
    [
        ((False, 0.75, (96, 128)), (96, 128), (96, 128), None),
        ((True, 0.75, (96, 128)), (96, 128), (96, 128), 0.75),
        ((True, 0.82, (96, 128)), (96, 128), (96, 128), 0.82),
        ((True, 0.82, (135, 180)), (96, 128), (135, 180), 0.82),
        ("crop_90x100_to_180x200_nms0.82", (90, 100), (180, 200), 0.82),
    ],
)
def test_inference_of_the_exported_teacher(teacher, clip, stored, case, inner, outer, nms):
    """With and without NMS, padded and cropped back, and at another size than that of the frames."""
    with torch.no_grad():
        output = teacher(clip[..., : inner[0], : inner[1]])
    scores, queries = best_queries(output["pred_logits"][0], 50)
    bits = binary_masks(output["pred_masks"][0, queries], inner, outer)
    kept = torch.arange(50) if nms is None else mask_nms(bits, scores, nms)
    wanted = stored["inference_teacher"][case]
    torch.testing.assert_close(scores[kept], torch.tensor(wanted["scores"]), atol=LOGITS, rtol=0)
    packed, shape = wanted["masks"]
    masks = torch.from_numpy(np.unpackbits(packed.numpy()))[: torch.Size(shape).numel()].view(shape)
    differing = (unpack_masks(bits[kept]) != masks.bool()).double().mean()
    assert differing < 1e-5
