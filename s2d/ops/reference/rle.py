"""Definition of the ``rle`` room in plain torch and Python: COCO's run-length encoding."""

from __future__ import annotations

import torch
from torch import Tensor


def encode(mask: Tensor) -> Tensor:
    """Runs of one mask ``[H, W]`` in column-major order, zeros first: int32 ``[R]``."""
    pixels = mask.T.reshape(-1)
    starts = (pixels[1:] != pixels[:-1]).nonzero().flatten() + 1
    ends = torch.cat([starts, starts.new_tensor([pixels.numel()])])
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    if pixels.numel() and pixels[0]:
        counts = torch.cat([counts.new_zeros(1), counts])
    return counts.int()


def decode(counts: Tensor, height: int, width: int) -> Tensor:
    """The mask of one run-length code: bool ``[H, W]``."""
    value = torch.arange(len(counts), device=counts.device) % 2 == 1
    return torch.repeat_interleave(value, counts.long()).view(width, height).T


def bbox(counts: Tensor, height: int, width: int) -> list[int]:
    y, x = decode(counts, height, width).nonzero(as_tuple=True)
    if len(x) == 0:
        return [0, 0, 0, 0]
    return [int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1]


def iou(a: Tensor, b: Tensor, crowd: Tensor) -> Tensor:
    """IoU ``[N, M]`` (float64) of masks ``[N, P]`` and ``[M, P]``; a crowd column divides by the row's area alone."""
    a, b = a.double(), b.double()
    intersection = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None, :] - intersection
    divisor = torch.where(crowd[None, :], a.sum(1)[:, None], union)
    return torch.where(intersection > 0, intersection / divisor.clamp(min=1), 0.0)


def from_labels(labels: Tensor, background: int | None) -> tuple[list[Tensor], Tensor]:
    """Runs of every label of every frame of ``[T, H, W]``, and int64 ``[K, 2]``: the frame and label of each."""
    runs, which = [], []
    for frame, image in enumerate(labels.long()):
        for value in image.unique().tolist():
            if value != background:
                runs.append(encode(image == value))
                which.append((frame, value))
    return runs, torch.tensor(which, dtype=torch.int64, device=labels.device).reshape(-1, 2)


def polygon(vertices: Tensor, height: int, width: int) -> Tensor:
    """The mask (bool ``[H, W]``) of a polygon with corners float64 ``[V, 2]``, closed by its first.

    Corners are rounded to a grid five times as fine. An edge visits a grid point per step along its longer axis; where
    it steps over the middle of a column of pixels, everything from there on, down the columns, is turned over.
    """
    points = []
    corners = (5 * vertices + 0.5).trunc().long().tolist()
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        backwards = x0 > x1 if abs(x1 - x0) >= abs(y1 - y0) else y0 > y1
        if backwards:
            x0, y0, x1, y1 = x1, y1, x0, y0
        t = torch.arange(steps + 1, dtype=torch.float64)
        x = (x0 + (x1 - x0) / max(steps, 1) * t + 0.5).trunc().long()
        y = (y0 + (y1 - y0) / max(steps, 1) * t + 0.5).trunc().long()
        path = torch.stack([x, y], 1)
        points.append(path.flip(0) if backwards else path)
    turned = torch.zeros(height * width + 1, dtype=torch.int64)
    if points:
        x, y = torch.cat(points).unbind(1)
        left, upper = torch.minimum(x[1:], x[:-1]), torch.minimum(y[1:], y[:-1])
        # Column c has its middle between 5c + 2 and 5c + 3 on the grid.
        crosses = (x[1:] != x[:-1]) & (left % 5 == 2) & (left >= 2) & (left // 5 < width)
        row = ((upper + 2) // 5).clamp(0, height)
        turned.index_add_(0, (left // 5 * height + row)[crosses], torch.ones(int(crosses.sum()), dtype=torch.int64))
    return (turned[:-1].cumsum(0) % 2 == 1).view(width, height).T


def shape(item: list | None, height: int, width: int) -> Tensor:
    """The mask of a COCO box, of the polygons of a mask, or of None."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    if item is not None and len(item) == 4 and all(isinstance(number, (int, float)) for number in item):
        x, y, w, h = item
        item = [[x, y, x, y + h, x + w, y + h, x + w, y]]
    for corners in item or []:
        mask |= polygon(torch.tensor(corners, dtype=torch.float64).reshape(-1, 2), height, width)
    return mask


def to_string(counts: list[int]) -> str:
    """COCO's string of some runs.

    Five bits a character from '0' on, the sixth says 'more'; from the fourth run on, the difference to the
    run two before.
    """
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            chunk = value & 31
            value >>= 5
            more = value != (-1 if chunk & 16 else 0)
            characters.append(chr((chunk | 32 if more else chunk) + 48))
            if not more:
                break
    return "".join(characters)


def from_string(text: str) -> list[int]:
    """The runs of a COCO string; ValueError where it is not one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        chunk = ord(character) - 48
        if not 0 <= chunk < 64:
            raise ValueError(f"expected characters from '0' to 'o', got {character!r}")
        value |= (chunk & 31) << shift
        shift += 5
        if chunk & 32:
            continue
        if chunk & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("expected a complete last run, got a string that ends within it")
    return counts
