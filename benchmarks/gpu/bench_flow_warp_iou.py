"""flow_warp_iou on the GPU: bits gathered along the flow against grid_sample and matrix products on floats."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer, compiled, equals
from s2d.ops import flow_compose, flow_consistency, flow_warp_counts, pack_masks, unpack_masks
from s2d.testing.cases import flow_warp_iou as cases

# Pairs, source masks, target masks, height, width.
FULL = [(64, 20, 20, 480, 854)]
TINY = [(2, 3, 3, 12, 70)]
SMALL = cases.SHAPES

GOAL_SHARE = 0.5  # of the floor, for counts with the check fused in


@lru_cache(maxsize=1)
def case_of(size: tuple[int, ...], seed: int) -> cases.Warp:
    """What scoring sees where that is timed; noise, odd values and odd sizes for the sanitizers."""
    if size in FULL + TINY:
        return cases.video(size[0], size[1], *size[3:], seed=seed)
    return cases.noise(*size, seed=seed)


def sample(image: Tensor, flow: Tensor, mode: str, padding: str = "zeros") -> Tensor:
    """``image [P, C, H, W]`` read where the flow leads, by grid_sample."""
    height, width = flow.shape[1:3]
    x = torch.arange(width, device=flow.device) + flow[..., 0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[..., 1]
    grid = torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], -1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def check(flow: Tensor, reverse: Tensor) -> Tensor:
    """The forward-backward check, bool ``[P, H, W]``."""
    height, width = flow.shape[1:3]
    back = sample(reverse.permute(0, 3, 1, 2), flow, "bilinear", "border").permute(0, 2, 3, 1)
    x = (torch.arange(width, device=flow.device) + flow[..., 0]).round()
    y = (torch.arange(height, device=flow.device)[:, None] + flow[..., 1]).round()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    bound = 0.01 * ((flow**2).sum(-1) + (back**2).sum(-1)) + 0.5
    return inside & (((flow + back) ** 2).sum(-1) <= bound)


def counts(source: Tensor, target: Tensor, flow: Tensor, reverse: Tensor | None, mode: str) -> tuple[Tensor, ...]:
    """Source masks as floats, target masks as bool: warped by grid_sample, counted by a product in bfloat16."""
    kept = torch.ones_like(flow[..., 0], dtype=torch.bool) if reverse is None else check(flow, reverse)
    rows = ((sample(source, flow, mode) > 0.5) & kept[:, None]).flatten(2)
    columns = (target & kept[:, None]).flatten(2)
    shared = torch.bmm(rows.bfloat16(), columns.bfloat16().transpose(1, 2))
    return shared.float(), rows.sum(2), columns.sum(2)


def compose(first: Tensor, second: Tensor) -> Tensor:
    return first + sample(second.permute(0, 3, 1, 2), first, "bilinear", "border").permute(0, 2, 3, 1)


def near(ours: tuple[Tensor, ...], peer: tuple[Tensor, ...]) -> bool:
    """Counts to within a hundredth and ten pixels: grid_sample rounds positions its own way, bfloat16 rounds sums."""
    return all(bool(((a.double() - b.double()).abs() <= 0.01 * a + 10).all()) for a, b in zip(ours, peer, strict=True))


def mostly(ours: Tensor, peer: Tensor) -> bool:
    return bool((ours == peer).float().mean() > 0.99)


def near_flow(ours: Tensor, peer: Tensor) -> bool:
    """Where the first step stays in the frame; ours is NaN elsewhere."""
    return bool(((ours - peer).abs()[~ours.isnan()] < 1e-2).all())


def entries(pairs: int, sources: int, targets: int, height: int, width: int) -> list[Entry]:
    size = (pairs, sources, targets, height, width)
    pixels, words = pairs * height * width, pairs * height * ((width + 63) // 64)
    mask_bytes = 8 * words * (sources + targets) + 8 * pairs * (sources * targets + sources + targets)
    case = f"P={pairs}, N={sources}, M={targets}, {height}x{width}"

    def masks_and_flows(device: str, seed: int) -> tuple:
        one = case_of(size, seed).to(device)
        return pack_masks(one.source), pack_masks(one.target), one.flow, one.reverse

    def flows(device: str, seed: int) -> tuple:
        one = case_of(size, seed).to(device)
        return one.flow, one.reverse

    def counting(mode: str, checked: bool) -> Entry:
        def call(source, target, flow, reverse, impl=None):
            return flow_warp_counts(source, target, flow, None, reverse if checked else None, mode, impl=impl)

        def torch_counts(source, target, flow, reverse):
            return counts(source, target, flow, reverse if checked else None, mode)

        def prepare(source, target, flow, reverse):
            return unpack_masks(source).float(), unpack_masks(target), flow, reverse

        return Entry(
            "flow_warp_counts",
            f"{case}, {mode}{', check' if checked else ''}",
            masks_and_flows,
            call,
            equals(lambda *inputs: call(*inputs, impl="reference")),
            bytes=mask_bytes + 8 * pixels * (2 if checked else 1),
            peers={
                "grid_sample + bf16 matmul": Peer(torch_counts, near, prepare),
                "torch.compile of it": Peer(compiled(torch_counts), near, prepare),
            },
            goal_share=GOAL_SHARE if checked else None,
        )

    return [
        *(counting(mode, checked) for mode in ("nearest", "bilinear") for checked in (False, True)),
        Entry(
            "flow_consistency",
            case,
            flows,
            flow_consistency,
            equals(lambda *inputs: flow_consistency(*inputs, impl="reference")),
            bytes=17 * pixels,
            peers={"grid_sample": Peer(check, mostly), "torch.compile of it": Peer(compiled(check), mostly)},
        ),
        Entry(
            "flow_compose",
            case,
            flows,
            flow_compose,
            equals(lambda *inputs: flow_compose(*inputs, impl="reference")),
            bytes=24 * pixels,
            peers={"grid_sample": Peer(compose, near_flow), "torch.compile of it": Peer(compiled(compose), near_flow)},
        ),
    ]
