"""What training tells of itself: a line of JSON a step, and TensorBoard's events where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from s2d.data.files import atomic_write
from s2d.errors import InputError


class Log:
    """``training.jsonl`` and, if wanted, ``tensorboard/`` in a folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        """
        Raises:
            InputError: TensorBoard is wanted and not installed.
        """
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "training.jsonl" if folder else None
        self._events, self._folder = None, folder / "tensorboard" if folder and tensorboard else None
        if tensorboard and find_spec("tensorboard") is None:
            raise InputError("expected TensorBoard to be installed (the extra 'tensorboard'), got none")

    def resume(self, round: int, step: int, first: int) -> None:
        """Forget what was written from this step of this round on: it will be done again.

        Args:
            first: number of the step among those of all rounds.
        """
        if self._file and self._file.is_file():
            entries = [line for line in self._file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            done = [e for e in entries if (json.loads(e)["round"], json.loads(e)["step"]) < (round, step)]
            with atomic_write(self._file) as path:
                path.write_text("".join(done))
        if self._folder:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self._folder), purge_step=first)

    def write(self, number: int, entry: Mapping[str, float | bool]) -> None:
        """One entry with its ``round`` and ``step``; ``number`` is the step's among those of all rounds."""
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if self._events:
            for name in entry.keys() - {"round", "step"}:
                self._events.add_scalar(name.replace("loss_", "loss/", 1), entry[name], number)

    def flush(self) -> None:
        """So that what is on disk is never behind a checkpoint."""
        if self._events:
            self._events.flush()
