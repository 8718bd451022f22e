"""Tasks in processes, one at a time in each. A process that dies takes nothing but its own task with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s2d.errors import InputError
from s2d.stages.job import use_threads

Task = Callable[[str, Path], Any]
"""Makes a JSON value of a video, given its name and its place. It is pickled: a function of a module, or an object."""

_PATIENCE = 10.0
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Failure:
    """What came in place of a value.

    Attributes:
        reason: one sentence.
        traceback: where, unless it was bad input.
    """

    reason: str
    traceback: str | None = None


def attempt(task: Task, name: str, source: Path) -> Any:
    """The task's value, or the `Failure` that its exception is."""
    try:
        return task(name, source)
    except InputError as error:
        return Failure(str(error))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return Failure(f"{type(error).__name__}: {first}", traceback.format_exc())


def run_in_processes(
    task: Task, videos: Iterable[tuple[str, Path]], *, workers: int, threads: int
) -> Iterator[tuple[str, Any]]:
    """Values, or `Failure`, by name in the order in which they come. Closing the iterator ends all processes.

    Args:
        task: see `Task`.
        videos: names and places.
        workers: processes, at most; spawned, so that a task may use CUDA.
        threads: CPU threads of each.

    Raises:
        InputError: a process that cannot even begin.
    """
    waiting = deque(videos)
    team: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.video for worker in team.values()):
            busy = sum(worker.video is not None for worker in team.values())
            while len(team) < min(workers, len(waiting) + busy):
                worker = _Worker(task, threads)
                team[worker.pipe] = worker
            for pipe in wait(list(team)):
                worker = team[pipe]
                name = worker.video
                try:
                    value = pipe.recv()
                except (EOFError, OSError):
                    del team[pipe]
                    yield name, worker.death()
                    continue
                if waiting:
                    worker.give(waiting.popleft())
                else:
                    team.pop(pipe).dismiss()
                if name is not None:
                    yield name, value
    finally:
        for worker in team.values():
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process as its parent sees it. Its first message says that it is ready, each further one is a value.

    Attributes:
        video: name of the one it works on; None before it is ready.
    """

    def __init__(self, task: Task, threads: int) -> None:
        self.video: str | None = None
        self.pipe, other = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(other, task, threads), daemon=True)
        # The child inherits the mask: a Ctrl-C in the terminal is the parent's alone, from the first moment on. The
        # resource tracker, which starts with the first child unless it runs already, would lift it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # With the last copy of its end gone, the pipe says so when the process dies.
        other.close()

    def give(self, video: tuple[str, Path]) -> None:
        self.video = video[0]
        with contextlib.suppress(OSError):  # it has just died: the pipe says so next
            self.pipe.send(video)

    def dismiss(self) -> None:
        self.pipe.close()
        self.process.join(_PATIENCE)
        self.process.kill()

    def death(self) -> Failure:
        self.process.join()
        code = self.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self.video is None:
            raise InputError(f"expected worker processes that can begin, got one that {how} before its first video")
        memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return Failure(f"the process that worked on it {how}{memory}")


def _work(pipe: Connection, task: Task, threads: int) -> None:
    """The life of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Its own lock is a semaphore of the system, which a process that is killed leaves behind, with a warning.
    tqdm.set_lock(threading.RLock())
    with use_threads(threads), contextlib.suppress(EOFError, OSError):
        pipe.send("ready")
        while True:
            pipe.send(attempt(task, *pipe.recv()))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its children; they would go on with what is begun anew elsewhere."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
