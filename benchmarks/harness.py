"""Timing two implementations in turn, in one process, after checking that they agree.

Machines are shared and their clocks drift, so an absolute time means little: a pair is run A B A B ..., and what is
reported is the ratio of neighbouring runs. Nothing is timed before its result was compared with the other's.

    pair = compare("mask_iou", ours, peer, peer="numpy bitwise_count", agree=torch.equal)
    save([pair], "bitmask")

Every benchmark is a script with cases from ``s2d/testing/cases``; `save` writes ``benchmarks/results/<name>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from s2d import _native

RESULTS = Path(__file__).parent / "results"

# A call that takes so many seconds is no faster the second time.
_NO_WARM_UP = 2.0


@dataclass(frozen=True)
class Pair:
    """Ours against one peer on one case.

    Attributes:
        op: the operator or stage.
        case: sizes and settings, in words.
        peer: what it was compared with.
        threads: torch threads during the timing.
        ours_ms, peer_ms: median milliseconds of a call.
        ratio: median over neighbouring runs of peer time / our time; above 1 we are faster.
        ratio_low, ratio_high: first and third quartile of the same.
        runs: number of neighbouring pairs.
        goal: the ratio aimed at, or None.
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


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def compare(
    op: str,
    ours: Callable[[], Any],
    other: Callable[[], Any],
    *,
    peer: str,
    agree: Callable[[Any, Any], bool],
    case: str = "",
    goal: float | None = None,
    seconds: float = 1.0,
    minimum_runs: int = 7,
) -> Pair:
    """Check that both calls agree, then time them in turn.

    Args:
        ours, other: calls without arguments; what they return is compared by ``agree(ours(), other())``.
        seconds: about how long the timing takes, at least ``minimum_runs`` neighbouring pairs, 2 or more. Of a peer
            that takes seconds the call that is compared is timed too.

    Raises:
        AssertionError: the results differ; then nothing is timed.
    """
    mine, theirs = [], []
    start, result = time.perf_counter(), other()
    longest = time.perf_counter() - start
    assert agree(ours(), result), f"{op} ({case}) differs from {peer}: nothing is timed"
    if longest > _NO_WARM_UP:
        mine.append(_seconds(ours, 1))
        theirs.append(longest)
    else:
        longest = max(_seconds(ours, 1), _seconds(other, 1))
    # Short calls are repeated within a run, so that the clock's own resolution does not count.
    repeats = max(1, int(0.005 / max(longest, 1e-7)))
    runs = max(minimum_runs, min(101, int(seconds / max(2 * longest * repeats, 1e-6))))
    while len(mine) < runs:
        mine.append(_seconds(ours, repeats))
        theirs.append(_seconds(other, repeats))
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Pair(
        op=op,
        case=case,
        peer=peer,
        threads=torch.get_num_threads(),
        ours_ms=statistics.median(mine) * 1e3,
        peer_ms=statistics.median(theirs) * 1e3,
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        runs=runs,
        goal=goal,
    )


def commit() -> str | None:
    """The commit that is checked out, or what ``S2D_COMMIT`` says where the sources are no checkout."""
    command = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        found = ""
    return found or os.environ.get("S2D_COMMIT")


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit a result belongs to."""
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
        "commit": commit(),
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


def save(pairs: list[Pair], name: str) -> Path:
    """Write the pairs and the environment to ``benchmarks/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(
        json.dumps({"environment": environment(), "pairs": [asdict(p) for p in pairs]}, indent=1) + "\n"
    )
    temporary.replace(target)
    return target


def main(name: str, measure: Callable[[bool], list[Pair]]) -> None:
    """The command line of a benchmark script: measure on one thread and on all, print, and save with ``--save``."""
    parser = argparse.ArgumentParser(description=f"Benchmark of {name}: ours against its peers, in turn.")
    parser.add_argument("--quick", action="store_true", help="small cases only, a few seconds")
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{name}.json")
    arguments = parser.parse_args()
    pairs = []
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        pairs += measure(arguments.quick)
    print(table(pairs))
    if arguments.save:
        print(save(pairs, name))
