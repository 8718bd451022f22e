"""Distill, from many videos: a dataset with masks on some frames in, a model that sees instances on every frame out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from s2d.data.clip_loader import ClipLoader
from s2d.data.datasets.sample import Sample
from s2d.data.files import write_json
from s2d.data.types import Tracks
from s2d.data.ytvis import read_ytvis
from s2d.models.checkpoint import load_checkpoint, save_checkpoint
from s2d.models.video_mask2former import VideoMask2Former
from s2d.stages.distill import initial_model
from s2d.stages.evaluate import evaluate
from s2d.stages.predict import PredictSettings, predict
from s2d.stages.pseudo_label import label_video
from s2d.stages.workspace import identify
from s2d.training.processes import Processes
from s2d.training.recipe import Recipe, load_recipe
from s2d.training.trainer import Trainer


def distill_dataset(
    dataset: Sequence[Sample],
    recipe: Recipe | str | Path = "paper-sparse",
    *,
    work: Path,
    model: VideoMask2Former | None = None,
    validation: Sequence[Sample] = (),
    processes: Processes | None = None,
    log: Path | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> tuple[VideoMask2Former, str]:
    """Train a model on the masks of a dataset by the rounds of a recipe.

    Clips are read from disk as they are drawn (`ClipLoader`), by the recipe's decoder. A round on ``"predictions"``
    learns from what the teacher of the round before predicts in every video, instances whose score reaches the round's
    threshold, on all frames.

    Args:
        dataset: videos, as `open_dataset` or `with_annotations` gives them.
        recipe: name of a recipe that comes with the package, path of a TOML file, or a `Recipe`.
        work: folder for checkpoints and predictions. A later call with the same arguments continues from there.
        model: the weights to start from, see `initial_model`; None: random ones.
        validation: videos with the true instances: their YouTube-VIS numbers are logged every ``validate_every`` steps.
        processes: those that train together; None: this one alone, on the CPU.
        log: folder of ``training.jsonl``, one line a step; None: ``work``.
        tensorboard: write TensorBoard's events there, too.
        progress: whether to show progress bars.

    Returns:
        The averaged model of the last round, in evaluation mode, and which decoder read how many clips and what was
        skipped, as text.

    Raises:
        InputError: as `Trainer`, `ClipLoader` and `load_checkpoint`; or a video that cannot be read, where the recipe
            refuses that.
    """
    settings, team = load_recipe(recipe), processes or Processes()
    trainer = Trainer(
        model or initial_model(settings),
        settings,
        work=work,
        fingerprint=fingerprint_of(dataset),
        processes=team,
        log=log,
        tensorboard=tensorboard,
        validate=functools.partial(validate, dataset=validation, progress=progress) if validation else None,
    )
    finished = work / "model.pt"
    if finished.is_file() and trainer.round == len(settings.rounds):
        return load_checkpoint(finished), ""
    told = []
    for index, current in enumerate(settings.rounds):
        if current.annotations == "predictions":
            dataset = _predicted(dataset, trainer, index, progress)
        if trainer.round == index:
            loader = ClipLoader(
                dataset,
                settings.clips,
                size=_clip_size(settings.model.input_short_side),
                device=team.device,
                seed=settings.seed,
                rank=team.rank,
                world=team.world,
            )
            trainer.train(loader, progress=progress)
            told.append(loader.summary())
    if team.rank == 0:
        save_checkpoint(trainer.teacher.model, finished)
    return trainer.teacher.model, "\n".join(told)


def validate(model: VideoMask2Former, dataset: Sequence[Sample], *, progress: bool = True) -> dict[str, float]:
    """The YouTube-VIS numbers of a model, class-agnostic, as ``val_ap`` and so on."""
    settings = PredictSettings(score_threshold=0.0)
    found = [
        predict(sample.video(), model, settings, progress=False)
        for sample in tqdm(dataset, desc="validate", unit="video", leave=False, disable=not progress)
    ]
    named = [dataclasses.replace(tracks, video=sample.name) for tracks, sample in zip(found, dataset, strict=True)]
    overall = evaluate(named, [sample.tracks() for sample in dataset], "ytvis").overall
    return {f"val_{name}": value for name, value in overall.items() if value == value}


def _predicted(dataset: Sequence[Sample], trainer: Trainer, index: int, progress: bool) -> list[Sample]:
    """The videos with what the teacher sees in each of them on all frames; kept in ``work/annotations_INDEX``."""
    folder = trainer.work / f"annotations_{index}"
    files = [folder / f"{number:06d}.json" for number in range(len(dataset))]
    # Once the round has begun the teacher moves on: what it saw before is in the files.
    if trainer.processes.rank == 0 and (trainer.round, trainer.step) == (index, 0):
        folder.mkdir(exist_ok=True)
        settings = PredictSettings(
            top_k=trainer.recipe.teacher.most, score_threshold=trainer.recipe.rounds[index].threshold
        )
        bar = tqdm(list(zip(dataset, files, strict=True)), desc="predict", unit="video", disable=not progress)
        for sample, file in bar:
            if not file.is_file():
                write_json(file, label_video(sample, trainer.teacher.model, settings))
    trainer.processes.wait()
    return [
        dataclasses.replace(sample, annotations=(file,), _tracks=functools.partial(_everywhere, file))
        for sample, file in zip(dataset, files, strict=True)
    ]


def _everywhere(file: Path) -> Tracks:
    """The tracks of one video; a frame that does not show an instance says so."""
    tracks = read_ytvis(file)[0]
    return dataclasses.replace(tracks, annotated=torch.ones_like(tracks.annotated))


def _clip_size(short_side: int) -> tuple[int, int]:
    """16:9, in whole strides of the backbone along the long side."""
    return short_side, max(1, round(short_side * 16 / 9 / 32)) * 32


def fingerprint_of(dataset: Sequence[Sample]) -> str:
    """Changes with the names of the videos and the files of their masks."""
    files = sorted({path for sample in dataset for path in sample.annotations})
    about = "\n".join([*(sample.name for sample in dataset), *(str(identify(file)) for file in files)])
    return hashlib.sha256(about.encode()).hexdigest()
