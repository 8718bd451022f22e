"""A piece of a video file as a file of its own, for decoders that read from the beginning."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from s2d.data.video_index import VideoIndex, open_stream


def cut_frames(path: Path, stream: int, index: VideoIndex, first: int, last: int) -> tuple[np.ndarray, int] | None:
    """The packets that frames ``first`` to ``last`` need, from a key frame on, not decoded.

    Returns:
        The bytes of a Matroska file, uint8, and the number in the video of the first frame that comes out of it; None
        where no key frame is a clean start, because frames shown before it need what was decoded earlier.
    """
    keys = index.keys[index.keys <= index.times[first]]
    # A seek may end behind the key frame asked for: then the one before is tried, at last the start of the file.
    for key in (*keys[::-1][:2].tolist(), None):
        container, video = open_stream(path, stream, 1)
        with container:
            packets = _packets(container, video, key, index.times[first : last + 1])
            if packets is not None:
                origin = int(np.searchsorted(index.times, packets[0].pts))
                return _written(packets, video), origin
    return None


def _packets(container: InputContainer, stream: VideoStream, key: int | None, times: np.ndarray) -> list[Packet] | None:
    """From the key frame (None: the start) until every one of ``times`` was seen; None where that is no clean piece."""
    if key is not None:
        try:
            container.seek(key, stream=stream, backward=True)
        except av.FFmpegError:
            return None
    missing = set(times.tolist())
    packets: list[Packet] = []
    for packet in _readable(container, stream):
        if packet.pts is None or (packets and packet.pts < packets[0].pts):
            return None
        if not packets and (not packet.is_keyframe or packet.pts > times[0]):
            return None
        packets.append(packet)
        missing.discard(packet.pts)
        if not missing and packet.pts >= times[-1]:
            return packets
    return packets if packets and not missing else None


def _readable(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        return


def _written(packets: list[Packet], template: VideoStream) -> np.ndarray:
    buffer = io.BytesIO()
    start = packets[0].pts
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream_from_template(template)
        for packet in packets:
            packet.stream = stream
            packet.pts -= start
            packet.dts = None if packet.dts is None else packet.dts - start
            container.mux(packet)
    return np.frombuffer(buffer.getbuffer(), dtype=np.uint8)
