"""What distillation makes of sparse keymasks: python -m benchmarks.stages.bench_distill [--real | --why] [--save]

24 generated clips with noisy keymasks on some frames train a small model in several ways (`distill_cases.VARIANTS`),
three times each; the ways share the initial weights, the clips that are drawn, and 1,500 steps. A dense round comes on
top, with 500 of its own. AP and J of the tracks are taken on the frames of these clips in which nothing has a keymask,
and on 12 other clips. ``--real`` does the same, at half the steps, on the real clips with masks. ``--why`` looks into
what the teacher's targets are worth: they are compared with the truth, and exchanged for it. Runs are kept under
``--work``: interrupted, the command continues. After a change of the code, not of the recipe, remove that folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness import RESULTS, environment
from benchmarks.results import keep
from benchmarks.stages import distill_cases as cases
from s2d.data.files import read_json, write_json
from s2d.data.types import Tracks
from s2d.data.ytvis import read_ytvis, write_ytvis, ytvis_dict
from s2d.metrics import YTVOS, Scores, YTVOSeval, davis_scores, j_and_f, precision_scores
from s2d.metrics.scores import interval
from s2d.models.video_mask2former import VideoMask2Former
from s2d.stages.job import use_threads
from s2d.stages.predict import PredictSettings, predict
from s2d.training.recipe import Recipe
from s2d.training.trainer import Feed, Trainer
from s2d.viz.table import text_table

WORK = Path(".benchmarks/distill")
SEEDS, TUNING_SEED = (1, 2, 3), 900
STEPS, REAL_STEPS = 1500, 750
DRAWS = 1000
# Better first, if the paper is right; the last two are ablations.
PAIRS = (("b", "a"), ("c", "b"), ("d", "c"), ("d", "e"), ("f", "c"), ("g", "c"))
WHY = (("h", "b"), ("i", "h"), ("j", "h"), ("k", "b"))
NUMBERS = {"ap": "AP", "j_mean": "J"}
# Every query counts in AP by its score; masks are the model's own.
SETTINGS = PredictSettings(score_threshold=0.0, refine=False)


@dataclass(frozen=True)
class Run:
    """One training; what it leaves lies in ``folder``.

    Attributes:
        data: the clips.
        variant: key of `distill_cases.VARIANTS`.
        seed: of the initial weights and of the clips that are drawn.
        steps: of the first round.
        work: where the folders of all runs are.
    """

    data: cases.Data
    variant: str
    seed: int
    steps: int
    work: Path

    @property
    def recipe(self) -> Recipe:
        return cases.recipe(cases.ALL[self.variant], self.seed, self.steps)

    @property
    def folder(self) -> Path:
        digest = hashlib.sha256(repr((self.data, self.recipe, cases.ALL[self.variant])).encode())
        return self.work / f"{self.variant}{self.seed}-{digest.hexdigest()[:8]}"

    @property
    def names(self) -> list[str]:
        """What the run is called after each of its rounds."""
        then = cases.ALL[self.variant].then
        return [self.variant, then] if then else [self.variant]

    def tracks(self, name: str, part: str) -> Path:
        """Predictions on the clips of ``"training"`` or ``"test"``."""
        return self.folder / f"{name}-{part}.json"

    @property
    def targets(self) -> Path:
        """What was found of the teacher's targets, where they were examined."""
        return self.folder / "targets.json"

    @property
    def finished(self) -> bool:
        return all(self.tracks(self.names[-1], part).is_file() for part in self.data.parts)

    @property
    def all_steps(self) -> int:
        return sum(current.steps for current in self.recipe.rounds)

    @property
    def steps_done(self) -> int:
        log = self.folder / "training.jsonl"
        if self.finished:
            return self.all_steps
        return min(self.all_steps, log.read_text().count("\n")) if log.is_file() else 0


def train(run: Run) -> None:
    """One training and its predictions, on one thread; continues where an earlier call of it stopped."""
    with use_threads(1):
        clips = {part: [cases.load(name) for name in names] for part, names in run.data.parts.items()}
        torch.manual_seed(run.seed)
        trainer = Trainer(VideoMask2Former(run.recipe.model), run.recipe, work=run.folder)
        for index, name in enumerate(run.names):
            if trainer.round == index:
                _train_round(trainer, _feed(run, trainer, clips["training"]), run)
            for part, path in ((part, run.tracks(name, part)) for part in clips):
                if trainer.round == index + 1 and not path.is_file():
                    write_ytvis(path, _predictions(trainer, clips[part], SETTINGS))
        trainer.checkpoint.unlink()


def _train_round(trainer: Trainer, feed: Feed, run: Run) -> None:
    if not isinstance(feed, cases.InformedFeed):
        trainer.train(feed, progress=False)
        return
    trainer.teacher.targets = examined = cases.Examined(trainer.teacher, feed, cases.ALL[run.variant])
    trainer.train(feed, progress=False)
    # Of a run that was interrupted these are the targets since.
    write_json(run.targets, examined.summary())


