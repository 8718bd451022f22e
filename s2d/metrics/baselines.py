"""What a tracker must beat: masks of single frames linked by overlap alone."""

from __future__ import annotations

import torch

from s2d.data.types import FrameMasks, Tracks
from s2d.ops import RLE, mask_iou


def link_greedily(masks: FrameMasks, *, iou_threshold: float = 0.3, max_gap: int = 2) -> Tracks:
    """Link masks of single frames to tracks by IoU, frame after frame.

    In each frame the pairs (open track, mask) are taken by descending IoU between the track's latest mask and the new
    one, down to ``iou_threshold``; a mask that is left opens a track of its own. A track stays open for ``max_gap``
    frames without a mask.

    Args:
        masks: proposals; masks of one frame may overlap.
        iou_threshold: least IoU of a link, in [0, 1].
        max_gap: frames that a track may miss, >= 0.

    Returns:
        `Tracks` ordered by descending score: mean score of the masks times the share of frames that have one.
    """
    first = torch.searchsorted(masks.frames, torch.arange(masks.num_frames + 1)).tolist()
    tracks: list[dict[int, int]] = []
    for frame in range(masks.num_frames):
        current = range(first[frame], first[frame + 1])
        open_tracks = [track for track in tracks if frame - max(track) <= max_gap + 1]
        pairs = []
        if current and open_tracks:
            latest = torch.tensor([track[max(track)] for track in open_tracks])
            iou = mask_iou(masks.bits(latest), masks.bits(torch.tensor(current)))
            pairs = (iou >= iou_threshold).nonzero().tolist()
            pairs.sort(key=lambda pair: -float(iou[tuple(pair)]))
        free = set(current)
        for row, column in pairs:
            track, mask = open_tracks[row], current[column]
            if frame not in track and mask in free:
                track[frame] = mask
                free.remove(mask)
        tracks += [{frame: mask} for mask in sorted(free)]
    scores = torch.tensor([float(masks.scores[list(t.values())].sum()) / masks.num_frames for t in tracks])
    order = torch.argsort(scores, descending=True, stable=True)
    return _assemble(masks, [tracks[i] for i in order.tolist()], scores[order])


def _assemble(masks: FrameMasks, tracks: list[dict[int, int]], scores: torch.Tensor) -> Tracks:
    empty = torch.tensor([masks.size[0] * masks.size[1]], dtype=torch.int32)
    bounds = masks.rle.offsets.tolist()
    counts = [
        masks.rle.counts[bounds[track[t]] : bounds[track[t] + 1]] if t in track else empty
        for track in tracks
        for t in range(masks.num_frames)
    ]
    annotated = torch.zeros(len(tracks), masks.num_frames, dtype=torch.bool)
    for row, track in enumerate(tracks):
        annotated[row, list(track)] = True
    sizes = torch.tensor([masks.size]).expand(len(counts), 2)
    return Tracks(masks.video, masks.size, RLE.from_counts(counts, sizes), annotated, scores.float())
