"""Quality and speed of discovery: python -m benchmarks.stages.bench_discover [--quick] [--save] [--real] [...]

Without a choice: 40 generated clips with exact masks, half of them under a fixed camera, and proposals of five noise
levels; purity and recall of the keymasks (`s2d.metrics.keymasks` defines them) of the official procedure with this
program's flow and with exact point tracks, which no tracker reaches, and of ours with every scoring. Two thresholds
tell what counts as a mask of an object, IoU 0.3 and (the columns that say so) 0.5. ``--real`` does
the same on the real clips with masks, ``--ablation`` changes one thing at a time, ``--speed`` times the steps.
``--tuning`` takes the seeds that settings may be chosen on. Interrupted, a measurement of quality continues.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks import results
from benchmarks.harness import RESULTS, environment
from benchmarks.stages import discover_cases as cases
from s2d.data.files import read_json, write_json
from s2d.metrics import KeymaskQuality
from s2d.stages.job import use_threads
from s2d.viz.table import text_table

WORK = Path(".benchmarks/discover")
CUT_SEEDS = 20
COLUMNS = ("purity", "recall", "linked_recall", "objects", "mean_kept_iou", "mean_dropped_iou")
HEADER = (
    *("", "purity", "recall", "linked", "objects", "IoU kept", "dropped"),
    *("purity .5", "recall .5", "keymasks", "instances"),
)

Qualities = dict[str, dict[str, dict[str, dict]]]
"""By level, way and threshold of IoU the fields of a `KeymaskQuality`."""
Totals = dict[str, dict[str, dict[str, KeymaskQuality]]]


def measure_clip(kind: str, name: str, levels: list[int]) -> Qualities:
    """One clip at some levels; runs in a process of its own."""
    with use_threads(1):
        if kind == "real":
            case, compared, seed = cases.real(name), cases.ways(exact_tracks=False), 0
        elif kind == "cuts":
            case, compared, seed = cases.cut_clip(int(name)), cases.ablations(), int(name)
        else:
            case, seed = cases.generated(int(name)), int(name)
            compared = cases.ablations() if kind == "ablation" else cases.ways(exact_tracks=True)
        return {
            str(level): {
                way: {str(iou): vars(quality) for iou, quality in qualities.items()}
                for way, qualities in cases.measure(case, level, seed, compared)
            }
            for level in levels
        }


def measure_all(kind: str, names: list[str], levels: list[int], jobs: int) -> dict[str, Qualities]:
    """All clips, those that an earlier call has measured read from its files."""
    folder = WORK / f"{kind}-{_version(kind)}"
    done: dict[str, Qualities] = {}
    for name in names:
        file = folder / f"{name}.json"
        if file.exists() and set(map(str, levels)) <= set(read_json(file)):
            done[name] = read_json(file)
    missing = [name for name in names if name not in done]
    bar = tqdm(total=len(names), initial=len(done), desc=kind, unit="clip")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(measure_clip, kind, name, levels): name for name in missing}
        for future in as_completed(running):
            name = running[future]
            done[name] = future.result()
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{name}.json", done[name])
            bar.update()
    bar.close()
    return {name: done[name] for name in names}


def _version(kind: str) -> str:
    """Changes with the sources of what is measured and of what measures it."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256(kind.encode())
    sources = ("stages/_*.py", "stages/discover.py", "motion/*.py", "metrics/*.py", "data/synthetic/*.py")
    for pattern in (f"s2d/{part}" for part in sources):
        for file in [*sorted(root.glob(pattern)), Path(cases.__file__)]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def add_up(measured: dict[str, Qualities], names: list[str]) -> Totals:
    """The counts of some clips together."""
    totals: Totals = defaultdict(lambda: defaultdict(lambda: defaultdict(KeymaskQuality)))
    for name in names:
        for level, ways in measured[name].items():
            for way, thresholds in ways.items():
                for iou, fields in thresholds.items():
                    totals[level][way][iou] += KeymaskQuality(**fields)
    return totals