def _feed(run: Run, trainer: Trainer, clips: Sequence[cases.Clip]) -> Feed:
    """What the trainer's present round learns from."""
    if trainer.round == 0:
        return cases.keymask_feed(clips, cases.ALL[run.variant], run.recipe)
    stored = run.folder / "dense.json"
    if trainer.step == 0:
        # As `s2d.stages.distill` makes them.
        settings = PredictSettings(score_threshold=run.recipe.rounds[1].threshold)
        write_ytvis(stored, _predictions(trainer, clips, settings))
    return cases.dense_feed(clips, read_ytvis(stored), run.recipe)


def _predictions(trainer: Trainer, clips: Sequence[cases.Clip], settings: PredictSettings) -> list[Tracks]:
    return [predict(clip.video, trainer.teacher.model, settings, progress=False) for clip in clips]


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """All runs that are not finished, ``jobs`` at a time, each in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    bar = tqdm(total=sum(run.all_steps for run in runs), desc="distill", unit="step", smoothing=0.02)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        waiting: set[Future] = {pool.submit(train, run) for run in runs if not run.finished}
        while True:
            bar.n = sum(run.steps_done for run in runs)
            bar.refresh()
            if not waiting:
                break
            done, waiting = wait(waiting, timeout=5, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


def score(predictions: Sequence[Tracks], truth: Sequence[Tracks]) -> Scores:
    """AP as YouTube-VIS has it and J of the best assignment as DAVIS has it, with their bootstrap over clips."""
    evaluator = YTVOSeval(YTVOS(ytvis_dict(truth)), YTVOS(ytvis_dict(predictions)))
    draws = {"draws": DRAWS, "progress": False}
    precision = precision_scores(evaluator, [tracks.video for tracks in truth], **draws)
    regions = davis_scores([j_and_f(*pair) for pair in zip(predictions, truth, strict=True)], **draws)
    return replace(precision, overall=precision.overall | regions.overall, samples=precision.samples | regions.samples)


def score_run(run: Run, name: str) -> dict[str, Scores]:
    """``"unseen"``: on the training clips' frames without keymask; ``"test"``: on whole other clips."""
    found = {}
    for part, clips in run.data.parts.items():
        predictions, truth = read_ytvis(run.tracks(name, part)), [cases.load(clip).truth for clip in clips]
        if part == "training":
            frames = [cases.load(clip).unseen for clip in clips]
            predictions, truth = (
                [cases.on_frames(tracks, index) for tracks, index in zip(side, frames, strict=True)]
                for side in (predictions, truth)
            )
        found["unseen" if part == "training" else part] = score(predictions, truth)
    return found


Results = dict[str, dict[int, dict[str, Scores]]]
"""By name and seed what `score_run` gives."""


def difference(better: dict[int, dict[str, Scores]], worse: dict[int, dict[str, Scores]], number: str) -> dict:
    """Mean over the seeds of the paired differences on the unseen frames, with its interval.

    The interval is the middle 95 % over draws of the clips and of the seeds, both with replacement and the same for
    the two sides.
    """
    seeds = sorted(better)
    values = [float(better[seed]["unseen"].overall[number] - worse[seed]["unseen"].overall[number]) for seed in seeds]
    samples = np.stack(
        [better[seed]["unseen"].samples[number] - worse[seed]["unseen"].samples[number] for seed in seeds]
    )
    drawn = np.random.default_rng(0).integers(0, len(seeds), samples.T.shape)
    low, high = interval(np.take_along_axis(samples.T, drawn, 1).mean(1))
    return {"mean": float(np.mean(values)), "low": low, "high": high, "seeds": values}


def summary(results: Results) -> dict[str, Any]:
    """What is printed, drawn and saved."""
    variants = {
        name: {
            "title": cases.TITLES[name],
            **{
                part: {
                    number: [round(scores[part].overall[number], 4) for scores in seeds.values()]
                    for number in ("ap", "ap50", "j_mean", "f_mean")
                }
                for part in next(iter(seeds.values()))
            },
        }
        for name, seeds in results.items()
    }
    pairs = [pair for pair in PAIRS + WHY if set(pair) <= set(results)]
    differences = {
        f"{better} - {worse}": {number: difference(results[better], results[worse], number) for number in NUMBERS}
        for better, worse in pairs
    }
    return {"variants": variants, "differences": differences}


