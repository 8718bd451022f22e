"""``pytest benchmarks``: every comparison is a test, and its ratio is in ``extra_info``.

pytest-benchmark cannot interleave, so a pair is timed by `benchmarks.harness` and the seconds of our runs are handed to
it through its clock.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from s2d.cli.bench import checkout

try:
    checkout()
except ValueError as error:
    pytest.exit(f"pytest benchmarks: {error}", returncode=2)

from benchmarks import results, suites
from benchmarks.harness import Comparison, Missing, Pair, pinned_threads, table, thread_counts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: small cases only, fractions of a second each")
    parser.addoption("--save", action="store_true", help="benchmarks: keep the results in benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # its table has no peers
    for peers in ("ignore::DeprecationWarning:torch", "ignore:__array__ implementation:DeprecationWarning"):
        config.addinivalue_line("filterwarnings", peers)
    config.found = defaultdict(lambda: ([], []))
    if config.getoption("--save") and config.getoption("--quick"):
        pytest.exit("expected --save without --quick, got both: small cases are no results", returncode=2)


class Suite(pytest.Module):
    """A benchmark's module with the test of its comparisons."""

    def collect(self) -> Iterator[pytest.Item]:
        self.obj.test_pair = test_pair
        return super().collect()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    # What the command line names is a module for pytest already.
    return None if parent.session.isinitpath(file_path) else pytest_pycollect_makemodule(file_path, parent)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    known = {"ops": suites.OPS, "stages": suites.STAGES}.get(module_path.parent.name, ())
    return Suite.from_parent(parent, path=module_path) if suite_of(module_path.stem) in known else None


class Replay:
    """A clock that goes on by times that were measured already."""

    def __init__(self) -> None:
        self.now, self.steps = 0.0, iter(())

    def __call__(self) -> float:
        return self.now

    def step(self) -> None:
        self.now += next(self.steps)


def suite_of(module: str) -> str:
    """``rle`` for benchmarks.ops.bench_rle."""
    return module.rpartition("bench_")[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name, quick = suite_of(metafunc.module.__name__), metafunc.config.getoption("--quick")
    places, marks = [], []
    for threads in thread_counts():
        with pinned_threads(threads):
            for place, item in enumerate(suites.comparisons(name, quick)):
                label = f"{item.op}, {item.case}, {item.peer}, {threads} thread{'s' * (threads > 1)}"
                places.append((threads, place))
                marks.append((label, pytest.mark.benchmark(timer=Replay(), group=name)))
    metafunc.parametrize(
        "comparison",
        [pytest.param(place, id=label, marks=mark) for place, (label, mark) in zip(places, marks, strict=True)],
        indirect=True,
        scope="function",
    )


class Running:
    """The suite whose comparisons are made one after the other, so that tests in a row share its inputs."""

    suite, place, items = None, 0, iter(())

    def item(self, name: str, threads: int, place: int, quick: bool) -> Comparison | Missing:
        if self.suite != (name, threads) or place < self.place:
            self.suite, self.place, self.items = (name, threads), 0, suites.comparisons(name, quick)
        for _ in range(place - self.place):
            next(self.items)
        self.place = place + 1
        return next(self.items)


@pytest.fixture(scope="session")
def running() -> Running:
    return Running()


@pytest.fixture
def comparison(request: pytest.FixtureRequest, running: Running) -> Iterator[Comparison | Missing]:
    """One comparison, under the threads that it is of."""
    threads, place = request.param
    with pinned_threads(threads):
        yield running.item(suite_of(request.module.__name__), threads, place, request.config.getoption("--quick"))


@pytest.mark.timeout(0)
def test_pair(comparison, request):
    """Ours and the peer agree; their times, in turn."""
    pairs, missing = request.config.found[suite_of(request.module.__name__)]
    outcome = suites.measured(comparison)
    if isinstance(outcome, Missing):
        missing.append(outcome)
        pytest.skip(f"{outcome.peer}: {outcome.reason}")
    pair, seconds = outcome
    pairs.append(pair)
    clock = request.node.get_closest_marker("benchmark").kwargs["timer"]
    clock.steps = iter(seconds)
    benchmark = request.getfixturevalue("benchmark")
    benchmark.pedantic(clock.step, rounds=len(seconds))
    benchmark.extra_info.update(asdict(pair))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    pairs: list[Pair] = [pair for found, _ in config.found.values() for pair in found]
    missing: list[Missing] = [one for _, absent in config.found.values() for one in absent]
    if pairs:
        terminalreporter.section("ratio: the peer's time over ours")
        terminalreporter.write_line(table(pairs))
    for one in missing:
        terminalreporter.write_line(f"missing: {one.peer or 'all peers'} of {one.op}, {one.case}: {one.reason}")
    if config.getoption("--save") and pairs:
        for name, (found, absent) in config.found.items():
            results.keep_pairs(name, found, absent)
        terminalreporter.write_line(f"kept in {results.keep_ceilings()}")
