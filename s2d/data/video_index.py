"""Which frames a video file holds, and how to decode from any of them.

Headers lie: about truncated files, about edit lists, about streams that were cut. So the packets are read once, and
the frames at the end are decoded to see that they are there; where that does not settle it, all are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# In these containers and codecs a packet is a frame, and its presentation time is stored, not guessed. (VP8 has packets
# that show nothing, AVI stores no times.)
_EXACT_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_EXACT_CODECS = ("h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg", "prores", "ffv1")


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The frames of one stream of a file in presentation order.

    Attributes:
        count: T, how many there are.
        times: int64 ``[T]``, ascending, in ticks of the stream; None where the file has no usable times, so that frames
            are only known by their number.
        keys: int64 ``[K]``, ascending: times of the packets that decoding can start at.
        packets: how many packets of the stream could be read.
        hidden: how many of them the container says are not to be shown (an edit list).
        cut: whether the end of the file is missing in the middle of a packet.
        threads: 0 lets the decoder choose; 1 where the stream is damaged, because what a decoder conceals would then
            depend on the order in which its threads run.
    """

    count: int
    times: np.ndarray | None
    keys: np.ndarray
    packets: int
    hidden: int
    cut: bool
    threads: int


class Decoding:
    """Frames of a stream from where its container stands, in presentation order, past what cannot be read."""

    def __init__(self, container: InputContainer, stream: VideoStream):
        self._container, self._stream = container, stream
        self.damaged = 0
        self.cut = False

    def packets(self) -> Iterator[Packet]:
        """The readable packets, the empty one that flushes the decoder last."""
        demuxed = self._container.demux(self._stream)
        while True:
            try:
                packet = next(demuxed)
            except StopIteration:
                return
            except av.FFmpegError:
                self.cut = True
                yield Packet()
                return
            if packet.is_corrupt:
                self.cut = True
            else:
                yield packet

    def frames(self) -> Iterator[tuple[Packet, list[VideoFrame]]]:
        """Each packet with the frames that it completes."""
        for packet in self.packets():
            try:
                yield packet, self._stream.codec_context.decode(packet if packet.size else None)
            except av.FFmpegError:
                self.damaged += 1
                yield packet, []


def open_stream(path: Path, stream: int, threads: int) -> tuple[InputContainer, VideoStream]:
    """A fresh container (the caller closes it) and one of its streams, ready to decode."""
    container = av.open(str(path.absolute()))
    video = container.streams[stream]
    video.thread_type = "NONE" if threads == 1 else "AUTO"
    video.thread_count = threads
    return container, video


def read_from(path: Path, stream: int, index: VideoIndex, start: int) -> Iterator[VideoFrame]:
    """Frames ``start`` to the end of the index, one for each of its entries.

    Decoding starts at the key frame before. Where a frame in the middle does not decode, the one before it is given
    again. What a decoder conceals in a damaged frame may depend on where it started; an intact frame does not.
    """
    if index.times is None:
        yield from _count_to(path, stream, index, start)
        return
    wanted = iter(index.times[start:].tolist())
    due, held = next(wanted), None
    with contextlib.closing(_from_key(path, stream, index, start)) as decoded:
        for frame in decoded:
            while due is not None and due < frame.pts:
                yield frame if held is None else held
                due = next(wanted, None)
            if due == frame.pts:
                yield frame
                due = next(wanted, None)
            if due is None:
                return
            held = frame
    while due is not None and held is not None:
        yield held
        due = next(wanted, None)


def _count_to(path: Path, stream: int, index: VideoIndex, start: int) -> Iterator[VideoFrame]:
    container, video = open_stream(path, stream, index.threads)
    with container:
        number = 0
        for _, frames in Decoding(container, video).frames():
            for frame in frames:
                if start <= number < index.count:
                    yield frame
                number += 1


def _from_key(path: Path, stream: int, index: VideoIndex, start: int) -> Iterator[VideoFrame]:
    """Decoded frames from a key frame that serves frame ``start``, or from the beginning of the file."""
    usable = index.keys[index.keys <= index.times[start]]
    step = 1
    while start > 0 and step <= len(usable):
        container, video = open_stream(path, stream, index.threads)
        with container:
            frames = _after_seek(container, video, int(usable[-step]), int(index.times[start]))
            first = next(frames, None)
            if first is not None:
                yield first
                yield from frames
                return
        step *= 2
    container, video = open_stream(path, stream, index.threads)
    with container:
        for _, frames in Decoding(container, video).frames():
            yield from (frame for frame in frames if frame.pts is not None)


