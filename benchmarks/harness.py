"""Timing two implementations in turn, in one process, after checking that they agree.

Machines are shared and their clocks drift, so an absolute time means little: a pair is run A B A B ..., each run after
an untimed call, and what is reported is the ratio of neighbouring runs. Nothing is timed before its result was compared
with the other's.

A benchmark is a module ``ops/bench_<op>.py`` or ``stages/bench_<stage>.py`` whose ``measure(quick)`` yields, with cases
from ``s2d/testing/cases``,

    Comparison("mask_iou", ours, theirs, peer="numpy bitwise_count", agree=torch.equal, case="P=50", goal=8)

and `time_pair` makes a `Pair` of each. `pytest benchmarks` and ``s2d bench`` run them all.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pkgutil
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

import s2d
from s2d import _native

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

# A call that takes so many seconds is no faster the second time.
_NO_WARM_UP = 2.0


class PeerMissing(Exception):
    """A peer cannot be run here, and why."""


class Key(NamedTuple):
    """What a measurement is found by in another result."""

    op: str
    case: str
    peer: str
    threads: int


@dataclass(frozen=True)
class Comparison:
    """Ours against one peer on one case, ready to be timed.

    Attributes:
        op: the operator or stage, and which way it is used.
        ours, other: calls without arguments; what they return is compared by ``agree(ours(), other())``.
        case: sizes and settings, in words.
        goal: the ratio aimed at, or None.
        at: the numbers of the case that other cases vary, by name: a chart has the ratio against them.
        bytes, flops: each input read once and each output written once; multiplications and additions that the
            definition needs, where they are what the operator does.
        seconds: about how long the timing takes, at least ``minimum_runs`` neighbouring pairs, 2 or more. Of a peer
            that takes seconds the call that is compared is timed too.
    """

    op: str
    ours: Callable[[], Any]
    other: Callable[[], Any]
    peer: str
    agree: Callable[[Any, Any], bool]
    case: str = ""
    goal: float | None = None
    at: dict[str, float] = field(default_factory=dict)
    bytes: int | None = None
    flops: int | None = None
    seconds: float = 1.0
    minimum_runs: int = 7

    @property
    def key(self) -> Key:
        return Key(self.op, self.case, self.peer, torch.get_num_threads())

    def compare(self, ours: Any, other: Any) -> None:
        """AssertionError where the results differ."""
        assert self.agree(ours, other), f"{self.op} ({self.case}) differs from {self.peer}"


@dataclass(frozen=True)
class Pair:
    """A `Comparison`, timed.

    Attributes:
        threads: of torch and OpenCV, and the processors that they were kept on.
        ours_ms, peer_ms: median milliseconds of a call.
        ratio: median over neighbouring runs of peer time / our time; above 1 we are faster.
        ratio_low, ratio_high: first and third quartile of the same.
        runs: number of neighbouring pairs.
    """

    op: str
    case: str
    peer: str
    threads: int
    ours_ms: float
    peer_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    runs: int
    goal: float | None = None
    at: dict[str, float] = field(default_factory=dict)
    bytes: int | None = None
    flops: int | None = None

    @property
    def key(self) -> Key:
        return Key(self.op, self.case, self.peer, self.threads)


@dataclass(frozen=True)
class Missing:
    """A comparison that was not made, and why."""

    op: str
    case: str
    peer: str
    threads: int
    reason: str


class _Absent:
    def __init__(self, name: str) -> None:
        self.__name__ = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise PeerMissing(f"{self.__name__.partition('.')[0]} is not installed; `pip install 's2d[bench]'` brings it")

    __getattr__ = __call__ = _refuse


def peer_module(name: str) -> Any:
    """The module, or what raises PeerMissing as soon as something of it is used."""
    try:
        return pkgutil.resolve_name(name)
    except ImportError:
        return _Absent(name)


def may_refuse(call: Callable[[], Any]) -> Callable[[], Any]:
    """A peer that some machines or cases cannot have: its own error says why."""

    def wrapped() -> Any:
        try:
            return call()
        except Exception as error:
            raise PeerMissing(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error

    return wrapped


def seconds_of(call: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, the mean of some in a row."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def repeats_for(seconds: float) -> int:
    """Short calls are repeated within a run, so that the clock's own resolution does not count."""
    return max(1, int(0.005 / max(seconds, 1e-7)))


def time_pair(comparison: Comparison) -> tuple[Pair, list[float]]:
    """Check that both sides agree, then time them in turn: the pair, and the seconds of each run of ours.

    Raises:
        AssertionError: the results differ; then nothing is timed.
        PeerMissing: the peer cannot be run here.
    """
    ours, other = comparison.ours, comparison.other
    mine, theirs = [], []
    start, result = time.perf_counter(), other()
    longest = time.perf_counter() - start
    comparison.compare(ours(), result)
    if longest > _NO_WARM_UP:
        mine.append(seconds_of(ours, 1))
        theirs.append(longest)
    else:
        longest = max(seconds_of(ours, 1), seconds_of(other, 1))
    repeats = repeats_for(longest)
    runs = max(comparison.minimum_runs, min(101, int(comparison.seconds / max(2 * longest * (repeats + 1), 1e-6))))
    while len(mine) < runs:
        for call, seconds in ((ours, mine), (other, theirs)):
            if longest <= _NO_WARM_UP:
                call()  # memory that the other one freed goes back to the system now, not on this one's time
            seconds.append(seconds_of(call, repeats))
    low, middle, high = statistics.quantiles((b / a for a, b in zip(mine, theirs, strict=True)), n=4)
    pair = Pair(
        **comparison.key._asdict(),
        ours_ms=statistics.median(mine) * 1e3,
        peer_ms=statistics.median(theirs) * 1e3,
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        runs=runs,
        **{name: getattr(comparison, name) for name in ("goal", "at", "bytes", "flops")},
    )
    return pair, mine


def thread_counts() -> list[int]:
    """What everything is measured on: one thread and all."""
    return sorted({1, os.cpu_count() or 1})


@contextlib.contextmanager
def pinned_threads(number: int) -> Iterator[None]:
    """So many threads of torch and OpenCV, and of this process on no more processors than that."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    try:
        torch.set_num_threads(number)
        cv2.setNumThreads(number)
        if processors is not None:
            os.sched_setaffinity(0, sorted(processors)[-number:])
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
        if processors is not None:
            os.sched_setaffinity(0, processors)


def commit() -> str | None:
    """The commit that is checked out, or what ``S2D_COMMIT`` says where the sources are no checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        found = ""
    return found or os.environ.get("S2D_COMMIT")


def environment() -> dict[str, Any]:
    """The machine, the versions, the commit and the day a result belongs to."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "cpu_isa": _native.host().cpu_isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "s2d": s2d.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def table(pairs: list[Pair]) -> str:
    """The pairs as a Markdown table."""
    rows = [
        "| op | case | peer | threads | ours ms | peer ms | ratio (quartiles) | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in pairs:
        goal = "" if p.goal is None else f"{p.goal:g}"
        ratio = f"**{p.ratio:.1f}** ({p.ratio_low:.1f}-{p.ratio_high:.1f})"
        rows.append(
            f"| {p.op} | {p.case} | {p.peer} | {p.threads} | {p.ours_ms:.3g} | {p.peer_ms:.3g} | {ratio} | {goal} |"
        )
    return "\n".join(rows)
