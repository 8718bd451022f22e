"""``s2d pseudo-label``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import (
    DatasetFormat,
    DatasetSplit,
    Device,
    Output,
    Overwrite,
    Quiet,
    Resume,
    ShardOption,
    Threads,
    Workers,
    tell_outcome,
)


def pseudo_label_command(
    dataset: Annotated[Path, typer.Argument(help="Videos: see s2d dataset.", show_default=False)],
    output: Output,
    weights: Annotated[Path, typer.Option(help="What distill wrote, or an official checkpoint.", show_default=False)],
    score: Annotated[float, typer.Option(min=0, max=1, help="The least score of an annotation.")] = 0.75,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "cpu",
    format: DatasetFormat = None,
    split: DatasetSplit = None,
    workers: Workers = None,
    threads: Threads = None,
    shard: ShardOption = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """What a model sees in every video, as annotations for the next round: OUT/VIDEO.json, OUT/annotations.json.

    failed.json says why videos failed; exit code 1 if any did, and --resume tries them again. --threads counts for each
    worker.
    """
    from s2d.stages import pool
    from s2d.stages.pseudo_label import SETTINGS, pseudo_label

    summary, merged = pseudo_label(
        dataset,
        weights,
        output,
        dataclasses.replace(SETTINGS, score_threshold=score, precision=precision),
        format=format,
        split=split,
        device=device,
        pool=pool.Pool(workers, threads),
        shard=None if shard is None else pool.Shard.parse(shard),
        overwrite=overwrite,
        resume=resume,
        progress=not quiet,
    )
    tell_outcome(summary, merged, output / "annotations.json", quiet=quiet)
