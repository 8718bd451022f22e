"""One build in a process of its own, which runs when it is asked to: python -m benchmarks.worker SUITE THREADS QUICK

Commands come as lines on stdin and are answered by a line of JSON: ``next`` names the following case, ``ready`` checks
it and tells about how long a call takes, ``run N`` gives the seconds of one of N calls.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s2d.testing
from benchmarks.harness import Comparison, pinned_threads, seconds_of
from benchmarks.suites import comparisons


def cases(name: str, quick: bool) -> Iterator[Comparison]:
    """Each operator and case once: the time of ours does not depend on the peer."""
    seen = set()
    for item in comparisons(name, quick):
        if isinstance(item, Comparison) and (item.op, item.case) not in seen:
            seen.add((item.op, item.case))
            yield item


def ready(item: Comparison) -> dict[str, Any]:
    try:
        item.compare(item.ours(), item.other())
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "call": seconds_of(item.ours, 1),
        "seconds": item.seconds,
        "minimum_runs": item.minimum_runs,
    }


def run(item: Comparison, repeats: int) -> float:
    if repeats > 1:
        item.ours()  # what the other build left in the caches is not counted
    # On one thread the processor's own time leaves out what other programs take.
    return seconds_of(item.ours, repeats, time.process_time if item.key.threads == 1 else time.perf_counter)


def main(name: str, threads: str, quick: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    # The inputs are those of this checkout, whichever build is imported.
    s2d.testing.__path__[:] = [str(Path(__file__).parents[1] / "s2d" / "testing")]
    item = None
    with pinned_threads(int(threads)):
        items = cases(name, quick == "True")
        print(json.dumps(str(Path(s2d.__file__).parents[1])), file=answers)
        for line in sys.stdin:
            command, *number = line.split()
            if command == "next":
                item = next(items, None)
                answer = item and [item.op, item.case]
            else:
                answer = ready(item) if command == "ready" else run(item, int(*number))
            print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
