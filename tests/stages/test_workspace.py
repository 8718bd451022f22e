"""The state of a job on disk."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from s2d.errors import InputError
from s2d.stages.job import file_job, use_threads
from s2d.stages.measure import Meter
from s2d.stages.workspace import Workspace, flatten, identify


@dataclass(frozen=True)
class Inner:
    scales: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    place: Path = Path("a/b")


def test_settings_are_flattened_to_what_json_gives_back():
    flat = flatten({"settings": Outer(), "seed": 0})
    assert flat == {"settings.inner.scales": [1, 2], "settings.place": "a/b", "seed": 0}
    assert json.loads(json.dumps(flat)) == flat


def test_identity_changes_with_the_contents(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"x" * 10)
    before = identify(file)
    file.write_bytes(b"x" * 9 + b"y")
    assert identify(file) != before
    folder = identify(tmp_path)
    (tmp_path / "b.bin").touch()
    assert identify(tmp_path) != folder


def test_state_survives_and_time_adds_up(tmp_path):
    work = Workspace.open(tmp_path / "work", {"seed": 0}, [])
    with pytest.raises(RuntimeError), work.stage("first"):
        raise RuntimeError
    assert not work.finished("first")
    seconds = work.measures["first"]["seconds"]
    again = Workspace.open(tmp_path / "work", {"seed": 0}, [], resume=True)
    with again.stage("first") as partial:
        assert partial.is_dir()
    assert again.finished("first")
    assert again.measures["first"]["seconds"] >= seconds
    assert not partial.exists()


def test_a_file_job_leaves_the_file_alone(tmp_path):
    result = tmp_path / "result.json"
    with file_job(result, {"seed": 0}, threads=1) as work:
        assert torch.get_num_threads() == 1
        (work / "half").touch()
        result.write_text("done")
    assert {path.name for path in tmp_path.iterdir()} == {"result.json"}
    with pytest.raises(InputError, match="--overwrite"), file_job(result, {"seed": 0}):
        pass
    with pytest.raises(InputError, match="no unfinished job"), file_job(result, {"seed": 0}, resume=True):
        pass
    with file_job(result, {"seed": 0}, overwrite=True):
        assert not result.exists()
        result.write_text("again")


def test_a_file_job_continues(tmp_path):
    result = tmp_path / "result.json"

    def interrupted():
        with file_job(result, {"seed": 0}) as work:
            (work / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(InputError, match="unfinished job"), file_job(result, {"seed": 0}):
        pass
    with pytest.raises(InputError, match="seed 1 instead of 0"), file_job(result, {"seed": 1}, resume=True):
        pass
    with file_job(result, {"seed": 0}, resume=True) as work:
        assert (work / "half").exists()


def test_threads_come_back(tmp_path):
    before = torch.get_num_threads()
    with use_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_peak_memory_belongs_to_its_part():
    # Memory of the kernel itself: malloc may hand out pages that an earlier test freed and that never left the process.
    meter = Meter()
    with mmap.mmap(-1, 240_000_000) as block:
        block.write(bytes(len(block)))
        with_block = meter.read()["peak_mb"]
    without = Meter().read()["peak_mb"]
    assert with_block > without + 200
