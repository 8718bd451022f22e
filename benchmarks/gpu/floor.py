"""What a device can do at most, measured before anything is timed against it."""

from __future__ import annotations

import statistics
import subprocess
from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import seconds_of

POPCOUNTS_PER_CLOCK = 16  # of 32 bits, of one multiprocessor: CUDA C++ Programming Guide, arithmetic instructions


@dataclass(frozen=True)
class Rates:
    """A device's ceilings, per second.

    Attributes:
        copy_bytes: bytes read plus bytes written by a large copy.
        bf16_flops: multiplications plus additions of a large bfloat16 matrix product.
        popcounts: 32-bit population counts, from the clock and the number of multiprocessors; None where unknown.
    """

    copy_bytes: float
    bf16_flops: float
    popcounts: float | None

    def of(self, unit: str) -> float | None:
        """The rate of a unit of work: "flop" (on matrix units) or "popc32"; None where it is unknown."""
        return {"flop": self.bf16_flops, "popc32": self.popcounts, "": None}[unit]


def nvidia_smi(field: str) -> str | None:
    """One field of ``nvidia-smi --query-gpu``, or None where that cannot be asked."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _median_seconds(call, device: str) -> float:
    call()
    return statistics.median(seconds_of(call, 3, device) for _ in range(7))


def measure(device: str, copy_bytes: int = 2**31, matrix: int = 8192) -> Rates:
    """Measure the ceilings of a device.

    Args:
        copy_bytes: size of the buffer that is copied.
        matrix: rows and columns of the matrices that are multiplied; their values are random, as zeros run faster.
    """
    source = torch.randint(0, 255, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * copy_bytes / _median_seconds(lambda: target.copy_(source), device)
    a, b = (torch.randn(matrix, matrix, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * matrix**3 / _median_seconds(lambda: a @ b, device)
    megahertz = nvidia_smi("clocks.max.sm") if device == "cuda" else None
    popcounts = None
    if megahertz is not None and megahertz.isdecimal():
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        popcounts = POPCOUNTS_PER_CLOCK * processors * int(megahertz) * 1e6
    return Rates(copied, flops, popcounts)