def tables(found: dict[str, Any]) -> str:
    rows = []
    for name, variant in found["variants"].items():
        cells = []
        for part in ("unseen", "test"):
            for number in ("ap", "ap50", "j_mean") if part in variant else ():
                cells.append(f"{100 * np.mean(variant[part][number]):.1f}")
        seeds = " ".join(f"{100 * value:.1f}" for value in variant["unseen"]["ap"])
        rows.append([f"({name}) {variant['title']}", *cells, seeds])
    parts = [part for part in ("unseen", "test") if part in variant]
    header = ["", *(f"{part} {number}" for part in parts for number in ("AP", "AP50", "J")), "AP of the seeds"]
    lines = [
        [pair, *(f"{100 * d['mean']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]" for d in numbers.values())]
        for pair, numbers in found["differences"].items()
    ]
    return text_table(header, rows) + "\n\n" + text_table(["unseen frames", *NUMBERS.values()], lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Left: AP and J of every variant, a dot a seed. Right: paired differences with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    variants, differences = found["variants"], found["differences"]
    for offset, (number, label) in enumerate(NUMBERS.items()):
        colour = f"C{offset}"
        for x, variant in enumerate(variants.values()):
            values = [100 * value for value in variant["unseen"][number]]
            place = x + 0.38 * (offset - 0.5)
            left.bar(place, np.mean(values), 0.36, color=colour, alpha=0.6, label=None if x else label)
            left.plot([place] * len(values), values, "k.", markersize=4)
        for y, numbers in enumerate(differences.values()):
            d = {key: 100 * value for key, value in numbers[number].items() if key != "seeds"}
            error = [[d["mean"] - d["low"]], [d["high"] - d["mean"]]]
            right.errorbar(d["mean"], y + 0.2 * (offset - 0.5), xerr=error, fmt="o", color=colour, capsize=3)
    titles = [f"({name}) {variant['title']}" for name, variant in variants.items()]
    left.set_xticks(range(len(titles)), titles, rotation=30, ha="right", fontsize=8)
    left.set(ylabel="percent", title="frames without keymasks")
    left.legend(frameon=False)
    right.set_yticks(range(len(differences)), list(differences))
    right.invert_yaxis()
    right.axvline(0, color="k", linewidth=0.8)
    right.set(xlabel="points", title="paired differences, 95 % intervals")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def measure(data: cases.Data, variants: Sequence[str], seeds: Sequence[int], steps: int, arguments: Any) -> dict:
    """Train, score and print."""
    runs = [Run(data, name, seed, steps, arguments.work) for seed in seeds for name in variants]
    clips = [cases.load(name) for name in data.training]
    share = cases.dropped_share(clips, runs[0].recipe, min(steps, 500))
    print(f"{len(clips)} clips; {share:.1%} of the (instance, frame) rows that are drawn have no keymask", flush=True)
    train_all(runs, arguments.jobs)
    results: Results = {}
    for run in tqdm(runs, desc="score", unit="run"):
        for name in run.names:
            results.setdefault(name, {})[run.seed] = score_run(run, name)
    results = dict(sorted(results.items()))
    found = {"clips": len(clips), "steps": steps, "seeds": list(seeds), "dropped_share": share} | summary(results)
    print("\n" + tables(found))
    if seen := [run.targets for run in runs if run.targets.is_file() and run.variant == "h"]:
        targets = [read_json(path) for path in seen]
        found["targets"] = {name: round(float(np.mean([one[name] for one in targets])), 3) for name in targets[0]}
        print(
            "\nthe teacher's targets in a clip of {instances:.2f} instances: {targets:.2f}, of which {right:.2f} right "
            "(IoU {iou:.2f}) and {again:.2f} of an instance that another one has".format(**found["targets"])
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--real", action="store_true", help="the real clips under $S2D_TEST_DATA instead")
    which.add_argument("--why", action="store_true", help="what the teacher's targets are worth")
    parser.add_argument("--tuning", action="store_true", help="other clips and a seed that settings may be chosen on")
    parser.add_argument("--variants", nargs="+", choices=cases.ALL, help="some of the variants")
    parser.add_argument("--quick", action="store_true", help="two steps on two clips, to see that it works")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the runs")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results, and distill.png")
    arguments = parser.parse_args(argv)
    if arguments.real and not os.environ.get("S2D_TEST_DATA"):
        print("skipped: S2D_TEST_DATA does not name the folder that holds the real clips")
        return 0
    data, variants, steps, seeds = cases.GENERATED, list(cases.VARIANTS), STEPS, SEEDS
    if arguments.real:
        data, variants, steps = cases.REAL_CLIPS, ["a", "b", "c"], REAL_STEPS
    if arguments.why:
        variants = ["b", *cases.EXAMINED]
    if arguments.tuning:
        data, seeds = cases.TUNING, (TUNING_SEED,)
    if arguments.quick:
        data, steps, seeds = cases.Data(data.training[:2], data.test[:1]), 2, seeds[:1]
    found = measure(data, arguments.variants or variants, seeds, steps, arguments)
    if arguments.save and not (arguments.tuning or arguments.quick):
        part = "real" if arguments.real else "why" if arguments.why else "generated"
        print(keep("distill", {part: found | {"environment": environment()}}))
        if part == "generated":
            plot(found, RESULTS / "distill.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
