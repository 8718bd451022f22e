"""``s2d distill``: from one video, or from a dataset; alone, or in the processes that torchrun starts."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from s2d.cli._options import (
    DatasetFormat,
    DatasetSplit,
    Device,
    Output,
    Overwrite,
    Quiet,
    RecipeOption,
    Resume,
    Seed,
    Threads,
    open_video,
)
from s2d.errors import InputError


def distill_command(
    video: Annotated[
        Path,
        typer.Argument(help="A video file, a folder of images, or a dataset (see s2d dataset).", show_default=False),
    ],
    output: Output,
    keymasks: Annotated[
        Path | None,
        typer.Argument(help="What discover wrote (YTVIS json).", show_default="the masks of the dataset"),
    ] = None,
    recipe: RecipeOption = "cpu-small",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value than the recipe's, such as loss.num_points=1000; may be repeated.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A checkpoint to start from, of a model or its backbone.", show_default="random weights"),
    ] = None,
    validate: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="Its AP and AR are logged now and then.", show_default=False)
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write its events beside the log.")] = False,
    device: Device = "cpu",
    format: DatasetFormat = None,
    split: DatasetSplit = None,
    decoder: Annotated[str | None, typer.Option(help="auto, pyav or dali.", show_default="the recipe's")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the model on masks that are there on some frames.

    Of a dataset, clips are read as they are drawn, from as many videos as there are. torchrun --nproc-per-node N -m s2d
    distill ... shares every step between N processes, each with a GPU of its own if --device is cuda; the recipe's
    clips.batch is that of all of them. OUT.log has a line of every step, and stays.
    """
    from s2d.models.checkpoint import save_checkpoint
    from s2d.stages.distill import initial_model
    from s2d.stages.job import file_job, use_threads
    from s2d.stages.workspace import identify
    from s2d.training.processes import join_processes
    from s2d.training.recipe import load_recipe

    settings = dataclasses.replace(load_recipe(recipe, change or ()), seed=seed)
    if decoder is not None:
        settings = dataclasses.replace(settings, clips=dataclasses.replace(settings.clips, decoder=decoder))
    model = None
    if weights is not None:
        model = initial_model(settings, weights)
        if model.load_report and not quiet:
            print(f"s2d: {weights}: {model.load_report}", file=sys.stderr)
    if format or is_dataset(video):
        train, source = _of_dataset(video, format, split, keymasks, validate)
    else:
        train, source = _of_video(video, keymasks, decoder)
    fingerprint = {"input": source, "recipe": settings, "weights": None if weights is None else identify(weights)}
    job = file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume)
    with join_processes(device) as processes, use_threads(threads), processes.on_first(job) as work:
        trained = train(
            settings,
            work=work,
            log=output.with_name(f"{output.name}.log"),
            model=model,
            processes=processes,
            tensorboard=tensorboard,
            progress=not quiet and processes.rank == 0,
        )
        if processes.rank == 0:
            save_checkpoint(trained, output)


def is_dataset(path: Path) -> bool:
    """Whether there are many videos at ``path``, not one."""
    from s2d.data.datasets import FORMATS

    return path.exists() and any(known.fits(path) for known in FORMATS.values())


def _of_video(video: Path, keymasks: Path | None, decoder: str | None) -> tuple[Callable[..., Any], dict]:
    """What trains on one video, given the recipe and options, and what it depends on."""
    from s2d.data.types import Keymasks
    from s2d.data.ytvis import read_ytvis
    from s2d.stages.distill import distill
    from s2d.stages.workspace import identify

    opened = open_video(video, decoder=decoder or "auto")
    if keymasks is None:
        raise InputError(f"expected keymasks of the video {video}, got none")
    found = [item for item in read_ytvis(keymasks) if isinstance(item, Keymasks)]
    if len(found) != 1:
        raise InputError(f"expected the keymasks of one video in {keymasks}, got those of {len(found)}")
    return functools.partial(distill, opened, found[0]), {"video": identify(video), "keymasks": identify(keymasks)}


def _of_dataset(
    path: Path, format: str | None, split: str | None, keymasks: Path | None, validate: Path | None
) -> tuple[Callable[..., Any], str]:
    """What trains on a dataset, given the recipe and options, and what it depends on."""
    from s2d.data.datasets import open_dataset
    from s2d.data.datasets.annotations import with_annotations
    from s2d.stages.distill_dataset import distill_dataset, fingerprint_of

    videos = open_dataset(path, format, split)
    dataset = (
        [sample for sample in videos if sample.annotated] if keymasks is None else with_annotations(videos, keymasks)
    )
    if not dataset:
        raise InputError(f"expected a dataset with masks, or keymasks beside it, got neither in {path}")
    truth = [] if validate is None else [sample for sample in open_dataset(validate) if sample.annotated]

    def train(settings: Any, **options: Any) -> Any:
        model, told = distill_dataset(dataset, settings, validation=truth, **options)
        if told and options["progress"]:
            print(told, file=sys.stderr)
        return model

    return train, fingerprint_of(dataset)
