"""Definition of the ``connected_components`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FOUR = ((0, 1), (1, 0), (0, -1), (-1, 0))
EIGHT = (*FOUR, (1, 1), (1, -1), (-1, 1), (-1, -1))


def components(masks: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    """Every pixel takes the smallest number in its component, by its neighbours' numbers and by theirs in turn."""
    number, height, width = masks.shape
    pixels = height * width
    if masks.numel() == 0:
        return masks.int(), masks.int()
    outside = torch.full((), pixels, dtype=torch.int64, device=masks.device)
    own = torch.arange(pixels, device=masks.device).view(1, height, width)
    root = torch.where(masks, own, outside)
    while True:
        padded = F.pad(root, (1, 1, 1, 1), value=pixels)
        smallest = root
        for dy, dx in FOUR if connectivity == 4 else EIGHT:
            shifted = padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
            smallest = torch.minimum(smallest, shifted)
        smallest = torch.where(masks, smallest, outside)
        table = torch.cat([smallest.flatten(1), outside.expand(number, 1)], 1)
        jumped = table.gather(1, smallest.flatten(1)).view_as(root)
        if torch.equal(jumped, root):
            break
        root = jumped
    first = masks & (root == own)
    rank = first.flatten(1).cumsum(1)
    rank = torch.cat([rank, rank.new_zeros(number, 1)], 1)
    labels = rank.gather(1, root.flatten(1)).view_as(root)
    count = torch.zeros_like(table).scatter_add_(1, root.flatten(1), masks.flatten(1).long())
    areas = torch.where(masks, count.gather(1, root.flatten(1)).view_as(root), 0)
    return labels.int(), areas.int()


def fill_holes(masks: Tensor, connectivity: int, largest: int | None) -> Tensor:
    if masks.numel() == 0:
        return masks
    labels, areas = components(~masks, 8 if connectivity == 4 else 4)
    border = torch.zeros_like(masks)
    border[:, [0, -1], :] = True
    border[:, :, [0, -1]] = True
    number = len(masks)
    open_to_border = torch.zeros(number, masks[0].numel() + 1, dtype=torch.bool, device=masks.device)
    open_to_border.scatter_(1, (labels * border).flatten(1).long(), True)
    hole = (labels > 0) & ~open_to_border.gather(1, labels.flatten(1).long()).view_as(masks)
    return masks | (hole if largest is None else hole & (areas <= largest))


def remove_small(masks: Tensor, smallest: int, connectivity: int) -> Tensor:
    return masks & (components(masks, connectivity)[1] >= smallest)