def tables(totals: Totals, title: str) -> str:
    blocks = []
    for level, ways in sorted(totals.items()):
        rows = []
        for way, qualities in ways.items():
            loose, strict = (qualities[str(iou)] for iou in cases.THRESHOLDS)
            values = [*(getattr(loose, column) for column in COLUMNS), strict.purity, strict.recall]
            cells = ["" if math.isnan(value) else f"{value:.3f}" for value in values]
            rows.append([way, *cells, str(loose.keymasks), str(loose.instances)])
        blocks.append(f"{title}, noise level {level}\n" + text_table(HEADER, rows))
    return "\n\n".join(blocks)


def numbers(totals: Totals) -> dict:
    return {
        level: {
            way: {
                iou: {column: _finite(getattr(quality, column)) for column in COLUMNS}
                | {"keymasks": quality.keymasks, "instances": quality.instances}
                for iou, quality in qualities.items()
            }
            for way, qualities in ways.items()
        }
        for level, ways in totals.items()
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def plot(totals: Totals, path: Path) -> None:
    """Purity and recall of every way by noise level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    levels = sorted(totals)
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("purity", "recall"), strict=True):
        for way in totals[levels[0]]:
            line = "o-" if way.startswith("ours") else "s--" if way.startswith("official") else "x:"
            values = [getattr(totals[level][way][str(cases.THRESHOLDS[0])], column) for level in levels]
            axes.plot([int(level) for level in levels], values, line, label=way)
        axes.set(
            xlabel="noise level of the proposals",
            title=f"{column} of keymasks",
            ylim=(0, 1.02),
            xticks=[*map(int, levels)],
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)


def quality(arguments: argparse.Namespace, kind: str, names: list[str], levels: list[int]) -> dict:
    """Measure, print and, where asked to, plot; returns what is to be saved."""
    measured = measure_all(kind, names, levels, arguments.jobs)
    totals = add_up(measured, names)
    print("\n" + tables(totals, kind))
    result = {"clips": len(names), "all": numbers(totals)}
    if kind == "generated":
        for camera, parity in (("fixed camera", 0), ("moving camera", 1)):
            part = add_up(measured, [name for name in names if int(name) % 2 == parity])
            print("\n" + tables({"3": part["3"]}, camera))
            result[camera] = numbers(part)
        if arguments.save:
            plot(totals, RESULTS / "discover.png")
    if kind == "real":
        result["clips"] = {name: numbers(add_up(measured, [name])) for name in names}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four clips at the middle noise level")
    parser.add_argument("--real", action="store_true", help="the real clips under $S2D_TEST_DATA/data/clips")
    parser.add_argument("--ablation", action="store_true", help="one thing changed at a time, also on clips with a cut")
    parser.add_argument("--speed", action="store_true", help="seconds of each step, and how they grow")
    parser.add_argument("--tuning", action="store_true", help="other clips: those that settings are chosen on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results, and discover.png")
    arguments = parser.parse_args()
    levels = [3] if arguments.quick else list(cases.NOISE_LEVELS)
    seeds = [str(seed) for seed in (cases.TUNING_SEEDS if arguments.tuning else cases.SEEDS)]
    seeds = seeds[:4] if arguments.quick else seeds
    result = {}
    if arguments.real:
        result["real"] = quality(arguments, "real", list(cases.REAL)[: 2 if arguments.quick else None], levels)
    if arguments.ablation:
        result["ablation"] = quality(arguments, "ablation", seeds, [3])
        result["ablation on clips with a cut"] = quality(arguments, "cuts", seeds[:CUT_SEEDS], [3])
    if arguments.speed:
        from benchmarks.stages.discover_speed import speed

        result["speed"] = speed(arguments.quick)
    if not (arguments.real or arguments.ablation or arguments.speed):
        result["generated"] = quality(arguments, "generated", seeds, levels)
    if arguments.save and not arguments.tuning:
        print(results.keep("discover", {"environment": environment()} | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
