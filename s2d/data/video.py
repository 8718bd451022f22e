"""Videos: a file or a folder of images in, RGB tensors out; and the way back to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from s2d.data.files import atomic_write
from s2d.data.image_folder import open_image_folder
from s2d.data.video_file import open_video_file
from s2d.errors import InputError

DECODERS = ("auto", "pyav", "dali")

# A clock fine enough to keep the timestamps of any camera, and the one MPEG streams use.
_CLOCK = 90_000


class FrameSource(Protocol):
    """Where the frames of a `Video` come from."""

    decoder: str
    size: tuple[int, int]
    fps: Fraction
    timestamps: np.ndarray
    notes: tuple[str, ...]

    def frames(self, start: int, step: int = 1) -> Iterator[np.ndarray]:
        """Every ``step``-th frame from ``start`` to the end, uint8 ``[H, W, 3]`` RGB."""
        ...


@dataclass(frozen=True, eq=False)
class Video:
    """A video that is read as it is needed. Iterating streams its frames in order: uint8 ``[3, H, W]`` RGB each.

    Attributes:
        name: the stem of the file's or folder's name.
        size: (H, W) of the frames it delivers, pixels; upright (rotation metadata is honoured) and after the resize.
    """

    name: str
    size: tuple[int, int]
    _source: FrameSource = field(repr=False)

    @staticmethod
    def from_frames(frames: Tensor, fps: float | Fraction = 25, name: str = "video") -> Video:
        """A video held in memory: uint8 ``[T, 3, H, W]`` RGB with T >= 1."""
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            found = f"{frames.dtype} {list(frames.shape)}"
            raise ValueError(f"s2d::Video: expected frames uint8 [T, 3, H, W], none of them 0, got {found}")
        source = _Memory(frames.permute(0, 2, 3, 1).contiguous().numpy(), Fraction(fps).limit_denominator(100_000))
        return Video(name, source.size, source)

    @property
    def source(self) -> FrameSource:
        """Where its frames come from."""
        return self._source

    @property
    def source_size(self) -> tuple[int, int]:
        """(H, W) before the resize, pixels."""
        return self._source.size

    @property
    def fps(self) -> Fraction:
        """Frames per second; the mean where the rate varies."""
        return self._source.fps

    @property
    def num_frames(self) -> int:
        """T: how many frames the iteration yields."""
        return len(self._source.timestamps)

    @property
    def timestamps(self) -> np.ndarray:
        """Seconds since the first frame: float64 ``[T]``."""
        return self._source.timestamps

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, one sentence each: parts that could not be read, a rate that varies."""
        return self._source.notes

    @property
    def losses(self) -> tuple[str, ...]:
        """The notes on parts that could not be read."""
        return tuple(note for note in self.notes if note.startswith("read "))

    @property
    def decoder(self) -> str:
        """``"pyav"``, ``"images"`` or ``"memory"``."""
        return self._source.decoder

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[Tensor]:
        with contextlib.closing(self._source.frames(0)) as frames:
            for frame in frames:
                yield self._deliver(frame)

    def clip(self, start: int, stop: int, step: int = 1) -> Tensor:
        """Frames ``range(start, stop, step)``, the same that the iteration yields: uint8 ``[T, 3, H, W]``.

        Raises:
            ValueError: unless ``0 <= start <= stop <= num_frames`` and ``step >= 1``.
        """
        if not 0 <= start <= stop <= self.num_frames or step < 1:
            found = f"{start}, {stop} and step {step}"
            raise ValueError(f"s2d::Video: expected 0 <= start <= stop <= {self.num_frames}, got {found}")
        number = len(range(start, stop, step))
        clip = torch.empty(number, 3, *self.size, dtype=torch.uint8)
        if number:
            with contextlib.closing(self._source.frames(start, step)) as frames:
                for index, frame in enumerate(islice(frames, number)):
                    clip[index] = self._deliver(frame)
        return clip

    def frame(self, t: int) -> Tensor:
        """Frame t: uint8 ``[3, H, W]``. ValueError outside ``0 <= t < num_frames``."""
        return self.clip(t, t + 1)[0]

    def resized(self, short_side: int | None = None, size: tuple[int, int] | None = None) -> Video:
        """The same video with frames of another size, made from the original ones; the original size without arguments.

        Args:
            short_side: pixels; the aspect ratio is kept, and frames are never enlarged.
            size: (H, W), exactly this.
        """
        return replace(self, size=_target_size(self.source_size, short_side, size))

    def _deliver(self, frame: np.ndarray) -> Tensor:
        """``[H, W, 3]`` of the source as ``[3, H, W]`` of the size asked for."""
        if frame.shape[:2] != self.size:
            height, width = self.size
            shrinks = height <= frame.shape[0] and width <= frame.shape[1]
            # Area averaging does not alias when it shrinks; enlarging by it would give blocks.
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return torch.from_numpy(frame.transpose(2, 0, 1).copy())


@dataclass(frozen=True, eq=False)
class _Memory:
    """Frames ``[T, H, W, 3]`` that are already there."""

    pixels: np.ndarray
    fps: Fraction
    decoder = "memory"
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1:3]

    @property
    def timestamps(self) -> np.ndarray:
        return np.arange(len(self.pixels)) / float(self.fps)

    def frames(self, start: int, step: int = 1) -> Iterator[np.ndarray]:
        yield from self.pixels[start::step]


