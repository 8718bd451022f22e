"""Definition of the ``bitmask`` room in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

_SHIFTS = torch.arange(64)


def pack(masks: Tensor) -> Tensor:
    *lead, height, width = masks.shape
    words = (width + 63) // 64
    bits = masks.new_zeros((*lead, height, words * 64), dtype=torch.int64)
    bits[..., :width] = masks != 0
    # The 64 shifted bits are disjoint, so their (wrapping) sum is their union.
    return (bits.view(*lead, height, words, 64) << _SHIFTS.to(masks.device)).sum(-1)


def unpack(words: Tensor, width: int) -> Tensor:
    bits = (words.unsqueeze(-1) >> _SHIFTS.to(words.device)) & 1
    return bits.flatten(-2)[..., :width].bool()


def area(words: Tensor, width: int) -> Tensor:
    return unpack(words, width).sum((-2, -1))


def bbox(words: Tensor, width: int) -> Tensor:
    masks = unpack(words, width)
    boxes = []
    for mask in masks.flatten(0, -3):
        y, x = mask.nonzero(as_tuple=True)
        if len(x) == 0:
            boxes.append([0, 0, 0, 0])
        else:
            boxes.append([int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1])
    return torch.tensor(boxes, dtype=torch.int64, device=words.device).reshape(*masks.shape[:-2], 4)


def iou(a: Tensor, b: Tensor) -> Tensor:
    rows = unpack(a, a.shape[-1] * 64).flatten(1).double()
    columns = unpack(b, b.shape[-1] * 64).flatten(1).double()
    intersection = rows @ columns.T
    union = rows.sum(1)[:, None] + columns.sum(1)[None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1), 0.0).float()


def nms(words: Tensor, scores: Tensor, threshold: float) -> Tensor:
    kept: list[int] = []
    overlaps = iou(words, words)
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(overlaps[index, other] <= threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64, device=words.device)
