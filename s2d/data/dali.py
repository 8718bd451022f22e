"""Clips decoded and transformed by NVIDIA DALI: on a GPU by NVDEC and nvJPEG (not run on a GPU yet), or on the CPU.

The pipelines do what `s2d.data.clip_plan` does by torch. Video is handed over as a short piece from a key frame on
(`s2d.data.video_cut`): DALI counts frames from the start of what it is given and, on a CPU, decodes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s2d.data.clip_plan import HALF, ClipFormat, ClipPlan, transform_frames, transform_masks
from s2d.data.clips import ClipSettings
from s2d.data.image_folder import ImageFolder, check_size, ends_early, upright_size
from s2d.data.video import Video
from s2d.data.video_cut import cut_frames
from s2d.data.video_file import VideoFile
from s2d.errors import InputError

# FFmpeg's names. DALI is built without software decoders of other codecs.
_CPU_CODECS = ("vp8", "vp9", "mjpeg")
_GPU_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "mpeg4")
_CPU_PIXELS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_GPU_PIXELS = ("yuv420p", "yuvj420p")

# Kr and Kb of the matrices of ISO/IEC 23091-2 that video names. DALI takes every file for BT.601 (5, 6; 2 names none).
_BT601 = (0.299, 0.114)
_MATRICES = {2: _BT601, 5: _BT601, 6: _BT601, 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}


# DALI clips green that is outside 0..255 by BT.601, though by the matrix of the file it may not be. Where that may
# matter by two levels in more than this share of a clip's pixels, the clip is not exact.
_CLIPPED_AT_MOST = 0.001


class DaliError(RuntimeError):
    """DALI did not decode what it was given; its pipeline was built anew."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What became of a request.

    Attributes:
        frames: float32 ``[T, 3, h, w]``.
        masks: bool ``[G, T, h, w]``.
        exact: whether the colours are PyAV's; not where DALI clipped them on the way.
    """

    frames: Tensor
    masks: Tensor
    exact: bool


@dataclass(frozen=True, eq=False)
class Request:
    """One clip to decode.

    Attributes:
        encoded: one video, or the image of each frame: uint8 ``[bytes]`` each.
        numbers: int32 ``[T]``: which frames of the video; empty for images.
        plan: what is to be done to them; its colour includes what DALI's own matrix leaves to be done.
        masks: uint8 ``[G, T, H, W]`` of 0 and 1.
        video: what it is cut from; None for images.
    """

    encoded: tuple[np.ndarray, ...]
    numbers: np.ndarray
    plan: ClipPlan
    masks: np.ndarray
    video: VideoFile | None

    @property
    def images(self) -> bool:
        return self.video is None


def missing() -> str | None:
    """Why DALI cannot be used here at all, or None."""
    return None if find_spec("nvidia") and find_spec("nvidia.dali") else "DALI is not installed (the extra 'dali')"


def refusal(video: Video, device: torch.device) -> str | None:
    """Why DALI does not deliver the frames of this video as PyAV does, or None: the rule by which PyAV is taken."""
    if (absent := missing()) is not None:
        return absent
    source, gpu = video.source, device.type == "cuda"
    if isinstance(source, ImageFolder):
        others = sorted({path.suffix.lower() for path in source.paths} - {".jpg", ".jpeg"})
        return f"images are {', '.join(others)}, not JPEG" if others else None
    if not isinstance(source, VideoFile):
        return "the frames are in memory"
    if source.codec not in (_GPU_CODECS if gpu else _CPU_CODECS):
        return f"DALI has no decoder of {source.codec} on a {'GPU' if gpu else 'CPU'}"
    if source.pixel_format not in (_GPU_PIXELS if gpu else _CPU_PIXELS):
        return f"DALI is not known to read {source.pixel_format} exactly"
    if source.matrix not in _MATRICES:
        return f"DALI does not know colour matrix {source.matrix}"
    if source.index.hidden:
        return "DALI shows frames that the file's edit list hides"
    if source.index.times is None or source.index.cut or source.index.threads == 1:
        return "the file is damaged or has no times"
    return None


def request(video: Video, plan: ClipPlan, masks: np.ndarray) -> Request | None:
    """The bytes of a clip of a video that `refusal` lets pass; None where no key frame is a clean start for it.

    Raises:
        InputError: an image is missing, ends early or has another size than the first of its video.
    """
    source = video.source
    if isinstance(source, ImageFolder):
        images = tuple(_read(source.paths[t], source.size) for t in plan.times)
        return Request(images, np.zeros(0, np.int32), plan, masks, None)
    piece = cut_frames(source.path, source.stream, source.index, int(plan.times[0]), int(plan.times[-1]))
    if piece is None:
        return None
    encoded, origin = piece
    fixed = plan.color.copy()
    fixed[:, :, :3] = plan.color[:, :, :3] @ _from_bt601(source.matrix)
    numbers = (plan.times - origin).astype(np.int32)
    return Request((encoded,), numbers, replace(plan, color=fixed), masks, source)


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    check_size(path, upright_size(path), size)
    try:
        # DALI fills what is missing of an image with grey.
        if ends_early(path):
            raise InputError(f"expected an image in {path}, got a file that ends early")
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"expected an image in {path}, got: {(error.strerror or str(error)).lower()}") from None


@cache
def _from_bt601(matrix: int) -> np.ndarray:
    """What turns RGB that was made by BT.601 into RGB by the matrix of the file (exact where nothing was clipped)."""
    return (_rgb_from_ycc(*_MATRICES[matrix]) @ np.linalg.inv(_rgb_from_ycc(*_BT601))).astype(np.float32)


def _rgb_from_ycc(red: float, blue: float) -> np.ndarray:
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [1, 2 * (1 - blue), 0],
        ]
    )


def _exact(pixels: Tensor, matrix: int) -> bool:
    """Whether what DALI clipped of ``pixels``, uint8 ``[T, H, W, 3]``, hardly matters by the matrix of the file."""
    if _MATRICES[matrix] == _BT601:
        return True
    red, green, blue = pixels[:, ::4, ::4].float().unbind(-1)
    _, (of_red, _, of_blue), _ = _from_bt601(matrix).tolist()
    # Green by the matrix of the file lies between 0 and this where green by BT.601 was below 0; likewise above.
    below = (green == 0) & (of_red * red + of_blue * blue > 2)
    above = (green == 255) & (of_red * (255 - red) + of_blue * (255 - blue) > 2)
    return bool((below | above).float().mean() <= _CLIPPED_AT_MOST)


class DaliDecoder:
    """The pipelines of one loader. Outputs are torch tensors on DALI's own memory, which they keep alive."""

    def __init__(self, settings: ClipSettings, form: ClipFormat, device: torch.device) -> None:
        self._settings, self._form, self._device = settings, form, device
        # DALI draws a crop for a whole video: where each frame has its own, it decodes and torch does the rest.
        self._raw = settings.behaviour == "official"
        self._pipelines: dict[tuple[str, bool], object] = {}

    def decode(self, requests: Sequence[Request]) -> list[Decoded]:
        """The frames and masks of each request, transformed.

        Raises:
            DaliError: something in one of the requests does not decode.
        """
        videos = [n for n, request in enumerate(requests) if not request.images]
        images = [n for n, request in enumerate(requests) if request.images]
        try:
            running = {} if self._raw else {"masks": self._start_masks(requests)}
            if videos:
                running["videos"] = self._start_videos([requests[n] for n in videos])
            if images:
                running["images"] = self._start_images([requests[n] for n in images])
            done = {name: pipeline.outputs() for name, pipeline in running.items()}
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except (RuntimeError, ValueError, IndexError) as error:
            # A pipeline in which something failed is not usable any more.
            self._pipelines.clear()
            raise DaliError(_reason(error)) from None
        clips: dict[int, Tensor] = {}
        decoded = dict(zip(videos, map(torch.from_dlpack, done["videos"][1]), strict=True)) if videos else {}
        if self._raw:
            pixels = map(torch.from_dlpack, done["images"][0] if images else ())
            decoded |= {n: torch.stack([next(pixels) for _ in requests[n].encoded]) for n in images}
            return [self._transformed(request, decoded[n]) for n, request in enumerate(requests)]
        if videos:
            clips |= zip(videos, torch.from_dlpack(done["videos"][0].as_tensor()), strict=True)
        if images:
            stacked = torch.from_dlpack(done["images"][0].as_tensor()).unflatten(0, (len(images), -1))
            clips |= zip(images, stacked, strict=True)
        return [
            Decoded(clips[n], self._masks(request, planes), request.images or _exact(decoded[n], request.video.matrix))
            for n, (request, planes) in enumerate(zip(requests, done["masks"][0], strict=True))
        ]

    def _transformed(self, request: Request, pixels: Tensor) -> Decoded:
        upright = pixels.permute(0, 3, 1, 2)
        if not request.images:
            turn = request.video.orientation
            upright = upright.transpose(2, 3) if turn.transpose else upright
            upright = upright.flip([axis for axis, flips in ((2, turn.flip_rows), (3, turn.flip_columns)) if flips])
        frames = transform_frames(upright, request.plan, self._form)
        masks = transform_masks(torch.from_numpy(request.masks).to(self._device), request.plan, self._form.size)
        return Decoded(frames, masks, request.images or _exact(pixels, request.video.matrix))

    def _masks(self, request: Request, output: object) -> Tensor:
        number, length = request.masks.shape[:2]
        return torch.from_dlpack(output)[: number * length, ..., 0].unflatten(0, (number, length))

    def _start_masks(self, requests: Sequence[Request]) -> object:
        # DALI takes no empty samples: a clip without instances has one plane, which is cut off what comes back.
        planes = [r.masks.reshape(-1, *r.masks.shape[2:], 1) for r in requests]
        planes = [p if len(p) else np.zeros((1, *p.shape[1:]), np.uint8) for p in planes]
        # One rotation a plane, in the order of the planes.
        turns = [np.tile(r.plan.rotations(self._form.size), (max(1, len(r.masks)), 1, 1)) for r in requests]
        rotations = [found[: len(p)] for found, p in zip(turns, planes, strict=True)]
        return self._start("masks", [r.plan for r in requests], {"planes": planes, "rotations": rotations})

    def _start_videos(self, requests: Sequence[Request]) -> object:
        feeds = {"encoded": [r.encoded[0] for r in requests], "numbers": [r.numbers for r in requests]}
        size, turns = self._form.size, [r.video.orientation for r in requests]
        # What turns a frame upright is part of its rotation: until then its sides may be swapped.
        feeds["size"] = [np.array(size[::-1] if turn.transpose else size, np.float32) for turn in turns]
        feeds["rotations"] = [
            np.ascontiguousarray((turn.matrix(size) @ _square(r.plan.rotations(size)))[:, :2])
            for r, turn in zip(requests, turns, strict=True)
        ]
        boxes = [
            turn.box(r.plan.corner[0], r.plan.extent[0], r.video.size) for r, turn in zip(requests, turns, strict=True)
        ]
        return self._start("videos", [r.plan for r in requests], feeds, boxes)

    def _start_images(self, requests: Sequence[Request]) -> object:
        plans = [r.plan for r in requests for _ in r.encoded]
        rotations = [rotation for r in requests for rotation in r.plan.rotations(self._form.size)]
        feeds = {"encoded": [image for r in requests for image in r.encoded], "rotations": rotations}
        return self._start("images", plans, feeds)

    def _start(
        self,
        kind: str,
        plans: Sequence[ClipPlan],
        feeds: dict[str, list[np.ndarray]],
        boxes: list[tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> object:
        # The step costs time, so it is left out where nothing is turned.
        turns = not self._raw and any((rotation != np.eye(2, 3)).any() for rotation in feeds["rotations"])
        pipeline = self._pipelines.get((kind, turns))
        if pipeline is None:
            pipeline = _build(kind, self._settings, self._form, self._device, turns=turns)
            self._pipelines[kind, turns] = pipeline
        corners, extents = zip(*(boxes or [(plan.corner[0], plan.extent[0]) for plan in plans]), strict=True)
        feeds = feeds | {
            "corner": [corner.astype(np.int32) for corner in corners],
            "extent": [extent.astype(np.int32) for extent in extents],
            "mirrored": [np.array(plan.mirrored, np.int32) for plan in plans],
            "matrix": [np.ascontiguousarray(plan.color[0, :, :3]) for plan in plans],
            "offset": [np.ascontiguousarray(plan.color[0, :, 3]) for plan in plans],
        }
        for name in _inputs(kind, raw=self._raw, turns=turns):
            pipeline.feed_input(name, feeds[name])
        pipeline.schedule_run()
        return pipeline


def _inputs(kind: str, *, raw: bool, turns: bool) -> tuple[str, ...]:
    """Names of what a pipeline is fed."""
    source = {"masks": ("planes",), "videos": ("encoded", "numbers"), "images": ("encoded",)}[kind]
    if raw:
        return source
    placed = ("corner", "extent", "mirrored", *(("size",) if kind == "videos" else ()))
    return (*source, *placed, *(("rotations",) if turns else ()), *(() if kind == "masks" else ("matrix", "offset")))


def _square(affine: np.ndarray) -> np.ndarray:
    """``[T, 2, 3]`` as ``[T, 3, 3]``."""
    return np.concatenate([affine, np.tile(np.array([[[0, 0, 1]]], affine.dtype), (len(affine), 1, 1))], 1)


def _reason(error: Exception) -> str:
    """The line of DALI's message that says what happened; the others say where."""
    return str(error).rpartition("encountered:")[2].strip().partition("\n")[0]


def _build(kind: str, settings: ClipSettings, form: ClipFormat, device: torch.device, *, turns: bool) -> object:
    from nvidia.dali import fn, math, pipeline_def, types

    gpu = device.type == "cuda"
    clips = settings.batch * (2 if settings.copy_paste else 1)

    def resized(planes: object) -> object:
        box = fn.slice(
            planes, start=fn.external_source(name="corner"), shape=fn.external_source(name="extent"), axis_names="HW"
        )
        size = fn.external_source(name="size") if kind == "videos" else form.size
        return fn.resize(box, size=size, dtype=types.FLOAT, interp_type=types.INTERP_LINEAR, antialias=True)

    def rotated(planes: object) -> object:
        if not turns:
            return planes
        rotations = fn.external_source(name="rotations")
        matrix = rotations if kind == "images" else fn.per_frame(rotations)
        return fn.warp_affine(planes, matrix=matrix, size=form.size, fill_value=0, interp_type=types.INTERP_LINEAR)

    def finished(pixels: object, layout: str) -> object:
        if settings.behaviour == "official":
            return pixels
        matrix, offset = fn.external_source(name="matrix"), fn.external_source(name="offset")
        colored = math.clamp(fn.coord_transform(resized(pixels), M=matrix, T=offset), 0, 255)
        return fn.crop_mirror_normalize(
            rotated(fn.reinterpret(colored, layout=layout)),
            mirror=fn.external_source(name="mirrored"),
            mean=list(form.mean),
            std=list(form.std),
            dtype=types.FLOAT,
            output_layout=layout.replace("HWC", "CHW"),
        )

    # One batch is in flight: the loader's own thread starts the next one while this one is trained on.
    @pipeline_def(
        batch_size=clips * (settings.frames if kind == "images" else 1),
        num_threads=settings.workers,
        device_id=(torch.cuda.current_device() if device.index is None else device.index) if gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def pipeline() -> object:
        if kind == "masks":
            planes = fn.external_source(name="planes", layout="FHWC")
            placed = rotated(resized(planes.gpu() if gpu else planes))
            return fn.flip(placed, horizontal=fn.external_source(name="mirrored")) >= HALF
        encoded = fn.external_source(name="encoded")
        where = "mixed" if gpu else "cpu"
        if kind == "images":
            return finished(fn.decoders.image(encoded, device=where, output_type=types.RGB), "HWC")
        decoded = fn.decoders.video(encoded, frames=fn.external_source(name="numbers"), device=where)
        return finished(decoded, "FHWC"), decoded

    built = pipeline()
    built.build()
    return built
