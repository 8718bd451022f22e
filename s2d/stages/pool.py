"""One task for thousands of videos: in processes or on Ray, in shards, and never twice for one video."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s2d.data.files import abandoned_for, read_json, write_json
from s2d.data.image_folder import natural_order
from s2d.errors import InputError
from s2d.stages._workers import Failure, Task, run_in_processes
from s2d.stages.workspace import Workspace, check_folder

_SHOWN = 10


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, from 1: every ``count``-th video, so that all parts together are all videos."""

    index: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """``"2/8"``; InputError for anything else than 1 <= I <= N."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = Shard(*map(int, match.groups())) if match else Shard(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise InputError(f"expected a shard as I/N with I from 1 to N, got {text!r}")
        return shard

    def of(self, names: list[str]) -> list[str]:
        return names[self.index - 1 :: self.count]


@dataclass(frozen=True)
class Pool:
    """Where tasks run.

    Attributes:
        workers: videos at a time; None for half the CPUs (on a cluster: as many as it has room for).
        threads: CPU threads for each; None for the CPUs divided among the workers (on a cluster: 1).
        ray: address of a Ray cluster, see `s2d.stages._ray.run_on_ray`; None for processes of this machine.
    """

    workers: int | None = None
    threads: int | None = None
    ray: str | None = None

    def check(self) -> None:
        """InputError where Ray is asked for and cannot be had; takes half a minute at most."""
        if self.ray is not None:
            from s2d.stages._ray import check_ray

            check_ray(self.ray)

    def run(self, task: Task, videos: list[tuple[str, Path]]) -> Iterator[tuple[str, Any]]:
        """Values, or `Failure`, by name in the order in which they come; closing the iterator ends what is running."""
        workers, threads = self._sizes()
        if self.ray is None:
            return run_in_processes(task, videos, workers=workers, threads=threads)
        from s2d.stages._ray import run_on_ray

        return run_on_ray(task, videos, address=self.ray, workers=workers, threads=threads)

    def _sizes(self) -> tuple[int | None, int]:
        if self.ray not in (None, "local"):
            return self.workers, self.threads or 1
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.workers or max(1, cpus // 2)
        return workers, self.threads or max(1, cpus // workers)


@dataclass(frozen=True)
class Summary:
    """What has become of the videos (of a shard, if it was one), earlier runs included.

    Attributes:
        done: names of those with a result.
        empty: those with a result that says that nothing was found; not in ``done``.
        failed: why each of the others has none.
        pending: videos of other shards that are still to come.
    """

    done: list[str]
    empty: list[str]
    failed: dict[str, Failure]
    pending: int

    def text(self) -> str:
        """A table for the terminal, and the first failures."""
        from s2d.viz.table import text_table  # with it comes matplotlib, which no worker needs

        counts = {"done": len(self.done), "empty": len(self.empty), "failed": len(self.failed)}
        rows = [[name, f"{number:,}"] for name, number in counts.items()]
        blocks = [text_table(["videos", "number"], [*rows, ["together", f"{sum(counts.values()):,}"]])]
        if self.failed:
            lines = [f"{name}: {failure.reason}" for name, failure in list(self.failed.items())[:_SHOWN]]
            if len(self.failed) > _SHOWN:
                lines.append(f"... and {len(self.failed) - _SHOWN:,} more in failed.json")
            blocks.append("\n".join(lines))
        if self.pending:
            blocks.append(f"{self.pending:,} videos of other shards are still to come")
        return "\n\n".join(blocks)


def map_videos(
    task: Task,
    videos: Mapping[str, Path],
    out: Path,
    fingerprint: Mapping[str, Any],
    *,
    pool: Pool | None = None,
    shard: Shard | None = None,
    is_empty: Callable[[Path], bool] = lambda path: False,
    products: tuple[str, ...] = (),
    label: str = "videos",
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> Summary:
    """Write ``out/NAME.json`` for every video, each as soon as it is there and whole; go on where another run stopped.

    A result that is there is never made again, also after kill -9; a video that failed is tried again by the next run.
    Bad videos, and workers that die, stop nothing: ``out/failed.json`` lists them with the reason. Only this process
    writes, so that whatever happens to workers leaves nothing half done. Shards may share ``out`` and run at the same
    time.

    Args:
        task: makes the JSON value of a video from its name and place, elsewhere: see `Task`.
        videos: places by name, the same for all shards.
        out: a folder; ``out/work`` holds the fingerprint and the failures of the job.
        fingerprint: what results depend on beside the videos' names; see `Workspace.open`, also for the two flags.
        pool: where the task runs; None for processes.
        shard: which of the videos are this run's; None for all.
        is_empty: whether the result in a file says that nothing was found.
        products: names of files in ``out`` that the caller makes of all results: deleted before results change.
        label: of the progress bar.
        overwrite: begin again; not for a shard, as it would delete what the others have made.
        resume: continue, or begin where there is nothing yet.
        progress: show a bar.

    Raises:
        InputError: no videos, or one whose result would have the name of another file; results that are there without
            a flag, or those of another job; a full disk, whereupon nothing more is begun; what `Pool.run` raises.
    """
    pool, shard, products = pool or Pool(), shard or Shard(), ("failed.json", *products)
    _check_names(videos, products)
    if overwrite and shard.count > 1:
        raise InputError(f"expected --overwrite without --shard, got both: delete {out} before all shards begin")
    pool.check()
    own = shard.of(list(videos))
    check_folder(out)
    results = _Results(out)
    # A job that has done nothing yet for these videos may begin without a flag: another shard has made its folder.
    joins = (results.work / "state.json").exists() and not any(map(results.settled, own))
    names = hashlib.sha256(os.fsencode("\n".join(videos))).hexdigest()[:16]
    job = Workspace.open(
        results.work,
        {"videos": {"number": len(videos), "names": names}, **fingerprint},
        [*map(results.path, own), *(out / name for name in products)],
        overwrite=overwrite,
        resume=resume or (joins and not overwrite),
    )
    results.clean(own)
    todo = [name for name in own if not results.path(name).exists()]
    if todo:
        for name in products:
            (out / name).unlink(missing_ok=True)
        with (
            tqdm(total=len(own), initial=len(own) - len(todo), desc=label, unit="video", disable=not progress) as bar,
            contextlib.closing(pool.run(task, [(name, videos[name]) for name in todo])) as values,
        ):
            results.settle_all(values, bar)
    failures = results.failures()
    if failures:
        write_json(out / "failed.json", [{"video": name, **asdict(failures[name])} for name in failures], indent=1)
    pending = sum(not results.settled(name) for name in videos)
    if not failures and not pending:
        job.complete()
    found: dict[bool, list[str]] = {True: [], False: []}
    for name in own:
        if name not in failures:
            found[not is_empty(results.path(name))].append(name)
    failed = {name: failures[name] for name in own if name in failures}
    return Summary(done=found[True], empty=found[False], failed=failed, pending=pending)


class _Results:
    """The folder of results: a video is done if its file is there, failed if only the record of that is."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.work = out / "work"
        self._failed = self.work / "failed"

    def path(self, name: str) -> Path:
        return self._out / f"{name}.json"

    def settled(self, name: str) -> bool:
        return self.path(name).exists() or self._record(name).exists()

    def settle_all(self, values: Iterator[tuple[str, Any]], bar: tqdm) -> None:
        failed = 0
        for name, value in values:
            try:
                failed += not self._settle(name, value)
            except InputError as error:
                raise InputError(f"{error}; the same command with --resume continues") from None
            bar.set_postfix_str(f"{failed:,} failed" if failed else "", refresh=False)
            bar.update()

    def _settle(self, name: str, value: Any) -> bool:
        """Write the result, or the record that there is none; whether there is one."""
        if not isinstance(value, Failure):
            try:
                write_json(self.path(name), value)
            except InputError:
                raise
            except (TypeError, ValueError) as error:
                value = Failure(f"its result cannot be written as JSON: {error}")
            else:
                self._record(name).unlink(missing_ok=True)
                return True
        write_json(self._record(name), asdict(value))
        return False

    def failures(self) -> dict[str, Failure]:
        """Of all shards, in natural order of names."""
        records = self._failed.glob("*.json") if self._failed.is_dir() else ()
        names = (path.stem for path in records if path.name[0] != "." and not self.path(path.stem).exists())
        return {name: Failure(**read_json(self._record(name))) for name in sorted(names, key=natural_order)}

    def clean(self, names: list[str]) -> None:
        """Delete what runs that were killed left of these videos."""
        own = {f"{name}.json" for name in names}
        for folder in (self._out, self._failed):
            for path in folder.glob(".*.partial.json"):
                if abandoned_for(path) in own:
                    path.unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self._failed / f"{name}.json"


def _check_names(videos: Mapping[str, Path], products: tuple[str, ...]) -> None:
    if not videos:
        raise InputError("expected at least one video, got none")
    for product in products:
        if product.removesuffix(".json") in videos:
            raise InputError(
                f"expected no video named {product.removesuffix('.json')}, got one: {product} is another result"
            )
