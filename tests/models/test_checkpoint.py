"""Checkpoints: a round trip, the layouts people have, and sentences for what is none."""

from __future__ import annotations

import dataclasses
import pickle
import pickletools

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2d.errors import InputError
from s2d.models import ModelConfig, VideoMask2Former, load_checkpoint, save_checkpoint

CONFIG = ModelConfig(
    depth=10,
    width=8,
    norm="FrozenBN",
    hidden_dim=16,
    nheads=2,
    mask_dim=8,
    encoder_layers=1,
    encoder_ffn=16,
    decoder_layers=1,
    decoder_ffn=16,
    num_queries=3,
)


# What the tensors themselves say: all but the dropouts and the sizes of frames.
OFFICIAL_HEADS = dataclasses.replace(
    CONFIG, hidden_dim=32, nheads=8, num_feature_levels=2, num_classes=2, num_queries=5
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VideoMask2Former(CONFIG)


def assert_same(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["plain", "distillation"])
@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.safetensors"])
def test_round_trip(model, tmp_path, name, layout):
    path = tmp_path / name
    save_checkpoint(model, path, layout=layout)
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert not loaded.load_report
    assert_same(loaded, model)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_the_distillation_layout_is_the_official_one(model, tmp_path):
    save_checkpoint(model, tmp_path / "kd.pth", layout="distillation")
    names = list(torch.load(tmp_path / "kd.pth", weights_only=True)["model"])
    own = model.state_dict()
    assert len(names) == 2 * len(own)
    assert {name.split(".")[0] for name in names} == {"student", "teacher"}
    assert "student.0.stem.conv1.weight" in names
    assert "teacher.1.predictor.query_feat.weight" in names
    with pytest.raises(ValueError, match="layout 'plain' or 'distillation', got 'kd'"):
        save_checkpoint(model, tmp_path / "kd.pth", layout="kd")


@pytest.mark.parametrize(
    "changes",
    [{}, {"depth": 18}, {"depth": 34, "norm": "GN"}, {"depth": 50, "encoder_layers": 3}, {"depth": 101}],
    ids=str,
)
def test_sizes_are_read_off_the_tensors(tmp_path, changes):
    config = dataclasses.replace(OFFICIAL_HEADS, **changes)
    torch.save(VideoMask2Former(config).state_dict(), tmp_path / "bare.pth")
    unsaid = {"encoder_dropout": 0.3, "dropout": 0.0, "input_short_side": 360, "input_long_side": 1333}
    assert load_checkpoint(tmp_path / "bare.pth").config == dataclasses.replace(config, **unsaid)


def test_heads_cannot_be_read_off(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"expected a config .* its 24 samples a query on 3 levels"):
        load_checkpoint(tmp_path / "bare.pth")


def arrays_of(model, path, protocol=2):
    """A ResNet as detectron2 stores it: arrays under the names of the backbone alone."""
    state = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    arrays = {name: tensor.numpy() for name, tensor in state.items() if not name.startswith("sem_seg_head.")}
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_backbone_alone_starts_a_model(model, tmp_path, protocol):
    path = tmp_path / "R-10.pkl"
    arrays_of(model, path, protocol)
    with pytest.raises(InputError, match=r"strict=False loads those that fit.* missing: sem_seg_head\."):
        load_checkpoint(path, CONFIG)
    torch.manual_seed(5)
    started = load_checkpoint(path, CONFIG, strict=False)
    assert_same(started.backbone, model.backbone)
    torch.manual_seed(5)
    assert_same(started.sem_seg_head, VideoMask2Former(CONFIG).sem_seg_head)
    assert set(started.load_report.missing) == {n for n in model.state_dict() if n.startswith("sem_seg_head.")}
    assert not started.load_report.unexpected
    assert load_checkpoint(path, strict=False).config == ModelConfig(depth=10, width=8)


def test_arrays_of_a_numpy_before_2_and_of_the_other_byte_order(model, tmp_path):
    path = tmp_path / "R-10.pkl"
    arrays_of(model, path)
    assert b"numpy._core" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))
    assert_same(load_checkpoint(path, CONFIG, strict=False).backbone, model.backbone)
    name = "backbone.stem.conv1.weight"
    swapped = model.state_dict()[name].numpy().astype(">f4")
    path.write_bytes(pickle.dumps({name: swapped}))
    loaded = load_checkpoint(path, CONFIG, strict=False)
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])


