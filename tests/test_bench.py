"""The benchmarks: their gate, what they keep, their report, and what they say to a user."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from s2d import _native, cli
from s2d.cli import bench as bench_cli
from s2d.errors import InputError

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import command, gate, harness, results, suites
from benchmarks.gate import REPEATS, Spread
from benchmarks.harness import Comparison, Missing, Pair
from benchmarks.report.goals import BEGIN, END, goals, with_table
from benchmarks.report.page import page

ROOT = Path(__file__).parents[1]


def comparison(**changes) -> Comparison:
    plain = Comparison("double", lambda: 2, lambda: 2, "a peer", int.__eq__, "a case", seconds=0)
    return dataclasses.replace(plain, **changes)


def pair(**changes) -> Pair:
    return dataclasses.replace(Pair("op", "a case", "a peer", 1, 1.0, 2.0, 2.0, 1.9, 2.1, 9), **changes)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Results go to a folder of the test's own."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def test_nothing_is_timed_that_differs():
    with pytest.raises(AssertionError, match=r"double \(a case\) differs from a peer"):
        harness.time_pair(comparison(other=lambda: 3))


def test_a_pair_has_its_spread_and_what_its_case_is():
    found, seconds = harness.time_pair(comparison(goal=2.0, at={"frames": 3}, bytes=8))
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert (found.threads, found.goal, found.at, found.bytes) == (torch.get_num_threads(), 2.0, {"frames": 3}, 8)
    assert len(seconds) == found.runs >= 7


def test_threads_are_pinned_and_given_back():
    before = torch.get_num_threads()
    with harness.pinned_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_missing_peer_is_named():
    absent = harness.peer_module("no_such_peer.mask")
    found = suites.measured(comparison(peer="no_such_peer", other=lambda: absent.encode(1)))
    assert isinstance(found, Missing)
    assert found.reason == "no_such_peer is not installed; `pip install 's2d[bench]'` brings it"

    def refused():
        raise RuntimeError("no kernel for this\nand more")

    found = suites.measured(comparison(other=harness.may_refuse(refused)))
    assert found.reason == "RuntimeError: no kernel for this"


def test_names_are_completed_or_refused():
    assert suites.named("mask_c") == ("mask_cost",)
    assert set(suites.named(None)) == {*suites.OPS, *suites.STAGES}
    with pytest.raises(InputError, match=r"^expected one of bitmask, .*video, got mask$"):
        suites.named("mask")


def simulated(slowdown: float, noise: float, seed: int) -> gate.Measure:
    """A hundred cases of 30 neighbouring runs; each process has a bias of its own, and some runs are disturbed."""
    numbers = random.Random(seed)

    def measure(_: str, only: set | None) -> dict:
        spreads = {}
        for case in range(100):
            key = (f"op {case}", "a case", 1)
            if only is not None and key not in only:
                continue
            truth = (1 + slowdown if case == 7 else 1) * numbers.lognormvariate(0, 0.02)
            ratios = [truth * numbers.lognormvariate(0, noise) for _ in range(30)]
            spreads[key] = Spread.of([x * 3 if numbers.random() < 0.05 else x for x in ratios])
        return spreads

    return measure


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_gate_finds_a_fifth_and_leaves_the_rest_alone(noise):
    for seed in range(10):
        assert gate.judge("ops", simulated(0.0, noise, seed)).slower() == []
        assert gate.judge("ops", simulated(0.2, noise, seed)).slower() == [("op 7", "a case", 1)]


def test_gate_acquits_a_suspect_that_one_repeat_clears():
    spreads = iter([*[Spread(1.2, 1.3, 1.4)] * (REPEATS - 1), Spread(0.9, 1.0, 1.1)])
    verdict = gate.judge("ops", lambda suite, only: {("op", "a case", 1): next(spreads)})
    assert len(verdict.repeats["op", "a case", 1]) == REPEATS
    assert verdict.slower() == []


def test_gate_wants_more_than_noise():
    spread = Spread(0.9, 1.2, 1.6)
    assert gate.judge("ops", lambda suite, only: {("op", "a case", 1): spread}).slower() == []


def test_results_are_kept_by_machine_and_release_with_their_history(kept):
    path = results.keep_pairs("bitmask", [pair(goal=1.5), pair(threads=2, goal=1.5)], [])
    results.keep("discover", {"speed": 1})
    results.keep("discover", {"real": 2})
    content = results.read(path)
    assert path.parent == kept
    assert path.name.endswith(f"-{content['release']}.json")
    assert results.pairs_of(content)["bitmask"][0] == pair(goal=1.5)
    assert content["suites"]["discover"] == {"speed": 1, "real": 2}
    results.keep_pairs("bitmask", [pair(goal=1.5, ratio=3.0)], [])
    (entry,) = results.read(path)["history"]
    assert entry["ratios"] == {"op | a case | a peer": 3.0}


def test_a_file_of_another_machine_or_kind_is_refused(kept, tmp_path):
    content = results.read(results.keep_pairs("bitmask", [pair()], []))
    content["machine"]["cores"] = 1000
    with pytest.raises(InputError, match="expected results of this machine"):
        command.against_file(content, True, "bitmask", None)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="which has no suites"):
        results.read(tmp_path / "other.json")


def test_a_file_finds_what_lost_its_ratio(monkeypatch):
    monkeypatch.setattr(suites, "comparisons", lambda name, quick: iter([comparison()]))
    monkeypatch.setattr(suites, "measured", lambda item: (pair(**item.key._asdict()), []))
    before = dataclasses.asdict(pair(**comparison().key._asdict(), ratio=2.5, ratio_low=2.4, ratio_high=2.6))
    facts = harness.environment()
    content = {"machine": {name: facts[name] for name in results.MACHINE}, "suites": {"bitmask": {"pairs": [before]}}}
    monkeypatch.setattr(command, "thread_counts", lambda: [torch.get_num_threads()])
    verdict = gate.judge("bitmask", lambda suite, only: command.against_file(content, True, suite, only))
    assert len(verdict.slower()) == 1
    assert not command.print_verdict(verdict, "a file")


def test_the_page_is_one_file_that_names_every_goal():
    found = [results.read(path) for path in results.files()]
    text = page(found)
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    for content in found:
        for goal in goals(results.pairs_of(content)):
            assert goal.said in text


def test_the_readme_has_the_table_of_the_committed_results():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == with_table(readme, results.fullest()), "run `s2d bench report`"
    table = readme.partition(BEGIN)[2].partition(END)[0]
    assert "not reached" in table
    assert "| operator | case | peer | ratio | goal |" in table


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["bench", *arguments])


def test_the_command_needs_a_checkout_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_cli.s2d, "__file__", str(tmp_path / "s2d" / "__init__.py"))
    result = invoke("bitmask")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "s2d: expected a checkout, where the benchmarks are, got the package that is installed"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nothing",), "expected one of bitmask, "),
        (("bitmask", "--quick", "--save"), "expected --save without --quick, got both"),
        (("bitmask", "--compare", "no-such-ref"), "got no-such-ref"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("s2d: expected")
    assert sentence in result.stderr


def test_pytest_runs_every_pair_with_its_ratio(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="pip install 's2d[bench]'")
    command = [sys.executable, "-m", "pytest", "benchmarks/ops/bench_bitmask.py", "--quick", "-k", "mask_area"]
    report = tmp_path / "report.json"
    result = subprocess.run([*command, f"--benchmark-json={report}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "ratio: the peer's time over ours" in result.stdout
    found = json.loads(report.read_text())["benchmarks"]
    assert {one["extra_info"]["threads"] for one in found} == set(harness.thread_counts())
    for one in found:
        assert one["stats"]["median"] == pytest.approx(one["extra_info"]["ours_ms"] / 1e3)
        assert one["extra_info"]["ratio"] > 0


def test_two_builds_run_in_turn(tmp_path):
    """A copy of this one in which a function takes twice as long: the worker imports it, and shows it."""
    from benchmarks import builds
    from benchmarks.check_gate import planted

    now = planted(ROOT, tmp_path, "mask_area", 1.0)
    for module in (_native.find("_ops.so"), _native.host().__file__):  # an editable install has them elsewhere
        shutil.copy(module, now / "s2d")
    shutil.copytree(ROOT / "kernels", now / "s2d" / "kernels", dirs_exist_ok=True)
    workers = [builds.Worker(folder, "bitmask", 1, True) for folder in (ROOT, now)]
    try:
        spreads = builds.in_turn(*workers, print, {("mask_area from bits", "P=10, T=4, 120x214", 1)}, 1)
    finally:
        for worker in workers:
            worker.close()
    assert list(spreads) == [("mask_area from bits", "P=10, T=4, 120x214", 1)]
    assert spreads["mask_area from bits", "P=10, T=4, 120x214", 1].suspect
