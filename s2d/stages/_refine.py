"""Mask edges that follow the edges of the frame: a guided filter from the model's coarse masks to the source's pixels.

The filter (He, Sun, Tang: Guided Image Filtering, 2013) fits, in a window around every pixel, the mask as a linear
function of the colour, and evaluates the mean of these functions on the frame. They are fitted on a grid of half a
model pixel, as a mask of stride 4 says nothing finer, and evaluated on the pixels of the source.
"""

from __future__ import annotations

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
        frame = frames[t].permute(1, 2, 0).numpy().astype(np.float32) / 255
        guide = _GuidedFilter(_resized(frame, grid, cv2.INTER_AREA), radius)
        chances = upsample_masks(mask_logits[:, t : t + 1], inner, grid)[:, 0].sigmoid() - 0.5
        masks = [guide(chance, frame) > 0 for chance in chances.numpy()]
        words.append(pack_masks(torch.from_numpy(np.stack(masks))).words)
    return BitMasks(torch.stack(words, dim=1), outer[1])


class _GuidedFilter:
    """The part of the filter that depends on the frame alone, and so serves all masks of it."""

    def __init__(self, guide: np.ndarray, radius: int) -> None:
        self.guide, self.radius = guide, radius
        self.mean = self._box(guide)
        red, green, blue = cv2.split(guide)
        mean_red, mean_green, mean_blue = cv2.split(self.mean)
        rr = self._box(red * red) - mean_red * mean_red + _FLAT
        gg = self._box(green * green) - mean_green * mean_green + _FLAT
        bb = self._box(blue * blue) - mean_blue * mean_blue + _FLAT
        rg = self._box(red * green) - mean_red * mean_green
        rb = self._box(red * blue) - mean_red * mean_blue
        gb = self._box(green * blue) - mean_green * mean_blue
        cofactors = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb)
        determinant = rr * cofactors[0] + rg * cofactors[1] + rb * cofactors[2]
        lower = (rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg)
        # The inverse of the colours' covariance around every pixel: xx, xy, xz, yy, yz, zz.
        self.inverse = [part / determinant for part in (*cofactors, *lower)]

    def __call__(self, mask: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """The filtered mask ``[h, w]`` at the size of ``frame`` ``[H, W, 3]``."""
        mean = self._box(mask)
        shared = self._box(self.guide * mask[..., None]) - self.mean * mean[..., None]
        red, green, blue = cv2.split(shared)
        xx, xy, xz, yy, yz, zz = self.inverse
        slope = cv2.merge(
            [xx * red + xy * green + xz * blue, xy * red + yy * green + yz * blue, xz * red + yz * green + zz * blue]
        )
        level = mean - (slope * self.mean).sum(-1)
        size = frame.shape[:2]
        slope, level = (_resized(self._box(part), size, cv2.INTER_LINEAR) for part in (slope, level))
        return (slope * frame).sum(-1) + level

    def _box(self, image: np.ndarray) -> np.ndarray:
        side = 2 * self.radius + 1
        return cv2.boxFilter(image, -1, (side, side), borderType=cv2.BORDER_REFLECT)


def _resized(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=interpolation)
