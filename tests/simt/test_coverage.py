"""No CUDA kernel escapes the emulator."""

from __future__ import annotations

import pytest


def test_every_kernel_was_launched(request):
    emulators = request.config.emulators
    tested = {item.path.stem.removeprefix("test_") for item in request.session.items if "emulated" in item.keywords}
    whole = [room for room in emulators if room in tested]
    if not whole or request.config.getoption("keyword"):
        pytest.skip("only a part of the rooms' tests was run")
    idle = [
        kernel
        for room in whole
        for kernel, launched in emulators[room].kernels().items()
        if not launched and f"::{room}::" in kernel
    ]
    assert not idle
