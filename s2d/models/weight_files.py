"""Named tensors out of files that nobody checked: nothing but tensors, arrays and plain values is ever unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from s2d.errors import InputError

_POINTER = b"version https://git-lfs"


class _ForeignError(Exception):
    """A pickle names something that is neither a tensor nor a plain value."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file under the names that they have there, and the model settings beside them if there are any.

    Accepted are what `torch.save` wrote, ``.safetensors``, and pickles of numpy arrays (detectron2's ``.pkl``). The
    tensors stand under ``"model"``, or at the top where there is no such entry.

    Raises:
        InputError: there is no such file, it is cut off, holds Python objects, or no named tensor.
    """
    if not path.is_file():
        raise InputError(
            f"expected a checkpoint file, got {path}, which {'is a folder' if path.is_dir() else 'is missing'}"
        )
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"expected a checkpoint, got the Git LFS pointer {path}: fetch the file itself (git lfs pull)"
            )
    read = _read_torch
    if path.suffix == ".safetensors":
        read = _read_safetensors
    elif path.suffix == ".pkl" and not zipfile.is_zipfile(path):
        read = _read_arrays
    try:
        content = read(path)
    except _ForeignError as error:
        raise InputError(
            f"expected a checkpoint of tensors, got {path}, which holds Python objects beside tensors ({error}): "
            "unpickling them could run code"
        ) from None
    except Exception:  # bytes that are none of the formats make their readers fail in every way
        raise InputError(f"expected a checkpoint, got {path}, which is cut off or is not one") from None
    if not isinstance(content, Mapping):
        raise InputError(f"expected a checkpoint with named tensors, got {type(content).__name__} in {path}")
    weights = content.get("model", content)
    named = weights.items() if isinstance(weights, Mapping) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"expected a checkpoint with the tensors of a model, got none in {path}")
    stored = content.get("config")
    return tensors, stored if isinstance(stored, dict) else None


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # An archive that opens is whole: then it is its pickle that torch refuses.
        if zipfile.is_zipfile(path) or "Unsupported global" in str(error):
            raise _ForeignError("not among what torch.load(weights_only=True) reads") from None
        raise


def _read_safetensors(path: Path) -> object:
    with safetensors.safe_open(path, framework="pt") as file:
        config = (file.metadata() or {}).get("config")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {"model": tensors, "config": config and json.loads(config)}


def _read_arrays(path: Path) -> object:
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding="latin1").load()
    weights = content.get("model", content)
    # Pickled arrays may be read-only and of the other byte order.
    return {
        "model": {
            name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
            for name, array in weights.items()
            if isinstance(array, np.ndarray)
        }
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy's arrays, scalars and dtypes, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed the module; files of either age are read by either numpy.
        module = module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module
        match module, name:
            case "numpy", "ndarray" | "dtype":
                return getattr(np, name)
            case "numpy._core.multiarray" | "numpy.core.multiarray", "_reconstruct" | "scalar":
                return super().find_class(module, name)
            case "collections", "OrderedDict":
                return OrderedDict
            case "_codecs", "encode":
                return _latin1
        raise _ForeignError(f"{module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    """How early pickle protocols spell the bytes of an array."""
    if encoding != "latin1":
        raise _ForeignError(f"bytes in {encoding}")
    return text.encode(encoding)
