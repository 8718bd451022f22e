"""A video file as the source of a video: PyAV decodes, this turns it upright and tells what could not be read."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from s2d.data.video_index import VideoIndex, build_index, read_from
from s2d.errors import InputError

# FFmpeg renders text files as pictures of a terminal; whoever passes one did not mean that.
_TEXT_FORMATS = ("tty", "bin", "xbin", "adf", "idf")

_DEFAULT_FPS = Fraction(25)

# FFmpeg's quick conversion repeats chroma samples and rounds roughly, 3 grey levels off on average; this one is bit for
# bit what DALI delivers, so that it does not matter which of them decoded a clip.
# (SWS_BILINEAR, SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT: older PyAV takes the bits but has no names for the last two.)
_CONVERSION = 0x2 | 0x40000 | 0x2000


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """A decoded frame as uint8 ``[H, W, 3]`` RGB, by the matrix and the range that the file names."""
    return frame.to_ndarray(format="rgb24", interpolation=_CONVERSION, threads=1)


@dataclass(frozen=True)
class Orientation:
    """How to turn decoded pixels upright: swap the axes, then flip."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @staticmethod
    def of(frame: VideoFrame) -> Orientation:
        """From the display matrix of the frame, rounded to a multiple of 90 degrees."""
        for data in frame.side_data or ():
            if data.type.name == "DISPLAYMATRIX":
                # x' = a x + c y, y' = b x + d y, in 16.16 fixed point; the rest of the 3 x 3 matrix is no rotation.
                a, b, _, c, d = struct.unpack("<5i", bytes(data)[:20])
                if abs(b) > abs(a):
                    return Orientation(True, b < 0, c < 0)
                return Orientation(False, d < 0, a < 0)
        return Orientation()

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """``[H, W, 3]`` upright."""
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        if self.flip_rows:
            pixels = pixels[::-1]
        return pixels[:, ::-1] if self.flip_columns else pixels

    def box(self, corner: np.ndarray, extent: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(top, left) and (height, width) of a box of the upright frame of ``size`` in the decoded one."""
        flips = np.array([self.flip_rows, self.flip_columns])
        corner = np.where(flips, size - corner - extent, corner)
        return (corner[::-1], extent[::-1]) if self.transpose else (corner, extent)

    def matrix(self, size: tuple[int, int]) -> np.ndarray:
        """Float32 ``[3, 3]``: (x, y, 1) of the upright frame of ``size`` to that of the decoded one."""
        height, width = size
        rows = [
            [-1, 0, width] if self.flip_columns else [1, 0, 0],
            [0, -1, height] if self.flip_rows else [0, 1, 0],
        ]
        return np.array([*(rows[::-1] if self.transpose else rows), [0, 0, 1]], np.float32)


@dataclass(frozen=True, eq=False)
class VideoFile:
    """One stream of a file. The attributes are those of `s2d.data.video.FrameSource`, and what other decoders ask for.

    Attributes:
        codec: FFmpeg's name of it.
        pixel_format: FFmpeg's name of that of the first frame.
        matrix: of its colours, by the number that ISO/IEC 23091-2 gives it (1: BT.709, 2: not specified, ...).
    """

    path: Path
    stream: int
    index: VideoIndex
    codec: str
    pixel_format: str
    matrix: int
    orientation: Orientation
    size: tuple[int, int]
    fps: Fraction
    timestamps: np.ndarray
    notes: tuple[str, ...]
    decoder = "pyav"

    def frames(self, start: int, step: int = 1) -> Iterator[np.ndarray]:
        height, width = self.size
        with contextlib.closing(read_from(self.path, self.stream, self.index, start)) as decoded:
            for frame in islice(decoded, 0, None, step):
                pixels = self.orientation.apply(to_rgb(frame))
                if pixels.shape[:2] != self.size:  # a stream may change its size; the first frame's holds
                    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
                yield pixels


def open_video_file(path: Path, stream: int | None) -> VideoFile:
    """Index the file and look at its first frame.

    Raises:
        InputError: not a video, no video stream, no such stream, or no frame that decodes.
    """
    try:
        with _open(path) as container:
            chosen = _choose_stream(container, path, stream)
            number, rate, clock = chosen.index, chosen.average_rate or chosen.guessed_rate, chosen.time_base
            listed, duration, codec = chosen.frames, _duration(container, chosen), chosen.codec.canonical_name
        index = build_index(path, number)
    except av.FFmpegError as error:
        raise InputError(f"expected a video in {path}, got a file that cannot be read: {_reason(error)}") from None
    if index.count == 0:
        raise InputError(f"expected a video in {path}, got a file without a single frame that decodes")
    with contextlib.closing(read_from(path, number, index, 0)) as decoded:
        first = next(decoded)
        orientation = Orientation.of(first)
        size = orientation.apply(np.empty((first.height, first.width, 0))).shape[:2]
        pixel_format, matrix = first.format.name, int(first.colorspace)
    fps, timestamps, varying = _timing(index, rate, clock)
    notes = _loss(index, listed, duration, timestamps, fps) + varying
    return VideoFile(path, number, index, codec, pixel_format, matrix, orientation, size, fps, timestamps, notes)


def _open(path: Path) -> InputContainer:
    try:
        container = av.open(str(path.absolute()))
    except av.FFmpegError as error:
        with contextlib.suppress(OSError), path.open("rb") as file:
            head = file.read(8)
            if len(head) == 0:
                raise InputError(f"expected a video in {path}, got an empty file") from None
            if head[4:] == b"ftyp":
                what = "an mp4 file without its index: its end, where the index is, may be missing"
                raise InputError(f"expected a video in {path}, got {what}") from None
        if isinstance(error, av.EOFError):
            raise InputError(f"expected a video in {path}, got a file without a single frame") from None
        what = "is not one" if isinstance(error, av.InvalidDataError) else "cannot be read"
        raise InputError(f"expected a video in {path}, got a file that {what}: {_reason(error)}") from None
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise InputError(f"expected a video in {path}, got a text file")
    return container


def _choose_stream(container: InputContainer, path: Path, stream: int | None) -> VideoStream:
    # The cover of a song is a "video stream" too.
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        kinds = sorted({s.type for s in container.streams if s.type != "video"})
        found = f"{' and '.join(kinds)} only" if kinds else "no stream that can be played"
        raise InputError(f"expected a video stream in {path}, got {found}")
    if stream is None:
        best = container.streams.best("video")
        return best if best in videos else videos[0]
    for video in videos:
        if video.index == stream:
            return video
    numbers = ", ".join(str(s.index) for s in videos)
    raise InputError(f"expected the number of a video stream of {path} ({numbers}), got {stream}")


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds that the header promises for this stream, where it speaks of this stream alone."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _timing(index: VideoIndex, rate: Fraction | None, clock: Fraction) -> tuple[Fraction, np.ndarray, tuple[str, ...]]:
    """Frame rate, seconds since the first frame, and a note where the rate varies."""
    rate = rate or _DEFAULT_FPS
    if index.times is None:
        return rate, np.arange(index.count) / float(rate), ()
    ticks = index.times - index.times[0]
    seconds = ticks * float(clock)
    if index.count < 2:
        return rate, seconds, ()
    intervals = np.diff(seconds)
    # Containers round times to their clock, and a camera that drops a frame now and then has a constant rate still.
    tolerance = max(2 * float(clock), 0.1 / float(rate))
    if (np.abs(intervals - 1 / float(rate)) <= tolerance).mean() >= 0.9:
        return rate, seconds, ()
    mean = (Fraction(index.count - 1) / (int(ticks[-1]) * clock)).limit_denominator(1001)
    shortest, longest = intervals.min() * 1000, intervals.max() * 1000
    if longest - shortest <= 2000 * tolerance:
        return mean, seconds, ()
    note = (
        f"the frame rate varies: frames last {shortest:.0f} to {longest:.0f} ms, {float(mean):.2f} a second on average"
    )
    return mean, seconds, (note,)


def _loss(
    index: VideoIndex, listed: int, duration: float | None, timestamps: np.ndarray, fps: Fraction
) -> tuple[str, ...]:
    """What of the file could not be read."""
    shown = max(listed, index.packets) - index.hidden
    if index.cut or index.packets < listed:
        counted = f"{index.count} of {shown}" if shown > index.count else f"{index.count}"
        return (f"read {counted} frames: the file ends early",)
    if index.count < shown:
        return (f"read {index.count} of {shown} frames: the others are damaged",)
    # A last frame may well last longer than the header thought.
    slack = max(2 * float(np.diff(timestamps, prepend=timestamps[0]).max()), 2 / float(fps), 0.02 * (duration or 0))
    end = float(timestamps[-1]) + 1 / float(fps)
    if listed == 0 and duration is not None and end < duration - slack:
        return (f"read {end:.1f} of {duration:.1f} seconds: the file ends early",)
    return ()


def _reason(error: av.FFmpegError) -> str:
    return (error.strerror or str(error)).lower()
