"""``s2d dataset check`` and ``s2d dataset convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import DatasetFormat, DatasetSplit, Output, Overwrite, Quiet
from s2d.errors import InputError

DatasetPath = Annotated[Path, typer.Argument(help="The dataset's folder, or a YouTube-VIS json.", show_default=False)]


def check_command(
    path: DatasetPath,
    format: DatasetFormat = None,
    split: DatasetSplit = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every frame, too.")] = False,
    quiet: Quiet = False,
) -> None:
    """Look for missing and unreadable frames, sizes and lengths that differ, masks that cannot be read.

    Exit code 1 if anything is wrong.
    """
    from s2d.data.datasets import open_dataset
    from s2d.data.datasets.check import check_dataset
    from s2d.viz.table import text_table

    dataset = open_dataset(path, format, split)
    report = check_dataset(dataset, decode=decode, progress=not quiet)
    most = 100
    for problem in report.problems[:most]:
        print(f"{problem.kind}: {problem.message}")
    if len(report.problems) > most:
        print(f"and {len(report.problems) - most:,} more")
    if not quiet:
        rows = [["videos", f"{report.videos:,}"], ["frames", f"{report.frames:,}"]]
        rows += [["videos with masks", f"{report.annotated:,}"], ["instances", f"{report.instances:,}"]]
        rows += [[kind, f"{count:,}"] for kind, count in report.counts().items()]
        print("\n" + text_table([f"{dataset.format} dataset", "found"], rows))
    if report.problems:
        raise typer.Exit(1)


def convert_command(
    path: DatasetPath,
    output: Output,
    format: DatasetFormat = None,
    split: DatasetSplit = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The masks of a dataset as one YouTube-VIS json."""
    from s2d.data.datasets import open_dataset, write_dataset

    if output.exists() and not overwrite:
        raise InputError(f"expected a place without results, got {output}: begin again with --overwrite")
    number = write_dataset(output, open_dataset(path, format, split), progress=not quiet)
    if not quiet:
        print(f"{output}: {number:,} videos")
