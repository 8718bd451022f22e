"""``s2d evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import Quiet, Seed
from s2d.errors import InputError


def evaluate_command(
    predictions: Annotated[
        Path,
        typer.Argument(help="YTVIS or COCO json, folders of label maps, or folders of runs.", show_default=False),
    ],
    ground_truth: Annotated[Path, typer.Argument(help="The same, without runs.", show_default=False)],
    metric: Annotated[
        str,
        typer.Option(
            help="ytvis, coco, davis, davis-semi or davis16: a benchmark's numbers; tube, j or all: a short summary."
        ),
    ] = "all",
    video: Annotated[
        str | None, typer.Option(help="Name in the ground truth of the one video that was predicted.")
    ] = None,
    classes: Annotated[
        bool | None, typer.Option("--classes/--no-classes", help="Whether categories count.", show_default="for coco")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="All numbers, videos and instances: .json, .csv or .md.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Predictions to tell what got better and worse from.")
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Videos or folders of images, for --overlays.")
    ] = None,
    overlays: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Paint OTHER and PREDICTIONS side by side for what changed most."),
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Of the videos, for the intervals.")] = 1000,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """AP, J and F against ground truth, as the benchmarks define them."""
    from s2d.stages.evaluate import BENCHMARKS, EvaluateSettings, run_benchmark, summary

    if metric in BENCHMARKS:
        settings = EvaluateSettings(metric, video, classes, output, compare, frames, overlays, draws, seed)
        text = run_benchmark(predictions, ground_truth, settings, progress=not quiet)
        if not quiet:
            print(text)
        return
    for name, value in {"--output": output, "--compare": compare, "--overlays": overlays}.items():
        if value is not None:
            raise InputError(f"expected --metric {', '.join(BENCHMARKS)} for {name}, got {metric}")
    print(summary(predictions, ground_truth, metric, video))
