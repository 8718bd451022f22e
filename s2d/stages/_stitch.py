"""Windows of a video joined to tracks, and tracks that repeat a better one dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.ops import RLE, BitMasks, mask_area, rle_area, rle_decode

# Bytes of bits that are compared at a time.
_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Window:
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


@dataclass(frozen=True)
class Rules:
    """How `stitch` decides; see `PredictSettings`, of which these are."""

    score_threshold: float
    nms_threshold: float
    stitch_iou: float
    keep_empty: bool


def stitch(windows: Sequence[Window], video: Video, rules: Rules) -> Tracks:
    """Give every query of every window a track, and every track its mask in each frame."""
    bases = torch.tensor([0, *(len(window.rle) for window in windows)]).cumsum(0)
    sources: list[Tensor] = []
    previous: list[int] = []
    for index, window in enumerate(windows):
        shared = range(window.start, windows[index - 1].stop if index else window.start)
        partners = _partners(windows[index - 1], window, shared, rules.stitch_iou) if index else {}
        rows = window.rows(range(window.start, window.stop))
        seen = (rle_area(window.rle).view(rows.shape) > 0) | rules.keep_empty
        rows = torch.where(seen, rows + bases[index], -1)
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
    return _assemble(windows, source, video, rules)


def _assemble(windows: Sequence[Window], source: Tensor, video: Video, rules: Rules) -> Tracks:
    """Tracks from the place of each mask among all windows' masks: int64 ``[N, T]``, -1 for none."""
    # One empty mask, of score 0, behind all others is what -1 refers to.
    rle = RLE.cat([*(window.rle for window in windows), RLE.empty(1, *video.source_size)])
    per_mask = [window.scores.repeat_interleave(window.stop - window.start) for window in windows]
    of_masks = torch.cat([*per_mask, torch.zeros(1)]).double()
    annotated = source >= 0
    scores = (of_masks[source].sum(1) / annotated.sum(1)).float()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] >= rules.score_threshold]
    if rules.nms_threshold < 1:
        overlaps = _overlaps(rle, source[order])
        kept: list[int] = []
        for track in range(len(order)):
            if all(overlaps[track, better] <= rules.nms_threshold for better in kept):
                kept.append(track)
        order = order[kept]
    return Tracks(video.name, video.source_size, rle[source[order].flatten()], annotated[order], scores[order])


def _overlaps(rle: RLE, source: Tensor) -> Tensor:
    """IoU ``[N, N]`` of every track with those before it, over the frames in which it has a mask."""
    shared = torch.zeros(len(source), len(source), dtype=torch.int64)
    for frames in source.split(_frames_at_once(rle, 2 * len(source)), dim=1):
        bits = _decoded(rle, frames)
        for track in range(len(source)):
            shared[track, : track + 1] += _shared_pixels(bits[track], bits[: track + 1])
    # A part of a better track is its duplicate too, however short: areas count in the frames of the row's track.
    areas = rle_area(rle)[source]
    area = (source >= 0).long() @ areas.T
    return shared / (area.diagonal()[:, None] + area - shared).clamp(min=1)


def _shared_pixels(tube: BitMasks, tubes: BitMasks) -> Tensor:
    """Pixels ``[N]`` that a tube ``[T, H, W]`` shares with others ``[N, T, H, W]``."""
    return mask_area(BitMasks(tube.words & tubes.words, tubes.width)).sum(1)


def _frames_at_once(rle: RLE, masks: int) -> int:
    """Frames of so many masks each that are held as bits at a time."""
    height, width = rle.sizes[0].tolist()
    return max(1, _AT_ONCE // max(1, masks * 8 * height * -(-width // 64)))


def _decoded(rle: RLE, rows: Tensor) -> BitMasks:
    """Tubes ``[N, T, H, W]`` from the places of their masks, int64 ``[N, T]``."""
    flat = rle_decode(rle[rows.flatten()])
    return BitMasks(flat.words.view(*rows.shape, *flat.words.shape[1:]), flat.width)


def _partners(earlier: Window, later: Window, shared: range, least_iou: float) -> dict[int, int]:
    """Which query of the earlier window each query of the later one continues: places in ``queries``."""
    same = earlier.queries[:, None] == later.queries[None, :]
    if same.numel() == 0 or len(shared) == 0:
        return {}
    before, after = ((window.rle, window.rows(shared)) for window in (earlier, later))
    at_once = _frames_at_once(earlier.rle, len(earlier.queries) + 2 * len(later.queries))
    common = torch.zeros(same.shape, dtype=torch.int64)
    for frames in torch.arange(len(shared)).split(at_once):
        tubes, others = (_decoded(rle, rows[:, frames]) for rle, rows in (before, after))
        common += torch.stack([_shared_pixels(tubes[index], others) for index in range(len(tubes))])
    areas = [rle_area(rle)[rows].sum(1) for rle, rows in (before, after)]
    union = areas[0][:, None] + areas[1] - common
    iou = common / union.clamp(min=1)
    allowed = (iou >= least_iou) | ((union == 0) & same)
    gain = torch.where(allowed, iou + 0.1 * same, 0.0)
    places = linear_sum_assignment(gain.numpy(), maximize=True)
    return {int(b): int(a) for a, b in zip(*places, strict=True) if allowed[a, b]}
