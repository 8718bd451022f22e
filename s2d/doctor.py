"""What was built, what this machine offers, and what each missing optional part is for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path

import torch

from s2d import __version__, _native
from s2d.ops._dispatch import ROOMS

# Optional packages: module to look for, pip extra that brings it, what it is for.
OPTIONAL = [
    ("nvidia.dali", "dali", "decoding video on the GPU"),
    ("cupy", "cupy", "handing masks to CuPy without a copy"),
    ("triton", "triton", "the GPU kernels of the attention and of the losses"),
    ("ray", "ray", "discovery in thousands of videos on a cluster"),
    ("tensorboard", "tensorboard", "curves of a training, beside its log"),
    ("pycocotools", "test", "the peer that the tests compare masks with"),
    ("pytest_benchmark", "bench", "the benchmark suite"),
]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _build_facts() -> dict[str, str]:
    path = _native.find("_build.json")
    return {} if path is None else json.loads(path.read_text())


def _kernels(device: str, build: dict[str, str]) -> str:
    reason = _native.missing(device)
    if device == "cpu":
        return f"loaded, instruction set {_native.host().cpu_isa()}" if reason is None else f"not loaded: {reason}"
    if not build.get("cuda_architectures"):
        why = "S2D_CUDA=OFF" if build.get("cuda_asked") == "OFF" else "no nvcc was found"
        return f"not built: {why} when the package was built"
    built = f"built with nvcc {build['cuda_compiler']} for {build['cuda_architectures']}"
    return f"{built}; " + ("loaded" if reason is None else f"not loaded: {reason}")


def report() -> str:
    """The text of ``s2d doctor``: one fact a line."""
    build = _build_facts()
    compiled = f"{build['compiler']}, headers of torch {build['torch_headers']}" if build else _native.BUILD_HINT
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines = [
        f"s2d {__version__} in {Path(__file__).parent}",
        f"python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, gpu: {gpu}",
        f"compiled by    {compiled}",
        f"CPU kernels    {_kernels('cpu', build)}",
        f"CUDA kernels   {_kernels('cuda', build)}",
        "",
        "operator               runs on",
    ]
    for room in sorted(ROOMS, key=lambda room: room.name):
        native = [kind for kind in room.kernels if _native.missing(kind) is None]
        waiting = "" if room.kernels else " (kernels to come)"
        lines.append(f"  {room.name:<20} {', '.join([f'{kind} kernel' for kind in native] + ['reference'])}{waiting}")
    lines += ["", "optional               what it is for"]
    for module, extra, purpose in OPTIONAL:
        found = "installed" if _installed(module) else f"missing: pip install 's2d[{extra}]'"
        lines.append(f"  {module:<20} {purpose}: {found}")
    settings = {name: os.environ[name] for name in ("S2D_IMPL", "S2D_CPU_ISA") if os.environ.get(name)}
    if settings:
        lines += ["", "environment: " + ", ".join(f"{name}={value}" for name, value in settings.items())]
    return "\n".join(lines)
