"""Batches of training clips from a dataset: one iterator whoever decodes, the same order on any number of processes."""

from __future__ import annotations

import queue
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from s2d.data import dali
from s2d.data.clip_maker import Clip, ClipMaker
from s2d.data.clip_plan import ClipFormat
from s2d.data.clips import ClipBatch, ClipSettings
from s2d.data.datasets.sample import Sample
from s2d.data.workers import PATIENCE, Workers
from s2d.errors import InputError


class ClipLoader:
    """Iterating yields the batches of an epoch, or what is left of it after `load_state_dict`; again, of the next.
    `batches` goes on from epoch to epoch.

    Everything is drawn from (seed, epoch, place in the epoch), so that the clips are the same whatever decodes them and
    however many processes share a batch. An epoch that does not fill its last batch goes on with its first videos.

    Attributes:
        epoch: the present one, from 0.
        step: batches of it that were handed out.
        decoded: how many clips each decoder made.
        reasons: why PyAV took clips that DALI was asked for, and how many.
        skipped: what could not be read, and how often it was drawn.
        partial: videos of which a part could be read, why, and how many clips were drawn from that part.
    """

    def __init__(
        self,
        dataset: Sequence[Sample],
        settings: ClipSettings,
        *,
        size: tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        clips_per_video: int = 1,
        prefetch: int = 2,
    ) -> None:
        """
        Args:
            dataset: videos, as `s2d.data.datasets.open_dataset` gives them.
            settings: see `ClipSettings`.
            size: (H, W) of the clips where the settings name none, pixels.
            device: of the tensors; on ``cuda`` DALI decodes there.
            seed: of everything drawn.
            rank: number of this process among ``world``.
            world: processes that share each batch.
            mean: subtracted from red, green and blue, which lie in 0..255.
            std: what they are then divided by.
            clips_per_video: clips of every video in an epoch.
            prefetch: batches made ahead.

        Raises:
            InputError: no video; a batch that cannot be shared equally; no size; or the decoder is ``"dali"``, which is
                not installed.
        """
        if len(dataset) == 0:
            raise InputError("expected a dataset with at least one video, got none")
        if not 0 <= rank < world:
            raise ValueError(f"s2d::ClipLoader: expected 0 <= rank < world, got rank {rank} of {world}")
        if settings.decoder == "dali" and (absent := dali.missing()) is not None:
            raise InputError(f"expected a decoder that is there, got 'dali': {absent}")
        if (size := settings.size or size) is None:
            raise InputError("expected a size of the clips of a dataset, got none")
        settings.share(world)
        clips = len(dataset) * clips_per_video
        form = ClipFormat(size, mean, std)
        self._maker = ClipMaker(dataset, settings, form, torch.device(device), seed=seed, clips=clips)
        self._settings, self._rank, self._world = settings, rank, world
        self._prefetch = max(1, prefetch)
        self._identity = {"seed": seed, "clips": clips, "clips_per_step": settings.batch}
        self.epoch = self.step = 0
        self.decoded: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.partial: Counter[str] = Counter()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-self._identity["clips"] // self._identity["clips_per_step"])

    def summary(self) -> str:
        """Who decoded how many clips and why, and what was skipped: a line each."""
        lines = [f"clips decoded by {name}: {count:,}" for name, count in sorted(self.decoded.items())]
        lines += [f"by PyAV: {count:,}: {reason}" for reason, count in self.reasons.most_common()]
        lines += [f"skipped: {count:,}: {message}" for message, count in self.skipped.most_common()]
        return "\n".join(lines + [f"of a part: {count:,}: {note}" for note, count in self.partial.most_common()])

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands: all that is needed to go on after the last batch that was handed out."""
        return {**self._identity, "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, on as many processes as one likes if they share an equal number of clips a step.

        Raises:
            InputError: the state is of another seed, dataset or number of clips a step.
        """
        found = {name: state.get(name) for name in self._identity}
        if found != self._identity:
            raise InputError(f"expected the state of a loader with {self._identity}, got {found}")
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[ClipBatch]:
        first = self.epoch * len(self) + self.step
        return self._follow(range(first, (first // len(self) + 1) * len(self)))

    def batches(self, step: int = 0) -> Iterator[ClipBatch]:
        """The batches of a run from ``step`` on, counted over all epochs, without end."""
        return self._follow(range(step, sys.maxsize))

    def _follow(self, steps: range) -> Iterator[ClipBatch]:
        made: queue.Queue = queue.Queue(maxsize=1)
        stop = threading.Event()
        producer = threading.Thread(target=self._produce, args=(steps, made, stop), name="s2d-clips", daemon=True)
        producer.start()
        try:
            for step in steps:
                clips = self._take(made)
                self.epoch, number = divmod(step, len(self))
                self.step = number + 1
                yield self._deliver(clips)
        finally:
            stop.set()
            producer.join(2 * PATIENCE)

    def _take(self, made: queue.Queue) -> list[Clip]:
        """The next batch from the producer; whatever happened there is raised here."""
        try:
            found = made.get(timeout=self._settings.timeout)
        except queue.Empty:
            busy = ", ".join(sorted(set(dict(self._maker.busy).values()))) or "nothing"
            raise InputError(
                f"expected a batch within {self._settings.timeout:g} seconds, got none: still at work on {busy}"
            ) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def _deliver(self, clips: list[Clip]) -> ClipBatch:
        for clip in clips:
            self.skipped.update(clip.skipped)
            for part in clip.parts():
                self.decoded[part.decoder] += 1
                self.partial.update(f"{part.sample.name}: {loss}" for loss in part.video.losses)
                if part.reason is not None:
                    self.reasons[part.reason] += 1
        frames, targets = zip(*(clip.finished() for clip in clips), strict=True)
        return ClipBatch(
            torch.stack(frames),
            list(targets),
            [clip.sample.name for clip in clips],
            torch.from_numpy(np.stack([clip.plan.times for clip in clips])),
        )

    def _produce(self, steps: range, made: queue.Queue, stop: threading.Event) -> None:
        """Make the batches in order, ``prefetch`` of them ahead, until told to stop."""
        workers = Workers(self._settings.workers)
        try:
            coming: deque[list[Future[Clip]]] = deque()
            ahead = iter(steps)
            while not stop.is_set():
                while len(coming) < self._prefetch and (step := next(ahead, None)) is not None:
                    coming.append([workers.submit(self._maker.prepare, *place) for place in self._places(step)])
                if not coming:
                    return
                _put(made, self._maker.finish([future.result() for future in coming.popleft()]), stop)
        except BaseException as error:  # raised where the batch is waited for
            _put(made, error, stop)
        finally:
            workers.close()

    def _places(self, step: int) -> list[tuple[int, int]]:
        """(epoch, place in it) of this process's clips in a batch."""
        epoch, number = divmod(step, len(self))
        first = number * self._settings.batch
        return [(epoch, place) for place in range(first + self._rank, first + self._settings.batch, self._world)]


def _put(made: queue.Queue, item: object, stop: threading.Event) -> None:
    """Hand over, unless nobody waits any more."""
    while not stop.is_set():
        try:
            made.put(item, timeout=0.1)
            return
        except queue.Full:
            continue
