"""Arguments and options that several commands have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

VideoArgument = Annotated[Path, typer.Argument(help="A video file, or a folder of images.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.", show_default=False)]
Decoder = Annotated[str, typer.Option(help="auto or pyav, which are the same here (dali reads clips of a dataset).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 and so on.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Equal numbers give equal results.", show_default="all")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete earlier results in the same place first.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted job.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars and no table.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Videos at a time, of many.", show_default="half the CPUs")]
ShardOption = Annotated[
    str | None, typer.Option(metavar="I/N", help="Of many videos only part I of N, from 1; OUT may be shared.")
]
DatasetFormat = Annotated[
    str | None,
    typer.Option(help="ytvis, davis, mose, vipseg, sav, sav-frames or videos.", show_default="what it looks like"),
]
DatasetSplit = Annotated[str | None, typer.Option(help="Name of a split.", show_default="all, or the only one")]
MotionOption = Annotated[
    str,
    typer.Option(
        help="What leads from frame to frame: dis (needs no weights), raft:WEIGHTS (torchvision's), files:FOLDER "
        "(.flo, KITTI .png or .npz) or cotracker3:CHECKOUT:CHECKPOINT."
    ),
]
RecipeOption = Annotated[str, typer.Option(help="Name of a recipe, or path of a .toml file.")]
One2x = Annotated[
    float | None,
    typer.Option(
        metavar="MAX",
        help="Leave out of the merged file instances of which more than this share of masks covers several others.",
        show_default="all are kept",
    ),
]
WorkingSide = Annotated[int, typer.Option(min=16, help="Short side of the frames that are searched, pixels.")]


def open_video(video: Path, **options: Any) -> Any:
    """The video; what a user should know about it goes to stderr."""
    from s2d.data import video as videos

    opened = videos.open_video(video, **options)
    for note in opened.notes:
        print(f"s2d: {note}", file=sys.stderr)
    return opened


def tell_outcome(summary: Any, merged: Any, path: Path, *, quiet: bool) -> None:
    """What became of many videos and of the file that joins their results; typer.Exit(1) if any failed."""
    if not quiet:
        print("\n" + summary.text() + (f"\n\n{path.name}: {merged.text()}" if merged else ""))
    if summary.failed:
        number, where = len(summary.failed), path.with_name("failed.json")
        videos = "1 video" if number == 1 else f"{number:,} videos"
        print(f"s2d: {videos} failed: {where} says why; --resume tries again", file=sys.stderr)
        raise typer.Exit(1)
