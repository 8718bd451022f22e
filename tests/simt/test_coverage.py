"""No GPU kernel escapes the emulator."""

from __future__ import annotations

import emulator
import pytest


def whole_rooms(request: pytest.FixtureRequest, rooms: dict) -> list[str]:
    """Those of the rooms whose tests were all run."""
    tested = {item.path.stem.removeprefix("test_") for item in request.session.items if "emulated" in item.keywords}
    whole = [room for room in rooms if room in tested]
    if not whole or request.config.getoption("keyword"):
        pytest.skip("only a part of the rooms' tests was run")
    return whole


def test_every_cuda_kernel_was_launched(request):
    emulators = request.config.emulators
    idle = [
        kernel
        for room in whole_rooms(request, emulators)
        for kernel, launched in emulators[room].kernels().items()
        if not launched and f"::{room}::" in kernel
    ]
    assert not idle


def test_what_triton_kernels_were_launched_as_is_what_they_list(request):
    """So that the ceilings of resources.toml hold for what is launched."""
    for room in whole_rooms(request, emulator.triton_launches):
        assert emulator.triton_launches[room] == emulator.triton_variants(room)
