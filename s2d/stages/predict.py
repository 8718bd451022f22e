"""Predict: a video and a model in, instance tracks on every frame out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from s2d.data.files import atomic_write, read_json, write_json
from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.models import VideoMask2Former
from s2d.models.inference import (
    PRECISIONS,
    ClipQueries,
    best_queries,
    binary_masks,
    check_precision,
    input_size,
    official_input_size,
    read_clip,
)
from s2d.ops import RLE, BitMasks, rle_area, rle_encode
from s2d.stages._memory import clip_bytes, format_bytes, longest_clip, parse_bytes
from s2d.stages._refine import refined_masks
from s2d.stages._stitch import Rules, Window, stitch

# Bytes of the source's pixels that are held at a time.
_SOURCE_BYTES = 1 << 26
# Share of the threshold from which on a query is followed.
_ENTRY = 0.75


@dataclass(frozen=True)
class PredictSettings:
    """How a video is turned into tracks.

    Attributes:
        window: frames that enter the model at once; a longer video is cut into windows. None: the whole video where
            that fits into ``memory``, else as many frames as fit.
        overlap: frames that neighbouring windows share, at most half a window; tracks are stitched there.
        memory: bytes that the process may take where ``window`` is None; `plan_windows` estimates what it needs.
        top_k: the most queries that a window can give.
        score_threshold: tracks below it are dropped, in [0, 1]. A query enters a window from three quarters of it on,
            so that a track outlives a weak moment.
        nms_threshold: a track is dropped if its tube overlaps a better one's by more than this IoU, taken over the
            frames that show it; 1 drops none. None: as the model's config says.
        stitch_iou: the least IoU, over the shared frames, of two tubes that are stitched.
        refine: draw the masks to the edges of the frames (a guided filter) instead of enlarging them alone.
        official: as the released code: small frames are enlarged, Pillow resizes them, tracks are on all frames of
            their windows, whether there are pixels or not.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; see `s2d.models.inference.read_clip`.
    """

    window: int | None = 32
    overlap: int = 8
    memory: int = 4_000_000_000
    top_k: int = 50
    score_threshold: float = 0.5
    nms_threshold: float | None = None
    stitch_iou: float = 0.3
    refine: bool = True
    official: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.top_k < 1 or (self.window is not None and self.window < 1):
            raise InputError(f"expected window and top_k of at least 1, got {self.window} and {self.top_k}")
        if self.overlap < 0 or (self.window is not None and self.overlap > self.window // 2):
            raise InputError(f"expected overlap from 0 to half of window = {self.window}, got {self.overlap}")
        for name in ("score_threshold", "nms_threshold", "stitch_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"expected {name} in [0, 1], got {value}")
        if self.precision not in PRECISIONS:
            raise InputError(f"expected a precision of {', '.join(PRECISIONS)}, got {self.precision!r}")


_OFFICIAL = PredictSettings(window=None, score_threshold=0.0, refine=False, official=True)
SETTINGS = {
    "default": PredictSettings(),
    "videocutler": dataclasses.replace(_OFFICIAL, top_k=10, nms_threshold=1.0),
    "s2d": dataclasses.replace(_OFFICIAL, top_k=50, nms_threshold=0.75),
}


def named_settings(
    name: str = "default", *, window: int | None = None, memory: str | None = None, precision: str = "fp32"
) -> PredictSettings:
    """Settings by name, with what a user may change.

    Args:
        name: ``"default"``, or the inference of a released config: ``"videocutler"`` (the best 10 queries) or ``"s2d"``
            (the best 50, less duplicates); both see the whole video as one clip where memory allows.
        window: frames at once, whatever ``memory`` says.
        memory: an amount such as ``"4GB"`` that the process may take: the window is as long as that allows.
        precision: see `PredictSettings`.

    Raises:
        InputError: an unknown name, or a value that cannot be.
    """
    if name not in SETTINGS:
        raise InputError(f"expected settings of the name {', '.join(SETTINGS)}, got {name!r}")
    settings = dataclasses.replace(SETTINGS[name], precision=precision)
    if memory is not None:
        settings = dataclasses.replace(settings, window=None, memory=parse_bytes(memory))
    if window is not None:
        settings = dataclasses.replace(settings, window=window, overlap=min(settings.overlap, window // 2))
    return settings


@dataclass(frozen=True)
class WindowPlan:
    """How a video is cut.

    Attributes:
        window: frames that enter the model at once.
        spans: first and last + 1 frame of every window; the last may be shorter.
        bytes: what the process needs, by estimate.
    """

    window: int
    spans: tuple[tuple[int, int], ...]
    bytes: int

    def __str__(self) -> str:
        parts = "one clip" if len(self.spans) == 1 else f"{len(self.spans)} windows"
        return f"{parts} of {self.window} frames, about {format_bytes(self.bytes)} of memory"


def plan_windows(video: Video, model: VideoMask2Former, settings: PredictSettings) -> WindowPlan:
    """Cut a video into the windows that `predict` reads.

    Raises:
        InputError: not even one frame fits into ``settings.memory``.
    """
    inner, frames = _input_size(video, model, settings), video.num_frames
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    window, overlap, device = settings.window, settings.overlap, model.pixel_mean.device.type
    if window is None:
        window = longest_clip(model.config, weights, inner, frames, settings.memory, device)
        overlap = min(overlap, window // 2)
    window = min(window, frames)
    step = max(1, window - overlap)
    last = max(0, -(-(frames - window) // step)) * step
    spans = tuple((start, min(start + window, frames)) for start in range(0, last + 1, step))
    return WindowPlan(window, spans, clip_bytes(model.config, weights, inner, window, device))


def predict(
    video: Video,
    model: VideoMask2Former,
    settings: PredictSettings | None = None,
    *,
    work: Path | None = None,
    progress: bool = True,
) -> Tracks:
    """Follow the instances that a model sees through a video.

    Windows of frames, resized as the model was trained, enter the model one after another. Each gives its best queries,
    whose masks alone are made and enlarged to the size of the source, a few at a time, straight to bits and run-length
    codes. Neighbouring windows are stitched by the IoU of their tubes on the shared frames, where being the same query
    breaks a tie. Memory is bounded by the window, not by the video.

    Args:
        video: its frames; masks come at ``video.source_size``.
        model: the network; put into evaluation mode and back.
        settings: see `PredictSettings`.
        work: folder for finished windows; a later call with the same video, model and settings continues from it.
        progress: whether to show a progress bar.

    Returns:
        `Tracks`, best score first; the score is the mean over the frames that show the instance.

    Raises:
        InputError: not one frame fits into the memory, or the model's device does not compute in the precision.
    """
    settings = PredictSettings() if settings is None else settings
    check_precision(settings.precision, model.pixel_mean.device)
    plan = plan_windows(video, model, settings)
    store = None if work is None else _Store(work, _fingerprint(video, model, settings))
    was_training = model.training
    model.eval()
    windows = []
    frames = sum(stop - start for start, stop in plan.spans)
    try:
        with tqdm(total=frames, desc="predict", unit="frame", disable=not progress) as bar:
            for start, stop in plan.spans:
                window = store.load(start, stop) if store else None
                if window is None:
                    hidden = plan.window - (stop - start)
                    window = _predict_window(video, model, settings, (start, stop), hidden, bar.update)
                    if store:
                        store.save(window)
                else:
                    bar.update(stop - start)
                windows.append(window)
    finally:
        model.train(was_training)
    nms = model.config.nms_threshold if settings.nms_threshold is None else settings.nms_threshold
    return stitch(windows, video, Rules(settings.score_threshold, nms, settings.stitch_iou, settings.official))


def _predict_window(
    video: Video,
    model: VideoMask2Former,
    settings: PredictSettings,
    span: tuple[int, int],
    hidden: int,
    advance: Callable[[int], object],
) -> Window:
    """One window; a short last one is filled up with hidden frames, so that time means the same in all windows."""
    start, stop = span
    inner = _input_size(video, model, settings)
    if settings.official:
        clip = torch.stack([_resized_by_pillow(frame, inner) for frame in _source_frames(video, start, stop)])
    else:
        clip = video.resized(size=inner).clip(start, stop)
    seen = read_clip(model, clip, hidden, settings.precision, advance)
    scores, queries = best_queries(seen.logits.cpu(), settings.top_k)
    entered = scores >= _ENTRY * settings.score_threshold
    scores, queries = scores[entered], queries[entered]
    rle = _encoded(seen, queries, video, inner, start, settings.refine)
    if not settings.official:
        shown = (rle_area(rle).view(len(queries), stop - start) > 0).any(1)
        rle = rle[torch.arange(len(rle)).view(len(queries), stop - start)[shown].flatten()]
        scores, queries = scores[shown], queries[shown]
    return Window(start, stop, queries, scores, rle)


def _encoded(seen: ClipQueries, queries: Tensor, video: Video, inner: tuple[int, int], start: int, refine: bool) -> RLE:
    """Masks of some queries at the size of the source, query by query; made frame by frame."""
    number, frames = len(queries), len(seen.mask_features)
    if number == 0:
        return RLE.empty(0, *video.source_size)
    source = _source_frames(video, start, start + frames) if refine else repeat(None, frames)
    parts = []
    for t, frame in enumerate(source):
        logits = seen.mask_logits(queries.to(seen.embeds.device), t)[:, None]
        if frame is None:
            bits = binary_masks(logits, inner, video.source_size)
        else:
            bits = refined_masks(logits.cpu(), frame[None], inner)
        parts.append(rle_encode(BitMasks(bits.words[:, 0], bits.width)).to("cpu"))
    return RLE.cat(parts)[torch.arange(frames * number).view(frames, number).T.flatten()]


def _input_size(video: Video, model: VideoMask2Former, settings: PredictSettings) -> tuple[int, int]:
    return (official_input_size if settings.official else input_size)(video.source_size, model.config)


def _source_frames(video: Video, start: int, stop: int) -> Iterator[Tensor]:
    """Frames uint8 ``[3, H, W]`` at the size of the source, few enough at once to bound the memory of their pixels."""
    height, width = video.source_size
    at_once = max(1, _SOURCE_BYTES // (3 * height * width))
    source = video.resized(size=video.source_size)
    for first in range(start, stop, at_once):
        yield from source.clip(first, min(first + at_once, stop))


def _resized_by_pillow(frame: Tensor, size: tuple[int, int]) -> Tensor:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Store:
    """Finished windows in a folder, as long as they belong to the same prediction."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = Path(folder)
        label = self.folder / "predict.json"
        if not label.is_file() or read_json(label) != fingerprint:
            for stale in self.folder.glob("window_*.pt"):
                stale.unlink()
            write_json(label, fingerprint)

    def load(self, start: int, stop: int) -> Window | None:
        path = self._path(start)
        if not path.is_file():
            return None
        held = torch.load(path, weights_only=True)
        rle = RLE(held["counts"], held["offsets"], held["sizes"])
        return Window(start, stop, held["queries"], held["scores"], rle)

    def save(self, window: Window) -> None:
        rle = window.rle
        content = {"queries": window.queries, "scores": window.scores, "counts": rle.counts}
        with atomic_write(self._path(window.start)) as temporary:
            torch.save({**content, "offsets": rle.offsets, "sizes": rle.sizes.contiguous()}, temporary)

    def _path(self, start: int) -> Path:
        return self.folder / f"window_{start:08d}.pt"


def _fingerprint(video: Video, model: VideoMask2Former, settings: PredictSettings) -> str:
    """Changes with anything that the windows depend on."""
    about = [video.name, video.num_frames, video.source_size, asdict(settings), model.config.to_dict()]
    digest = hashlib.sha256(json.dumps(about).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
