"""Definition of the ``flow_warp_iou`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.ops.reference._flow import consistency, inside, lookup, nearest_index, pixel_grid


def counts(
    source: Tensor, target: Tensor, flow: Tensor, visible: Tensor | None, reverse: Tensor | None, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Intersections ``[P, N, M]``, warped areas ``[P, N]`` and target areas ``[P, M]`` of bool masks: int64."""
    pairs, height, width = flow.shape[:3]
    kept = flow.new_ones((pairs, height, width), dtype=torch.bool) if visible is None else visible.clone()
    for pair in range(0 if reverse is None else pairs):
        kept[pair] &= consistency(flow[pair], reverse[pair])
    warp = warp_nearest if mode == "nearest" else warp_bilinear
    rows = source.new_zeros((pairs, source.shape[1], height * width), dtype=torch.float64)
    for pair in range(pairs if height * width else 0):
        rows[pair] = (warp(source[pair], flow[pair]) & kept[pair]).flatten(1)
    columns = (target & kept[:, None]).flatten(2).double()
    intersection = torch.einsum("pnk,pmk->pnm", rows, columns)
    return intersection.long(), rows.sum(2).long(), columns.sum(2).long()


def warp_nearest(masks: Tensor, flow: Tensor) -> Tensor:
    """Masks ``[N, H, W]`` read at the nearest pixel of where the flow leads; false outside."""
    height, width = flow.shape[:2]
    x, y = pixel_grid(height, width, flow.device)
    index, valid = nearest_index(x + flow[..., 0], y + flow[..., 1], height, width)
    return masks.flatten(1)[:, index.flatten()].view(-1, height, width) & valid


def warp_bilinear(masks: Tensor, flow: Tensor) -> Tensor:
    """Masks ``[N, H, W]`` interpolated where the flow leads, zero outside the frame: whether that is > 0.5."""
    height, width = flow.shape[:2]
    x, y = pixel_grid(height, width, flow.device)
    x, y = x + flow[..., 0], y + flow[..., 1]
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = torch.where(near, x, 0.0), torch.where(near, y, 0.0)
    left, top = x.floor(), y.floor()
    fx, fy = x - left, y - top
    # One ring of zeros around the masks is what lies outside.
    padded = torch.nn.functional.pad(masks.float(), (1, 1, 1, 1)).flatten(1)
    corner = (top.long() + 1) * (width + 2) + left.long() + 1

    def read(step: int) -> Tensor:
        return padded[:, (corner + step).flatten()].view(-1, height, width)

    upper = read(0) * (1 - fx) + read(1) * fx
    lower = read(width + 2) * (1 - fx) + read(width + 3) * fx
    return (upper * (1 - fy) + lower * fy > 0.5) & near


def compose(first: Tensor, second: Tensor) -> Tensor:
    """``first(x) + second(x + first(x))`` for fields ``[H, W, 2]``; NaN where the first leaves the frame."""
    height, width = first.shape[:2]
    if height * width == 0:
        return first.clone()
    x, y = pixel_grid(height, width, first.device)
    there_x, there_y = (x + first[..., 0]).flatten(), (y + first[..., 1]).flatten()
    onward = torch.stack(lookup(second, there_x, there_y), -1)
    total = first + onward.view(height, width, 2)
    return torch.where(inside(there_x, there_y, height, width).view(height, width, 1), total, torch.nan)
