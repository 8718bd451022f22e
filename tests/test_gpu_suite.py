"""The GPU benchmark suite, as far as it can be run without a GPU: all of it but the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2d.ops._dispatch import ROOMS, Room

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.gpu import bench, entry, floor, report, sweep, timing
from benchmarks.gpu.entry import Entry, Peer

ROOT = Path(__file__).parents[1]
RATES = floor.Rates(copy_bytes=1e12, bf16_flops=1e14, popcounts=None)


def double(**changes) -> Entry:
    """An entry that is right, with changes."""
    plain = Entry(
        op="double",
        case="3",
        make=lambda device, seed: (torch.arange(3.0, device=device) + seed,),
        ours=lambda x: x * 2,
        check=entry.equals(lambda x: x + x),
        bytes=24,
        peers={"sum": Peer(lambda x: x + x, entry.same)},
    )
    return dataclasses.replace(plain, **changes)


def run_entry(one: Entry) -> report.Row:
    return bench.run_entry(one, "cpu", RATES, 0.0)


def test_every_room_with_gpu_kernels_contributes():
    with_kernels = {room.name for room in ROOMS if room.on_gpu}
    assert with_kernels <= set(entry.rooms()) <= {room.name for room in ROOMS} | {"model"}


def test_what_waits_for_kernels_says_for_which(monkeypatch):
    waiting = Room("toy")
    ROOMS.remove(waiting)
    monkeypatch.setattr(entry, "needs", lambda name: [waiting])
    assert entry.waits_for("model", "cuda") == "model waits for GPU kernels of toy"
    assert entry.waits_for("model", "cpu") is None


def test_the_dry_run_times_every_operator_and_saves_nothing():
    before = sorted(bench.RESULTS.iterdir())
    command = [sys.executable, "-m", "benchmarks.gpu.bench", "--dry-run"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("dry run on the CPU: times mean nothing\n")
    for _, one in entry.entries("TINY"):
        assert f"| {one.op} | {one.case} |" in result.stdout
    assert sorted(bench.RESULTS.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ours": lambda x: x * 3}, "the result is wrong: nothing is timed"),
        ({"peers": {"product": Peer(lambda x: x * 3, entry.same)}}, "differs from product: nothing is timed"),
    ],
)
def test_what_is_wrong_is_never_timed(monkeypatch, changes, words):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match=words):
        run_entry(double(**changes))


def test_one_wrong_entry_does_not_hide_the_others_but_fails_the_run(monkeypatch, capsys):
    listed = [("bitmask", double(op="bad", ours=lambda x: x * 3)), ("bitmask", double())]
    monkeypatch.setattr(bench, "entries", lambda sizes: listed)
    assert bench.main(["--dry-run"]) == 1
    printed = capsys.readouterr().out
    assert "RED bad (3): AssertionError: the result is wrong" in printed
    assert "| double | 3 |" in printed
    monkeypatch.setattr(bench, "entries", lambda sizes: listed[1:])
    assert bench.main(["--dry-run"]) == 0
    assert bench.main(["--dry-run", "--only", "nothing"]) == 1


def test_a_row_says_how_far_the_floor_and_the_goal_are():
    ours = timing.Times(eager=[9e-6, 8e-6, 7e-6], graph=[4e-6, 4e-6, 5e-6])
    peers = {"slow": timing.Times([40e-6] * 3, None), "fast": timing.Times([20e-6] * 3, [8e-6, 12e-6, 15e-6])}
    row = report.row(double(bytes=2_000_000, goal_us=5.0, goal_share=0.5), ours, peers, RATES)
    assert (row.eager_us, row.graph_us) == pytest.approx((8, 4))
    assert (row.floor_us, row.share_of_floor, row.gigabytes_per_second) == pytest.approx((2, 0.5, 500))
    assert row.goal_met is True
    assert [peer.ratio for peer in row.peers] == pytest.approx([5, 3])
    assert report.row(double(bytes=2_000_000, goal_us=3.9, goal_share=0.5), ours, {}, RATES).goal_met is False
    assert report.row(double(bytes=2_000_000, goal_us=5, goal_share=0.6), ours, {}, RATES).goal_met is False
    counted = report.row(double(operations=4_000_000, unit="popc32"), ours, {}, floor.Rates(1e12, 1e14, 2e12))
    assert (counted.share_of_rate, counted.goal_met) == (pytest.approx(0.5), None)
    line = report.table([row]).splitlines()[2]
    assert line == ("| double | 3 | 4.0 | 8.0 | 500 | 2.0 | 50% |  | 5 us and 50% of floor: met | fast | **3.00** |")


def test_results_are_saved_with_the_machine_they_belong_to(tmp_path):
    facts = {**report.machine("cpu"), "device": "NVIDIA H200"}
    written = report.save(tmp_path / "new", facts, RATES, [run_entry(double())], ["WAITS for a kernel"])
    assert [path.name for path in written] == ["gpu_h200.json", "gpu_h200.md"]
    saved = json.loads(written[0].read_text())
    assert saved["environment"]["torch"] == torch.__version__
    assert saved["environment"]["date"]
    assert saved["rows"][0]["peers"][0]["name"] == "sum"
    assert saved["notes"] == ["WAITS for a kernel"]
    assert "| double | 3 |" in written[1].read_text()
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".json", ".md"]


def test_inputs_rotate_until_they_exceed_the_cache(monkeypatch):
    inputs = (torch.zeros(1000, dtype=torch.uint8), "a setting")
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 2500)
    copies = timing.rotation(inputs, "cuda")
    assert len(copies) == 8  # three caches
    assert len({copy[0].data_ptr() for copy in copies}) == 8
    assert all(torch.equal(copy[0], inputs[0]) and copy[1] == "a setting" for copy in copies)
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 0)
    assert timing.rotation(inputs, "cpu") == [inputs]


class FakeGraph:
    """A CUDA graph whose replay gives back what was captured, or nothing."""

    faithful = True

    def __init__(self):
        self.results = []

    def replay(self):
        for result, value in self.results if self.faithful else []:
            result.copy_(value)


@pytest.fixture
def fake_cuda(monkeypatch):
    """As much of torch.cuda as capturing takes, on the CPU."""

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 12)


@pytest.mark.parametrize("faithful", [True, False])
def test_a_replay_is_compared_with_the_call(fake_cuda, monkeypatch, faithful):
    graphs, calls = [], []
    monkeypatch.setattr(FakeGraph, "faithful", faithful)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph()) or graphs[-1])

    def call(x):
        result = x * 2
        calls.append(x.data_ptr())
        if graphs:
            graphs[0].results.append((result, result.clone()))
        return result

    x = torch.arange(3.0)
    turns = timing.Turns(call, (x,), "cuda")
    if not faithful:
        with pytest.raises(AssertionError, match="replay"):
            timing.captured(turns, 1e-4, lambda got: torch.equal(got, 2 * x))
        return
    _, number = timing.captured(turns, 1e-4, lambda got: torch.equal(got, 2 * x))
    assert number == 12  # a millisecond of calls, whole rounds over three copies
    assert len(set(calls[-number:])) == 3


def test_odd_sizes_are_right_and_a_wrong_one_is_told(monkeypatch, capsys):
    assert sweep.main(["--device", "cpu"]) == 0
    assert ", 0 wrong" in capsys.readouterr().out
    monkeypatch.setattr(
        sweep, "entries", lambda sizes: [("bitmask", double()), ("bitmask", double(check=lambda *_: False))]
    )
    assert sweep.main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out == "2 calls, 1 wrong\ndouble (3)\n"
