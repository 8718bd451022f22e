"""The runner of RAFT, on a stand-in with the interface of torchvision's models: no weights are at hand here."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from s2d.data.video import Video
from s2d.errors import InputError
from s2d.motion.prior import make_prior
from s2d.motion.raft import RaftPrior


class StandIn(nn.Module):
    """'Flow' that tells what the model was given: (column, row) on its own grid, plus the change of brightness."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image1, image2, num_flow_updates=12):
        assert not self.training
        assert image1.dtype == torch.float32
        assert -1 <= float(image1.min()) <= float(image1.max()) <= 1
        height, width = image1.shape[2:]
        assert height % 8 == width % 8 == 0
        assert min(height, width) >= 128
        self.seen.append((len(image1), height, width))
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([columns, rows]).float() * self.scale[0]
        flow = grid + (image2 - image1).mean(1, keepdim=True)
        return [flow + (num_flow_updates - 1 - step) for step in range(num_flow_updates)]


@pytest.fixture
def torchvision(monkeypatch):
    modules = {name: ModuleType(name) for name in ("torchvision", "torchvision.models")}
    modules["torchvision.models"].optical_flow = models = ModuleType("torchvision.models.optical_flow")
    models.raft_large = lambda *, weights=None, progress=True: StandIn(4)
    models.raft_small = lambda *, weights=None, progress=True: StandIn(2)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def weights(tmp_path):
    torch.save({"scale": torch.ones(2)}, tmp_path / "small.pth")
    return tmp_path / "small.pth"


def clip(height, width, length=3):
    """Every frame is brighter than the one before by ten of 255."""
    frames = torch.arange(length, dtype=torch.uint8)[:, None, None, None] * 10
    return frames.expand(length, 3, height, width).contiguous()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (129, 140), (5, 150), (1, 1)])
def test_flow_lies_on_the_grid_of_the_frames(torchvision, weights, height, width):
    frames = clip(height, width)
    prior = RaftPrior(str(weights), iterations=3)
    flow = prior.scene(frames, 0, Video.from_frames(frames))
    (pairs, padded_height, padded_width), other = prior._model.seen
    assert pairs == 2
    assert other == (pairs, padded_height, padded_width)
    top, left = (padded_height - height) // 2, (padded_width - width) // 2
    rows, columns = torch.meshgrid(torch.arange(height) + top, torch.arange(width) + left, indexing="ij")
    grid = torch.stack([columns, rows], -1).float()
    for t in range(2):
        assert torch.allclose(flow.forward[t], grid + 10 / 127.5, atol=1e-4)
        assert torch.allclose(flow.backward[t], grid - 10 / 127.5, atol=1e-4)
    assert not flow.forward.requires_grad


def test_one_frame_has_no_flow(torchvision, weights):
    frames = clip(20, 30, 1)
    flow = RaftPrior(str(weights)).scene(frames, 0, Video.from_frames(frames))
    assert flow.forward.shape == flow.backward.shape == (0, 20, 30, 2)


def test_the_tensors_say_which_model_it_is(torchvision, tmp_path):
    for name, channels in (("small", 2), ("large", 4)):
        torch.save({"module.scale": torch.full((channels,), 0.5)}, tmp_path / f"{name}.pth")
        save_file({"scale": torch.full((channels,), 0.5)}, tmp_path / f"{name}.safetensors")
        for suffix in ("pth", "safetensors"):
            prior = make_prior(f"raft:{tmp_path}/{name}.{suffix}", iterations="2")
            assert prior._model.scale.tolist() == [0.5] * channels


def test_the_fingerprint_holds_weights_and_iterations(torchvision, weights, tmp_path):
    torch.save({"scale": torch.zeros(2)}, tmp_path / "other.pth")
    prints = [
        RaftPrior(str(path), iterations=number).fingerprint()
        for path, number in ((weights, 3), (weights, 4), (tmp_path / "other.pth", 3), (weights, 3))
    ]
    assert prints[0] == prints[3]
    assert len({str(one) for one in prints}) == 3


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"scale": torch.ones(3)}, "1 tensors of another model, the first one 'scale'"),
        ({"other": torch.ones(2)}, "the first one 'other'"),
        ({}, "0 tensors of another model"),
        ({"scale": 1.0}, "got something else"),
        ([torch.ones(2)], "got something else"),
        (Video, "cut off or another file"),
        (b"text", "cut off or another file"),
        (b"", "cut off or another file"),
        (None, "no such file"),
    ],
)
def test_weights_that_are_refused(torchvision, tmp_path, content, word):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=word) as caught:
        RaftPrior(str(path))
    assert str(path) in str(caught.value)


def test_options_that_are_refused(torchvision, weights):
    with pytest.raises(InputError, match="iterations of the motion prior raft from 1 on, got 0"):
        RaftPrior(str(weights), iterations=0)
    with pytest.raises(InputError, match="such as cpu or cuda, got 'gpu'"):
        RaftPrior(str(weights), device="gpu")
    with pytest.raises(InputError, match="a device of this machine, got 'cuda:99'"):
        RaftPrior(str(weights), device="cuda:99")


@pytest.mark.parametrize(
    ("version", "pair"),
    [("2.11.0+cpu", "torch 2.11 works with torchvision 0.26"), ("2.13.0", "torch 2.13 works with torchvision 0.28")],
)
def test_torchvision_that_does_not_import(monkeypatch, tmp_path, weights, version, pair):
    """A torchvision for another torch raises RuntimeError while it is imported."""
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=f"it is not installed; {pair}"):
        RaftPrior(str(weights))
    monkeypatch.delitem(sys.modules, "torchvision")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator\\n  nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"does not import \(operator nms does not exist\); {pair}"):
        RaftPrior(str(weights))
