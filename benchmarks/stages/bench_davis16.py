"""Quality on DAVIS-2016, against human ground truth: python -m benchmarks.stages.bench_davis16 -o OUT [--save]

Runs the whole program on every sequence under ``$S2D_TEST_DATA/data/davis16`` and prints J of the best-matching track
for (a) proposals linked greedily by IoU, (b) keymasks alone, (c) the final tracks. Interrupted, it continues.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.harness import environment
from s2d.data.coco import read_proposals
from s2d.data.ytvis import read_ytvis
from s2d.metrics import at_size, link_greedily, region_similarity
from s2d.stages.run import RunSettings, run
from s2d.viz.table import text_table

COLUMNS = ("greedy", "keymasks", "tracks")


def measure(frames: Path, out: Path, truth, recipe: str) -> dict[str, float]:
    """J of the three kinds of tracks on one sequence, and the seconds the run took."""
    result = run(frames, out, RunSettings(recipe=recipe), resume=True)
    stages = {
        "greedy": link_greedily(read_proposals(out / "work/proposals.json")),
        "keymasks": read_ytvis(out / "keymasks.json")[0],
        "tracks": result.tracks,
    }
    values = {name: region_similarity(at_size(tracks, truth.size), truth).mean for name, tracks in stages.items()}
    return values | {"seconds": sum(stage["seconds"] for stage in result.measures.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the runs, one a sequence")
    parser.add_argument("--recipe", default="cpu-small", help="of the training")
    parser.add_argument("--only", nargs="+", help="sequences to run, all of them without this")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")
    arguments = parser.parse_args()
    data = os.environ.get("S2D_TEST_DATA")
    if not data:
        print("expected S2D_TEST_DATA to name the folder that holds data/davis16, got nothing", file=sys.stderr)
        return 2
    folder = Path(data) / "data/davis16"
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, float]] = {}
    for truth in read_ytvis(folder / "ytvis_240p.json"):
        name = Path(truth.video).name
        if arguments.only and name not in arguments.only:
            continue
        rows[name] = measure(folder / "frames" / name, arguments.out / name, truth, arguments.recipe)
        print(json.dumps({name: rows[name]}))
    mean = {column: sum(row[column] for row in rows.values()) / len(rows) for column in COLUMNS}
    lines = [
        [name, *(f"{row[column]:.3f}" for column in COLUMNS), f"{row['seconds']:.0f}"] for name, row in rows.items()
    ]
    lines.append(["mean", *(f"{mean[column]:.3f}" for column in COLUMNS), ""])
    print(text_table(["sequence", "a: proposals, greedy", "b: keymasks", "c: tracks", "seconds"], lines))
    if arguments.save:
        print(results.keep("davis16", {"environment": environment(), "sequences": rows, "mean": mean}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
