"""Predict: a video and a model in, instance tracks on every frame out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from s2d.data.files import atomic_write, read_json, write_json
from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.models import VideoMask2Former
from s2d.models.inference import best_queries, binary_masks, input_size
from s2d.ops import RLE, BitMasks, mask_area, mask_iou, rle_area, rle_decode, rle_encode
from s2d.stages._refine import refined_masks

# Pixels of the source that refinement holds at a time.
_SOURCE_BYTES = 1 << 27
# Share of the threshold from which on a query is followed.
_ENTRY = 0.75


@dataclass(frozen=True)
class PredictSettings:
    """How a video is turned into tracks.

    Attributes:
        window: frames that enter the model at once; a longer video is cut into windows.
        overlap: frames that neighbouring windows share, at most half a window; tracks are stitched there.
        top_k: the most queries that a window can give.
        score_threshold: tracks below it are dropped, in [0, 1]. A query enters a window from three quarters of it on,
            so that a track outlives a weak moment.
        nms_threshold: a track is dropped if its tube overlaps a better one's by more than this IoU, taken over the
            frames that show it.
        stitch_iou: the least IoU, over the shared frames, of two tubes that are stitched.
        refine: draw the masks to the edges of the frames (a guided filter) instead of enlarging them alone.
    """

    window: int = 32
    overlap: int = 8
    top_k: int = 50
    score_threshold: float = 0.5
    nms_threshold: float = 0.75
    stitch_iou: float = 0.3
    refine: bool = True

    def __post_init__(self) -> None:
        if self.window < 1 or self.top_k < 1:
            raise InputError(f"expected window and top_k of at least 1, got {self.window} and {self.top_k}")
        if not 0 <= self.overlap <= self.window // 2:
            raise InputError(f"expected overlap from 0 to half of window = {self.window}, got {self.overlap}")
        for name in ("score_threshold", "nms_threshold", "stitch_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected {name} in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class _Window:
    """What the model says about frames ``start`` to ``stop``: K queries, ``rle`` holds K * (stop - start) masks."""

    start: int
    stop: int
    queries: Tensor
    scores: Tensor
    rle: RLE

    def rows(self, frames: range) -> Tensor:
        """Where the masks of every query in some frames of the video lie in ``rle``: int64 ``[K, len(frames)]``."""
        inside = torch.arange(frames.start - self.start, frames.stop - self.start)
        return torch.arange(len(self.queries))[:, None] * (self.stop - self.start) + inside


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
    whose masks are enlarged to the size of the source. Neighbouring windows are stitched by the IoU of their tubes on
    the shared frames, where being the same query breaks a tie. Memory is bounded by the window, not by the video.

    Args:
        video: its frames; masks come at ``video.source_size``.
        model: the network; put into evaluation mode and back.
        settings: see `PredictSettings`.
        work: folder for finished windows; a later call with the same video, model and settings continues from it.
        progress: whether to show a progress bar.

    Returns:
        `Tracks`, best score first; the score is the mean over the frames that show the instance.
    """
    settings = PredictSettings() if settings is None else settings
    store = _Store(work, _fingerprint(video, model, settings))
    was_training = model.training
    model.eval()
    try:
        windows = []
        for start, stop in tqdm(_spans(video.num_frames, settings), desc="predict", disable=not progress):
            window = store.load(start, stop)
            if window is None:
                window = _predict_window(video, model, settings, start, stop)
                store.save(window)
            windows.append(window)
    finally:
        model.train(was_training)
    return _stitch(windows, video, settings)


