"""Optical flow by RAFT (Teed and Deng, RAFT: Recurrent All-Pairs Field Transforms, ECCV 2020), from torchvision."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d.devices import find_device
from s2d.errors import InputError
from s2d.motion._networks import read_weights, require_file, sha256_of
from s2d.motion.dis import VideoFlow

if TYPE_CHECKING:
    from s2d.data.video import Video

_MULTIPLE, _LEAST = 8, 128
"""Sides are multiples of the network's stride, and its coarsest correlation needs two cells a side."""


class RaftPrior:
    """Runs torchvision's ``raft_large`` or ``raft_small`` with weights from a file, as `s2d.motion.prior.MotionPrior`.

    A thin runner: which of the two models it is follows from the tensors; a pair goes through in both directions at
    once; frames are padded by repeating their border. torchvision is imported here and nowhere else. The tests run it
    on a stand-in with torchvision's interface, as neither torchvision nor weights are among what they install.

    Args:
        weights: the state dict of a torchvision model, ``.pth`` or ``.safetensors``.
        iterations: refinements of the flow; more is slower and, up to about 32, better.
        device: where the network runs; results are on the CPU. Not part of the fingerprint.

    Raises:
        InputError: no such file, not the weights of either model, torchvision does not import beside this torch, or
            there is no such device.
    """

    name = "raft"
    pure = True

    def __init__(self, weights: str, *, iterations: int = 12, device: str = "cpu") -> None:
        if iterations < 1:
            raise InputError(f"expected iterations of the motion prior raft from 1 on, got {iterations}")
        path = require_file(weights, "weights of RAFT")
        self._device = find_device(device)
        self._model = _model_of(read_weights(path), weights).to(self._device).eval()
        self._iterations, self._sha256 = iterations, sha256_of(path)

    def fingerprint(self) -> dict[str, Any]:
        return {"prior": self.name, "weights": self._sha256, "iterations": self._iterations}

    @torch.no_grad()
    def scene(self, frames: Tensor, start: int, video: Video) -> VideoFlow:
        height, width = frames.shape[-2:]
        pad = (*_padding(width), *_padding(height))
        inside = (slice(pad[2], pad[2] + height), slice(pad[0], pad[0] + width))
        flows = torch.empty(2, max(0, len(frames) - 1), height, width, 2)
        for t in range(flows.shape[1]):
            pair = F.pad(frames[t : t + 2].to(self._device).float() / 127.5 - 1, pad, mode="replicate")
            both = self._model(pair, pair.flip(0), num_flow_updates=self._iterations)[-1]
            flows[:, t] = both[:, :, *inside].permute(0, 2, 3, 1).cpu()
        return VideoFlow(flows[0], flows[1])


def _padding(side: int) -> tuple[int, int]:
    """Pixels before and after, so that a side is as the network needs it."""
    missing = max(_LEAST, -(-side // _MULTIPLE) * _MULTIPLE) - side
    return missing // 2, missing - missing // 2


def _model_of(state: dict[str, Tensor], path: str) -> nn.Module:
    models = _optical_flow()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for build in (models.raft_large, models.raft_small):
        model = build(weights=None, progress=False)
        if shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}:
            model.load_state_dict(state)
            return model
    raise InputError(
        f"expected weights of torchvision's raft_large or raft_small in {path}, got {len(state)} tensors of another "
        f"model, the first one {next(iter(state), 'absent')!r}"
    )


def _optical_flow() -> ModuleType:
    """torchvision's flow models, or the versions that go together."""
    try:
        from torchvision.models import optical_flow
    # An extension that was built for another torch fails in many ways, most often as a RuntimeError.
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("torchvision")
        reason = "it is not installed" if absent else f"it does not import ({' '.join(str(error).split())})"
        raise InputError(f"expected torchvision for the motion prior raft, got none: {reason}; {_pair()}") from None
    return optical_flow


def _pair() -> str:
    """Every torch 2.x has its torchvision, built against exactly it."""
    major, minor = torch.__version__.split(".")[:2]
    if major != "2":
        return f"torch {torch.__version__} works with the torchvision released beside it"
    return f"torch {major}.{minor} works with torchvision 0.{int(minor) + 15}, both for CPU or both for the same CUDA"