def open_video(
    path: str | Path,
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    decoder: str = "auto",
    stream: int | None = None,
) -> Video:
    """Open a video file, or a folder of images as a video.

    A file is indexed first, so that `Video.num_frames` counts what does decode whatever its header says. The images of
    a folder are taken in natural order (``2.jpg`` before ``10.jpg``) at 25 frames per second.

    Args:
        path: a file that FFmpeg reads (mp4, mkv, webm, avi, ...), or a folder of .jpg, .jpeg and .png images.
        short_side: shrink so that the shorter side has this many pixels; smaller videos stay as they are.
        size: (H, W) of the frames to deliver; not together with ``short_side``.
        decoder: ``"auto"`` and ``"pyav"`` are PyAV; ``"dali"``, which reads clips of a dataset for training
            (`s2d.data.clip_loader`), is refused: on a CPU it lacks H.264 and gains little on whole frames.
        stream: index of the video stream in the file; None takes the best one (FFmpeg's choice).

    Raises:
        InputError: there is nothing at ``path``; it is no video, has no video stream, or not one frame of it decodes;
            the images differ in size, or there are none; the decoder or the stream is not available.
    """
    path = Path(path)
    if decoder not in DECODERS:
        raise InputError(f"expected the decoder to be one of {', '.join(DECODERS)}, got {decoder!r}")
    if decoder == "dali":
        raise InputError("expected 'auto' or 'pyav' for a whole video, got 'dali', which reads clips of a dataset")
    if path.is_dir():
        if stream is not None:
            raise InputError(f"expected no stream for the folder of images {path}, got stream {stream}")
        source = open_image_folder(path)
    elif path.is_file():
        source = open_video_file(path, stream)
    elif path.exists():
        raise InputError(f"expected a video file or a folder of images at {path}, got something else")
    else:
        raise InputError(f"expected a video file or a folder of images at {path}, got nothing: no such file")
    name = path.resolve().name if path.is_dir() else path.stem
    return Video(name, _target_size(source.size, short_side, size), source)


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    fps: float | Fraction,
    *,
    timestamps: Sequence[float] | np.ndarray | None = None,
    crf: int = 18,
) -> int:
    """Write frames as H.264 (yuv420p, mp4); the file appears when it is complete.

    Args:
        path: ends in ``.mp4``.
        frames: uint8 ``[3, H, W]`` RGB, all of one size, at least one. Odd sizes gain a copy of the last row or column.
        fps: frames per second; a `Fraction` is kept exactly (30000/1001).
        timestamps: seconds, ascending, one for each frame: written instead of the even spacing.
        crf: x264's quality, 0 (lossless) to 51.

    Returns:
        The number of frames written.

    Raises:
        InputError: the file cannot be written there.
        ValueError: no frames, or frames that are not as above.
    """
    with atomic_write(path) as temporary:
        return _encode(temporary, frames, Fraction(fps).limit_denominator(100_000), timestamps, crf)


def _encode(path: Path, frames: Iterable[Tensor], rate: Fraction, timestamps: Sequence[float] | None, crf: int) -> int:
    count = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Equal frames give equal files: the macroblock tree would read memory that nobody wrote.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate if timestamps is None else Fraction(1, _CLOCK)
        shape = None
        for frame in frames:
            shape = shape or frame.shape
            if frame.dtype != torch.uint8 or frame.dim() != 3 or frame.shape[0] != 3 or frame.shape != shape:
                found = f"{frame.dtype} {list(frame.shape)} at {count}"
                raise ValueError(f"s2d::write_video: expected frames uint8 [3, H, W] of one size, got {found}")
            pixels = _even(frame.permute(1, 2, 0).numpy())
            if count == 0:
                stream.height, stream.width = pixels.shape[:2]
            picture = av.VideoFrame.from_ndarray(pixels, "rgb24")
            picture.time_base = stream.codec_context.time_base
            picture.pts = count if timestamps is None else round((timestamps[count] - timestamps[0]) * _CLOCK)
            container.mux(stream.encode(picture))
            count += 1
        if count == 0:
            raise ValueError("s2d::write_video: expected at least one frame, got none")
        container.mux(stream.encode(None))
    return count


def _even(pixels: np.ndarray) -> np.ndarray:
    """Yuv420p halves both sides: repeat the last row and column where they are odd."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)


def _target_size(source: tuple[int, int], short_side: int | None, size: tuple[int, int] | None) -> tuple[int, int]:
    if short_side is not None and size is not None:
        raise ValueError(f"s2d::Video: expected short_side or size, got both: {short_side} and {size}")
    wanted = size if size is not None else (1 if short_side is None else short_side,)
    if min(wanted) < 1:
        raise ValueError(f"s2d::Video: expected a size of at least one pixel, got {wanted}")
    if size is not None:
        return int(size[0]), int(size[1])
    height, width = source
    scale = 1.0 if short_side is None else min(1.0, short_side / min(source))
    return max(1, round(height * scale)), max(1, round(width * scale))
