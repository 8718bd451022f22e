"""Two sets of predictions for the same videos: what got better, what got worse, and pictures of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from s2d.data.types import Tracks
from s2d.data.video import Video, open_video, write_video
from s2d.errors import InputError
from s2d.metrics.scores import Scores, interval
from s2d.ops import unpack_masks
from s2d.viz.overlay import OverlayPainter
from s2d.viz.table import text_table

GAP = 8


def compare(before: Scores, after: Scores) -> dict[str, Any]:
    """How numbers change from one set of predictions to the other.

    Returns:
        ``overall``: for each number ``before``, ``after``, ``change`` and, where there are samples, the 95 %
        ``interval`` of the change over equal draws of the videos; ``videos``: the same of each video's main number,
        greatest loss first.
    """
    overall: dict[str, dict[str, Any]] = {}
    for name, value in after.overall.items():
        overall[name] = _change(before.overall[name], value)
        if name in after.samples and name in before.samples:
            overall[name]["interval"] = list(interval(after.samples[name] - before.samples[name]))
    changes = {
        name: _change(before.videos[name][before.main], values[after.main]) for name, values in after.videos.items()
    }
    known = {name: change for name, change in changes.items() if not math.isnan(change["change"])}
    return {"overall": overall, "videos": dict(sorted(known.items(), key=lambda item: item[1]["change"]))}


def comparison_text(comparison: dict[str, Any], main: str, most: int = 10) -> str:
    """Tables of the numbers and of the videos that changed most either way."""
    rows = []
    for name, change in comparison["overall"].items():
        if math.isnan(change["change"]):
            continue
        ends = change.get("interval")
        span = "" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}"
        rows.append([name, f"{change['before']:.3f}", f"{change['after']:.3f}", f"{change['change']:+.3f}", span])
    blocks = [text_table(["all videos", "before", "after", "change", "95 % interval"], rows)]
    videos = list(comparison["videos"].items())
    worse = [item for item in videos if item[1]["change"] < 0][:most]
    better = [item for item in reversed(videos) if item[1]["change"] > 0][:most]
    for title, items in (("better", better), ("worse", worse)):
        rows = [[name, *(f"{c[key]:{sign}.3f}" for key, sign in _COLUMNS)] for name, c in items]
        if rows:
            blocks.append(text_table([f"{title}, by {main}", "before", "after", "change"], rows))
    counts = [sum(sign * c["change"] > 0 for _, c in videos) for sign in (1, -1)]
    blocks.append(f"{counts[0]} videos got better, {counts[1]} worse, {len(videos) - sum(counts)} did not change.")
    return "\n\n".join(blocks)


_COLUMNS = (("before", ""), ("after", ""), ("change", "+"))


def _change(before: float, after: float) -> dict[str, Any]:
    return {"before": before, "after": after, "change": after - before}


def most_changed(comparison: dict[str, Any], most: int) -> list[str]:
    """The videos whose main number changed most, either way."""
    changes = [(abs(change["change"]), name) for name, change in comparison["videos"].items()]
    return [name for size, name in sorted(changes, key=lambda item: -item[0])[:most] if size > 0]


def write_overlays(
    folder: Path,
    frames: Path,
    names: Sequence[str],
    sides: Sequence[Callable[[str], Tracks]],
    *,
    progress: bool = True,
) -> list[Path]:
    """Write ``folder/NAME.mp4`` for each name: the first predictions to the left, the second to the right.

    Args:
        frames: has ``NAME.mp4`` (or another video file), or a folder of images ``NAME``.
        sides: give the predictions of a video by its name.

    Raises:
        InputError: no frames of a video, or of another number or size than its masks.
    """
    written = []
    for name in names:
        pair = [side(name) for side in sides]
        found = [path for path in sorted(frames.glob(f"{name}*")) if path.stem == name or path.name == name]
        if not found:
            raise InputError(f"expected frames of video {name!r} in {frames}, got no file or folder of that name")
        video = open_video(found[0])
        for tracks in pair:
            if len(tracks) and (tracks.num_frames, tracks.size) != (video.num_frames, video.size):
                got = f"{video.num_frames} of {video.size}"
                raise InputError(f"expected {tracks.num_frames} frames of {tracks.size} of video {name!r}, got {got}")
        written.append(folder / f"{name}.mp4")
        write_video(written[-1], _side_by_side(video, pair, name, progress), video.fps)
    return written


def _side_by_side(video: Video, pair: Sequence[Tracks], name: str, progress: bool) -> Iterator[Tensor]:
    painters = [OverlayPainter(video.size) for _ in pair]
    for t, frame in enumerate(tqdm(video, total=video.num_frames, desc=name, disable=not progress)):
        painted = []
        for painter, tracks in zip(painters, pair, strict=True):
            masks = torch.zeros(0, *video.size, dtype=torch.bool)
            if len(tracks):
                masks = unpack_masks(tracks.bits(slice(t, t + 1)))[:, 0]
            painted.append(painter.paint(frame, masks))
        gap = torch.full((3, video.size[0], GAP), 255, dtype=painted[0].dtype)
        yield torch.cat([painted[0], gap, painted[1]], 2)
