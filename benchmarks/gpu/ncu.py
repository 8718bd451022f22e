"""Hardware counters of one launch of every kernel, through Nsight Compute: python -m benchmarks.gpu.ncu [--out FOLDER]

Exits with 77 where ncu is absent or cannot read the counters. Clocks are left alone, so times are of the clocks as they
were; use them to compare kernels of one run.
"""

from __future__ import annotations

import argparse
import csv
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.entry import entries, waits_for
from benchmarks.gpu.report import file_name
from benchmarks.harness import RESULTS
from s2d.testing.resources import short_name

SKIPPED = 77

# Counter and heading, with what the value is divided by.
METRICS = {
    "gpu__time_duration.sum": ("us", 1e3),
    "dram__bytes_read.sum": ("MB read", 1e6),
    "dram__bytes_write.sum": ("MB written", 1e6),
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("dram %", 1),
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("sm %", 1),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("occupancy %", 1),
    "launch__registers_per_thread": ("registers", 1),
}


def find_ncu() -> str | None:
    folders = [
        os.environ.get("PATH", os.defpath),
        "/usr/local/cuda/bin",
        *sorted(glob.glob("/opt/nvidia/nsight-compute/*")),
    ]
    return shutil.which("ncu", path=os.pathsep.join(folders))


def parse(text: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the output of ``ncu --csv --page raw``: one row a launch, in the order of launching."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return [], []
    records = list(csv.DictReader(lines[start:]))
    present = [name for name in METRICS if name in records[0]] if records else []
    rows = []
    for record in records:
        # The row of units has no ID; messages after the table have no other column.
        if not (record["ID"] or "").isdecimal() or record["Kernel Name"] is None:
            continue
        values = [short_name(record["Kernel Name"].replace("<unnamed>::", ""))]
        for name in present:
            number = (record[name] or "").replace(",", "")
            try:
                values.append(f"{float(number) / METRICS[name][1]:.3g}")
            except ValueError:
                values.append(number)  # n/a
        rows.append(values)
    return ["kernel", *(METRICS[name][0] for name in present)], rows


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def launch_all() -> int:
    """What runs under ncu: each entry once to warm up, once with the profiler on."""
    for room, entry in entries("FULL"):
        if waits_for(room):
            continue
        inputs = entry.make("cuda", 0)
        entry.ours(*inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        entry.ours(*inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        print(f"profiled: {entry.op} ({entry.case})", flush=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.ncu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--launch", action="store_true", help="only launch the kernels, for ncu to watch")
    chosen = parser.parse_args(arguments)
    if chosen.launch:
        return launch_all()
    program = find_ncu()
    if program is None:
        print("skipped: there is no ncu in PATH, /usr/local/cuda/bin or /opt/nvidia/nsight-compute")
        return SKIPPED
    chosen.out.mkdir(parents=True, exist_ok=True)
    raw = chosen.out / f"{file_name(torch.cuda.get_device_name())}_ncu.csv"
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    options += ["--print-units", "base", "--metrics", ",".join(METRICS), "--log-file", str(raw)]
    target = [sys.executable, "-m", "benchmarks.gpu.ncu", "--launch"]
    done = subprocess.run([program, *options, *target])
    text = raw.read_text() if raw.exists() else ""
    headings, rows = parse(text)
    if rows:
        report = table(headings, rows)
        print(report)
        raw.with_suffix(".md").write_text(report + "\n")
        return done.returncode
    print(f"skipped: ncu (exit status {done.returncode}) counted nothing here; it says:")
    print(*text.splitlines()[-10:], sep="\n")
    return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
