"""What the build leaves behind: facts for the doctor, and libraries that load beside any torch of the stable ABI."""

from __future__ import annotations

import re
import subprocess

import pytest

from s2d import _native
from s2d.doctor import report
from s2d.ops._dispatch import ROOMS


def needed_by(library: str) -> list[str]:
    path = _native.find(f"{library}.so")
    if path is None:
        pytest.skip(f"{library}.so was not built: there was no nvcc, or S2D_CUDA=OFF")
    dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic
    return re.findall(r"NEEDED.*\[(.*)\]", dynamic)


def test_the_cpu_library_needs_torch_by_name_only():
    needed = needed_by("_ops")
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "python" in name or "cuda" in name]


def test_the_cuda_library_finds_the_symbols_of_a_cuda_torch():
    # Without the entry for libtorch_cuda.so the loader would not look there for the current stream.
    needed = needed_by("_cuda")
    assert "libtorch_cuda.so" in needed
    assert not [name for name in needed if "cudart" in name]


def test_doctor_tells_what_was_built():
    text = report()
    assert f"instruction set {_native.host().cpu_isa()}" in text
    assert re.search(r"CUDA kernels +(built with nvcc \S+ for \S+|not built: )", text)
    for room in ROOMS:
        assert re.search(rf"{room.name} +.*reference", text)


def test_doctor_says_how_to_build_what_is_missing(monkeypatch):
    monkeypatch.setitem(_native._reasons, "cpu", f"the compiled module is not there; {_native.BUILD_HINT}")
    text = report()
    assert "CPU kernels    not loaded: the compiled module is not there; build it with `pip install" in text
