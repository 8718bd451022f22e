"""Every operator with a GPU kernel against its floor and its peers: python -m benchmarks.gpu.bench [--only REGEX]

``--dry-run`` runs the same code on the CPU at tiny sizes, with the wall clock: it shows that the suite works, and its
times mean nothing. Nothing is timed before its result was checked; a call that cannot be captured into a CUDA graph is
an error unless its entry says why.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu import floor, report
from benchmarks.gpu.entry import Entry, entries, waits_for
from benchmarks.gpu.timing import Runner, measure
from benchmarks.harness import RESULTS

SECONDS = 1.5  # of timing an entry with its peers, at the least


def run_entry(entry: Entry, device: str, rates: floor.Rates, seconds: float) -> report.Row:
    """Check one entry and its peers, then time them in turn.

    Raises:
        AssertionError: a result is wrong; then nothing is timed.
    """
    inputs = entry.make(device, 0)
    result = entry.ours(*inputs)
    assert entry.check(result, *inputs), "the result is wrong: nothing is timed"
    runners = {
        "": Runner.ready(entry.ours, inputs, device, lambda got: entry.check(got, *inputs), capture=not entry.syncs)
    }
    for name, peer in entry.peers.items():
        start = peer.prepare(*inputs)
        assert peer.agree(result, peer.run(*start)), f"the result differs from {name}: nothing is timed"
        right = _agrees_with(peer.agree, result)
        runners[name] = Runner.ready(peer.run, start, device, right, capture=peer.capturable)
    times = dict(zip(runners, measure(list(runners.values()), device, seconds), strict=True))
    return report.row(entry, times.pop(""), times, rates)


def _agrees_with(agree, result):
    return lambda got: agree(result, got)


def run(device: str, sizes: str, only: str, rates: floor.Rates, seconds: float) -> tuple[list[report.Row], list[str]]:
    """Rows of the entries that are right, and a sentence for each that is wrong or waits for its kernel."""
    rows, notes, waiting = [], [], {}
    for room, entry in entries(sizes):
        if not re.search(only, entry.op):
            continue
        label = f"{entry.op} ({entry.case})"
        start = time.perf_counter()
        try:
            if room not in waiting:
                waiting[room] = waits_for(room, device)
                if waiting[room]:
                    notes.append(f"WAITS {waiting[room]}")
            if waiting[room]:
                continue
            rows.append(run_entry(entry, device, rates, seconds))
            outcome = f"{rows[-1].graph_us or rows[-1].eager_us:.1f} us"
        # One wrong entry shall not hide the others; the exit status tells.
        except Exception as error:
            outcome = f"RED {label}: {type(error).__name__}: {str(error).strip() or 'no message'}"
            notes.append(outcome)
        if device == "cuda":
            torch.cuda.empty_cache()
        print(f"{label}: {outcome} ({time.perf_counter() - start:.1f} s)", file=sys.stderr, flush=True)
    return rows, notes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny: shows that the suite works")
    parser.add_argument("--only", default="", metavar="REGEX", help="operators whose name it finds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args(arguments)
    if chosen.dry_run:
        rates = floor.measure("cpu", copy_bytes=2**16, matrix=64)
        rows, notes = run("cpu", "TINY", chosen.only, rates, seconds=0.0)
        print("dry run on the CPU: times mean nothing\n")
        print(report.text(report.machine("cpu"), rates, rows, notes))
    else:
        if not torch.cuda.is_available():
            print("s2d: expected a CUDA device, got none; --dry-run runs on the CPU", file=sys.stderr)
            return 1
        rates = floor.measure("cuda")
        rows, notes = run("cuda", "FULL", chosen.only, rates, SECONDS)
        facts = report.machine("cuda")
        print(report.text(facts, rates, rows, notes))
        print(*report.save(chosen.out, facts, rates, rows, notes))
    return 1 if any(note.startswith("RED") for note in notes) or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