def test_bare_prefixed_and_official(model, tmp_path):
    state = model.state_dict()
    forms = {
        "bare": state,
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "official": {"model": {**state, "criterion.empty_weight": torch.ones(2)}, "iteration": 3, "trainer": {}},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
        assert_same(load_checkpoint(tmp_path / name, CONFIG), model)


def test_the_teacher_of_a_distillation_is_taken(model, tmp_path):
    both = {}
    for name, tensor in model.state_dict().items():
        part = (
            name.replace("backbone.", "0.", 1)
            if name.startswith("backbone.")
            else name.replace("sem_seg_head.", "1.", 1)
        )
        both[f"student.{part}"] = tensor + 1
        both[f"teacher.{part}"] = tensor
    torch.save({"model": both}, tmp_path / "kd.pth")
    assert_same(load_checkpoint(tmp_path / "kd.pth", CONFIG), model)


def test_every_difference_is_reported_at_once(model, tmp_path):
    state = dict(model.state_dict())
    del state["sem_seg_head.predictor.query_feat.weight"]
    state["sem_seg_head.predictor.extra"] = torch.zeros(1)
    state["sem_seg_head.pixel_decoder.mask_features.bias"] = torch.zeros(9)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "odd.pt", CONFIG)
    text = str(caught.value)
    assert "1 missing: sem_seg_head.predictor.query_feat.weight" in text
    assert "1 unexpected: sem_seg_head.predictor.extra" in text
    assert "1 of another shape: sem_seg_head.pixel_decoder.mask_features.bias [9] instead of [8]" in text
    loaded = load_checkpoint(tmp_path / "odd.pt", CONFIG, strict=False)
    assert loaded.load_report.missing == ("sem_seg_head.predictor.query_feat.weight",)
    assert loaded.load_report.unexpected == ("sem_seg_head.predictor.extra",)
    assert loaded.load_report.misshaped == (("sem_seg_head.pixel_decoder.mask_features.bias", (9,), (8,)),)
    assert torch.equal(loaded.backbone.stem.conv1.weight, model.backbone.stem.conv1.weight)


def test_long_reports_are_cut(model, tmp_path):
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"\d+ missing: .* and \d+ more; 1 unexpected: some.weight"):
        load_checkpoint(tmp_path / "other.pt", CONFIG)
    with pytest.raises(InputError, match=r"missing: .*; 1 unexpected: some.weight"):
        load_checkpoint(tmp_path / "other.pt", CONFIG, strict=False)


def whole(model, path):
    (arrays_of if path.suffix == ".pkl" else save_checkpoint)(model, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda data: data[: len(data) // 2], "which is cut off or is not one"),
        (lambda data: b"", "which is cut off or is not one"),
        (lambda data: b"not weights at all", "is not one"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS pointer .*git lfs pull",
        ),
    ],
    ids=["truncated", "empty", "text", "pointer"],
)
def test_what_is_no_checkpoint(make, words, suffix, model, tmp_path):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(make(whole(model, tmp_path / f"good{suffix}")))
    with pytest.raises(InputError, match=words):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_objects_are_never_unpickled(tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, "hook": Evil()}, tmp_path / "evil.pt")
    content = {"model": {"stem.conv1.weight": np.zeros(1)}, "hook": Evil()}
    for name, protocol in (("a.pkl", 0), ("b.pkl", 2), ("c.pkl", 4), ("d.pth", 2)):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match="holds Python objects beside tensors"):
            load_checkpoint(path, strict=False)


@pytest.mark.parametrize(
    "name", ["builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile", "numpy.ndarray.tofile", "_codecs.decode"]
)
def test_a_pickle_of_arrays_names_nothing_but_arrays(tmp_path, name):
    module, _, function = name.rpartition(".")
    code = f"c{module}\n{function}\n(tR.".encode()
    assert any(opcode.name == "REDUCE" for opcode, _, _ in pickletools.genops(code))
    (tmp_path / "code.pkl").write_bytes(code)
    with pytest.raises(InputError, match="holds Python objects beside tensors"):
        load_checkpoint(tmp_path / "code.pkl")


def test_missing_folder_list_and_empty(tmp_path):
    with pytest.raises(InputError, match="which is missing"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="which is a folder"):
        load_checkpoint(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="named tensors, got list"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "empty.pkl").write_bytes(pickle.dumps({"model": {"epoch": 3}}))
    save_file({}, tmp_path / "empty.safetensors")
    for suffix in ("pt", "pkl", "safetensors"):
        with pytest.raises(InputError, match="got none in"):
            load_checkpoint(tmp_path / f"empty.{suffix}")


def test_a_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(model, path)
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
