"""Keymasks from noisy masks of single frames: an object is what motion leads from frame to frame.

Points of every mask are carried through the scene by optical flow; masks that are visible together and match each
other's points are one instance. arXiv 2512.14440, section 3, with one dense flow a video in place of a point tracker.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from s2d.data.types import FrameMasks, Keymasks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.motion.dis import DisPrior, VideoFlow
from s2d.motion.prior import MotionPrior
from s2d.ops import (
    RLE,
    BitMasks,
    PointTracks,
    TrackCoverage,
    coverage_of_tracks,
    pack_masks,
    track_coverage,
    unpack_masks,
)
from s2d.stages import _agreement as evidence
from s2d.stages._grouping import Group, temporal_groups, visibility_groups
from s2d.stages._instances import Instance, continue_instances, join_duplicates, keep_best
from s2d.stages._linkage import linkage_groups
from s2d.stages._scenes import Scene, split_scenes, without_cuts

SCORINGS = ("trajectory", "flow", "both")
GROUPINGS = ("linkage", "paper")
CHOICES = ("score", "last")


@dataclass(frozen=True)
class DiscoverSettings:
    """Thresholds of discovery: those of the paper where it has them; `paper` is its whole procedure.

    Attributes:
        grouping: how masks become instances: "linkage" joins what agrees on average; "paper" clusters by visibility,
            then by matches (DBSCAN), which needs points that are followed through most of the video.
        likeness: groups of masks that agree more than this on average (IoU) are joined; with the paper's grouping,
            this joins what it has found, and 1 leaves that as it is.
        scoring: what judges masks: agreement of carried points ("trajectory"), of masks warped along flow ("flow"), or
            both: pixels for masks a few frames apart, points for all others ("both"). Point tracks have no pixels to
            warp: for them "both" is "trajectory".
        choice: of several masks of a frame in one instance, the one with the best score is kept ("score"), or the
            last one ("last").
        short_side: motion is followed in frames of this short side, pixels (smaller frames as they are).
        max_span: frames followed at once; longer scenes are split.
        overlap: frames that two parts of a split scene share.
        cut: change of the colour histogram (0 to 1) that starts a new scene; nothing is matched across; 1 for never.
        cut_flow: where flow forward and backward agree at less than this share of the pixels, a cut lies between two
            frames, whatever their colours; nothing is matched across; 0 for never.
        grid: lines of the point grid for visibility.
        cover_grid: least and most lines of the grid for coverage.
        area_per_line: pixels of mask, of the size it was given in, for each line between the two.
        least_points: points wanted in a mask before its grid is fine enough; 1 for the paper's grid.
        visible: a mask is visible in a frame where more than this share of its points is.
        visibility_eps, visibility_samples: DBSCAN over visibility (Hamming distance).
        candidate_share: a mask is a candidate of a run of frames if it is visible in more than this share of it.
        match: a mask matches another if more than this share of its carried points land there.
        match_density: (columns, eps, samples) of the DBSCAN over matches (Hamming distance): the first whose number of
            columns is less than that of the match matrix.
        ambiguous: share of points from which a mask counts as covering another.
        ambiguous_frames: a mask that covers two masks in so many frames is flagged (one2x).
        offsets: distances in frames at which warped masks are compared.
        least_seen: warped masks are comparable if the forward-backward check leaves more than this share of both.
        outlier: a mask is left out of its instance if its mean IoU with the others, with those that it was warped onto
            where there are any, is less than this times (a half + the median of the instance).
        least_masks: instances with fewer masks are dropped (a scene of fewer frames asks for one a frame).
        least_share: instances are dropped if of the frames that see them, one left out, a smaller share has a mask of
            them beside the first.
        inside: an instance is dropped if more than this share of it lies in a better one, of which it is a part.
        weakest: instances that score less than this share of their scene's best are dropped.
        max_instances: instances kept of a scene, the best first.
    """

    grouping: str = "linkage"
    likeness: float = 0.3
    scoring: str = "both"
    choice: str = "score"
    short_side: int = 240
    max_span: int = 256
    overlap: int = 16
    cut: float = 0.4
    cut_flow: float = 0.3
    grid: int = 50
    cover_grid: tuple[int, int] = (25, 50)
    area_per_line: int = 800
    least_points: int = 16
    visible: float = 0.3
    visibility_eps: float = 0.2
    visibility_samples: int = 5
    candidate_share: float = 0.3
    match: float = 0.5
    match_density: tuple[tuple[int, float, int], ...] = ((50, 0.05, 5), (9, 0.1, 5), (0, 0.1, 3))
    ambiguous: float = 0.25
    ambiguous_frames: int = 5
    offsets: tuple[int, ...] = (1, 2, 5)
    least_seen: float = 0.1
    outlier: float = 0.3
    least_masks: int = 2
    least_share: float = 0.17
    inside: float = 0.7
    weakest: float = 0.0
    max_instances: int = 20

    def __post_init__(self) -> None:
        for name, words in (("scoring", SCORINGS), ("grouping", GROUPINGS), ("choice", CHOICES)):
            if getattr(self, name) not in words:
                raise InputError(f"expected {name} to be one of {', '.join(words)}, got {getattr(self, name)!r}")
        if not 0 <= self.overlap < self.max_span:
            raise InputError(
                f"expected an overlap of 0 to {self.max_span - 1} frames (max_span - 1), got {self.overlap}"
            )

    @classmethod
    def paper(cls, **change: Any) -> DiscoverSettings:
        """The procedure of arXiv 2512.14440: its grouping, grids and thresholds, and nothing that it does not do.

        Every instance that it finds is kept as it is, of several masks of a frame the last; the whole video is followed
        at once, across cuts. What carries the points is the motion prior, where the paper runs CoTracker3 for each
        mask; scores only rank what is found.

        Args:
            change: attributes that are to differ.
        """
        procedure = {
            "grouping": "paper",
            "likeness": 1.0,
            "choice": "last",
            "max_span": sys.maxsize,
            "cut": 1.0,
            "cut_flow": 0.0,
            "least_points": 1,
            "outlier": 0.0,
            "least_masks": 1,
            "least_share": 0.0,
            "inside": 1.0,
            "max_instances": sys.maxsize,
        }
        return cls(**(procedure | change))


def discover(
    video: Video,
    masks: FrameMasks,
    settings: DiscoverSettings | None = None,
    *,
    motion: MotionPrior | None = None,
    progress: bool = True,
) -> Keymasks:
    """Instances that noisy masks of single frames agree on, each with masks on some frames.

    Args:
        video: the frames; read once, at ``settings.short_side``.
        masks: the proposals, N of them.
        settings: None for the defaults.
        motion: what carries points from frame to frame; None for `DisPrior`.
        progress: show a bar over frames.

    Returns:
        `Keymasks` at ``masks.size``, the best instance first; none (not an error) where no masks agree.

    Raises:
        InputError: the video and the masks differ in their number of frames, or the prior gives nothing for this video
            or nothing that can be used.
    """
    settings, motion = settings or DiscoverSettings(), motion or DisPrior()
    if video.num_frames != masks.num_frames:
        raise InputError(
            f"expected masks of the {video.num_frames} frames of {video.name}, got masks of {masks.num_frames} frames"
        )
    found: list[Instance] = []
    scores = torch.zeros(len(masks))
    if len(masks):
        small = video.resized(short_side=settings.short_side)
        bar = tqdm(total=video.num_frames, desc="discover", disable=not progress)
        for scene in split_scenes(small, settings.max_span, settings.overlap, settings.cut):
            first, last = (int(torch.searchsorted(masks.frames, scene.start + t)) for t in (0, len(scene.frames)))
            if first < last:
                moved = motion.scene(scene.frames, scene.start, small)
                instances, own = _of_scene(scene, moved, masks, slice(first, last), settings)
                scores[first:last] = own
                # Only instances of the part before can go on, and they share frames with this one.
                done = [old for old in found if not scene.continues or masks.frames[old.masks[-1]] < scene.start]
                open_ones = [old for old in found if scene.continues and masks.frames[old.masks[-1]] >= scene.start]
                found = done + continue_instances(open_ones, instances, masks.frames.numpy())
            bar.update(len(scene.frames) - (settings.overlap if scene.continues else 0))
        bar.close()
    found.sort(key=lambda instance: (-instance.score, int(instance.masks[0])))
    return _keymasks(masks, found, scores)


def _of_scene(
    scene: Scene, motion: VideoFlow | PointTracks, masks: FrameMasks, part: slice, settings: DiscoverSettings
) -> tuple[list[Instance], Tensor]:
    """Instances of one scene, in the numbering of the whole video, and a score for every mask of ``part``."""
    if isinstance(motion, VideoFlow) and settings.cut_flow > 0:
        motion = without_cuts(motion, settings.cut_flow)
    frames = masks.frames[part] - scene.start
    bits = _resize(masks.bits(part), tuple(scene.frames.shape[2:]))
    coverage = _coverage(bits, frames, motion, masks.size, settings)
    frame_of, length = frames.numpy(), len(scene.frames)
    covers = evidence.cover_matrix(coverage)
    visible = (coverage.visibility > settings.visible).numpy()
    agreement = _agreement(bits, frame_of, motion, covers, visible, settings)
    if settings.grouping == "linkage":
        groups = linkage_groups(agreement, visible, settings.likeness)
    else:
        groups = _paper_groups(covers, visible, frame_of, settings)
    choice = agreement.scores if settings.choice == "score" else np.arange(len(frame_of), dtype=np.float64)
    instances = keep_best(
        join_duplicates(groups, agreement, length, settings.likeness, settings.outlier, choice),
        frame_of,
        covers,
        visible,
        least_masks=min(settings.least_masks, length),
        least_share=settings.least_share,
        inside=settings.inside,
        weakest=settings.weakest,
        most=settings.max_instances,
    )
    unclear = evidence.ambiguous_frames(covers, frame_of, length)
    found = []
    for instance in instances:
        span = slice(instance.ranges[0][0], instance.ranges[-1][1] + 1)
        flagged = unclear[instance.masks, span].sum(1) >= settings.ambiguous_frames
        ranges = tuple((first + scene.start, last + scene.start) for first, last in instance.ranges)
        found.append(Instance(instance.masks + part.start, ranges, instance.score, float(flagged.mean())))
    return found, torch.from_numpy(agreement.scores).float()


def _coverage(
    bits: BitMasks,
    frames: Tensor,
    motion: VideoFlow | PointTracks,
    given_size: tuple[int, int],
    settings: DiscoverSettings,
) -> TrackCoverage:
    if isinstance(motion, PointTracks):
        return coverage_of_tracks(bits, frames, *motion, threshold=settings.ambiguous)
    smaller = math.prod(bits.shape[1:]) / math.prod(given_size)
    return track_coverage(
        bits,
        frames,
        motion.forward,
        motion.backward,
        grid=settings.grid,
        cover_grid=settings.cover_grid,
        area_per_line=max(1, round(settings.area_per_line * smaller)),
        least_points=settings.least_points,
        threshold=settings.ambiguous,
    )


def _agreement(
    bits: BitMasks,
    frames: np.ndarray,
    motion: VideoFlow | PointTracks,
    covers: sparse.csr_array,
    visible: np.ndarray,
    settings: DiscoverSettings,
) -> evidence.Agreement:
    tracked = isinstance(motion, PointTracks)
    if tracked and settings.scoring == "flow":
        raise InputError("expected a motion prior that gives optical flow for the scoring flow, got point tracks")
    by_points = by_pixels = None
    if settings.scoring != "flow":
        by_points = evidence.trajectory_agreement(covers, visible, frames)
    if settings.scoring != "trajectory" and not tracked:
        by_pixels = evidence.flow_agreement(
            bits, frames, motion.forward, motion.backward, settings.offsets, settings.least_seen
        )
    return evidence.joint_agreement(by_points, by_pixels)


def _paper_groups(
    covers: sparse.csr_array, visible: np.ndarray, frames: np.ndarray, settings: DiscoverSettings
) -> list[Group]:
    groups: list[Group] = []
    for group in visibility_groups(
        visible, frames, settings.visibility_eps, settings.visibility_samples, settings.candidate_share
    ):
        groups += temporal_groups(group, covers, frames, settings.match, settings.match_density)
    return groups


def _resize(masks: BitMasks, size: tuple[int, int]) -> BitMasks:
    """Masks ``[N, H, W]`` read at the centres of the pixels of another size."""
    height, width = masks.shape[1:]
    if (height, width) == size:
        return masks
    rows = ((torch.arange(size[0]) + 0.5) * (height / size[0])).long()
    columns = ((torch.arange(size[1]) + 0.5) * (width / size[1])).long().numpy()
    parts = []
    # A few masks at a time: unpacked they are eight times as large.
    for words in masks.words.split(32):
        # By numpy: torch takes several times as long to choose columns of bytes.
        chosen = unpack_masks(BitMasks(words[:, rows], width)).numpy().take(columns, axis=2)
        parts.append(pack_masks(torch.from_numpy(chosen)).words)
    return BitMasks(torch.cat(parts), size[1])


def _keymasks(masks: FrameMasks, instances: list[Instance], scores: Tensor) -> Keymasks:
    number, length = len(instances), masks.num_frames
    annotated = torch.zeros(number, length, dtype=torch.bool)
    mask_scores = torch.zeros(number, length)
    none, parts = RLE.empty(1, *masks.size), []
    for row, instance in enumerate(instances):
        chosen = torch.from_numpy(np.asarray(instance.masks))
        annotated[row, masks.frames[chosen]] = True
        mask_scores[row, masks.frames[chosen]] = scores[chosen]
        index = dict(zip(masks.frames[chosen].tolist(), chosen.tolist(), strict=True))
        parts += [masks.rle[index[t]] if t in index else none for t in range(length)]
    return Keymasks(
        video=masks.video,
        size=masks.size,
        rle=RLE.cat(parts) if parts else RLE.empty(0, *masks.size),
        annotated=annotated,
        scores=torch.tensor([instance.score for instance in instances], dtype=torch.float32),
        mask_scores=mask_scores,
        one2x=torch.tensor([round(instance.one2x, 2) for instance in instances], dtype=torch.float32),
        visibility_ranges=tuple(instance.ranges for instance in instances),
    )
