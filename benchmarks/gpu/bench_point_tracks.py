"""point_tracks on the GPU: points carried in one launch against a loop of grid_sample, and coverage of masks."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer, compiled, equals
from s2d.ops import (
    PointTracks,
    TrackCoverage,
    coverage_of_tracks,
    pack_masks,
    track_coverage,
    track_points,
    unpack_masks,
)
from s2d.testing.cases import point_tracks as cases

# Frames, height, width, masks, points.
FULL = [(24, 480, 854, 240, 50_000)]
TINY = [(3, 12, 70, 4, 40)]
SMALL = [(*shape, 150) for shape in cases.SHAPES]

GOAL_US = 100.0  # 50,000 points through 24 frames
SYNCS = "the number of pairs gives the results their size"


@lru_cache(maxsize=1)
def case_of(size: tuple[int, ...], seed: int) -> cases.SceneCase:
    """What discovery sees where that is timed; points of all frames, odd values and odd sizes for the sanitizers."""
    *shape, points = size
    make = cases.video if size in FULL + TINY else cases.scene
    return make(*shape, points=points, seed=seed)


def loop(points: Tensor, frame: Tensor, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Points of frame 0 carried by grid_sample; flows ``[T - 1, 2, H, W]``."""
    height, width = forward.shape[2:]
    scale = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=points.device)

    def at(flow: Tensor, places: Tensor) -> Tensor:
        grid = (places * scale - 1).view(1, 1, -1, 2)
        return F.grid_sample(flow[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0].T

    places, seen = [points], [torch.ones_like(frame, dtype=torch.bool)]
    for ahead, back in zip(forward, backward, strict=True):
        step = at(ahead, places[-1])
        there = places[-1] + step
        returns = at(back, there)
        x, y = there.round().unbind(-1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        bound = 0.01 * ((step**2).sum(-1) + (returns**2).sum(-1)) + 0.5
        alive = seen[-1] & inside & (((step + returns) ** 2).sum(-1) <= bound)
        places.append(torch.where(alive[:, None], there, places[-1]))
        seen.append(alive)
    return torch.stack(places, 1), torch.stack(seen, 1)


def mostly(ours: PointTracks, peer: tuple[Tensor, Tensor]) -> bool:
    """grid_sample rounds positions its own way, and a point that differs stays different."""
    both = ours.visible & peer[1]
    near = ((ours.tracks - peer[0]).abs()[both] < 0.05).float().mean()
    return bool((ours.visible == peer[1]).float().mean() > 0.99) and bool(near > 0.99)


def shares(masks: Tensor, frames: Tensor, tracks: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Visibility ``[N, T]`` and shares ``[N, N]`` of given tracks, several points in a pixel counted as they come."""
    height, width = masks.shape[1:]
    x, y = tracks.round().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixels = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    seen = visible & inside
    lands = masks.flatten(1).gather(1, pixels[:, frames].T)
    members = (lands & seen[:, frames].T).float()
    hits = members @ (lands & inside[:, frames].T).float().T
    return members @ seen.float() / members.sum(1, True), hits / (members @ inside[:, frames].float())


def near_shares(ours: TrackCoverage, peer: tuple[Tensor, Tensor]) -> bool:
    """Shares to within a tenth, as the peer does not count once per pixel."""
    rows = torch.repeat_interleave(ours.offsets.diff())
    close = (ours.values - peer[1][rows, ours.columns]).abs() < 0.1
    return torch.allclose(ours.visibility, peer[0].nan_to_num(), atol=1e-4) and bool(
        (~close).sum() <= 0.05 * len(close)
    )


def unpacked(masks, frames, tracks, visible) -> tuple:
    return unpack_masks(masks), frames, tracks, visible


def entries(length: int, height: int, width: int, masks: int, points: int) -> list[Entry]:
    size = (length, height, width, masks, points)
    case = f"G={points}, T={length}, {height}x{width}"
    covered = f"N={masks}, T={length}, {height}x{width}"
    # Peers know points of frame 0 only.
    from_first = size in FULL + TINY
    result_bytes = 9 * points * length

    def flow_bytes(half: bool) -> int:
        return (8 if half else 16) * (length - 1) * height * width

    def flows(one: cases.SceneCase, half: bool) -> tuple[Tensor, Tensor]:
        return (one.forward.half(), one.backward.half()) if half else (one.forward, one.backward)

    def tracking(order: str, half: bool) -> Entry:
        def make(device: str, seed: int) -> tuple:
            one = case_of(size, seed).to(device)
            places, frame = one.points, one.point_frames
            if order == "random order":
                turn = torch.randperm(points, generator=torch.Generator().manual_seed(seed)).to(device)
                places, frame = places[turn], frame[turn]
            return (places, frame, *flows(one, half))

        def prepare(places, frame, forward, backward):
            return places, frame, *(flow.float().permute(0, 3, 1, 2).contiguous() for flow in (forward, backward))

        return Entry(
            "track_points",
            f"{case}, {order}{', float16' if half else ''}",
            make,
            track_points,
            equals(lambda *inputs: track_points(*inputs, impl="reference")),
            bytes=16 * points + flow_bytes(half) + result_bytes,
            peers={
                "grid_sample loop": Peer(loop, mostly, prepare),
                "torch.compile of it": Peer(compiled(loop), mostly, prepare),
            }
            if from_first
            else {},
            goal_us=GOAL_US,
        )

    def covering(half: bool) -> Entry:
        def make(device: str, seed: int) -> tuple:
            one = case_of(size, seed).to(device)
            return pack_masks(one.masks), one.mask_frames, *flows(one, half)

        return Entry(
            "track_coverage",
            covered + (", float16" if half else ""),
            make,
            track_coverage,
            equals(lambda *inputs: track_coverage(*inputs, impl="reference")),
            bytes=flow_bytes(half) + 8 * masks * height * ((width + 63) // 64) + 4 * masks * length,
            syncs=SYNCS,
        )

    def make_given(device: str, seed: int) -> tuple:
        one = case_of(size, seed).to(device)
        middle = torch.full_like(one.point_frames, length // 2)
        return pack_masks(one.masks), one.mask_frames, *track_points(one.points, middle, one.forward, one.backward)

    return [
        tracking("row order", False),
        tracking("random order", False),
        tracking("random order", True),
        covering(False),
        covering(True),
        Entry(
            "coverage_of_tracks",
            f"{covered}, G={points}",
            make_given,
            coverage_of_tracks,
            equals(lambda *inputs: coverage_of_tracks(*inputs, impl="reference")),
            bytes=result_bytes + 8 * masks * height * ((width + 63) // 64) + 4 * masks * length,
            peers={"products of 0/1 matrices": Peer(shares, near_shares, unpacked)} if from_first else {},
            syncs=SYNCS,
        ),
    ]
