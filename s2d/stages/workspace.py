"""Where an interrupted job finds what it had finished, and the rule of when it may continue."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from s2d.data.files import read_json, write_json
from s2d.errors import InputError
from s2d.stages.measure import Meter

_SAMPLE = 1 << 20


class Workspace:
    """A folder with the state of one job: its fingerprint, its finished stages and the partial work of the others.

    Use `Workspace.open`, which decides between beginning, continuing and refusing.

    Attributes:
        folder: holds ``state.json`` and a folder of partial work for each stage under way.
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self._state = state

    @staticmethod
    def open(
        folder: Path,
        fingerprint: Mapping[str, Any],
        products: Iterable[Path],
        *,
        overwrite: bool = False,
        resume: bool = False,
    ) -> Workspace:
        """Begin a job, or continue one that was interrupted.

        Args:
            folder: of the state; its parent exists.
            fingerprint: what the result depends on, nested mappings of JSON values.
            products: what the job writes; with ``overwrite`` these and ``folder`` are deleted first.
            overwrite: begin again whatever is there.
            resume: continue the job whose state is in ``folder``; where there is nothing yet, begin.

        Raises:
            InputError: results or an unfinished job are there and neither flag was given, or both were; the fingerprint
                is not that of the job to continue.
        """
        if overwrite and resume:
            raise InputError("expected --overwrite or --resume, got both")
        products = list(products)
        state_file = folder / "state.json"
        present = [path for path in products if path.exists()]
        flat = flatten(fingerprint)
        if overwrite:
            for path in [*present, folder]:
                remove(path)
        elif state_file.exists():
            state = read_json(state_file)
            if not resume:
                what = "results" if state.get("complete") else "an unfinished job"
                raise InputError(
                    f"expected a place without results, got {what} in {folder.parent}: "
                    "continue with --resume or begin again with --overwrite"
                )
            _check_same(state.get("fingerprint", {}), flat, folder.parent)
            return Workspace(folder, state)
        elif present:
            hint = "there is no unfinished job to continue; " if resume else ""
            raise InputError(f"expected a place without results, got {present[0]}: {hint}begin again with --overwrite")
        folder.mkdir(exist_ok=True)
        workspace = Workspace(folder, {"fingerprint": flat, "stages": {}, "complete": False})
        workspace._save()
        return workspace

    def finished(self, stage: str) -> bool:
        return bool(self._state["stages"].get(stage, {}).get("finished"))

    @property
    def measures(self) -> dict[str, dict[str, float]]:
        """Seconds (of all attempts together) and peak memory of every stage so far, in order; see `Meter.read`."""
        return {
            name: {key: value for key, value in entry.items() if key != "finished"}
            for name, entry in self._state["stages"].items()
        }

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """Measure a stage and mark it finished when the block ends well; yields the folder for its partial work.

        The stage's results must be in place when the block ends: the partial work is deleted then. An interrupted
        stage keeps it.
        """
        partial = self.folder / name
        partial.mkdir(exist_ok=True)
        meter = Meter()
        try:
            yield partial
        except BaseException:
            self._record(name, meter, finished=False)
            raise
        self._record(name, meter, finished=True)
        shutil.rmtree(partial, ignore_errors=True)

    def complete(self) -> None:
        """Mark the whole job finished."""
        self._state["complete"] = True
        self._save()

    def _record(self, name: str, meter: Meter, *, finished: bool) -> None:
        now = meter.read()
        before = self._state["stages"].get(name, dict.fromkeys(now, 0.0))
        added = {key: round(before[key] + now[key], 3) for key in ("seconds", "cpu_seconds")}
        peak = max(before["peak_mb"], now["peak_mb"])
        self._state["stages"][name] = {**added, "peak_mb": peak, "finished": finished}
        self._save()

    def _save(self) -> None:
        write_json(self.folder / "state.json", self._state, indent=1)


def check_folder(path: Path) -> None:
    """Make the folder ``path`` where it is missing and try that it can be written to.

    Raises:
        InputError: its parent is missing, it is a file, or it cannot be made or written to.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"expected a folder for the results, got a file: {path}")
    if not path.parent.is_dir():
        raise InputError(f"expected a folder in which to make {path}, got nothing: {path.parent} does not exist")
    try:
        path.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"expected a folder that can be written to, got {path}: {error.strerror}") from None


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings (mappings, dataclasses, JSON values, paths) as one level: ``{"propose.scales": [1, 2], ...}``."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        flat: dict[str, Any] = {}
        for key, value in settings.items():
            flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    # What JSON would give back, so that a state read from its file compares equal.
    return {prefix: json.loads(json.dumps(settings, default=str))}


def identify(path: Path) -> dict[str, Any]:
    """Enough of a file's or folder's contents to notice that it is another one.

    A file: size and a hash of its first and last megabyte. A folder: names and sizes of its files, and the first and
    last of them.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files)
        digest = hashlib.sha256(listing.encode())
        for file in files[:1] + files[-1:]:
            digest.update(file.read_bytes()[:_SAMPLE])
        return {"files": len(files), "sha256": digest.hexdigest()}
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return {"bytes": size, "sha256": digest.hexdigest()}


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    differing = [
        f"{key} {now.get(key)!r} instead of {before.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"expected the input and settings of the job in {where}, got {', '.join(differing[:3])}{more}: "
            "continue with the same ones or begin again with --overwrite"
        )
