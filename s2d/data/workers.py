"""Threads that end with the program, whatever they are doing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


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
        """Let the threads end after what was submitted; not waited for."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, arguments = job
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)
