"""point_tracks against a loop of torch's grid_sample."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Comparison
from s2d.ops import TrackCoverage, coverage_of_tracks, pack_masks, track_coverage, track_points
from s2d.testing.cases.point_tracks import video


def sampler(height: int, width: int):
    """Bilinear lookup of ``flow [1, 2, H, W]`` at points ``[G, 2]``."""
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)])

    def at(flow: Tensor, points: Tensor) -> Tensor:
        grid = (points * scale - 1).view(1, 1, -1, 2)
        return F.grid_sample(flow, grid, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0].T

    return at


def torch_tracks(points: Tensor, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Points of frame 0 carried through all frames; flows ``[T - 1, 2, H, W]``."""
    height, width = forward.shape[2:]
    at = sampler(height, width)
    places, seen = [points], [torch.ones(len(points), dtype=torch.bool)]
    for t in range(len(forward)):
        step = at(forward[t : t + 1], places[-1])
        there = places[-1] + step
        back = at(backward[t : t + 1], there)
        x, y = there.round().unbind(-1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        bound = 0.01 * ((step**2).sum(-1) + (back**2).sum(-1)) + 0.5
        alive = seen[-1] & inside & (((step + back) ** 2).sum(-1) <= bound)
        places.append(torch.where(alive[:, None], there, places[-1]))
        seen.append(alive)
    return torch.stack(places, 1), torch.stack(seen, 1)


def same_tracks(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    both = ours[1] & theirs[1]
    return bool((ours[1] == theirs[1]).float().mean() > 0.995) and bool(
        ((ours[0] - theirs[0])[both].abs() < 0.05).float().mean() > 0.995
    )


def torch_coverage(masks: Tensor, frames: Tensor, tracks: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Visibility ``[N, T]`` and shares ``[N, N]`` of given tracks, several points in a pixel counted as they come."""
    height, width = masks.shape[1:]
    x, y = tracks.round().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixels = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    seen = visible & inside
    lands = torch.stack([m.flatten()[pixels[:, t]] for m, t in zip(masks, frames.tolist(), strict=True)])
    members = (lands & seen[:, frames].T).float()
    hits = members @ (lands & inside[:, frames].T).float().T
    return members @ seen.float() / members.sum(1, True), hits / (members @ inside[:, frames].float())


def same_coverage(ours: TrackCoverage, theirs: tuple[Tensor, Tensor]) -> bool:
    """Shares to within a tenth, as the peer does not count once per pixel."""
    rows = torch.repeat_interleave(ours.offsets.diff())
    return torch.allclose(ours.visibility, theirs[0].nan_to_num(), atol=1e-5) and bool(
        ((ours.values - theirs[1][rows, ours.columns]).abs() < 0.1).float().mean() > 0.99
    )


def pairs_of(number: int, length: int, height: int, width: int, seconds: float, goal: float | None) -> list[Comparison]:
    case = video(length, height, width, 10 * length, points=number)
    forward, backward, rows, frame = case.forward, case.backward, case.points, case.point_frames
    planes = forward.permute(0, 3, 1, 2).contiguous(), backward.permute(0, 3, 1, 2).contiguous()
    shuffled = rows[torch.randperm(number, generator=torch.Generator().manual_seed(0))]
    halves = forward.half(), backward.half()
    size = f"{height}x{width}, T={length}"
    flow_bytes, at = forward.nbytes + backward.nbytes, {"points": number}
    track_bytes = number * (length * 9 + 16)
    pairs = [
        Comparison(
            f"track_points, {order}",
            lambda where=where, flows=flows: track_points(where, frame, *flows),
            lambda where=where: torch_tracks(where, *planes),
            peer="grid_sample loop",
            agree=same_tracks,
            case=f"G={number}, {size}",
            goal=goal,
            at=at,
            bytes=track_bytes + (flow_bytes if flows is not halves else flow_bytes // 2),
            seconds=seconds,
        )
        for order, where, flows in (
            ("row order", rows, (forward, backward)),
            ("random order", shuffled, (forward, backward)),
            ("random order, float16 flow", shuffled, halves),
        )
    ]
    masks = pack_masks(case.masks)
    pairs.append(
        Comparison(
            "track_coverage, float16 flow",
            lambda: track_coverage(masks, case.mask_frames, *halves),
            lambda: track_coverage(masks, case.mask_frames, forward, backward),
            peer="s2d in float32",
            agree=lambda a, b: torch.allclose(a.visibility, b.visibility, atol=0.2),
            case=f"10 masks a frame, {size}",
            at=at,
            seconds=seconds,
        )
    )
    given = track_points(rows, frame + length // 2, forward, backward)
    pairs.append(
        Comparison(
            "coverage_of_tracks",
            lambda: coverage_of_tracks(masks, case.mask_frames, *given),
            lambda: torch_coverage(case.masks, case.mask_frames, *given),
            peer="products of 0/1 matrices",
            agree=same_coverage,
            case=f"G={number}, 10 masks a frame, {size}",
            at=at,
            seconds=seconds,
        )
    )
    return pairs


def measure(quick: bool) -> Iterator[Comparison]:
    if not quick:
        yield from pairs_of(50_000, 24, 480, 854, 3.0, goal=2)
    yield from pairs_of(2000, 6, 120, 214, 0.3, goal=None)
