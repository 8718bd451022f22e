"""Weights in files: our own, and those of the official models."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from s2d.errors import InputError
from s2d.models.config import ModelConfig
from s2d.models.video_mask2former import VideoMask2Former

_POINTER = b"version https://git-lfs"
_EXPORTED = {"teacher.0.": "backbone.", "teacher.1.": "sem_seg_head."}


def save_checkpoint(model: VideoMask2Former, path: str | Path) -> None:
    """Write ``{"model": state dict, "config": plain values}``; the file appears whole or not at all."""
    path = Path(path)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({"model": state, "config": model.config.to_dict()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, config: ModelConfig | None = None) -> VideoMask2Former:
    """Read a model, in evaluation mode, on the CPU.

    Accepted are files of `save_checkpoint`; official ones, ``{"model": state dict, ...}`` of a plain model or of a
    distillation, whose teacher is taken; and bare state dicts. ``module.`` before the names is stripped,
    ``criterion.*`` left out. Nothing but tensors and plain values is ever unpickled.

    Args:
        path: the file.
        config: sizes of a model whose file does not say them; None: the official ResNet-50 model.

    Raises:
        InputError: the file cannot be read as a checkpoint, or does not fit the sizes; names every tensor in the way.
    """
    path = Path(path)
    content = _read(path)
    stored = content.get("config")
    if isinstance(stored, dict):
        config = ModelConfig.from_dict(stored)
    state = plain_state_dict(content)
    if not state:
        raise InputError(f"expected a checkpoint with the tensors of a model, got none in {path}")
    model = VideoMask2Former(config)
    problems = _differences(state, model.state_dict())
    if problems:
        raise InputError(f"expected weights of the model {path} is read into, got {'; '.join(problems)}")
    model.load_state_dict(state)
    return model.eval()


def plain_state_dict(content: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of a plain model, whichever layout it has."""
    weights = content.get("model", content)
    state = {}
    for name, tensor in weights.items() if isinstance(weights, Mapping) else ():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            state[name.removeprefix("module.")] = tensor
    if any(name.startswith("teacher.") for name in state):
        state = {
            new + name.removeprefix(old): tensor
            for name, tensor in state.items()
            for old, new in _EXPORTED.items()
            if name.startswith(old)
        }
    return {name: tensor for name, tensor in state.items() if not name.startswith("criterion.")}


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise InputError(
            f"expected a checkpoint file, got {path}, which {'is a folder' if path.is_dir() else 'is missing'}"
        )
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"expected a checkpoint, got the Git LFS pointer {path}: fetch the file itself (git lfs pull)"
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "holds Python objects beside tensors" if zipfile.is_zipfile(path) else "is not one"
        raise InputError(f"expected a checkpoint of tensors, got {path}, which {reason}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, UnicodeDecodeError, OSError):
        raise InputError(f"expected a checkpoint, got {path}, which is cut off or is not one") from None
    if not isinstance(content, Mapping):
        raise InputError(f"expected a checkpoint with named tensors, got {type(content).__name__} in {path}")
    return content


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    groups = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    return [f"{len(names)} {kind}: {_shortened(names)}" for kind, names in groups.items() if names]


def _shortened(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
