"""Points carried through a scene along optical flow, and what masks see and cover on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, unpack_masks
from s2d.ops.reference import point_tracks as reference

ROOM = Room("point_tracks", kernels=("cpu", "cuda"))


class PointTracks(NamedTuple):
    """Points in all frames of a scene.

    Attributes:
        tracks: float32 ``[G, T, 2]``: (x, y) in pixels; where a point is not visible, where it was last seen.
        visible: bool ``[G, T]``.
    """

    tracks: Tensor
    visible: Tensor


class TrackCoverage(NamedTuple):
    """What the points of N masks see and cover in the T frames of a scene.

    Attributes:
        visibility: float32 ``[N, T]`` in [0, 1]: the share of the mask's points that are visible in each frame.
        offsets: int64 ``[N + 1]``: the pairs of mask i are ``offsets[i]:offsets[i + 1]``.
        columns: int64 ``[K]``, ascending within a mask: index among the N masks of the mask that is covered.
        values: float32 ``[K]`` in (threshold, 1]: the share of mask i's carried points that land in it.
    """

    visibility: Tensor
    offsets: Tensor
    columns: Tensor
    values: Tensor


def track_points(
    points: Tensor, frame: Tensor, forward: Tensor, backward: Tensor, *, impl: str | None = None
) -> PointTracks:
    """Carry points to every frame of a scene, both ways in time.

    A step adds the flow at the point (bilinear, the border repeated). A point is occluded once the check of
    `flow_consistency` fails on a step or its nearest pixel lies outside the frame, and from then on in that direction.

    Args:
        points: float32 ``[G, 2]``: (x, y) in pixels, pixel centres at integers.
        frame: int64 ``[G]`` in [0, T): the frame each point belongs to.
        forward: float32 or float16 ``[T - 1, H, W, 2]``: (dx, dy) from frame t to t + 1, on t's grid.
        backward: the same, from frame t + 1 to t, on the grid of t + 1.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Raises:
        TypeError: another dtype.
        ValueError: shapes that do not fit together, or a frame outside the scene (on CUDA, where looking would wait for
            the device, such a point is visible nowhere).

    Not differentiable.
    """
    forward, backward = _as_scene(forward, backward, "track_points")
    if points.dtype != torch.float32 or frame.dtype != torch.int64:
        raise TypeError(
            f"s2d::track_points: expected points float32 and frame int64, got {points.dtype} and {frame.dtype}"
        )
    if points.dim() != 2 or points.shape[1] != 2 or frame.shape != points.shape[:1]:
        raise ValueError(
            f"s2d::track_points: expected points [G, 2] and frame [G], got {list(points.shape)} and {list(frame.shape)}"
        )
    _check_frames(frame, "frame", len(forward) + 1, "track_points")
    points = points.detach()
    if ROOM.choose(points.device, impl) == "reference":
        return PointTracks(*reference.tracks(points, frame, forward.float(), backward.float()))
    tracks, visible = torch.ops.s2d.track_points(points.contiguous(), frame.contiguous(), forward, backward)
    # The kernel works frame by frame and writes so; points come first in a view of that.
    return PointTracks(tracks.transpose(0, 1), visible.view(torch.bool).T)


def track_coverage(
    masks: BitMasks | Tensor,
    frames: Tensor,
    forward: Tensor,
    backward: Tensor,
    *,
    grid: int = 50,
    cover_grid: tuple[int, int] = (25, 50),
    area_per_line: int = 800,
    least_points: int = 16,
    threshold: float = 0.25,
    impl: str | None = None,
) -> TrackCoverage:
    """What discovery asks of the points of every mask, without storing a trajectory.

    Two sets of points a mask, each the centres of a grid over the frame that lie in the mask: ``grid x grid`` for its
    visibility, and ``max(cover_grid[0], min(area // area_per_line, cover_grid[1]))`` squared for what it covers. A grid
    is doubled while fewer than ``least_points`` lie in the mask and it is coarser than the pixels. All are carried as
    `track_points` does. ``visibility[i, t]`` = visible share of mask i's points in frame t. For each mask j of frame t:
    ``c[i, j]`` = share of the visible points of i, counted once per pixel, that land in mask j.

    Args:
        masks: `BitMasks`, or bool or uint8, ``[N, H, W]``: all masks of a scene.
        frames: int64 ``[N]``, ascending, in [0, T): the frame of each.
        forward: float32 or float16 ``[T - 1, H, W, 2]``: (dx, dy) from frame t to t + 1, on t's grid.
        backward: the same, from frame t + 1 to t, on the grid of t + 1.
        grid: lines of the grid for visibility.
        cover_grid: least and most lines of the grid for coverage.
        area_per_line: pixels of mask area for each line of it between the two.
        least_points: points wanted in a mask before its grid is fine enough; 1 for the official grid.
        threshold: pairs with c at most this are left out.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        `TrackCoverage`; memory is linear in the pairs that overlap. On CUDA the call waits for the device once, for the
        number of pairs.

    Raises:
        TypeError: another dtype.
        ValueError: shapes that do not fit together, frames that do not ascend or lie outside the scene (on CUDA the
            latter two are a RuntimeError, as they come to light with the result).

    Source: arXiv 2512.14440, where CoTracker carries the points. Not differentiable. Split a video at scene cuts first.
    """
    bits = as_bits(masks, "masks", "track_coverage")
    forward, backward = _as_scene(forward, backward, "track_coverage")
    if frames.dtype != torch.int64:
        raise TypeError(f"s2d::track_coverage: expected frames int64 [N], got {frames.dtype}")
    if len(bits.shape) != 3 or bits.shape[1:] != tuple(forward.shape[1:3]) or frames.shape != bits.words.shape[:1]:
        raise ValueError(
            f"s2d::track_coverage: expected masks [N, H, W] and frames [N] with forward [T - 1, H, W, 2], "
            f"got {list(bits.shape)}, {list(frames.shape)} and {list(forward.shape)}"
        )
    if min(grid, *cover_grid, area_per_line, least_points) < 1:
        least = min(grid, *cover_grid, area_per_line, least_points)
        raise ValueError(f"s2d::track_coverage: expected grids and counts of at least 1, got {least}")
    _check_frames(frames, "frames", len(forward) + 1, "track_coverage", ascending=True)
    if ROOM.choose(bits.device, impl) == "reference":
        dense = unpack_masks(bits, impl="reference")
        return TrackCoverage(
            *reference.coverage(
                dense,
                frames,
                forward.float(),
                backward.float(),
                grid,
                cover_grid,
                area_per_line,
                least_points,
                threshold,
            )
        )
    return TrackCoverage(
        *torch.ops.s2d.track_coverage(
            bits.words.contiguous(),
            bits.width,
            frames.contiguous(),
            forward,
            backward,
            grid,
            *cover_grid,
            area_per_line,
            least_points,
            threshold,
        )
    )


def coverage_of_tracks(
    masks: BitMasks | Tensor,
    frames: Tensor,
    tracks: Tensor,
    visible: Tensor,
    *,
    threshold: float = 0.25,
    impl: str | None = None,
) -> TrackCoverage:
    """What discovery asks of the points of every mask, from one dense set of tracks that a point tracker gave.

    The points of mask i are those visible in its own frame whose nearest pixel there lies in it.
    ``visibility[i, t]`` = share of them visible in frame t. For each mask j of frame t: ``c[i, j]`` = share of those
    of them in the frame, counted once per pixel, that land in mask j.

    Two things differ from `track_coverage`. The points are the tracker's, the same for all masks, where that one lays
    grids into each mask: a mask no point falls into has visibility 0 and no pairs, so the tracker's grid has to be
    finer than the smallest mask that matters. And ``c`` counts occluded points where the tracker takes them to be, as
    the paper does: a tracker carries a point on behind what hides it, flow loses it there.

    Args:
        masks: `BitMasks`, or bool or uint8, ``[N, H, W]``: all masks of a scene.
        frames: int64 ``[N]``, ascending, in [0, T): the frame of each.
        tracks: float32 ``[G, T, 2]``: (x, y) in pixels of the masks, pixel centres at integers. A place that is not
            known (before an online tracker started the point, say) is NaN, which lies in no frame.
        visible: bool ``[G, T]``; a point outside the frame is not visible whatever stands here.
        threshold: pairs with c at most this are left out.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        `TrackCoverage`; memory is linear in the tracks, the points in masks and the pairs that overlap.

    Raises:
        TypeError: another dtype.
        ValueError: shapes that do not fit together, frames that do not ascend or lie outside the scene.

    Source: arXiv 2512.14440, where the tracker runs once for each mask. Not differentiable.
    """
    bits = as_bits(masks, "masks", "coverage_of_tracks")
    if frames.dtype != torch.int64 or tracks.dtype != torch.float32 or visible.dtype != torch.bool:
        raise TypeError(
            f"s2d::coverage_of_tracks: expected frames int64, tracks float32 and visible bool, "
            f"got {frames.dtype}, {tracks.dtype} and {visible.dtype}"
        )
    if len(bits.shape) != 3 or frames.shape != bits.words.shape[:1]:
        raise ValueError(
            f"s2d::coverage_of_tracks: expected masks [N, H, W] and frames [N], "
            f"got {list(bits.shape)} and {list(frames.shape)}"
        )
    if tracks.dim() != 3 or tracks.shape[2] != 2 or visible.shape != tracks.shape[:2]:
        raise ValueError(
            f"s2d::coverage_of_tracks: expected tracks [G, T, 2] and visible [G, T], "
            f"got {list(tracks.shape)} and {list(visible.shape)}"
        )
    _check_frames(frames, "frames", tracks.shape[1], "coverage_of_tracks", ascending=True)
    tracks = tracks.detach()
    if ROOM.choose(bits.device, impl) == "reference":
        dense = unpack_masks(bits, impl="reference")
        return TrackCoverage(*reference.coverage_of_tracks(dense, frames, tracks, visible, threshold))
    # Frame by frame, as the kernel works; no copy of what `track_points` gave.
    places, flags = tracks.transpose(0, 1).contiguous(), visible.T.contiguous().view(torch.uint8)
    return TrackCoverage(
        *torch.ops.s2d.coverage_of_tracks(
            bits.words.contiguous(), bits.width, frames.contiguous(), places, flags, threshold
        )
    )


def _as_scene(forward: Tensor, backward: Tensor, op: str) -> tuple[Tensor, Tensor]:
    """Both flows of a scene: float32 or float16, contiguous (float16 is converted one frame at a time, inside)."""
    for name, flow in (("forward", forward), ("backward", backward)):
        if flow.dtype not in (torch.float32, torch.float16):
            raise TypeError(f"s2d::{op}: expected {name} float32 or float16 [T - 1, H, W, 2], got {flow.dtype}")
        if flow.dim() != 4 or flow.shape[-1] != 2:
            raise ValueError(f"s2d::{op}: expected {name} [T - 1, H, W, 2], got {list(flow.shape)}")
    if forward.shape != backward.shape or forward.dtype != backward.dtype:
        raise ValueError(
            f"s2d::{op}: expected backward {forward.dtype} {list(forward.shape)} as forward, "
            f"got {backward.dtype} {list(backward.shape)}"
        )
    return forward.detach().contiguous(), backward.detach().contiguous()


def _check_frames(frames: Tensor, argument: str, length: int, op: str, ascending: bool = False) -> None:
    # A traced function knows no values, and on a GPU they are far away: the kernel checks them again.
    if torch.compiler.is_compiling() or frames.is_cuda or frames.numel() == 0:
        return
    first, last = int(frames.min()), int(frames.max())
    if first < 0 or last >= length:
        raise ValueError(f"s2d::{op}: expected {argument} in [0, {length}), got {first if first < 0 else last}")
    if ascending and bool((frames.diff() < 0).any()):
        raise ValueError(f"s2d::{op}: expected {argument} ascending, got {frames.tolist()[:20]}")


@_native.fake("track_points")
def _(points: Tensor, frame: Tensor, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    shape = (forward.shape[0] + 1, points.shape[0])
    return points.new_empty((*shape, 2)), points.new_empty(shape, dtype=torch.uint8)


@_native.fake("track_coverage")
def _(
    words: Tensor,
    width: int,
    frames: Tensor,
    forward: Tensor,
    backward: Tensor,
    grid: int,
    least_lines: int,
    most_lines: int,
    area_per_line: int,
    least_points: int,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_coverage(words, forward.shape[0] + 1)


@_native.fake("coverage_of_tracks")
def _(
    words: Tensor, width: int, frames: Tensor, tracks: Tensor, visible: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_coverage(words, tracks.shape[0])


def _fake_coverage(words: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return (
        words.new_empty((words.shape[0], length), dtype=torch.float32),
        words.new_empty(words.shape[0] + 1),
        words.new_empty(pairs),
        words.new_empty(pairs, dtype=torch.float32),
    )