def _spans(frames: int, settings: PredictSettings) -> list[tuple[int, int]]:
    """First and last + 1 frame of every window."""
    step = settings.window - settings.overlap
    last = max(0, -(-(frames - settings.window) // step)) * step
    return [(start, min(start + settings.window, frames)) for start in range(0, last + 1, step)]


@torch.inference_mode()
def _predict_window(video: Video, model: VideoMask2Former, settings: PredictSettings, start: int, stop: int) -> _Window:
    inner, outer = input_size(video.source_size, model.config), video.source_size
    clip = video.resized(size=inner).clip(start, stop)
    keep = None
    if start > 0 and stop - start < settings.window:
        # A short last window is filled up with hidden copies, so that time means the same to the model in all windows.
        missing = settings.window - (stop - start)
        clip = torch.cat([clip, clip[-1:].expand(missing, -1, -1, -1)])
        keep = (torch.arange(settings.window) < stop - start)[None].to(model.pixel_mean.device)
    output = model(clip[None].to(model.pixel_mean.device), keep)
    scores, queries = best_queries(output["pred_logits"][0].float().cpu(), settings.top_k)
    queries = queries[scores >= _ENTRY * settings.score_threshold]
    masks = output["pred_masks"][0, queries.to(model.pixel_mean.device), : stop - start].float()
    seen = (masks > 0).flatten(1).any(1).cpu()
    masks, queries, scores = masks[seen.to(masks.device)], queries[seen], scores[: len(queries)][seen]
    if settings.refine and len(queries):
        bits = _refined(masks.cpu(), video, start, inner)
    else:
        bits = binary_masks(masks, inner, outer).to("cpu")
    rle = rle_encode(BitMasks(bits.words.view(-1, *bits.words.shape[2:]), bits.width))
    return _Window(start, stop, queries.clone(), scores.clone(), rle)


def _refined(mask_logits: Tensor, video: Video, start: int, inner: tuple[int, int]) -> BitMasks:
    """`refined_masks` of the frames from ``start`` on, few enough at once to bound the memory of their pixels."""
    height, width = video.source_size
    at_once = max(1, _SOURCE_BYTES // (3 * height * width))
    source = video.resized(size=video.source_size)
    parts = [
        refined_masks(part, source.clip(start + first, start + first + part.shape[1]), inner).words
        for first, part in zip(range(0, mask_logits.shape[1], at_once), mask_logits.split(at_once, dim=1), strict=True)
    ]
    return BitMasks(torch.cat(parts, dim=1), width)


def _stitch(windows: Sequence[_Window], video: Video, settings: PredictSettings) -> Tracks:
    """Give every query of every window a track, and every track its mask in each frame."""
    bases = torch.tensor([0, *(len(window.rle) for window in windows)]).cumsum(0)
    sources: list[Tensor] = []
    previous: list[int] = []
    for index, window in enumerate(windows):
        shared = range(window.start, windows[index - 1].stop if index else window.start)
        partners = _partners(windows[index - 1], window, shared, settings) if index else {}
        rows = window.rows(range(window.start, window.stop))
        rows = torch.where(rle_area(window.rle).view(rows.shape) > 0, rows + bases[index], -1)
        tracks = []
        for query in range(len(window.queries)):
            if query in partners:
                track = previous[partners[query]]
                # Each window is trusted on its own side of the shared frames: near its border it has seen less.
                skipped = len(shared) // 2
            else:
                track, skipped = len(sources), 0
                sources.append(torch.full((video.num_frames,), -1))
            sources[track][window.start + skipped : window.stop] = rows[query, skipped:]
            tracks.append(track)
        previous = tracks
    source = torch.stack(sources) if sources else torch.zeros(0, video.num_frames, dtype=torch.int64)
    return _assemble(windows, source, video, settings)


def _assemble(windows: Sequence[_Window], source: Tensor, video: Video, settings: PredictSettings) -> Tracks:
    """Tracks from the place of each mask among all windows' masks: int64 ``[N, T]``, -1 for none."""
    # One empty mask, of score 0, behind all others is what -1 refers to.
    rle = RLE.cat([*(window.rle for window in windows), RLE.empty(1, *video.source_size)])
    per_mask = [window.scores.repeat_interleave(window.stop - window.start) for window in windows]
    of_masks = torch.cat([*per_mask, torch.zeros(1)]).double()
    annotated = source >= 0
    scores = (of_masks[source].sum(1) / annotated.sum(1)).float()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] >= settings.score_threshold]
    overlaps = _overlaps(rle, source[order], settings.window)
    kept: list[int] = []
    for track in range(len(order)):
        if all(overlaps[track, better] <= settings.nms_threshold for better in kept):
            kept.append(track)
    order = order[kept]
    return Tracks(video.name, video.source_size, rle[source[order].flatten()], annotated[order], scores[order])


def _overlaps(rle: RLE, source: Tensor, at_once: int) -> Tensor:
    """IoU ``[N, N]`` of every track with those before it, over the frames that show it; a few frames at a time."""
    shared = torch.zeros(len(source), len(source), dtype=torch.int64)
    for frames in source.split(at_once, dim=1):
        bits = _decoded(rle, frames)
        for track in range(len(source)):
            common = BitMasks(bits.words[track] & bits.words[: track + 1], bits.width)
            shared[track, : track + 1] += mask_area(common).sum(1)
    # A part of a better track is its duplicate too, however short: areas count in the frames of the row's track.
    areas = rle_area(rle)[source]
    area = (areas > 0).long() @ areas.T
    return shared / (area.diagonal()[:, None] + area - shared).clamp(min=1)


def _decoded(rle: RLE, rows: Tensor) -> BitMasks:
    """Tubes ``[N, T, H, W]`` from the places of their masks, int64 ``[N, T]``."""
    flat = rle_decode(rle[rows.flatten()])
    return BitMasks(flat.words.view(*rows.shape, *flat.words.shape[1:]), flat.width)


def _partners(earlier: _Window, later: _Window, shared: range, settings: PredictSettings) -> dict[int, int]:
    """Which query of the earlier window each query of the later one continues: places in ``queries``."""
    same = earlier.queries[:, None] == later.queries[None, :]
    if same.numel() == 0 or len(shared) == 0:
        return {}
    before, after = (_decoded(window.rle, window.rows(shared)) for window in (earlier, later))
    unseen = (mask_area(before).sum(1)[:, None] + mask_area(after).sum(1)[None, :]) == 0
    iou = mask_iou(before, after)
    allowed = (iou >= settings.stitch_iou) | (unseen & same)
    gain = torch.where(allowed, iou + 0.1 * same, 0.0)
    rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    return {int(b): int(a) for a, b in zip(rows, columns, strict=True) if allowed[a, b]}


class _Store:
    """Finished windows in a folder, as long as they belong to the same prediction."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        label = self.folder / "predict.json"
        if not label.is_file() or read_json(label) != fingerprint:
            for stale in self.folder.glob("window_*.pt"):
                stale.unlink()
            write_json(label, fingerprint)

    def load(self, start: int, stop: int) -> _Window | None:
        path = self._path(start)
        if path is None or not path.is_file():
            return None
        held = torch.load(path, weights_only=True)
        rle = RLE(held["counts"], held["offsets"], held["sizes"])
        return _Window(start, stop, held["queries"], held["scores"], rle)

    def save(self, window: _Window) -> None:
        path = self._path(window.start)
        if path is None:
            return
        rle = window.rle
        content = {"queries": window.queries, "scores": window.scores, "counts": rle.counts}
        with atomic_write(path) as temporary:
            torch.save({**content, "offsets": rle.offsets, "sizes": rle.sizes.contiguous()}, temporary)

    def _path(self, start: int) -> Path | None:
        return None if self.folder is None else self.folder / f"window_{start:08d}.pt"


def _fingerprint(video: Video, model: VideoMask2Former, settings: PredictSettings) -> str:
    """Changes with anything that the windows depend on."""
    about = [video.name, video.num_frames, video.source_size, asdict(settings), model.config.to_dict()]
    digest = hashlib.sha256(json.dumps(about).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
