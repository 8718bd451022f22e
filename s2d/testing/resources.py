"""What each GPU kernel takes of a multiprocessor, read from the binaries without a GPU: python -m s2d.testing.resources

CUDA kernels are read from the built ``s2d/_cuda.so``. Triton kernels are compiled here for each architecture, in the
variants that ``kernels/<op>.py`` lists as ``VARIANTS``: dicts with ``kernel`` (the jit function), ``signature`` (types
of the arguments that are no constants), ``constants``, and ``options`` (``num_warps`` and so on). The ceilings stand in
``resources.toml`` beside this file. The command exits with 1 where a kernel is over its ceiling or has none.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import s2d.ops  # noqa: F401  (registers the rooms)
from s2d import _native
from s2d.ops._dispatch import ROOMS

ARCHITECTURES = (80, 90, 100)
MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a block may be given at launch

T = TypeVar("T")

_FUNCTION = re.compile(r"^ Function (.+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes.

    Attributes:
        kernel: ``room::kernel``, with the arguments of its template, or what its pointers lead to and its constants, in
            angle brackets.
        architecture: compute capability times ten: 90 is sm_90.
        registers: of one thread.
        stack: bytes of stack and local memory of one thread; where a kernel spills, it spills there.
        shared: bytes of shared memory of one block.
    """

    kernel: str
    architecture: int
    registers: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Ceiling:
    """The most a kernel may take: registers of a thread, bytes of its stack."""

    registers: int
    stack: int = 0


def ceilings() -> dict[str, Ceiling]:
    """The committed ceilings, by ``room::kernel`` or by a full name such as ``room::kernel<unsigned int, 0>``."""
    rooms = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return {f"{room}::{name}": Ceiling(**limits) for room, kernels in rooms.items() for name, limits in kernels.items()}


def cuobjdump() -> str | None:
    """The program that reads CUDA binaries: of the CUDA toolkit, else the one that Triton's wheel brings."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(f"{home}/bin" for home in homes if home)]
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        folders += [f"{folder}/backends/nvidia/bin" for folder in triton.submodule_search_locations or []]
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def missing() -> str | None:
    """Why no binary can be read here, or None where it can."""
    if cuobjdump() is None:
        return "there is no cuobjdump in PATH, $CUDA_HOME/bin, /usr/local/cuda/bin or Triton's package"
    return None if shutil.which("c++filt") else "there is no c++filt (binutils) in PATH"


def _run(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def short_name(function: str) -> str:
    """``room::kernel<arguments>`` of a demangled C++ function, or the name as it is where it has no namespace."""
    plain = function.replace("(anonymous namespace)::", "")
    plain = re.sub(r"\((?:\w+::)*\w+\)(?=-?\w)", "", plain)  # the type of an enum's value
    found = re.match(r"(?:void )?(?:s2d::)?(.+?)(?:\(|$)", plain)
    return found[1] if found else function


def read_binary(path: Path) -> list[Usage]:
    """Every kernel in a cubin or in a library with GPU code, for each architecture there is machine code for."""
    text = _run(cuobjdump() or "cuobjdump", "--dump-resource-usage", str(path))
    # A library has a heading for each binary inside; a cubin alone has none, and its caller knows the architecture.
    usages = []
    for part in re.split(r"^Fatbin ", text, flags=re.MULTILINE):
        architecture = re.search(r"^arch = sm_(\d+)", part, re.MULTILINE)
        found = _FUNCTION.findall(part)
        names = _run("c++filt", text="\n".join(name for name, *_ in found)).splitlines()
        for name, (_, *numbers) in zip(names, found, strict=True):
            registers, stack, shared, local = map(int, numbers)
            number = int(architecture[1]) if architecture else 0
            usages.append(Usage(short_name(name), number, registers, stack + local, shared))
    return usages


def compiled(room: str, variant: dict[str, Any], architecture: int) -> Any:
    """One variant of a Triton kernel, compiled for an architecture. Needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature = variant["kernel"], variant["signature"]
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(f"s2d: expected a compiled kernel {room}, got an interpreted one: unset TRITON_INTERPRET")
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    # Tensors of torch begin at a multiple of 16 bytes: launches are compiled for that.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    return triton.compile(
        ASTSource(kernel, types, variant["constants"], aligned),
        target=GPUTarget("cuda", architecture, 32),
        options=variant["options"],
    )


def _read(binary: bytes, read: Callable[[Path], T]) -> T:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return read(Path(file.name))


def instructions(room: str, variant: dict[str, Any], architecture: int) -> str:
    """The machine code of one variant of a Triton kernel, as text."""
    binary = compiled(room, variant, architecture).asm["cubin"]
    return _read(binary, lambda path: _run(cuobjdump() or "cuobjdump", "--dump-sass", str(path)))


