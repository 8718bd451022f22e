"""The training loop of one video: student, teacher, losses, log, and checkpoints that resume bit for bit."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from s2d.data.clips import AnnotatedFrames, ClipTargets
from s2d.data.files import atomic_write
from s2d.data.memory_loader import draw_clip
from s2d.errors import InputError
from s2d.models.video_mask2former import padded_size
from s2d.training.criterion import clip_losses, weighted_sum
from s2d.training.drop import drop_frames, drop_labels
from s2d.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from s2d.training.recipe import Recipe
from s2d.training.teacher import Teacher


class Trainer:
    """Trains a model by the rounds of a recipe and can be stopped and resumed between any two steps.

    Interrupted and resumed, with an equal number of threads, it computes the same weights as in one go: weights,
    teacher, optimizer, place in the schedule and random states all lie in ``work/training.pt``.

    Attributes:
        round: rounds finished.
        step: steps finished in the present round.
        skipped: steps left out because the loss or its gradient was not finite.
        teacher: the averaged model; what a round leaves behind.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, work: Path | None = None, fingerprint: str = "", device: str = "cpu"
    ) -> None:
        """
        Args:
            model: with the interface of `VideoMask2Former`; its initial weights.
            recipe: see `Recipe`.
            work: folder of ``training.pt`` and ``training.jsonl``; None keeps nothing.
            fingerprint: of what is trained on; a checkpoint with another one is refused.
            device: of the model.

        Raises:
            InputError: ``work`` holds the run of another recipe or other data.
        """
        self.recipe, self.work = recipe, work
        self.identity = f"{recipe!r} {fingerprint}"
        self.student = model.to(device).train()
        self.teacher = Teacher(self.student, recipe.teacher.momentum)
        self.optimizer = make_optimizer(self.student, recipe.optimizer)
        self.sampling = torch.Generator().manual_seed(recipe.seed)
        self.points = torch.Generator(device).manual_seed(recipe.seed)
        self.device = device
        self.round = self.step = self.skipped = 0
        with _seeded(recipe.seed):
            self.dropout = torch.get_rng_state()
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            self._load()

    @property
    def checkpoint(self) -> Path | None:
        return self.work / "training.pt" if self.work else None

    def train(self, data: AnnotatedFrames, *, progress: bool = True) -> None:
        """Do what is left of the present round on ``data``; afterwards the student has the teacher's weights."""
        current = self.recipe.rounds[self.round]
        bar = tqdm(
            total=current.steps, initial=self.step, desc=f"distill: {current.name}", unit="step", disable=not progress
        )
        with bar, _seeded(self.dropout), _deferred_interrupt() as interrupted:
            while self.step < current.steps:
                self._one_step(data, bar)
                self.step += 1
                if interrupted:
                    self.save()
                    raise KeyboardInterrupt
                if self.step % self.recipe.checkpoint_every == 0 and self.step < current.steps:
                    self.save()
            self.dropout = torch.get_rng_state()
        self.student.load_state_dict(self.teacher.model.state_dict())
        self.optimizer = make_optimizer(self.student, self.recipe.optimizer)
        self.round, self.step = self.round + 1, 0
        self.save()

    def _one_step(self, data: AnnotatedFrames, bar: tqdm) -> None:
        recipe, current = self.recipe, self.recipe.rounds[self.round]
        started = time.perf_counter()
        drawn = [draw_clip(data, recipe.clips, self.sampling) for _ in range(recipe.clips.batch)]
        clips = torch.stack([clip for clip, _, _ in drawn]).to(self.device)
        targets = [drop_labels(target, recipe.loss.label_drop, self.sampling) for _, target, _ in drawn]
        size = padded_size(data.size)
        targets = [_padded(target, size, self.device) for target in targets]
        keep = drop_frames(targets, recipe.clips.frames, recipe.loss.frame_drop, self.sampling)
        outputs = self.student(clips, None if keep is None else keep.to(self.device))
        losses = clip_losses(outputs, targets, recipe.loss, self.points)
        if current.distill_from is not None and self.step >= current.distill_from:
            seen = self.teacher.targets(clips, size, recipe.teacher.threshold, recipe.teacher.most)
            losses |= clip_losses(outputs, seen, recipe.loss, self.points, prefix="kd_")
        total = weighted_sum(losses, recipe.loss)

        rate = learning_rate(recipe.optimizer, current, self.step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        finite = bool(total.isfinite())
        if finite:
            total.backward()
            norm = nn.utils.clip_grad_norm_(self.student.parameters(), recipe.optimizer.clip_norm)
            finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
            self.teacher.update(self.student, self.step)
        else:
            self.skipped += 1
        self._log(total, losses, rate, finite, time.perf_counter() - started)
        bar.update()
        bar.set_postfix(loss=f"{total.item():.2f}", skipped=self.skipped, refresh=False)

    def _log(self, total: torch.Tensor, losses: dict, rate: float, finite: bool, seconds: float) -> None:
        if self.work is None:
            return
        heads = {name: round(value.item(), 4) for name, value in losses.items() if not name[-1].isdigit()}
        entry = {"round": self.round, "step": self.step, "loss": round(total.item(), 4), **heads, "rate": rate}
        with (self.work / "training.jsonl").open("a") as log:
            log.write(json.dumps(entry | {"skipped": not finite, "seconds": round(seconds, 4)}) + "\n")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.checkpoint is None:
            return
        state = {
            "identity": self.identity,
            "round": self.round,
            "step": self.step,
            "skipped": self.skipped,
            "student": self.student.state_dict(),
            "teacher": self.teacher.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampling": self.sampling.get_state(),
            "points": self.points.get_state(),
            "dropout": torch.get_rng_state() if self.step else self.dropout,
        }
        with atomic_write(self.checkpoint) as path:
            torch.save(state, path)

    def _load(self) -> None:
        log = self.work / "training.jsonl"
        if not self.checkpoint.is_file():
            log.unlink(missing_ok=True)
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["identity"] != self.identity:
            raise InputError(
                f"expected {self.checkpoint} to be a run of the same recipe on the same keymasks, got another one; "
                "remove it to train anew"
            )
        self.round, self.step, self.skipped = state["round"], state["step"], state["skipped"]
        self.student.load_state_dict(state["student"])
        self.teacher.model.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampling.set_state(state["sampling"].cpu())
        self.points.set_state(state["points"].cpu())
        self.dropout = state["dropout"].cpu()
        if log.is_file():
            entries = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            done = [e for e in entries if (json.loads(e)["round"], json.loads(e)["step"]) < (self.round, self.step)]
            with atomic_write(log) as path:
                path.write_text("".join(done))


def _padded(targets: ClipTargets, size: tuple[int, int], device: str) -> ClipTargets:
    """The targets as the model sees the clip: padded below and to the right, on its device."""
    height, width = targets.masks.shape[-2:]
    masks = F.pad(targets.masks, (0, size[1] - width, 0, size[0] - height))
    return ClipTargets(masks.to(device), targets.keep.to(device))


@contextlib.contextmanager
def _seeded(state: int | torch.Tensor) -> Iterator[None]:
    """Run with this state of the default generator (dropout draws from it), and put the caller's back."""
    with torch.random.fork_rng(devices=[]):
        if isinstance(state, int):
            torch.manual_seed(state)
        else:
            torch.set_rng_state(state)
        yield


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[list]:
    """Collect a Ctrl-C instead of raising it, so that a step is never cut in two; a second one raises at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
