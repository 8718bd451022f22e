"""Optical flow and point tracks that others have made, read from files.

A folder of flow holds one file for each pair of neighbouring frames and each direction::

    FOLDER/forward/000000.flo     from frame 0 to frame 1, on the grid of frame 0
    FOLDER/forward/000001.flo     from frame 1 to frame 2
    FOLDER/backward/000000.flo    from frame 1 to frame 0, on the grid of frame 1
    ...

The files are ``.flo`` or KITTI's ``.png``. Their order counts, not their names: natural order, ``2.flo`` before
``10.flo``. A video of T frames has T - 1 files in each of the two. Instead, one ``.npz`` may hold the motion of a whole
video (`s2d.motion.flow_formats.read_npz`); it is the only form for point tracks. It is read whole for each scene, so
prefer a folder for long videos.

For several videos, ``FOLDER/NAME/forward``, ``FOLDER/NAME/backward`` or ``FOLDER/NAME.npz``, NAME as `Video.name`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from s2d.data.image_folder import list_images
from s2d.errors import InputError
from s2d.motion.dis import VideoFlow
from s2d.motion.flow_formats import read_flow, read_npz, write_flow
from s2d.ops import PointTracks

if TYPE_CHECKING:
    from s2d.data.video import Video

_DIRECTIONS = ("forward", "backward")
_SUFFIXES = (".flo", ".png")


class FilesPrior:
    """Reads the motion of a scene from files, as a `s2d.motion.prior.MotionPrior`.

    Flow of another resolution than the scene's is resized, and its vectors and tracks are scaled with it.

    Args:
        folder: laid out as this module says, or one ``.npz`` file.

    Raises:
        InputError: there is nothing. Later, from `scene`: no files of this video, another number of them, another
            shape of frame, or files that cannot be read.
    """

    name = "files"
    pure = False

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir() and not (self._folder.is_file() and self._folder.suffix == ".npz"):
            found = "another file" if self._folder.exists() else "nothing: no such file or folder"
            raise InputError(f"expected a folder of flow or a .npz file at {folder}, got {found}")

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and times of all files: their contents may be too much to read for that."""
        files = sorted(self._folder.rglob("*")) if self._folder.is_dir() else [self._folder]
        files = [file for file in files if file.is_file()]
        digest = hashlib.sha256()
        for file in files:
            status = file.stat()
            digest.update(f"{file.relative_to(self._folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return {"prior": self.name, "files": digest.hexdigest()}

    def scene(self, frames: Tensor, start: int, video: Video) -> VideoFlow | PointTracks:
        source = self._source(video.name)
        if source.is_file():
            return _from_npz(source, frames, start, video.num_frames)
        return VideoFlow(*(_from_folder(source / name, frames, start, video.num_frames) for name in _DIRECTIONS))

    def _source(self, name: str) -> Path:
        """The .npz file, or the folder with both directions, of a video."""
        if self._folder.is_file():
            return self._folder
        for source in (self._folder / f"{name}.npz", self._folder / name, self._folder):
            if source.is_file() or any((source / direction).is_dir() for direction in _DIRECTIONS):
                return source
        raise InputError(
            f"expected flow of {name} in {self._folder}: folders forward and backward, there or in {name}, or "
            f"{name}.npz; got none of them"
        )


def write_flow_folder(folder: str | Path, flow: VideoFlow, suffix: str = ".flo") -> None:
    """Write the flow of a whole video so that `FilesPrior` reads it.

    Args:
        folder: made where it is missing.
        flow: of all frames.
        suffix: ``".flo"`` (exact) or ``".png"`` (rounded to 1/64 px, within 512 px).
    """
    if suffix not in _SUFFIXES:
        raise ValueError(f"s2d::write_flow_folder: expected suffix to be one of {', '.join(_SUFFIXES)}, got {suffix!r}")
    for name, pairs in zip(_DIRECTIONS, (flow.forward, flow.backward), strict=True):
        for t, pair in enumerate(pairs):
            write_flow(Path(folder) / name / f"{t:06d}{suffix}", pair.float().numpy())


def fit_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Flow ``[h, w, 2]`` on the grid of frames of another size, its vectors scaled with the frames.

    Unknown pixels (NaN) have no weight; a pixel is unknown where they would have more than half of it.
    """
    if flow.shape[:2] == size:
        return flow
    height, width = size
    shrinks = height <= flow.shape[0] and width <= flow.shape[1]
    known = ~np.isnan(flow).any(-1)
    planes = np.concatenate([np.where(known[..., None], flow, 0), known[..., None]], -1).astype(np.float32)
    planes = cv2.resize(planes, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    weight = planes[..., 2:]
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    # Half a weight is what a pixel beside unknown ones keeps, and rounding may take a little of it.
    return np.where(weight > 0.4999, planes[..., :2] / np.maximum(weight, 1e-6) * scale, np.float32(np.nan))


def _from_folder(folder: Path, frames: Tensor, start: int, length: int) -> Tensor:
    if not folder.is_dir():
        raise InputError(f"expected flow {folder.name} in {folder}, got nothing: no such folder")
    files = list_images(folder, _SUFFIXES)
    if len(files) != length - 1:
        raise InputError(
            f"expected {length - 1} files of flow ({', '.join(_SUFFIXES)}) of the {length} frames in {folder}, "
            f"got {len(files)}"
        )
    size = tuple(frames.shape[-2:])
    flow = torch.empty(len(frames) - 1, *size, 2)
    for t, file in enumerate(files[start : start + len(flow)]):
        pair = read_flow(file)
        _check_shape(pair.shape[:2], size, file)
        flow[t] = torch.from_numpy(fit_flow(pair, size))
    return flow


def _from_npz(file: Path, frames: Tensor, start: int, length: int) -> VideoFlow | PointTracks:
    motion, own = read_npz(file)
    size = tuple(frames.shape[-2:])
    _check_shape(own, size, file)
    found = motion.tracks.shape[1] if isinstance(motion, PointTracks) else len(motion.forward) + 1
    if found != length:
        raise InputError(f"expected the motion of {length} frames in {file}, got that of {found}")
    if isinstance(motion, PointTracks):
        part = slice(start, start + len(frames))
        scale = torch.tensor([size[1] / own[1], size[0] / own[0]])
        # Pixel centres are integers: the frame begins half a pixel before the first of them.
        tracks = (motion.tracks[:, part] + 0.5) * scale - 0.5
        return PointTracks(tracks, motion.visible[:, part].contiguous())
    part = slice(start, start + len(frames) - 1)
    return VideoFlow(*(_fit_all(flow[part], size) for flow in (motion.forward, motion.backward)))


def _fit_all(flow: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(flow.shape[1:3]) == size:
        return flow
    fitted = torch.empty(len(flow), *size, 2)
    for t, pair in enumerate(flow):
        fitted[t] = torch.from_numpy(fit_flow(pair.float().numpy(), size))
    return fitted


def _check_shape(own: tuple[int, ...], size: tuple[int, ...], file: Path) -> None:
    """The shape of the frames, up to the rounding of a resize."""
    (own_height, own_width), (height, width) = own, size
    if min(own) < 1 or abs(own_width * height - own_height * width) > max(own_height, own_width, height, width):
        raise InputError(
            f"expected motion in the shape of the frames, {width} x {height}, in {file}, got {own_width} x {own_height}"
        )
