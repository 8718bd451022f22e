"""Every operator once at each small and odd size, checked on the CPU: python -m benchmarks.gpu.sweep

What compute-sanitizer runs. With ``--device cpu`` it shows that the driver itself works.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.gpu.entry import entries, mapped, waits_for


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args(arguments).device
    calls, wrong, waiting = 0, [], {}
    for room, entry in entries("SMALL"):
        if room not in waiting:
            waiting[room] = waits_for(room, device)
            if waiting[room]:
                print(f"left out: {waiting[room]}", flush=True)
        if waiting[room]:
            continue
        inputs = entry.make(device, 0)
        result = entry.ours(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        # The definition runs on the CPU: kernels of torch are not what is examined.
        try:
            right = entry.check(*mapped(torch.Tensor.cpu, (result, *inputs)))
        except AssertionError:
            right = False
        if not right:
            wrong.append(f"{entry.op} ({entry.case})")
        calls += 1
    print(f"{calls} calls, {len(wrong)} wrong", *wrong, sep="\n", flush=True)
    return 1 if wrong or not calls else 0


if __name__ == "__main__":
    sys.exit(main())
