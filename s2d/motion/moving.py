"""Which pixels of a clip move on their own: residual flow, made steady by following the flow itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from s2d.motion.camera import fit_homography, homography_flow
from s2d.motion.dis import flow_between


@dataclass(frozen=True)
class MovingClip:
    """Motion of the frames of a clip, camera removed.

    Attributes:
        residual: float32 ``[T, H, W, 2]``: (dx, dy) in pixels per frame, averaged along the flow.
        saliency: float32 ``[T, H, W]`` in [0, 1]: how clearly a pixel moves on its own, averaged along the flow.
        speed: float32 ``[T]``: 97th percentile of the raw residual's length in each frame, pixels per frame.
    """

    residual: np.ndarray
    saliency: np.ndarray
    speed: np.ndarray

    def anything(self, still: float) -> bool:
        """Whether anything moves on its own.

        The errors that noise and compression make in the flow have no direction that lasts, so that they mostly average
        out along the flow. Something moves if in a fifth of the frames the fastest thousandth of the pixels still has
        more than ``still`` pixels per frame.
        """
        length = np.linalg.norm(self.residual, axis=-1).reshape(len(self.residual), -1)
        fastest = np.percentile(length, 99.9, axis=1)
        return float(np.percentile(fastest, 80)) > still


def moving_clip(frames: np.ndarray, *, persistence: float = 0.8, noise: float = 0.15) -> MovingClip:
    """Residual flow and motion saliency of a clip.

    The residual of frame t is the mean of its flow to t + 1 and of the reversed flow to t - 1, each without its own
    homography. Errors of the flow, ripples and shadows come and go, while an object keeps moving: both quantities are
    averaged over time along the flow, ``x_t <- p * x_{t-1} + (1 - p) * x_t`` in each direction.

    Args:
        frames: uint8 ``[T, H, W, 3]`` RGB.
        persistence: p in [0, 1).
        noise: residual in pixels per frame that counts as not moving, at the least.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    forward = [flow_between(a, b, "medium") for a, b in pairwise(grey)]
    backward = [flow_between(b, a, "medium") for a, b in pairwise(grey)]
    raw = _residuals(forward, backward, frames.shape)
    length = np.linalg.norm(raw, axis=-1)
    speed = np.percentile(length.reshape(len(frames), -1), 97, axis=1).astype(np.float32)
    scale = np.maximum(0.5 * speed, noise)
    saliency = 1 - np.exp(-((length / scale[:, None, None]) ** 2))
    return MovingClip(
        _along_flow(raw, forward, backward, persistence), _along_flow(saliency, forward, backward, persistence), speed
    )


def _residuals(forward: list[np.ndarray], backward: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    frames, height, width = shape[:3]
    total = np.zeros((frames, height, width, 2), np.float32)
    count = np.zeros(frames, np.float32)
    for t, (ahead, behind) in enumerate(zip(forward, backward, strict=True)):
        total[t] += ahead - homography_flow(fit_homography(ahead), height, width)
        total[t + 1] -= behind - homography_flow(fit_homography(behind), height, width)
        count[t : t + 2] += 1
    return total / np.maximum(count, 1)[:, None, None, None]


def _along_flow(
    values: np.ndarray, forward: list[np.ndarray], backward: list[np.ndarray], persistence: float
) -> np.ndarray:
    """Recursive averages from the past and from the future, and the mean of both."""
    past, future = values.copy(), values.copy()
    for t in range(1, len(values)):
        past[t] = _blend(past[t - 1], backward[t - 1], values[t], persistence)
    for t in range(len(values) - 2, -1, -1):
        future[t] = _blend(future[t + 1], forward[t], values[t], persistence)
    return (past + future) / 2


def _blend(neighbour: np.ndarray, flow: np.ndarray, own: np.ndarray, persistence: float) -> np.ndarray:
    """``p * neighbour(x + flow) + (1 - p) * own``; own alone where the flow leaves the frame."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    carried = cv2.remap(neighbour, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if own.ndim == 3:
        inside = inside[..., None]
    return np.where(inside, persistence * carried + (1 - persistence) * own, own)
