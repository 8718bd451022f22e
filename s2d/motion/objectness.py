"""How much a region looks like an object that moves on its own, without having seen any object."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.color import rgb2lab

RING = 0.12
"""Width of the surroundings a region is compared with, in square roots of its area."""

_BINS = 8


class Objectness:
    """Scores regions of one frame by how they differ from what is around them.

    All is judged at half the resolution. The score is a product, so that a region has to be good at everything:

    * motion inside, the mean of saliency and speed;
    * the square root of what of it is gone in a ring around the region: flow bleeds over outlines, so that a region
      that is a little too large shows more of a difference than a true one;
    * the share of the outline that is not on the image border;
    * strength of the colour edges along the outline;
    * 1 - intersection of the colour histograms (8 x 8 x 8, Lab) of inside and ring;
    * area^(1/8): of two equal regions the larger, gently.
    """

    def __init__(self, frame: np.ndarray, residual: np.ndarray, saliency: np.ndarray) -> None:
        """Args: uint8 ``[H, W, 3]`` RGB, float32 ``[H, W, 2]`` pixels per frame, float32 ``[H, W]``."""
        height, width = saliency.shape
        small = (max(1, width // 2), max(1, height // 2))
        residual, self._saliency, frame = (
            cv2.resize(x, small, interpolation=cv2.INTER_AREA) for x in (residual, saliency, frame)
        )
        speed = np.linalg.norm(residual, axis=-1)
        self._speed = np.minimum(speed / max(float(np.percentile(speed, 99.5)), 1e-6), 1)
        lab = rgb2lab(frame).astype(np.float32)
        gradient = sum(
            np.hypot(cv2.Sobel(channel, cv2.CV_32F, 1, 0), cv2.Sobel(channel, cv2.CV_32F, 0, 1))
            for channel in (np.ascontiguousarray(lab[..., c]) for c in range(3))
        )
        self._edges = gradient / (gradient + 100)
        lowest, span = np.array([0, -40, -40], np.float32), np.array([100, 80, 80], np.float32)
        bins = np.clip((lab - lowest) / span * _BINS, 0, _BINS - 1).astype(np.int64)
        self._colour = bins @ np.array([_BINS**2, _BINS, 1])
        self._size = small

    def scores(self, masks: np.ndarray) -> np.ndarray:
        """Float64 ``[N]`` in [0, 1] for bool masks ``[N, H, W]``; 0 for a region without surroundings."""
        return np.array([self._score(mask) for mask in masks])

    def _score(self, mask: np.ndarray) -> float:
        small = cv2.resize(mask.astype(np.uint8), self._size, interpolation=cv2.INTER_NEAREST)
        area = int(small.sum())
        if area == 0:
            return 0.0
        reach = max(2, int(RING * area**0.5))
        window = _window(small, reach + 1)
        inside = small[window]
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        ring = (cv2.dilate(inside, kernel) - inside).astype(bool)
        eroded = cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=1)
        inside, outline = inside.astype(bool), (inside - eroded).astype(bool)
        if not ring.any() or not outline.any():
            return 0.0
        motion = contrast = 0.0
        for quantity in (self._saliency[window], self._speed[window]):
            here, around = float(quantity[inside].mean()), float(quantity[ring].mean())
            motion += here / 2
            contrast += max(here - around, 0.0) / 2
        on_border = int(small[0].sum() + small[-1].sum() + small[:, 0].sum() + small[:, -1].sum())
        free = 1 - on_border / (on_border + int(outline.sum()))
        colour, bins = self._colour[window], _BINS**3
        own = np.bincount(colour[inside], minlength=bins) / inside.sum()
        other = np.bincount(colour[ring], minlength=bins) / ring.sum()
        difference = 1 - float(np.minimum(own, other).sum())
        edges = float(self._edges[window][outline].mean())
        share = area / small.size
        return motion * contrast**0.5 * free * edges * difference * share**0.125


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The box of a mask that is not empty, ``margin`` pixels larger each way, inside the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )
