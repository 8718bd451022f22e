"""Checkpoints: a round trip, the layouts people have, and sentences for what is none."""

from __future__ import annotations

import pickle

import pytest
import torch

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


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VideoMask2Former(CONFIG)


def assert_same(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_round_trip(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(model, path)
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert_same(loaded, model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


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


def test_long_reports_are_cut(model, tmp_path):
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"\d+ missing: .* and \d+ more; 1 unexpected: some.weight"):
        load_checkpoint(tmp_path / "other.pt", CONFIG)


def whole(model, path):
    save_checkpoint(model, path)
    return path.read_bytes()


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
def test_what_is_no_checkpoint(make, words, model, tmp_path):
    path = tmp_path / "bad.pt"
    path.write_bytes(make(whole(model, tmp_path / "good.pt")))
    with pytest.raises(InputError, match=words):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_objects_are_never_unpickled(tmp_path):
    torch.save({"model": {}, "hook": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="holds Python objects beside tensors"):
        load_checkpoint(tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(InputError, match="expected a checkpoint"):
        load_checkpoint(tmp_path / "plain.pkl")


def test_missing_folder_list_and_empty(tmp_path):
    with pytest.raises(InputError, match="which is missing"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="which is a folder"):
        load_checkpoint(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="named tensors, got list"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(InputError, match="got none in"):
        load_checkpoint(tmp_path / "empty.pt")


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
