"""Seconds, on the clock and of the processors, and peak memory of a part of the program."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path


class Meter:
    """Measures from its creation on.

    The kernel keeps the peak of the resident memory of a process (VmHWM) and forgets it on request (5 to
    /proc/self/clear_refs), so that each part gets a peak of its own. Where it cannot (not Linux, or forbidden), the
    peak is that of the whole process up to now. Memory of child processes is not counted; `run` starts none.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> dict[str, float]:
        """Since the creation: ``seconds`` on the clock, ``cpu_seconds`` of all threads, ``peak_mb`` in 10^6 bytes."""
        return {
            "seconds": round(time.perf_counter() - self._begin[0], 3),
            "cpu_seconds": round(time.process_time() - self._begin[1], 3),
            "peak_mb": round(_peak_bytes() / 1e6, 1),
        }


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
