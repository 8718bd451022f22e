"""Seconds and peak memory of a part of the program."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path


class Meter:
    """Measures from its creation on.

    The kernel keeps the peak of the resident memory of a process (VmHWM) and forgets it on request (5 to
    /proc/self/clear_refs), so that each part gets a peak of its own. Where it cannot (not Linux, or forbidden), the
    peak is that of the whole process up to now. Memory of child processes is not counted; this program starts none.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> dict[str, float]:
        """``{"seconds": wall-clock time, "peak_mb": peak resident memory in 10^6 bytes}`` since the creation."""
        return {"seconds": round(time.perf_counter() - self._begin, 3), "peak_mb": round(_peak_bytes() / 1e6, 1)}


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
