"""Mask edges that follow the edges of the frame: a guided filter from the model's coarse masks to the source's pixels.

The filter (He, Sun, Tang: Guided Image Filtering, 2013) fits, in a window around every pixel, the mask as a linear
function of the colour, and evaluates the mean of these functions on the frame. They are fitted on a grid of half a
model pixel, as a mask of stride 4 says nothing finer, and evaluated on the pixels of the source.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from s2d.models.inference import upsample_masks
from s2d.ops import BitMasks, pack_masks

# The window reaches this many cells of the model's masks to each side: enough to find the edge that a cell blurs. More
# gains on thin objects, and loses where an object looks like what it stands on.
_CELLS = 1.0
_CELL = 4
# Colour variance, for colours in [0, 1], that does not count as an edge.
_FLAT = 1e-4


def refined_masks(mask_logits: Tensor, frames: Tensor, inner: tuple[int, int]) -> BitMasks:
    """Masks at the size of the source, drawn to the edges of its frames.

    Args:
        mask_logits: float32 ``[K, T, h, w]``, as `VideoMask2Former` gives them.
        frames: uint8 ``[T, 3, H, W]`` of the source.
        inner: height and width of the frames that entered the model.

    Returns:
        Bits ``[K, T, H, W]``.
    """
    outer = tuple(frames.shape[-2:])
    grid = tuple(min(2 * side, limit) for side, limit in zip(inner, outer, strict=True))
    radius = max(1, round(_CELLS * _CELL * grid[0] / inner[0]))
    words = []
    for t in range(frames.shape[0]):
        # Planes, not pixels of three channels: the arithmetic below then runs along rows.
        frame = [plane.numpy().astype(np.float32) / 255 for plane in frames[t]]
        guide = _GuidedFilter([_resized(plane, grid, cv2.INTER_AREA) for plane in frame], radius)
        masks = (guide(_chance(logits, inner, grid), frame) > 0 for logits in mask_logits[:, t])
        words.append(torch.stack([pack_masks(torch.from_numpy(mask)).words for mask in masks]))
    return BitMasks(torch.stack(words, dim=1), outer[1])


def _chance(logits: Tensor, inner: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """One mask's probability on the grid, less a half."""
    return (upsample_masks(logits[None, None], inner, grid)[0, 0].sigmoid() - 0.5).numpy()


class _GuidedFilter:
    """The part of the filter that depends on the frame alone, and so serves all masks of it."""

    def __init__(self, guide: list[np.ndarray], radius: int) -> None:
        self.guide, self.radius = guide, radius
        self.means = [self._box(plane) for plane in guide]
        covariance = [
            self._box(guide[i] * guide[j]) - self.means[i] * self.means[j] + (_FLAT if i == j else 0)
            for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        ]
        rr, rg, rb, gg, gb, bb = covariance
        first = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb)
        rest = (rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg)
        determinant = rr * first[0] + rg * first[1] + rb * first[2]
        # The inverse of the colours' covariance around every pixel: xx, xy, xz, yy, yz, zz.
        self.inverse = [part / determinant for part in (*first, *rest)]

    def __call__(self, mask: np.ndarray, frame: list[np.ndarray]) -> np.ndarray:
        """The filtered mask ``[h, w]`` at the size of ``frame``, planes ``[H, W]``."""
        mean = self._box(mask)
        shared = [self._box(plane * mask) - own * mean for plane, own in zip(self.guide, self.means, strict=True)]
        xx, xy, xz, yy, yz, zz = self.inverse
        slopes = [_weighted(row, shared) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
        level = mean - _weighted(slopes, self.means)
        size = frame[0].shape
        *slopes, level = (_resized(self._box(part), size, cv2.INTER_LINEAR) for part in (*slopes, level))
        return _weighted(slopes, frame) + level

    def _box(self, image: np.ndarray) -> np.ndarray:
        side = 2 * self.radius + 1
        return cv2.boxFilter(image, -1, (side, side), borderType=cv2.BORDER_REFLECT)


def _weighted(weights: Sequence[np.ndarray], planes: Sequence[np.ndarray]) -> np.ndarray:
    total = weights[0] * planes[0]
    for weight, plane in zip(weights[1:], planes[1:], strict=True):
        total += weight * plane
    return total


def _resized(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if image.shape == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=interpolation)
