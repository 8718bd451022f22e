"""point_tracks against a loop of torch's grid_sample: python -m benchmarks.ops.bench_point_tracks [--quick] [--save]"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Pair, compare, main
from s2d.ops import pack_masks, track_coverage, track_points
from s2d.testing.cases.flow_warp_iou import ellipses, smooth_flow


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


def measure(quick: bool) -> list[Pair]:
    number, length, height, width = (2000, 6, 120, 214) if quick else (50_000, 24, 480, 854)
    generator = torch.Generator().manual_seed(0)
    forward = smooth_flow((length - 1, height, width), 3.0, generator)
    backward = -forward + 0.05 * torch.randn(forward.shape, generator=generator)
    planes = forward.permute(0, 3, 1, 2).contiguous(), backward.permute(0, 3, 1, 2).contiguous()
    points = torch.rand(number, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    rows = points[torch.argsort(points[:, 1].round() * width + points[:, 0])].contiguous()
    frame = torch.zeros(number, dtype=torch.int64)
    size = f"{height}x{width}, T={length}"
    seconds = 0.3 if quick else 3.0
    pairs = [
        compare(
            f"track_points, {order}",
            lambda where=where: track_points(where, frame, forward, backward),
            lambda where=where: torch_tracks(where, *planes),
            peer="grid_sample loop",
            agree=same_tracks,
            case=f"G={number}, {size}",
            goal=2,
            seconds=seconds,
        )
        for order, where in (("row order", rows), ("random order", points))
    ]
    masks = pack_masks(ellipses(10 * length, height, width))
    frames = torch.arange(10 * length) // 10
    pairs.append(
        compare(
            "track_coverage, float16 flow",
            lambda: track_coverage(masks, frames, forward.half(), backward.half()),
            lambda: track_coverage(masks, frames, forward, backward),
            peer="the same in float32",
            agree=lambda a, b: torch.allclose(a.visibility, b.visibility, atol=0.2),
            case=f"10 masks a frame, {size}",
            seconds=seconds,
        )
    )
    return pairs


if __name__ == "__main__":
    main("point_tracks", measure)
