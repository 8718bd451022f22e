"""``s2d run``: all stages, and the tables it closes with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from s2d.cli._options import (
    Decoder,
    MotionOption,
    Output,
    Overwrite,
    Quiet,
    RecipeOption,
    Resume,
    Seed,
    Threads,
    WorkingSide,
)
from s2d.errors import InputError


def run_command(
    output: Output,
    video: Annotated[
        Path | None, typer.Argument(help="A video file, or a folder of images; none with --demo.", show_default=False)
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Generate a clip with known instances instead.")] = False,
    proposals: Annotated[
        Path | None, typer.Option(help="Masks of single frames to start from: label maps (PNG), COCO or YTVIS json.")
    ] = None,
    motion: MotionOption = "dis",
    recipe: RecipeOption = "cpu-small",
    decoder: Decoder = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    working_short_side: WorkingSide = 360,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """All stages: a video in, instance tracks out."""
    from s2d.stages.run import RunSettings, run

    if demo == (video is not None):
        raise InputError("expected a video or --demo, got " + ("both" if demo else "neither"))
    settings = RunSettings(
        proposals=None if proposals is None else str(proposals),
        motion=motion,
        recipe=recipe,
        decoder=decoder,
        seed=seed,
        threads=threads,
        working_short_side=working_short_side,
    )
    result = run(video, output, settings, overwrite=overwrite, resume=resume, progress=not quiet)
    if not quiet:
        print(_summary(result))
    elif result.notes:
        print("\n".join(result.notes))


def _summary(result: Any) -> str:
    """The closing tables of a run."""
    from s2d.ops import rle_area
    from s2d.viz.table import text_table

    tracks = result.tracks
    areas = rle_area(tracks.rle).view(tracks.annotated.shape)
    rows = []
    for n in range(len(tracks)):
        seen = int(tracks.annotated[n].sum())
        mean = float(areas[n].sum()) / max(seen, 1)
        rows.append([str(n + 1), f"{tracks.scores[n]:.2f}", f"{seen}/{tracks.num_frames}", f"{mean:,.0f}"])
    stages = [[name, f"{m['seconds']:.1f}", f"{m['peak_mb']:,.0f}"] for name, m in result.measures.items()]
    stages.append(["together", f"{sum(m['seconds'] for m in result.measures.values()):.1f}", ""])
    blocks = [text_table(["instance", "score", "frames", "mean area (px)"], rows)] if rows else []
    blocks.append(text_table(["stage", "seconds", "peak MB"], stages))
    blocks += [f"note: {note}" for note in result.notes]
    if result.mean_tube_iou is not None:
        blocks.append(f"mean tube IoU with the ground truth: {result.mean_tube_iou:.3f}")
    blocks.append(f"results are in {result.out}{'/' if not str(result.out).endswith('/') else ''}")
    return "\n" + "\n\n".join(blocks)
