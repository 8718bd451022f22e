"""Fixtures every test may ask for, and ``--emulate-gpu``: the GPU kernels of the operators, run on the CPU."""

from __future__ import annotations

import importlib
import os
import zlib
from pathlib import Path

import pytest

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.testing.numeric import fresh_memory_is_nan


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--emulate-gpu",
        action="store_true",
        help="run the tests of GPU kernels, on the CPU: CUDA kernels emulated (tests/simt), Triton kernels interpreted",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.emulators = {}
    if config.getoption("--emulate-gpu"):
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "simt" and not config.getoption("--emulate-gpu") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--emulate-gpu"):
        return
    kept = [item for item in items if "emulated" in item.keywords or item.path.parent.name == "simt"]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def room_of(module_name: str) -> Room | None:
    """The room that a module ``test_<room>`` tests, or None."""
    name = "s2d.ops." + module_name.rpartition(".")[2].removeprefix("test_")
    return importlib.import_module(name).ROOM if importlib.util.find_spec(name) else None


def emulate(room: Room, config: pytest.Config) -> None:
    """From here on the room's GPU kernels run on CPU tensors."""
    import emulator

    if "triton" in room.kernels:
        emulator.load_triton(room.name)
    elif room.name not in config.emulators:
        config.emulators[room.name] = emulator.Emulator(emulator.build(room.name, room.name))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" not in metafunc.fixturenames:
        return
    kinds = ["cpu", "cuda"]
    if metafunc.config.getoption("--emulate-gpu"):
        room = room_of(metafunc.module.__name__)
        kinds = [pytest.param("emulated", marks=pytest.mark.emulated)] if room and room.on_gpu else []
    metafunc.parametrize("device", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> str:
    """Each device that the room under test has kernels for; CUDA is skipped with the reason where there is none."""
    room = room_of(request.module.__name__)
    if request.param == "emulated":
        emulate(room, request.config)
        return "cpu"
    if request.param == "cuda" and room and not room.on_gpu:
        pytest.skip(f"{room.name} has no GPU kernel yet")
    reason = room.missing(request.param) if room else _native.missing(request.param)
    if reason is not None:
        if request.param == "cpu" or os.environ.get("S2D_REQUIRE_CUDA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> bool:
    """Whether GPU kernels run on the CPU, which takes a thousand times as long: tests may choose a smaller case."""
    return pytestconfig.getoption("--emulate-gpu")


@pytest.fixture(autouse=True)
def thread_order(request: pytest.FixtureRequest) -> None:
    """Emulated threads run in an order of the test's own."""
    for emulator in request.config.emulators.values():
        emulator.set_order(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real clips and reference numbers that ``S2D_TEST_DATA`` names."""
    folder = os.environ.get("S2D_TEST_DATA")
    if not folder:
        pytest.skip("S2D_TEST_DATA is not set: it names a folder with real clips and reference numbers")
    if not Path(folder).is_dir():
        pytest.fail(f"S2D_TEST_DATA: expected a folder, got {folder}")
    return Path(folder)


@pytest.fixture
def nan_memory():
    """Fresh memory holds NaN while the test runs."""
    with fresh_memory_is_nan():
        yield
