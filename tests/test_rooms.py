"""One operator is one room: the same name in every place it must have a file, and no strays."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Rooms that wait for their kernels. This list only shrinks.
REFERENCE_ONLY: set[str] = set()

WITH_KERNEL = {
    "bitmask",
    "connected_components",
    "flow_warp_iou",
    "mask_cost",
    "masked_attention",
    "ms_deform_attn",
    "point_tracks",
    "rle",
    "temporal_drop_loss",
}
ROOMS = REFERENCE_ONLY | WITH_KERNEL

EVERY_ROOM = ["s2d/ops/{0}.py", "s2d/ops/reference/{0}.py", "s2d/testing/cases/{0}.py", "tests/ops/test_{0}.py"]
WITH_KERNELS = ["csrc/{0}/{0}.h", "csrc/{0}/{0}.cpp", "benchmarks/ops/bench_{0}.py"]
CUDA = ["csrc/{0}/{0}.cu", "csrc/{0}/{0}_cuda.cpp"]
TRITON = ["kernels/{0}.py"]
ON_GPU = ["benchmarks/gpu/bench_{0}.py"]


def room_of(name: str):
    return importlib.import_module(f"s2d.ops.{name}").ROOM


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_has_all_its_files(name):
    room = room_of(name)
    assert room.name == name
    assert (name in REFERENCE_ONLY) == (not room.kernels)
    wanted = (
        EVERY_ROOM
        + (WITH_KERNELS if room.kernels else [])
        + (CUDA if "cuda" in room.kernels else [])
        + (TRITON if "triton" in room.kernels else [])
        + (ON_GPU if room.on_gpu else [])
    )
    missing = [path.format(name) for path in wanted if not (ROOT / path.format(name)).is_file()]
    assert not missing


@pytest.mark.parametrize("name", sorted(name for name in ROOMS if room_of(name).on_gpu))
def test_a_gpu_kernel_is_held_against_its_definition_wherever_tests_run(name):
    """``--emulate-gpu`` runs what asks for the fixture ``device``; what it launches is held by simt/test_coverage."""
    room = room_of(name)
    assert not {"cuda", "triton"} <= set(room.kernels), "a second GPU kernel needs a measured crossover"
    tests = (ROOT / f"tests/ops/test_{name}.py").read_text()
    assert "def device(" not in tests, "the fixture of conftest.py is to be used"
    assert re.search(r"def test_\w*equal\w*\([^)]*\bdevice\b", tests)


@pytest.mark.parametrize(
    ("pattern", "name_of"),
    [
        ("s2d/ops/[!_]*.py", lambda path: path.stem),
        ("s2d/ops/reference/[!_]*.py", lambda path: path.stem),
        ("s2d/testing/cases/[!_]*.py", lambda path: path.stem),
        ("tests/ops/*.py", lambda path: path.stem.removeprefix("test_")),
        ("benchmarks/ops/[!_]*.py", lambda path: path.stem.removeprefix("bench_")),
        ("benchmarks/gpu/bench_*.py", lambda path: path.stem.removeprefix("bench_")),
        ("kernels/*.py", lambda path: path.stem),
        ("csrc/*", lambda path: path.name),
    ],
)
def test_no_strays(pattern, name_of):
    allowed = ROOMS | {"csrc/*": {"common", "host"}, "benchmarks/gpu/bench_*.py": {"model"}}.get(pattern, set())
    strays = [str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if name_of(path) not in allowed]
    assert not strays


def test_every_public_operator_says_shapes_and_results():
    import s2d.ops

    silent = [
        name
        for name in s2d.ops.__all__
        if not (getattr(s2d.ops, name).__doc__ or "").strip() or len(getattr(s2d.ops, name).__doc__.split()) < 8
    ]
    assert not silent


def test_a_named_implementation_runs_or_raises(monkeypatch):
    import torch

    import s2d
    from s2d import _native
    from s2d.ops import mask_area

    dense = torch.ones(1, 2, 3, dtype=torch.bool)
    with s2d.use_impl("reference"):
        assert mask_area(dense).tolist() == [6]
    with (
        pytest.raises(ValueError, match="expected use_impl to be one of native, reference, got 'fast'"),
        s2d.use_impl("fast"),
    ):
        pass
    monkeypatch.setitem(_native._reasons, "cpu", "the compiled module is not there; build it")
    with pytest.raises(RuntimeError, match=r"s2d::bitmask: expected a native kernel for cpu, got none: .*build it"):
        mask_area(dense)
    assert mask_area(dense, impl="reference").tolist() == [6]


def test_a_device_without_a_kernel_runs_the_definition_unless_one_is_asked_for():
    import torch

    room, elsewhere = room_of("temporal_drop_loss"), torch.device("meta")
    assert room.choose(elsewhere) == "reference"
    with pytest.raises(RuntimeError, match="expected a native kernel for meta, got none: it has kernels for cpu"):
        room.choose(elsewhere, "native")
