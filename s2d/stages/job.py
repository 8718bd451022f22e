"""What a single stage needs to be a command: threads, and a place for partial work beside its result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch

from s2d.errors import InputError
from s2d.stages.workspace import Workspace, check_folder, remove


@contextlib.contextmanager
def use_threads(number: int | None) -> Iterator[None]:
    """Compute with so many CPU threads inside the block, in torch and OpenCV; None changes nothing."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    if number is not None:
        torch.set_num_threads(number)
        cv2.setNumThreads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@contextlib.contextmanager
def file_job(
    result: Path,
    fingerprint: Mapping[str, Any],
    *,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[Path]:
    """Make one file; yields a folder beside it for partial work, gone when the block ends well.

    Args:
        result: the file that the block writes.
        fingerprint: what it depends on; see `Workspace.open`, also for the two flags.
        threads: CPU threads of the block; part of the fingerprint.

    Raises:
        InputError: the file is there already, cannot be written there, or the job to continue was another one.
    """
    check_folder(result.parent)
    threads = threads or torch.get_num_threads()
    folder = result.with_name(f"{result.name}.work")
    workspace = Workspace.open(
        folder, {**fingerprint, "threads": threads}, [result], overwrite=overwrite, resume=resume
    )
    try:
        with use_threads(threads), workspace.stage("partial") as partial:
            yield partial
    except InputError:
        # Input that was found bad before any partial work leaves nothing to continue.
        if not any((folder / "partial").iterdir()):
            remove(folder)
        raise
    remove(folder)
