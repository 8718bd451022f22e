"""``s2d distill``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import (
    Decoder,
    Output,
    Overwrite,
    Quiet,
    RecipeOption,
    Resume,
    Seed,
    Threads,
    VideoArgument,
    open_video,
)
from s2d.errors import InputError


def distill_command(
    video: VideoArgument,
    keymasks: Annotated[Path, typer.Argument(help="What discover wrote.", show_default=False)],
    output: Output,
    recipe: RecipeOption = "cpu-small",
    decoder: Decoder = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the model on the keymasks of a video."""
    from s2d.data.types import Keymasks
    from s2d.data.ytvis import read_ytvis
    from s2d.models.checkpoint import save_checkpoint
    from s2d.stages.distill import distill
    from s2d.stages.job import file_job
    from s2d.stages.workspace import identify
    from s2d.training.recipe import load_recipe

    opened = open_video(video, decoder=decoder)
    found = [item for item in read_ytvis(keymasks) if isinstance(item, Keymasks)]
    if len(found) != 1:
        raise InputError(f"expected the keymasks of one video in {keymasks}, got those of {len(found)}")
    chosen = dataclasses.replace(load_recipe(recipe), seed=seed)
    fingerprint = {"input": identify(video), "keymasks": identify(keymasks), "recipe": chosen}
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume) as work:
        save_checkpoint(distill(opened, found[0], chosen, work=work, progress=not quiet), output)
