"""Loads the compiled modules, or says exactly how to build them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

BUILD_HINT = "build it with `pip install -c constraints.txt -e .` in a checkout, then start Python again"


def find(name: str) -> Path | None:
    """A file that the build put beside this package, wherever an editable install keeps it."""
    spec = importlib.util.find_spec("s2d")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in [*folders, str(Path(__file__).parent)]:
        candidate = Path(folder) / name
        if candidate.is_file():
            return candidate
    return None


def _load(stem: str) -> str | None:
    """Load one library of operators; the reason where that is not possible."""
    path = find(f"{stem}.so")
    if path is None:
        return f"the compiled module s2d/{stem}.so is not there; {BUILD_HINT}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"s2d/{stem}.so was built but does not load beside torch {torch.__version__}: {error}; {BUILD_HINT}"
    return None


_reasons: dict[str, str | None] = {"cpu": _load("_ops")}
if torch.version.cuda is None:
    _reasons["cuda"] = f"torch {torch.__version__} is built without CUDA"
elif _reasons["cpu"] is not None:
    _reasons["cuda"] = _reasons["cpu"]
else:
    _reasons["cuda"] = _load("_cuda")
if torch.version.cuda is not None and importlib.util.find_spec("triton") is None:
    _reasons["triton"] = "the package triton is not installed; `pip install 's2d[triton]'` brings it"
else:
    _reasons["triton"] = _reasons["cpu"] if torch.version.cuda is not None else _reasons["cuda"]


def missing(kind: str) -> str | None:
    """Why kernels of this kind ("cpu", "cuda", "triton") cannot run, or None where they can."""
    return _reasons.get(kind, f"there are no kernels for {kind}")


def host() -> ModuleType:
    """The compiled module for work on bytes (COCO strings); ImportError with the remedy where it was not built."""
    try:
        return importlib.import_module("s2d._host")
    except ImportError as error:
        raise ImportError(f"s2d._host does not load: {error}; {BUILD_HINT}") from None


TRITON: dict[str, Callable] = {}


def triton(name: str) -> Callable:
    """Register the function that launches a Triton kernel as the CUDA implementation of an operator."""

    def register(function: Callable) -> Callable:
        TRITON[name] = function
        if missing("triton") is None:
            torch.library.impl(f"s2d::{name}", "cuda", function)
        return function

    return register


def fake(name: str) -> Callable:
    """Register the fake (shape-only) implementation of ``s2d::name`` where the operator exists."""
    if missing("cpu") is not None or not hasattr(torch.ops.s2d, name):
        return lambda function: function
    return torch.library.register_fake(f"s2d::{name}")


def differentiable(name: str, backward: Callable, save: Callable) -> None:
    """Register the gradient of ``s2d::name``, which ``s2d::name_backward`` computes; a second derivative is refused."""
    if missing("cpu") is not None:
        return

    def refuse(ctx: torch.autograd.function.FunctionCtx, *_: torch.Tensor) -> None:
        raise RuntimeError(f"s2d::{name}: expected one backward pass, got a second derivative; impl='reference' has it")

    torch.library.register_autograd(f"s2d::{name}", backward, setup_context=save)
    torch.library.register_autograd(f"s2d::{name}_backward", refuse)