def compile_variant(room: str, variant: dict[str, Any], architecture: int) -> Usage:
    """What one variant of a Triton kernel takes, compiled for an architecture."""
    binary = compiled(room, variant, architecture)
    (usage,) = _read(binary.asm["cubin"], read_binary)
    constants = variant["constants"] | variant["options"]
    pointers = dict.fromkeys(kind.removeprefix("*") for kind in variant["signature"].values() if kind.startswith("*"))
    arguments = ", ".join([*pointers, *(f"{key}={value}" for key, value in constants.items())])
    name = f"{room}::{usage.kernel}<{arguments}>"
    shared = usage.shared + binary.metadata.shared
    return Usage(name, architecture, usage.registers, usage.stack, shared)


def cuda_usages() -> list[Usage] | None:
    """Usage of every CUDA kernel of the package; None where they were not built."""
    library = _native.find("_cuda.so")
    return None if library is None else read_binary(library)


def triton_modules() -> dict[str, ModuleType]:
    """``kernels/<op>.py`` of each room with Triton kernels."""
    rooms = sorted(room.name for room in ROOMS if "triton" in room.kernels)
    return {room: importlib.import_module(f"s2d.kernels.{room}") for room in rooms}


def _usage(job: tuple[str, int, int]) -> Usage:
    room, index, architecture = job
    return compile_variant(room, triton_modules()[room].VARIANTS[index], architecture)


def triton_usages() -> list[Usage] | None:
    """Usage of every listed variant of every Triton kernel, for all architectures; None where Triton is absent."""
    if importlib.util.find_spec("triton") is None:
        return None
    jobs = [
        (room, index, architecture)
        for architecture in ARCHITECTURES
        for room, module in triton_modules().items()
        for index in range(len(module.VARIANTS))
    ]
    # Minutes of compiling: each core takes a part. A fork would carry torch's threads along.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_usage, jobs))


def base_name(kernel: str) -> str:
    return kernel.partition("<")[0]


def ceiling_of(kernel: str, limits: dict[str, Ceiling]) -> Ceiling | None:
    """The ceiling that holds for a kernel: the one of its full name before the one of its name without arguments."""
    return limits.get(kernel, limits.get(base_name(kernel)))


def problems(usages: Iterable[Usage], limits: dict[str, Ceiling]) -> list[str]:
    """What is wrong, one sentence each: kernels without a ceiling or over it, ceilings without a kernel.

    A ceiling is only missed where the room has any kernel among ``usages``, so that half a build can be judged.
    """
    usages = list(usages)
    found = []
    for use in usages:
        limit, where = ceiling_of(use.kernel, limits), f"{use.kernel} for sm_{use.architecture}"
        if limit is None:
            found.append(f"{where}: no ceiling in resources.toml")
            continue
        if use.registers > limit.registers:
            found.append(f"{where}: {use.registers} registers, the ceiling is {limit.registers}")
        if use.stack > limit.stack:
            found.append(f"{where}: {use.stack} bytes of stack (spills), the ceiling is {limit.stack}")
        if use.shared > MOST_SHARED[use.architecture]:
            most = MOST_SHARED[use.architecture]
            found.append(f"{where}: {use.shared} bytes of shared memory, a block has at most {most}")
    names = {name for use in usages for name in (use.kernel, base_name(use.kernel))}
    rooms = {name.partition("::")[0] for name in names}
    found += [
        f"{name}: a ceiling without a kernel"
        for name in limits
        if name.partition("::")[0] in rooms and name not in names
    ]
    return found


def table(usages: Iterable[Usage], limits: dict[str, Ceiling]) -> str:
    """The usages as a Markdown table, a kernel's architectures below each other."""
    rows = [
        "| kernel | arch | registers | ceiling | stack + local bytes | shared bytes |",
        "|---|---|---|---|---|---|",
    ]
    for use in sorted(usages, key=lambda use: (use.kernel, use.architecture)):
        limit = ceiling_of(use.kernel, limits)
        rows.append(
            f"| {use.kernel} | sm_{use.architecture} | {use.registers} | {limit.registers if limit else 'none'} "
            f"| {use.stack} | {use.shared} |"
        )
    return "\n".join(rows)


def main() -> int:
    reason = missing()
    if reason is not None:
        print(f"s2d: {reason}", file=sys.stderr)
        return 1
    limits, usages = ceilings(), []
    for part, absent in (
        (cuda_usages(), "CUDA kernels are left out: s2d/_cuda.so was not built"),
        (triton_usages(), "Triton kernels are left out: the package triton is not installed"),
    ):
        print(absent, file=sys.stderr) if part is None else usages.extend(part)
    print(table(usages, limits))
    wrong = problems(usages, limits)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
