"""Definition of the ``point_tracks`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.ops.reference._flow import agrees, inside, lookup, nearest_index


def tracks(points: Tensor, frame: Tensor, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``[G, 2]`` carried from their frames to all frames: positions ``[G, T, 2]`` and visible ``[G, T]``."""
    length, (height, width) = len(forward) + 1, forward.shape[1:3]
    position = points[:, None].repeat(1, length, 1)
    visible = torch.zeros(len(points), length, dtype=torch.bool, device=points.device)
    here = torch.arange(len(points), device=points.device)
    visible[here, frame] = inside(points[:, 0], points[:, 1], height, width)
    for t in range(length - 1):
        _advance(position, visible, frame <= t, t, t + 1, forward[t], backward[t])
    for t in range(length - 1, 0, -1):
        _advance(position, visible, frame >= t, t, t - 1, backward[t - 1], forward[t - 1])
    return position, visible


def _advance(
    position: Tensor, visible: Tensor, started: Tensor, now: int, to: int, flow: Tensor, reverse: Tensor
) -> None:
    """One step of all points that have started: a point that is lost stays where it was last seen."""
    position[started, to] = position[started, now]
    alive = (started & visible[:, now]).nonzero().flatten()
    if len(alive) == 0:
        return
    x, y = position[alive, now].unbind(-1)
    dx, dy = lookup(flow, x, y)
    there_x, there_y = x + dx, y + dy
    seen = inside(there_x, there_y, *flow.shape[:2]) & agrees(dx, dy, *lookup(reverse, there_x, there_y))
    visible[alive, to] = seen
    position[alive[seen], to] = torch.stack([there_x, there_y], -1)[seen]


def grid_points(mask: Tensor, lines: int, least: int) -> Tensor:
    """Centres of a ``lines x lines`` grid over the frame that lie in ``mask [H, W]``: float32 ``[G, 2]`` (x, y).

    The grid is doubled while fewer than ``least`` of them do and it is still coarser than the pixels.
    """
    height, width = mask.shape
    while True:
        columns, rows = min(lines, width), min(lines, height)
        x = (torch.arange(columns, dtype=torch.float32, device=mask.device) + 0.5) * (width / columns) - 0.5
        y = (torch.arange(rows, dtype=torch.float32, device=mask.device) + 0.5) * (height / rows) - 0.5
        row, column = mask[y.round().long()][:, x.round().long()].nonzero(as_tuple=True)
        if len(row) >= least or (columns == width and rows == height):
            return torch.stack([x[column], y[row]], -1)
        lines *= 2


def coverage(
    masks: Tensor,
    frames: Tensor,
    forward: Tensor,
    backward: Tensor,
    grid: int,
    cover_grid: tuple[int, int],
    area_per_line: int,
    least: int,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Visibility ``[N, T]`` and the covered pairs of bool masks ``[N, H, W]`` as offsets, columns, values."""
    number, (height, width) = len(masks), masks.shape[1:]
    visibility = torch.zeros(number, len(forward) + 1, device=masks.device)
    columns, values, offsets = [], [], [0]
    of_frame = [(frames == t).nonzero().flatten() for t in range(len(forward) + 1)]
    for index, mask in enumerate(masks):
        points = grid_points(mask, grid, least)
        if len(points):
            seen = tracks(points, frames[index].expand(len(points)), forward, backward)[1]
            visibility[index] = (seen.double().sum(0) / len(points)).float()
        points = grid_points(mask, max(cover_grid[0], min(int(mask.sum()) // area_per_line, cover_grid[1])), least)
        carried, seen = tracks(points, frames[index].expand(len(points)), forward, backward)
        for t, others in enumerate(of_frame):
            x, y = carried[seen[:, t], t].unbind(-1)
            covered, share = _covered(masks, others, nearest_index(x, y, height, width)[0], threshold)
            columns.append(covered)
            values.append(share)
        offsets.append(sum(len(c) for c in columns))
    return visibility, *_compressed(offsets, columns, values, frames, visibility)


def coverage_of_tracks(
    masks: Tensor, frames: Tensor, tracks: Tensor, visible: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of bool masks ``[N, H, W]`` and given tracks ``[G, T, 2]``, visible ``[G, T]``."""
    number, (height, width), length = len(masks), masks.shape[1:], tracks.shape[1]
    pixels, within = nearest_index(*tracks.unbind(-1), height, width)
    seen = visible & within
    visibility = torch.zeros(number, length, device=masks.device)
    columns, values, offsets = [], [], [0]
    for index, (mask, frame) in enumerate(zip(masks, frames.tolist(), strict=True)):
        candidates = seen[:, frame].nonzero().flatten()
        members = candidates[mask.flatten()[pixels[candidates, frame]]]
        if len(members):
            visibility[index] = (seen[members].double().sum(0) / len(members)).float()
        for t in range(length):
            others = (frames == t).nonzero().flatten()
            covered, share = _covered(masks, others, pixels[members, t][within[members, t]], threshold)
            columns.append(covered)
            values.append(share)
        offsets.append(sum(len(c) for c in columns))
    return visibility, *_compressed(offsets, columns, values, frames, visibility)


def _covered(masks: Tensor, others: Tensor, pixels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Which of the masks ``others`` hold more than a share of the distinct pixels, and what share."""
    distinct = pixels.unique()
    if len(distinct) == 0:
        return others[:0], masks.new_zeros(0, dtype=torch.float32)
    share = (masks[others].flatten(1)[:, distinct].double().sum(1) / len(distinct)).float()
    covered = share > threshold
    return others[covered], share[covered]


def _compressed(
    offsets: list[int], columns: list[Tensor], values: list[Tensor], frames: Tensor, visibility: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.tensor(offsets, device=frames.device),
        torch.cat([frames.new_zeros(0), *columns]),
        torch.cat([visibility.new_zeros(0), *values]),
    )
