"""What priors with weights share: files that are read safely, and the device to run on."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from s2d.errors import InputError


def require_file(path: str | Path, what: str) -> Path:
    """``path``, if it is a file; InputError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"expected {what} at {path}, got {'a folder' if path.is_dir() else 'nothing: no such file'}")
    return path


def sha256_of(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` file or of a ``.pth`` of tensors; ``module.`` before the names is stripped.

    Raises:
        InputError: another kind of file, one that is cut off, or one that holds Python objects.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, OSError):
        raise InputError(f"expected weights, tensors by name, in {path}, got one cut off or another file") from None
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InputError(f"expected weights, tensors by name, in {path}, got something else")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
