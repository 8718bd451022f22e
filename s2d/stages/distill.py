"""Distill: sparse keymasks in, a model that sees the instances on every frame out."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch

from s2d.data.clips import AnnotatedFrames, annotate, choose_frames, read_frames
from s2d.data.files import atomic_write
from s2d.data.memory_loader import MemoryLoader
from s2d.data.types import Keymasks, Tracks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.models.checkpoint import load_checkpoint, save_checkpoint
from s2d.models.inference import input_size
from s2d.models.video_mask2former import VideoMask2Former
from s2d.ops import BitMasks
from s2d.stages.predict import PredictSettings, predict
from s2d.training.processes import Processes
from s2d.training.recipe import Recipe, load_recipe
from s2d.training.trainer import Trainer


def distill(
    video: Video,
    keymasks: Keymasks | Tracks,
    recipe: Recipe | str | Path = "cpu-small",
    *,
    work: Path | None = None,
    model: VideoMask2Former | None = None,
    processes: Processes | None = None,
    log: Path | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> VideoMask2Former:
    """Train a model on one video's keymasks by the rounds of a recipe.

    A round on ``"keymasks"`` learns from the frames that have one (Temporal DropLoss); a frame without says nothing. A
    round on ``"predictions"`` learns from what the teacher of the round before predicts on every frame, instances whose
    score reaches the round's threshold; where none does, it goes on with the annotations it has. Frames are read once,
    at the size the model is trained for, at most ``clips.max_frames`` of them, those nearest to keymasks.

    Args:
        video: its frames.
        keymasks: instances with masks on some frames; ``mask_scores`` say how often a frame is drawn.
        recipe: name of a recipe that comes with the package, path of a TOML file, or a `Recipe`.
        work: folder for ``model.pt`` and checkpoints. A later call with the same arguments continues from there and
            gives, at an equal number of threads, the same weights.
        model: the weights to start from, see `initial_model`; None: random ones.
        processes: those that train together; None: this one alone, on the CPU.
        log: folder of ``training.jsonl``, one line a step; None: ``work``.
        tensorboard: write TensorBoard's events there, too.
        progress: whether to show a progress bar for each round.

    Returns:
        The averaged model of the last round, in evaluation mode.

    Raises:
        ValueError: there is no keymask at all.
        InputError: the keymasks are of a video of another length, no such recipe, or ``work`` is of another run.
    """
    settings, team = load_recipe(recipe), processes or Processes()
    if not bool((keymasks.annotated.sum(1) > 0).any()):
        raise ValueError("s2d: distill: expected at least one keymask to learn from, got none")
    if keymasks.num_frames != video.num_frames:
        raise InputError(
            f"expected keymasks of the {video.num_frames} frames of {video.name}, got {keymasks.num_frames} frames"
        )
    trainer = Trainer(
        model or initial_model(settings),
        settings,
        work=work,
        fingerprint=_fingerprint(video, keymasks),
        processes=team,
        log=log,
        tensorboard=tensorboard,
    )
    finished = work / "model.pt" if work else None
    if finished and finished.is_file() and trainer.round == len(settings.rounds):
        return load_checkpoint(finished)

    data = _keymask_data(video, keymasks, settings)
    for index, current in enumerate(settings.rounds):
        if current.annotations == "predictions":
            data = _prediction_data(data, trainer, index, progress)
        if trainer.round == index:
            loader = MemoryLoader([data], settings.clips, seed=settings.seed, rank=team.rank, world=team.world)
            trainer.train(loader, progress=progress)
    if finished and team.rank == 0:
        save_checkpoint(trainer.teacher.model, finished)
    return trainer.teacher.model


def initial_model(recipe: Recipe, weights: Path | None = None) -> VideoMask2Former:
    """The model of a recipe with the weights of a checkpoint, of a whole model or of its backbone, where it has them.

    The others are random, drawn by the recipe's seed; ``model.load_report`` of a loaded one tells which these are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if weights is not None:
            return load_checkpoint(weights, recipe.model, strict=False)
        return VideoMask2Former(recipe.model)


def _keymask_data(video: Video, keymasks: Keymasks | Tracks, recipe: Recipe) -> AnnotatedFrames:
    times = choose_frames(keymasks.annotated.any(0), recipe.clips.max_frames)
    frames = read_frames(video.resized(size=input_size(video.source_size, recipe.model)), times)
    return annotate(frames, times, keymasks)


def _prediction_data(data: AnnotatedFrames, trainer: Trainer, index: int, progress: bool) -> AnnotatedFrames:
    """``data`` with the annotations of round ``index``: the teacher's tracks on all frames; kept in ``work``."""
    stored = trainer.work / f"annotations_{index}.pt" if trainer.work else None
    if (trainer.round, trainer.step) > (index, 0):
        # The teacher has moved on since: what it saw then is in the file.
        state = torch.load(stored, weights_only=True)
        masks = BitMasks(state["words"], data.size[1])
        return AnnotatedFrames(data.frames, data.times, masks, state["keep"], state["weights"])
    seen = predict(
        Video.from_frames(data.frames, name="distill"),
        trainer.teacher.model,
        PredictSettings(top_k=trainer.recipe.teacher.most, score_threshold=trainer.recipe.rounds[index].threshold),
        progress=progress,
    )
    if len(seen):
        present = seen.bits().words.flatten(2).any(-1)
        everywhere = dataclasses.replace(seen, annotated=torch.ones_like(seen.annotated))
        found = annotate(data.frames, torch.arange(len(data.times)), everywhere, present.float())
        data = dataclasses.replace(found, times=data.times)
    if stored and trainer.processes.rank == 0:
        with atomic_write(stored) as path:
            torch.save({"words": data.masks.words, "keep": data.keep, "weights": data.weights}, path)
    return data


def _fingerprint(video: Video, keymasks: Tracks) -> str:
    digest = hashlib.sha256(keymasks.rle.counts.numpy().tobytes())
    digest.update(keymasks.annotated.numpy().tobytes())
    return f"{video.name} {video.source_size} {video.num_frames} {digest.hexdigest()}"