def _after_seek(container: InputContainer, stream: VideoStream, key: int, target: int) -> Iterator[VideoFrame]:
    """Frames from the key frame on; none where the seek ended behind the target or decoding has to start earlier."""
    try:
        container.seek(key, stream=stream, backward=True)
    except av.FFmpegError:
        return
    began = None
    reached = False
    for packet, frames in Decoding(container, stream).frames():
        if began is None:
            # mp4 seeks by decoding time: with reordered frames it can end at the next key frame.
            if packet.pts is None or packet.pts > target or not packet.is_keyframe:
                return
            began = packet.pts
        for frame in frames:
            # Frames shown before the key frame depend on what was not decoded.
            if frame.pts is None or frame.pts < began:
                continue
            if not reached and frame.pts > target:
                return
            reached = True
            yield frame


def build_index(path: Path, stream: int) -> VideoIndex:
    """Index one video stream of a file; results are remembered while the file does not change."""
    status = path.stat()
    return _build_index(path.absolute(), stream, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _build_index(path: Path, stream: int, modified: int, length: int) -> VideoIndex:
    return _index_packets(path, stream) or _index_frames(path, stream)


def _index_packets(path: Path, stream: int) -> VideoIndex | None:
    """The index from the packets alone, confirmed by decoding the end; None where that is no proof."""
    container, video = open_stream(path, stream, 0)
    with container:
        if container.format.name not in _EXACT_CONTAINERS or video.codec.canonical_name not in _EXACT_CODECS:
            return None
        reading = Decoding(container, video)
        packets = [(p.pts, p.is_keyframe, p.is_discard) for p in reading.packets() if p.size]
        listed = video.frames
    if reading.cut or len(packets) < listed or any(pts is None for pts, _, _ in packets):
        return None
    times = np.array(sorted(pts for pts, _, discarded in packets if not discarded), dtype=np.int64)
    keys = np.array(sorted(pts for pts, key, _ in packets if key), dtype=np.int64)
    if len(times) == 0 or (np.diff(times) <= 0).any():
        return None
    index = VideoIndex(len(times), times, keys, len(packets), len(packets) - len(times), False, 0)
    last = min(int(np.searchsorted(times, keys[-1])), len(times) - 1) if len(keys) else 0
    confirmed = _decodes(path, stream, index, 0, 1) and _decodes(path, stream, index, last, len(times))
    return index if confirmed else None


def _decodes(path: Path, stream: int, index: VideoIndex, start: int, stop: int) -> bool:
    """Whether frames ``start`` to ``stop - 1`` come out of the decoder, and no others between them."""
    with contextlib.closing(_from_key(path, stream, index, start)) as decoded:
        shown = (frame.pts for frame in decoded if frame.pts >= index.times[start])
        return list(islice(shown, stop - start)) == index.times[start:stop].tolist()


def _index_frames(path: Path, stream: int, threads: int = 0) -> VideoIndex:
    """The index from decoding everything."""
    container, video = open_stream(path, stream, threads)
    times: list[int | None] = []
    keys: list[int] = []
    packets = hidden = 0
    damaged = False
    with container:
        reading = Decoding(container, video)
        for packet, frames in reading.frames():
            packets += packet.size > 0
            hidden += packet.is_discard
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            times += [frame.pts for frame in frames]
            damaged |= any(frame.is_corrupt for frame in frames)
    if threads == 0 and (damaged or reading.damaged or reading.cut):
        return _index_frames(path, stream, threads=1)
    known = all(pts is not None for pts in times)
    ordered = np.array(times if known else [], dtype=np.int64)
    usable = known and bool((np.diff(ordered) > 0).all())
    return VideoIndex(
        count=len(times),
        times=ordered if usable else None,
        keys=np.array(sorted(keys), dtype=np.int64),
        packets=packets,
        hidden=hidden,
        cut=reading.cut,
        threads=threads,
    )
