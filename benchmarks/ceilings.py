"""What this machine can do at most: the roof over the operators."""

from __future__ import annotations

import torch

from benchmarks.harness import seconds_of


def measure(copied: int = 2**28, side: int = 1024) -> dict[str, float]:
    """Ceilings on the threads in use: the best of some runs.

    Args:
        copied: bytes of a buffer that is copied, more than caches hold.
        side: of the float32 matrices whose product counts as nothing but fused multiplications and additions.

    Returns:
        ``copy_gb_s``: gigabytes a second, read and written. ``fma_gflop_s``: thousand million operations a
        second, of which a fused multiplication and addition is two.
    """
    source = torch.ones(copied, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    a, b = torch.randn(2, side, side)
    out = a @ b

    def best(call) -> float:
        return min(seconds_of(call, 1) for _ in range(9))

    return {
        "copy_gb_s": 2e-9 * copied / best(lambda: target.copy_(source)),
        "fma_gflop_s": 2e-9 * side**3 / best(lambda: torch.mm(a, b, out=out)),
    }
