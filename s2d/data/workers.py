"""Threads that end with the program, whatever they are doing."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

PATIENCE = 2.0
"""Seconds that the end of an iteration may wait for threads; one that hangs in a decoder is then left alone."""


class Workers:
    """A pool of daemon threads: one that hangs in a decoder does not keep the program from ending.

    (The pool of `concurrent.futures` is waited for at exit.)
    """

    def __init__(self, number: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future, Callable, tuple] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="s2d-worker", daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Call it in one of the threads, in the order of submission."""
        future: Future = Future()
        self._jobs.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Forget what has not begun, and wait a moment for what has.

        A thread that is still in compiled code when the program ends would bring it down.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(PATIENCE / len(self._threads))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, arguments = job
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)
