"""The training loop: student, teacher, losses, log, checkpoints that resume bit for bit; on any number of processes."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from s2d.data.clips import ClipBatch, ClipTargets
from s2d.data.files import atomic_write
from s2d.errors import InputError
from s2d.models.inference import PRECISIONS, check_precision
from s2d.training.checkpointing import checkpoint_layers
from s2d.training.criterion import Totals, clip_losses, weighted_sum
from s2d.training.log import Log
from s2d.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from s2d.training.parts import Part, make_parts
from s2d.training.processes import Processes
from s2d.training.recipe import Recipe
from s2d.training.teacher import Teacher


class Feed(Protocol):
    """What a trainer learns from: `s2d.data.memory_loader.MemoryLoader`, `s2d.data.clip_loader.ClipLoader`."""

    def batches(self, step: int) -> Iterator[ClipBatch]:
        """This process's clips of every step, from ``step`` on (counted over all rounds), without end."""
        ...


class Trainer:
    """Trains a model by the rounds of a recipe and can be stopped and resumed between any two steps.

    Everything random is drawn from (seed, number of the clip): interrupted and resumed, with an equal number of
    threads, it computes the same weights as in one go, and W processes with B / W clips each compute what one does with
    B, rounding aside. Weights, teacher, optimizer and the place in the schedule lie in ``work/training.pt``.

    A step whose gradient is not finite changes nothing. Between the student's forward pass and the optimizer's step the
    device is waited for once a part, for the assignment.

    Attributes:
        round: rounds finished.
        step: steps finished in the present round.
        skipped: steps left out because the gradient was not finite.
        teacher: the averaged model; what a round leaves behind.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        work: Path | None = None,
        fingerprint: str = "",
        processes: Processes | None = None,
        log: Path | None = None,
        tensorboard: bool = False,
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
    ) -> None:
        """
        Args:
            model: with the interface of `VideoMask2Former`; its initial weights.
            recipe: see `Recipe`.
            work: folder of ``training.pt``; None keeps nothing.
            fingerprint: of what is trained on; a checkpoint with another one is refused.
            processes: which of those that share the steps this one is, and its device; None: alone, on the CPU.
            log: folder of ``training.jsonl``, one line a step; None: ``work``.
            tensorboard: write TensorBoard's events there, too.
            validate: called with the teacher every ``recipe.validate_every`` steps; its numbers are logged.

        Raises:
            InputError: ``work`` holds the run of another recipe or other data; the device does not compute in the
                recipe's precision; the processes cannot share the clips of a step; TensorBoard is missing.
        """
        processes = processes or Processes()
        recipe.clips.share(processes.world)
        check_precision(recipe.execution.precision, processes.device)
        self.recipe, self.work, self.processes = recipe, work, processes
        self.identity = f"{recipe!r} {fingerprint}"
        self.student = model.to(processes.device).train()
        self.teacher = Teacher(self.student, recipe.teacher.momentum)
        if recipe.execution.checkpointing:
            checkpoint_layers(self.student)
        self._network = processes.wrap(self.student)
        self._validate = validate
        self._log = Log((log or work) if processes.rank == 0 else None, tensorboard=tensorboard)
        self.round = self.step = self.skipped = 0
        self._start_optimizer()
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            self._load()
        self._log.resume(self.round, self.step, self._number)

    @property
    def checkpoint(self) -> Path | None:
        return self.work / "training.pt" if self.work else None

    @property
    def _number(self) -> int:
        """Of the present step, among those of all rounds."""
        return sum(done.steps for done in self.recipe.rounds[: self.round]) + self.step

    def _start_optimizer(self) -> None:
        self.optimizer = make_optimizer(self.student, self.recipe.optimizer)
        # In full precision the scale stays 1; what is left is the check for gradients that are not finite.
        half = self.recipe.execution.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.processes.device.type, init_scale=2.0**16 if half else 1.0)

    def train(self, feed: Feed, *, progress: bool = True) -> None:
        """Do what is left of the present round on ``feed``; afterwards the student has the teacher's weights."""
        current = self.recipe.rounds[self.round]
        bar = tqdm(
            total=current.steps,
            initial=self.step,
            desc=f"distill: {current.name}",
            unit="step",
            disable=not progress or self.processes.rank > 0,
        )
        feeding = contextlib.closing(feed.batches(self._number))
        with bar, self._own_random_state(), _deferred_interrupt() as interrupted, feeding as batches:
            while self.step < current.steps:
                stop = self._one_step(next(batches), bar, interrupted)
                self.step += 1
                if self.step % self.recipe.validate_every == 0 or self.step == current.steps:
                    self._tell_validation()
                if stop:
                    self.save()
                    raise KeyboardInterrupt
                if self.step % self.recipe.checkpoint_every == 0 and self.step < current.steps:
                    self.save()
        self.student.load_state_dict(self.teacher.model.state_dict())
        self._start_optimizer()
        self.round, self.step = self.round + 1, 0
        self.save()

    def _one_step(self, batch: ClipBatch, bar: tqdm, interrupted: list) -> bool:
        """One step; whether any process was asked to stop meanwhile."""
        started, recipe, team = time.perf_counter(), self.recipe, self.processes
        first = self._number * recipe.clips.batch + team.rank
        numbers = range(first, first + recipe.clips.batch - team.rank, team.world)
        parts = make_parts(batch, numbers, recipe, team.device)
        seen = [self._teacher_targets(part) for part in parts]
        rate = learning_rate(recipe.optimizer, recipe.rounds[self.round], self.step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(parts, seen)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), recipe.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(None if recipe.execution.precision == "fp16" else 1.0)

        # From here on the device may be waited for.
        told = team.sum(torch.stack([*losses.values(), norm.new_tensor(float(bool(interrupted)))]))
        *values, stop = told.tolist()
        heads = {name: value for name, value in zip(losses, values, strict=True) if not name[-1].isdigit()}
        total = weighted_sum(dict(zip(losses, values, strict=True)), recipe.loss)
        skipped = not math.isfinite(norm)
        if skipped:
            self.skipped += 1
        else:
            self.teacher.update(self.student, self.step)
        said = {"loss": total, **heads, "norm": norm.item(), "rate": rate, "seconds": time.perf_counter() - started}
        rounded = {name: float(f"{value:.6g}") for name, value in said.items()}
        self._log.write(self._number, {"round": self.round, "step": self.step, **rounded, "skipped": skipped})
        bar.update()
        bar.set_postfix(loss=f"{total:.2f}", skipped=self.skipped, refresh=False)
        return stop > 0

    def _teacher_targets(self, part: Part) -> list[ClipTargets] | None:
        """Further targets, from the step on that the round says."""
        begin, settings = self.recipe.rounds[self.round].distill_from, self.recipe.teacher
        if begin is None or self.step < begin:
            return None
        with self._autocast():
            return self.teacher.targets(part.clips, part.size, settings.threshold, settings.most)

    def _backward(self, parts: Sequence[Part], seen: Sequence[list[ClipTargets] | None]) -> dict[str, Tensor]:
        """Add up the gradients of all parts; the losses of this process's clips, as shares of the step's."""
        totals = self._totals([part.targets for part in parts])
        # The round decides whether the teacher is asked: of all parts of all processes, or of none.
        seen_totals = self._totals(seen) if seen[0] is not None else None
        sums: dict[str, Tensor] = {}
        for index, (part, extra) in enumerate(zip(parts, seen, strict=True)):
            alone = self.processes.world == 1 or index == len(parts) - 1
            torch.manual_seed(part.dropout)
            with contextlib.nullcontext() if alone else self._network.no_sync():
                with self._autocast():
                    outputs = self._network(part.clips, part.frame_keep)
                generators = part.generators()
                losses = clip_losses(outputs, part.targets, self.recipe.loss, generators, totals)
                if extra is not None:
                    losses |= clip_losses(outputs, extra, self.recipe.loss, generators, seen_totals, teacher=True)
                # The processes' gradients are averaged, and these losses are shares of a sum.
                self.scaler.scale(weighted_sum(losses, self.recipe.loss) * self.processes.world).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
        return sums

    def _totals(self, targets: Sequence[Sequence[ClipTargets]]) -> Totals:
        """Of all clips of the step, whichever process has them."""
        own = Totals.of([target for part in targets for target in part], self.student.config.num_queries)
        if self.processes.world == 1:
            return own
        numbers = torch.tensor([own.instances, own.matched, own.queries], device=self.processes.device)
        return Totals(*self.processes.sum(numbers).tolist())

    def _autocast(self) -> torch.autocast:
        precision = self.recipe.execution.precision
        return torch.autocast(self.processes.device.type, PRECISIONS[precision], enabled=precision != "fp32")

    def _tell_validation(self) -> None:
        if self._validate and self.processes.rank == 0:
            found = self._validate(self.teacher.model)
            self._log.write(self._number - 1, {"round": self.round, "step": self.step - 1, **found})

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.checkpoint is None:
            return
        if self.processes.rank == 0:
            state = {
                "identity": self.identity,
                "round": self.round,
                "step": self.step,
                "skipped": self.skipped,
                "student": self.student.state_dict(),
                "teacher": self.teacher.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            self._log.flush()
            with atomic_write(self.checkpoint) as path:
                torch.save(state, path)
        self.processes.wait()

    def _load(self) -> None:
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location=self.processes.device, weights_only=True)
        if state["identity"] != self.identity:
            raise InputError(
                f"expected {self.checkpoint} to be a run of the same recipe on the same keymasks, got another one; "
                "remove it to train anew"
            )
        self.round, self.step, self.skipped = state["round"], state["step"], state["skipped"]
        self.student.load_state_dict(state["student"])
        self.teacher.model.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Dropout draws from the default generators: put the caller's states back."""
        device = self.processes.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
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
