"""Runs the GPU kernels on CPU tensors: what ``pytest --emulate-gpu`` stands on.

CUDA kernels are compiled for the CPU, with their launchers and bindings, on the emulator of this folder; Triton kernels
are interpreted. Both are registered for CPU tensors and replace the CPU kernels of their rooms in this process.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import re
import subprocess
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from s2d import _native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "simt"

COMPILER = os.environ.get("CXX", "c++")
COMMON = ["-std=c++20", "-O1", "-g1", "-fPIC", "-ffp-contract=off", f"-I{HERE}"]
# The calls that sanitizers put before accesses, without their runtimes: memory.cpp answers them.
INSTRUMENTED = [
    "-fsanitize=thread,bounds,alignment",
    "--param=tsan-instrument-func-entry-exit=0",
    "--param=tsan-distinguish-volatile=1",
    "-fno-gnu-unique",  # what a template shares within a block is not shared with the libraries of other rooms
    "-D__CUDA_ARCH__=900",  # headers shared with the CPU take the branch that the GPU takes
    *("-include", "cuda_runtime.h"),  # as nvcc does
    *("-x", "c++"),
]
TORCH = [
    f"-isystem{Path(torch.__file__).parent / 'include'}",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]


def _headers() -> bytes:
    found = sorted([*HERE.glob("*.h"), *(ROOT / "csrc").glob("*/*.h"), *(ROOT / "csrc").glob("*/*.cuh")])
    return b"".join(path.read_bytes() for path in found)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _compile(source: Path, flags: list[str], headers: bytes) -> Path:
    """The object of a source, from the cache where nothing it is made of has changed."""
    content = source.read_bytes() + headers + repr((COMPILER, COMMON, flags, torch.__version__)).encode()
    target = CACHE / f"{source.name}-{hashlib.sha256(content).hexdigest()[:16]}.o"
    if not target.exists():
        # Of this thread: several builds at once begin with the same sources.
        temporary = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        _run([COMPILER, *COMMON, *flags, "-c", str(source), "-o", str(temporary)])
        temporary.replace(target)
    return target


def build(room: str, name: str, changed: dict[Path, Path] | None = None) -> Path:
    """Compile and link the CUDA kernels of a room.

    Args:
        room: its name.
        name: of the library, ``build/simt/<name>.so``.
        changed: sources, each with the file to take instead.

    Returns:
        The library: loading it registers the room's operators for CPU tensors.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = ROOT / "csrc" / room
    # The emulator first: of a library function that both use, the linker keeps the copy that is not instrumented.
    jobs = [
        (HERE / "simt.cpp", []),
        (HERE / "memory.cpp", []),
        (HERE / "torch.cpp", TORCH),
        (folder / f"{room}_cuda.cpp", [*TORCH, f"-iquote{folder}"]),
    ]
    # Its own kernels, and those of the rooms whose launchers its binding calls.
    others = re.findall(r'#include "../(\w+)/\1\.h"', (folder / f"{room}_cuda.cpp").read_text())
    for each in [room, *others]:
        sources = sorted((ROOT / "csrc" / each).glob("*.cu"))
        jobs += [(source, [*INSTRUMENTED, f"-iquote{source.parent}"]) for source in sources]
    jobs = [((changed or {}).get(source, source), flags) for source, flags in jobs]
    headers = _headers()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(*job, headers), jobs))
    target = CACHE / f"{name}.so"
    temporary = target.with_suffix(f".{os.getpid()}")
    libraries = Path(torch.__file__).parent / "lib"
    link = [f"-L{libraries}", "-ltorch_cpu", "-ldl", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--no-as-needed"]
    _run([COMPILER, "-shared", *map(str, objects), *link, "-o", str(temporary)])
    temporary.replace(target)
    return target


class Emulator:
    """A loaded library of emulated kernels."""

    def __init__(self, library: Path) -> None:
        self.path = library
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))

    def set_order(self, seed: int) -> None:
        """In which order threads and blocks run: 0 ascending, 1 descending, else a permutation drawn from the seed."""
        self._library.simt_set_order(ctypes.c_uint64(seed))

    def set_on_gpu(self, on_gpu: bool) -> None:
        """Whether tensors tell the bindings that they are on a GPU; at first they say what they are, on the CPU."""
        self._library.simt_set_on_gpu(ctypes.c_bool(on_gpu))

    def kernels(self) -> dict[str, bool]:
        """Every kernel of the library, by its name in C++, and whether it was launched yet."""
        addresses = (ctypes.c_void_p * 4096)()
        number = self._library.simt_launched(addresses, len(addresses))
        base = ctypes.cast(self._library.simt_launched, ctypes.c_void_p).value
        kernels = {}
        for line in _run(["nm", "-C", "--defined-only", str(self.path)]).splitlines():
            address, kind, name = line.split(" ", 2)
            if name == "simt_launched":
                base -= int(address, 16)
            found = re.match(r"(?:void )?(\S+_kernel(<.*>)?)\(", name.replace("(anonymous namespace)::", ""))
            if found and kind in "tT":
                kernels[found[1]] = int(address, 16)
        launched = {address - base for address in addresses[:number]}
        return {name: address in launched for name, address in kernels.items()}


_registered = torch.library.Library("s2d", "IMPL")
_TRITON_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}

# What was launched of each room's Triton kernels: name, types of the arguments, constants and options.
triton_launches: dict[str, set[tuple]] = {}


class Recorded:
    """A Triton kernel that keeps account of its launches."""

    def __init__(self, kernel: Any, launches: set[tuple]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple) -> Callable:
        def run(*arguments: Any, **constants: int) -> None:
            types = (_TRITON_TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in arguments)
            self.launches.add((self.kernel.__name__, tuple(types), tuple(sorted(constants.items()))))
            self.kernel[grid](*arguments, **constants)

        return run


def triton_variants(room: str) -> set[tuple]:
    """The variants that ``kernels/<room>.py`` lists, written as in ``triton_launches``."""
    return {
        (
            variant["kernel"].__name__,
            tuple(variant["signature"].values()),
            tuple(sorted((variant["constants"] | variant["options"]).items())),
        )
        for variant in importlib.import_module(f"s2d.kernels.{room}").VARIANTS
    }


def load_triton(room: str) -> None:
    """Register the launchers of a room's Triton kernels for CPU tensors; ``TRITON_INTERPRET=1`` must be set already."""
    if room in triton_launches:
        return
    launches = triton_launches[room] = set()
    module = importlib.import_module(f"s2d.kernels.{room}")
    for kernel in {id(variant["kernel"]): variant["kernel"] for variant in module.VARIANTS}.values():
        setattr(module, kernel.__name__, Recorded(kernel, launches))
    for name, launcher in _native.TRITON.items():
        if launcher.__module__ == f"s2d.ops.{room}":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once for all operators")  # it is to be overridden
                _registered.impl(name, launcher, "CPU", allow_override=True)
