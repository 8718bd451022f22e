"""flow_warp_iou against torch and OpenCV."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Comparison
from s2d.ops import flow_compose, flow_consistency, flow_warp_iou, pack_masks
from s2d.testing.cases.flow_warp_iou import video


def positions(flow: Tensor) -> Tensor:
    """Where each pixel leads, float32 ``[P, H, W, 2]``."""
    height, width = flow.shape[1:3]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1) + flow


def sample(image: Tensor, flow: Tensor, mode: str, padding: str = "zeros") -> Tensor:
    """``image [P, C, H, W]`` read where the flow leads, by grid_sample."""
    height, width = flow.shape[1:3]
    grid = positions(flow) / torch.tensor([(width - 1) / 2, (height - 1) / 2]) - 1
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def matmul_iou(warped: Tensor, target: Tensor) -> Tensor:
    rows, columns = warped.flatten(2).float(), target.flatten(2).float()
    shared = rows @ columns.transpose(1, 2)
    return shared / (rows.sum(2)[:, :, None] + columns.sum(2)[:, None] - shared).clamp(min=1)


def torch_iou(source: Tensor, target: Tensor, flow: Tensor, mode: str) -> Tensor:
    return matmul_iou(sample(source.float(), flow, mode) > 0.5, target)


def cv2_iou(source: Tensor, target: Tensor, flow: Tensor) -> Tensor:
    maps = positions(flow).numpy()
    warped = [
        [cv2.remap(mask, place, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT) for mask in masks]
        for masks, place in zip(source.to(torch.uint8).numpy(), maps, strict=True)
    ]
    return matmul_iou(torch.from_numpy(np.array(warped)), target)


def torch_check(flow: Tensor, reverse: Tensor) -> Tensor:
    height, width = flow.shape[1:3]
    back = sample(reverse.permute(0, 3, 1, 2), flow, "bilinear", "border").permute(0, 2, 3, 1)
    x, y = positions(flow).round().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    bound = 0.01 * ((flow**2).sum(-1) + (back**2).sum(-1)) + 0.5
    return inside & (((flow + back) ** 2).sum(-1) <= bound)


def torch_checked_iou(source: Tensor, target: Tensor, flow: Tensor, reverse: Tensor) -> Tensor:
    kept = torch_check(flow, reverse)[:, None]
    return matmul_iou((sample(source.float(), flow, "bilinear") > 0.5) & kept, target & kept)


def torch_compose(first: Tensor, second: Tensor) -> Tensor:
    return first + sample(second.permute(0, 3, 1, 2), first, "bilinear", "border").permute(0, 2, 3, 1)


def close(a: Tensor, b: Tensor) -> bool:
    """grid_sample rounds positions in its own way: a few border pixels of a mask may differ."""
    return torch.allclose(a, b, atol=5e-3)


def pairs_of(masks: int, height: int, width: int, seconds: float, goals: bool) -> list[Comparison]:
    case = video(1, masks, height, width)
    dense = case.source, case.target
    bits = pack_masks(case.source), pack_masks(case.target)
    flow, reverse = case.flow, case.reverse
    pixels, held = height * width, bits[0].words.nbytes + bits[1].words.nbytes
    common = {"case": f"N=M={masks}, {height}x{width}", "at": {"pixels": masks * pixels}, "seconds": seconds}
    nearest = {**common, "agree": close}
    return [
        Comparison(
            "nearest from bits",
            lambda: flow_warp_iou(*bits, flow),
            lambda: torch_iou(*dense, flow, "nearest"),
            peer="grid_sample + matmul",
            goal=10 if goals else None,
            bytes=held + 8 * pixels,
            **nearest,
        ),
        Comparison(
            "nearest from bool",
            lambda: flow_warp_iou(*dense, flow),
            lambda: cv2_iou(*dense, flow),
            peer="cv2.remap + matmul",
            bytes=2 * masks * pixels + 8 * pixels,
            **nearest,
        ),
        Comparison(
            "bilinear from bits",
            lambda: flow_warp_iou(*bits, flow, mode="bilinear"),
            lambda: torch_iou(*dense, flow, "bilinear"),
            peer="grid_sample + matmul",
            bytes=held + 8 * pixels,
            **nearest,
        ),
        Comparison(
            "check + bilinear from bits",
            lambda: flow_warp_iou(*bits, flow, None, reverse, "bilinear"),
            lambda: torch_checked_iou(*dense, flow, reverse),
            peer="torch check + grid_sample + matmul",
            goal=15 if goals else None,
            bytes=held + 16 * pixels,
            **nearest,
        ),
        Comparison(
            "flow_consistency",
            lambda: flow_consistency(flow, reverse),
            lambda: torch_check(flow, reverse),
            peer="torch grid_sample",
            agree=lambda a, b: bool((a == b).float().mean() > 0.999),
            bytes=17 * pixels,
            **common,
        ),
        Comparison(
            "flow_compose",
            lambda: flow_compose(flow, reverse),
            lambda: torch_compose(flow, reverse),
            peer="torch grid_sample",
            agree=lambda a, b: bool(((a - b).abs()[~a.isnan()] < 1e-2).all()),
            bytes=24 * pixels,
            **common,
        ),
    ]


def measure(quick: bool) -> Iterator[Comparison]:
    if not quick:
        yield from pairs_of(20, 480, 854, 3.0, goals=True)
    yield from pairs_of(6, 120, 214, 0.3, goals=False)
