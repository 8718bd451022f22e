"""Weights in files: our own, and those of the official models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from s2d.data.files import atomic_write
from s2d.errors import InputError
from s2d.models.config import ModelConfig
from s2d.models.video_mask2former import VideoMask2Former
from s2d.models.weight_files import read_weights

# The two halves of a distillation checkpoint are lists of a backbone and a head.
_HALVES = {"backbone.": "0.", "sem_seg_head.": "1."}
# How detectron2 names a ResNet that stands alone.
_BACKBONE = ("stem.", "res2.", "res3.", "res4.", "res5.")


@dataclass(frozen=True)
class LoadReport:
    """What of a file and a model did not meet; empty where every tensor did.

    Attributes:
        missing: names that the model has and the file lacks: they keep their initial values.
        unexpected: names that the file has and the model lacks: they are left out.
        misshaped: name, shape in the file and shape in the model of tensors that differ: as if missing.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        groups = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": [f"{n} {list(found)} instead of {list(want)}" for n, found, want in self.misshaped],
        }
        return "; ".join(f"{len(names)} {kind}: {_shortened(names)}" for kind, names in groups.items() if names)


def save_checkpoint(model: VideoMask2Former, path: str | Path, *, layout: str = "plain") -> None:
    """Write a model; the file appears whole or not at all.

    Args:
        model: its state dict and its `ModelConfig` are stored.
        path: ``.safetensors`` for that format (the configuration in its metadata); any other suffix for the official
            ``{"model": state dict}`` of `torch.save`, with ``"config"`` beside it.
        layout: ``"plain"``, or ``"distillation"``: the tensors twice, as student and as teacher, which is how the
            official distillation starts from a model.

    Raises:
        ValueError: an unknown layout. InputError: the file cannot be written.
    """
    if layout not in ("plain", "distillation"):
        raise ValueError(f"expected layout 'plain' or 'distillation', got {layout!r}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if layout == "distillation":
        state = {f"{half}.{_in_half(n)}": tensor for half in ("student", "teacher") for n, tensor in state.items()}
    with atomic_write(path) as temporary:
        if temporary.suffix == ".safetensors":
            # The format refuses tensors that share memory, as those of the two halves do.
            state = {name: tensor.clone() if name.startswith("teacher.") else tensor for name, tensor in state.items()}
            save_file(state, temporary, metadata={"config": json.dumps(model.config.to_dict())})
        else:
            torch.save({"model": state, "config": model.config.to_dict()}, temporary)


def load_checkpoint(path: str | Path, config: ModelConfig | None = None, *, strict: bool = True) -> VideoMask2Former:
    """Read a model, in evaluation mode, on the CPU.

    Accepted are files of `save_checkpoint`; official ones, ``{"model": state dict, ...}`` of a plain model or of a
    distillation, whose teacher is taken; bare state dicts; ``.safetensors``; detectron2's ``.pkl`` of arrays. Names of
    a ResNet that stands alone (``stem.*``, ``res2.*`` ...) are those of the backbone, ``module.`` before a name is
    stripped, ``criterion.*`` left out. Nothing but tensors and plain values is ever unpickled.

    A backbone alone starts a model: ``load_checkpoint("R-50.pkl", strict=False)`` leaves the head at its initial
    values, and says so in ``model.load_report``.

    Args:
        path: the file.
        config: sizes of the model. None: those that the file says, else those that its tensors have
            (`ModelConfig.of_weights`).
        strict: refuse a file that does not fit in every tensor; False loads those that fit.

    Returns:
        the model; its attribute ``load_report`` is the `LoadReport`.

    Raises:
        InputError: the file cannot be read as a checkpoint; or it does not fit the sizes (with ``strict=False``: in
            any tensor), and then the report stands in the message.
    """
    path = Path(path)
    tensors, stored = read_weights(path)
    state = _plain(tensors)
    if config is None:
        config = ModelConfig.from_dict(stored) if stored else ModelConfig.of_weights(state)
    model = VideoMask2Former(config)
    wanted = model.state_dict()
    model.load_report = _compare(state, wanted)
    fitting = {n: tensor for n, tensor in state.items() if n in wanted and tensor.shape == wanted[n].shape}
    if model.load_report and (strict or not fitting):
        hint = " (strict=False loads those that fit)" if fitting else ""
        raise InputError(f"expected the tensors of the model that {path} is read into{hint}, got {model.load_report}")
    model.load_state_dict(fitting, strict=False)
    return model.eval()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of a plain model, whichever layout they come in."""
    state = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("teacher.") for name in state):
        state = {
            whole + name.removeprefix(f"teacher.{part}"): tensor
            for name, tensor in state.items()
            for whole, part in _HALVES.items()
            if name.startswith(f"teacher.{part}")
        }
    return {
        f"backbone.{name}" if name.startswith(_BACKBONE) else name: tensor
        for name, tensor in state.items()
        if not name.startswith("criterion.")
    }


def _in_half(name: str) -> str:
    whole = next(whole for whole in _HALVES if name.startswith(whole))
    return _HALVES[whole] + name.removeprefix(whole)


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> LoadReport:
    return LoadReport(
        tuple(sorted(set(wanted) - set(found))),
        tuple(sorted(set(found) - set(wanted))),
        tuple(
            (name, tuple(found[name].shape), tuple(tensor.shape))
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ),
    )


def _shortened(names: tuple[str, ...] | list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
