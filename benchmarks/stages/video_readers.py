"""What reads clips from a file: ours and its peers, all to float32 ``[T, 3, h, w]``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from s2d.data import dali
from s2d.data.clip_plan import ClipFormat, ClipPlan, transform_frames
from s2d.data.clips import ClipSettings
from s2d.data.video import open_video
from s2d.data.video_file import to_rgb

# (path, first frame, number of frames, size of the result or None for the file's)
Reader = Callable[[Path, int, int, tuple[int, int] | None], Tensor]


def _plan(size: tuple[int, int], start: int, number: int) -> ClipPlan:
    return ClipPlan.whole(np.arange(start, start + number), size)


def ours(path: Path, start: int, number: int, size: tuple[int, int] | None) -> Tensor:
    """`Video.clip`, whose index is remembered."""
    video = open_video(path)
    form = ClipFormat(size or video.size)
    return transform_frames(video.clip(start, start + number), _plan(video.size, start, number), form)


def dali_on(device: str) -> Reader:
    """DALI on the piece that holds the clip, with its own resize."""
    decoders: dict[tuple[int, int], dali.DaliDecoder] = {}

    def read(path: Path, start: int, number: int, size: tuple[int, int] | None) -> Tensor:
        video = open_video(path)
        target = size or video.size
        if target not in decoders:
            decoders[target] = dali.DaliDecoder(ClipSettings(), ClipFormat(target), torch.device(device))
        nothing = np.zeros((0, number, *video.size), np.uint8)
        (found,) = decoders[target].decode([dali.request(video, _plan(video.size, start, number), nothing)])
        return found.frames.cpu()

    return read


def pyav(threads: int, quick: bool = False) -> Reader:
    """PyAV as its documentation has it, seeking by time; ``quick`` with FFmpeg's own choice of colour conversion."""

    def read(path: Path, start: int, number: int, size: tuple[int, int] | None) -> Tensor:
        frames = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = ("NONE", 1) if threads == 1 else ("AUTO", threads)
            moment = round(start / stream.average_rate / stream.time_base)
            container.seek(moment, stream=stream)
            for frame in container.decode(stream):
                if frame.pts >= moment:
                    frames.append(frame.to_ndarray(format="rgb24") if quick else to_rgb(frame))
                if len(frames) == number:
                    break
        return _delivered(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), size)

    return read


def opencv(path: Path, start: int, number: int, size: tuple[int, int] | None) -> Tensor:
    """OpenCV's own FFmpeg, seeking by frame number."""
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(number)]
    capture.release()
    if size is not None:
        frames = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().contiguous()


def _delivered(frames: Tensor, size: tuple[int, int] | None) -> Tensor:
    whole = tuple(frames.shape[-2:])
    return transform_frames(frames, _plan(whole, 0, len(frames)), ClipFormat(size or whole))


def decord_reader() -> Reader:
    """Decord, which resizes while it decodes; on more threads it cannot read VP9."""
    import decord

    def read(path: Path, start: int, number: int, size: tuple[int, int] | None) -> Tensor:
        height, width = size or (-1, -1)
        reader = decord.VideoReader(str(path), width=width, height=height, num_threads=1)
        frames = reader.get_batch(list(range(start, start + number))).asnumpy()
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float().contiguous()

    return read


def torchcodec_reader() -> Reader:
    """Torchcodec, exact seeking."""
    from torchcodec.decoders import VideoDecoder

    def read(path: Path, start: int, number: int, size: tuple[int, int] | None) -> Tensor:
        return _delivered(VideoDecoder(str(path)).get_frames_in_range(start, start + number).data, size)

    return read


def all_readers() -> tuple[dict[str, Reader], dict[str, str]]:
    """Those that load here by name, and why the others do not."""
    readers: dict[str, Reader] = {
        "s2d Video (PyAV, automatic threads)": ours,
        "PyAV, 1 thread": pyav(1),
        "PyAV, 2 threads": pyav(2),
        "PyAV, 1 thread, FFmpeg's quick colours": pyav(1, quick=True),
        "OpenCV": opencv,
    }
    missing = {}
    if (absent := dali.missing()) is None:
        readers["DALI on the CPU"] = dali_on("cpu")
        if torch.cuda.is_available():
            readers["DALI on the GPU"] = dali_on("cuda")
    else:
        missing["DALI"] = absent
    for name, make in {"decord": decord_reader, "torchcodec": torchcodec_reader}.items():
        try:
            readers[name] = make()
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = (str(error).strip() or type(error).__name__).splitlines()[0].split(": /")[0]
    return readers, missing
