"""Motion that was computed once, kept on disk by what it was computed from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from s2d import __version__
from s2d.data.files import atomic_write
from s2d.errors import InputError
from s2d.motion.dis import VideoFlow
from s2d.motion.prior import MotionPrior
from s2d.ops import PointTracks

if TYPE_CHECKING:
    from s2d.data.video import Video

LIMIT = 20 * 10**9
"""Bytes of all entries of a folder, unless told otherwise."""

_SUFFIX = ".safetensors"
_ABANDONED = 24 * 3600
_KINDS = {("backward", "forward"): VideoFlow, ("tracks", "visible"): PointTracks}


def with_cache(prior: MotionPrior, folder: str | Path | None = None) -> MotionPrior:
    """The prior behind a `CachedPrior` in ``folder``, else in ``$S2D_CACHE``, else the prior as it is.

    Priors that are not pure stay as they are, too: what they give is in files already.
    """
    folder = folder or os.environ.get("S2D_CACHE")
    return CachedPrior(prior, folder) if folder and prior.pure else prior


class CachedPrior:
    """A prior whose results are kept, one file a scene, and read instead of computed when the same scene comes again.

    An entry is found by the sha256 of the frames, of the prior's fingerprint and of this program's version, so it is
    never stale. Flow is kept in half precision (1/32 px at flows below 64 px, twice as coarse with each doubling) and
    handed on so also when it has just been computed: a second run equals the first. Tracks stay float32, as half
    precision would move points by half a pixel.

    An interrupted job finds the scenes it had finished. Any number of processes may share a folder: entries appear
    whole, and an entry that is taken away in between is computed again. So is a damaged one, with a warning; and a full
    disk costs a warning, not the job. The folder is made when the first entry is written.

    Args:
        prior: where entries come from; a pure one.
        folder: of the entries, and of nothing else.
        limit: bytes of all entries; the ones that were not used for longest are deleted beyond it.

    Raises:
        InputError: a folder that is a file, or cannot be made or written to.
        ValueError: a prior whose results do not follow from the frames, or a negative limit.
    """

    pure = True

    def __init__(self, prior: MotionPrior, folder: str | Path, *, limit: int = LIMIT) -> None:
        if not prior.pure:
            raise ValueError(f"expected a prior whose results follow from the frames, got {prior.name}")
        if limit < 0:
            raise ValueError(f"expected a limit of at least 0 bytes, got {limit}")
        self._prior, self._folder, self._limit = prior, Path(folder), limit
        _check_folder(self._folder)

    @property
    def name(self) -> str:
        return self._prior.name

    def fingerprint(self) -> dict[str, Any]:
        return self._prior.fingerprint() | {"precision": "half"}

    def scene(self, frames: Tensor, start: int, video: Video) -> VideoFlow | PointTracks:
        path = self._folder / f"{self._key(frames)}{_SUFFIX}"
        motion = _read(path, frames)
        if motion is None:
            motion = _as_kept(self._prior.scene(frames, start, video))
            self._write(path, motion)
        return motion

    def _key(self, frames: Tensor) -> str:
        facts = [__version__, self.fingerprint(), list(frames.shape)]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(frames.contiguous().numpy())
        return digest.hexdigest()

    def _write(self, path: Path, motion: VideoFlow | PointTracks) -> None:
        tensors = _tensors(motion)
        try:
            with atomic_write(path) as temporary:
                save_file(tensors | {"crc32": _checksum(tensors)}, temporary)
            self._evict()
        except (OSError, SafetensorError, InputError) as error:
            _warn(f"motion could not be kept in {self._folder}: {error}")

    def _evict(self) -> None:
        """Delete what was used longest ago until the limit holds; other processes may be at it, too."""
        entries = []
        for file in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                if file.name.startswith("."):
                    # What a process that was killed has left; the others are being written.
                    if time.time() - status.st_mtime > _ABANDONED:
                        file.unlink()
                else:
                    entries.append((status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total <= self._limit:
                break
            file.unlink(missing_ok=True)
            total -= size


def _read(path: Path, frames: Tensor) -> VideoFlow | PointTracks | None:
    """An entry, marked as used just now; None where there is none that is whole."""
    try:
        # Not by safetensors' own reader of files: it opens them twice, and another process may be at work in between.
        tensors = load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        _warn(f"the cached motion {path} is damaged and computed again: {error}")
        return None
    checksum = tensors.pop("crc32", None)
    kind = _KINDS.get(tuple(sorted(tensors)))
    if kind is None or checksum != _checksum(tensors) or not _fits(kind(**tensors), frames):
        _warn(f"the cached motion {path} is damaged and computed again: its contents are not what was written")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return kind(**tensors)


def _as_kept(motion: VideoFlow | PointTracks) -> VideoFlow | PointTracks:
    if isinstance(motion, PointTracks):
        return PointTracks(motion.tracks.float().contiguous(), motion.visible.contiguous())
    return VideoFlow(motion.forward.half().contiguous(), motion.backward.half().contiguous())


def _tensors(motion: VideoFlow | PointTracks) -> dict[str, Tensor]:
    return dict(motion._asdict() if isinstance(motion, PointTracks) else vars(motion))


def _fits(motion: VideoFlow | PointTracks, frames: Tensor) -> bool:
    length, size = len(frames), frames.shape[-2:]
    if isinstance(motion, PointTracks):
        points = motion.visible.shape[:1]
        return motion.tracks.shape == (*points, length, 2) and motion.visible.shape == (*points, length)
    shape = (max(0, length - 1), *size, 2)
    return motion.forward.shape == motion.backward.shape == shape and motion.forward.dtype == torch.float16


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy(), total)
    return torch.tensor([total])


def _check_folder(folder: Path) -> None:
    """Nothing is made yet, but that it can be is known before any work."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"expected a folder for the cache at {folder}, got a file: {place}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"expected a folder for the cache that can be written to, got {folder}")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=4)
