"""Results as pictures: label maps, the overlay video and the timeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s2d.data.label_maps import write_label_maps
from s2d.data.types import FrameMasks, Keymasks, Tracks
from s2d.data.video import Video
from s2d.metrics.tubes import at_size
from s2d.ops import BitMasks, mask_iou, unpack_masks
from s2d.viz import Evidence, OverlayPainter, draw_timeline, write_overlay

PICTURES = 5
PICTURE_SIDE = 270
# From this IoU on a mask of a frame counts as one of the instance whose track it covers.
SAME = 0.5
# Frames whose tracks are decoded at once.
CHUNK = 16


def render(
    video: Video, tracks: Tracks, keymasks: Keymasks, proposals: FrameMasks, out: Path, *, progress: bool = True
) -> None:
    """Write ``masks/``, ``overlay.mp4`` and ``timeline.png`` into the folder ``out``.

    Args:
        video: at the size of the tracks.
        tracks: the final instances.
        keymasks: what they were learnt from, at any size.
        proposals: what the keymasks were chosen from, at the size of the keymasks.
        out: an existing folder.
    """
    write_label_maps(out / "masks", tracks)
    write_overlay(out / "overlay.mp4", video, tracks, progress=progress)
    found = f"{len(tracks)} instance{'' if len(tracks) == 1 else 's'}" if len(tracks) else "nothing moves"
    draw_timeline(
        out / "timeline.png",
        collect_evidence(tracks, keymasks, proposals),
        title=f"{video.name}: {found} in {video.num_frames} frames",
        fps=float(video.fps),
        pictures=_pictures(video, tracks),
    )


def collect_evidence(tracks: Tracks, keymasks: Keymasks, proposals: FrameMasks) -> Evidence:
    """Which proposals and keymasks each track grew from.

    A mask belongs to the track that it overlaps most in its frame, if that IoU is at least 0.5. Keymasks carry their
    score, proposals their IoU; of several the greatest counts.
    """
    small = at_size(tracks, proposals.size)
    number, frames = len(tracks), tracks.num_frames
    proposed, kept = (np.zeros((number, frames)) for _ in range(2))
    others = np.zeros(frames, dtype=int)
    first = torch.searchsorted(proposals.frames, torch.arange(frames + 1)).tolist()
    for start in range(0, frames, CHUNK):
        span = slice(start, min(start + CHUNK, frames))
        tubes, keys = small.bits(span), keymasks.bits(span)
        for t in range(span.start, span.stop):
            present = BitMasks(tubes.words[:, t - start], tubes.width)
            single = proposals.bits(slice(first[t], first[t + 1]))
            others[t] = len(single)
            for n, iou in _owners(single, present):
                if iou >= SAME:
                    proposed[n, t] = max(proposed[n, t], iou)
                    others[t] -= 1
            annotated = keymasks.annotated[:, t].nonzero().flatten()
            scores = keymasks.mask_scores[annotated, t].tolist()
            chosen = BitMasks(keys.words[annotated, t - start], keys.width)
            for (n, iou), score in zip(_owners(chosen, present), scores, strict=True):
                if iou >= SAME:
                    kept[n, t] = max(kept[n, t], score, 0.05)
    return Evidence(proposed, kept, tracks.annotated.numpy().astype(float), tracks.scores.numpy(), others)


def _owners(masks: BitMasks, tracks: BitMasks) -> list[tuple[int, float]]:
    """For each mask ``[N, H, W]`` of a frame the track ``[M, H, W]`` that overlaps it most, and their IoU."""
    if len(masks) == 0 or len(tracks) == 0:
        return [(0, 0.0)] * len(masks)
    best = mask_iou(masks, tracks).max(1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _pictures(video: Video, tracks: Tracks) -> list[tuple[int, Tensor]]:
    """A few painted frames, small, each from the middle of its share of the video."""
    little = video.resized(short_side=PICTURE_SIDE)
    small = at_size(tracks, little.size) if len(tracks) else tracks
    number = min(PICTURES, video.num_frames)
    pictures = []
    for place in range(number):
        t = int((place + 0.5) * video.num_frames / number)
        masks = unpack_masks(small.bits(slice(t, t + 1)))[:, 0] if len(tracks) else torch.zeros(0, *little.size)
        pictures.append((t, OverlayPainter(little.size, emphasis=1.6).paint(little.frame(t), masks)))
    return pictures
