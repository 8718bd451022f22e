"""Two builds of s2d in turn: each in a process of its own, which holds it and runs only when it is asked to.

Operators register under one name, so two builds cannot be loaded by one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gate import Case, Spread
from benchmarks.harness import ROOT, repeats_for, thread_counts
from s2d.errors import InputError

MINIMUM_RUNS, MOST_RUNS = 11, 101


def build(ref: str) -> Path:
    """A folder from which s2d of a commit is imported; built once a commit, into ``.benchmarks/builds``.

    Raises:
        InputError: no such commit, or it does not build.
    """
    found = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not found:
        raise InputError(f"expected a commit or a file of `s2d bench --save` to compare with, got {ref}")
    folder = ROOT / ".benchmarks" / "builds" / found[:12]
    if not folder.is_dir():
        print(f"building {ref} ({found[:12]}), which takes minutes", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            source, target = Path(temporary) / "source", Path(temporary) / "site"
            source.mkdir()
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", found], stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
            command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target"]
            built = subprocess.run(
                [*command, str(target), str(source)],
                env={**os.environ, "S2D_CUDA": "OFF"},
                capture_output=True,
                text=True,
            )
            if built.returncode:
                raise InputError(f"expected a commit that builds, got {ref}: {built.stderr.strip()[-2000:]}")
            target.rename(folder)
    return folder


class Worker:
    """A process with the s2d of one folder; `ask` it to do something."""

    def __init__(self, folder: Path, suite: str, threads: int, quick: bool) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command, paths = [sys.executable], [str(folder), str(ROOT)]
        if folder != ROOT:
            # An editable install would bring this checkout before any other: without site it does not.
            command, paths = [*command, "-S"], [*paths, *filter(None, sys.path)]
        self.process = subprocess.Popen(
            [*command, "-m", "benchmarks.worker", suite, str(threads), str(quick)],
            cwd=folder,
            # Threads that wait actively, OpenMP's and OpenBLAS's, would take the processor from the build that runs.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_WAIT_POLICY": "PASSIVE",
                "OPENBLAS_THREAD_TIMEOUT": "4",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            bufsize=1,
        )
        imported = Path(self._answer())
        assert imported == folder, f"{folder} was to be measured, and {imported} was imported"

    def ask(self, command: str) -> Any:
        print(command, file=self.process.stdin)
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(self.errors.read().strip() or f"ended with exit code {self.process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


def in_turn(before: Worker, now: Worker, left_out: Callable[[str], None], only: set | None, threads: int) -> dict:
    """Time over time before of each case that both have."""
    spreads: dict[Case, Spread] = {}
    while (name := now.ask("next")) is not None:
        assert before.ask("next") == name
        case = (*name, threads)
        if only is not None and case not in only:
            continue
        facts = [worker.ask("ready") for worker in (before, now)]
        if wrong := [fact["error"] for fact in facts if "error" in fact]:
            left_out(f"{name[0]}, {name[1]}: {wrong[0]}")
            continue
        call = max(fact["call"] for fact in facts)
        repeats = repeats_for(call)
        wanted = int(facts[1]["seconds"] / (2 * call * repeats))
        runs = max(MINIMUM_RUNS, facts[1]["minimum_runs"], min(MOST_RUNS, wanted))
        ratios = []
        for turn in range(runs):
            # Who is first alternates, so that neither profits from what the other left.
            order = (before, now) if turn % 2 else (now, before)
            seconds = {worker: worker.ask(f"run {repeats}") for worker in order}
            ratios.append(seconds[now] / seconds[before])
        spreads[case] = Spread.of(ratios)
    return spreads


def measure(
    folders: tuple[Path, Path], quick: bool, left_out: Callable[[str], None], suite: str, only: set | None
) -> dict[Case, Spread]:
    """The cases of a suite in new processes, the second folder's time over the first's."""
    spreads: dict[Case, Spread] = {}
    for threads in thread_counts():
        if only is not None and not any(case[-1] == threads for case in only):
            continue
        workers: list[Worker] = []
        try:
            workers.extend(Worker(folder, suite, threads, quick) for folder in folders)
            spreads |= in_turn(*workers, left_out, only, threads)
        except RuntimeError as error:
            left_out(f"{suite} on {threads} threads: {str(error).splitlines()[-1]}")
        finally:
            for worker in workers:
                worker.close()
    return spreads
