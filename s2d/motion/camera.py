"""Camera motion: the homography that most of a flow field follows, and what is left without it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

SAMPLES = 3000
"""About how many flow vectors, on a regular grid, the homography is fitted to."""


def fit_homography(flow: np.ndarray, *, tolerance: float | None = None) -> np.ndarray:
    """The homography of the dominant motion: robust to the objects that move on their own.

    RANSAC on a regular grid of flow vectors, then least squares reweighted by Tukey's biweight at 4.7 robust standard
    deviations (the usual 95 % efficiency), four times.

    Args:
        flow: float32 ``[H, W, 2]``: (dx, dy) in pixels.
        tolerance: RANSAC's inlier distance in pixels; by default 1, or 0.4 % of the width where that is more.

    Returns:
        float64 ``[3, 3]``: maps (x, y, 1) of the first frame to the second; the identity where nothing can be fitted.
    """
    height, width = flow.shape[:2]
    step = max(1, int((height * width / SAMPLES) ** 0.5))
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step].reshape(2, -1)
    source = np.stack([x, y], 1).astype(np.float64)
    target = source + flow[y, x]
    if tolerance is None:
        tolerance = max(1.0, 0.004 * width)
    if len(source) < 4 or not np.isfinite(target).all():
        return np.eye(3)
    # OpenCV seeds its RANSAC itself with a constant: the same flow gives the same homography.
    matrix, _ = cv2.findHomography(source, target, cv2.RANSAC, tolerance, maxIters=2000, confidence=0.999)
    if matrix is None or not np.isfinite(matrix).all():
        return np.eye(3)
    for _ in range(4):
        distance = np.linalg.norm(_project(matrix, source) - target, axis=1)
        scale = max(4.7 * 1.4826 * float(np.median(distance)), 0.1)
        weight = np.clip(1 - (distance / scale) ** 2, 0, None) ** 2
        refined = _weighted_fit(source, target, weight, (width, height))
        if refined is None:
            break
        matrix = refined
    return matrix


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points ``[P, 2]`` through a homography."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[:, :2] / moved[:, 2:]


def _weighted_fit(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, size: tuple[int, int]
) -> np.ndarray | None:
    """Weighted linear least squares for the eight parameters, in coordinates scaled to about [-1, 1]."""
    if np.count_nonzero(weight) < 8:
        return None
    half = max(size) / 2
    normalise = np.array([[1 / half, 0, -size[0] / (2 * half)], [0, 1 / half, -size[1] / (2 * half)], [0, 0, 1]])
    (x, y), (u, v) = _project(normalise, source).T, _project(normalise, target).T
    zero, one = np.zeros_like(x), np.ones_like(x)
    rows = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1),
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1),
        ]
    )
    weights = np.tile(weight, 2)[:, None]
    normal = rows.T @ (rows * weights)
    if np.linalg.cond(normal) > 1e12:
        return None
    solution = np.linalg.solve(normal, rows.T @ (weights[:, 0] * np.concatenate([u, v])))
    matrix = np.linalg.inv(normalise) @ np.append(solution, 1.0).reshape(3, 3) @ normalise
    return matrix / matrix[2, 2]


def homography_flow(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """The flow that a homography makes: float32 ``[H, W, 2]``, (dx, dy) in pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    a = matrix.astype(np.float32)
    depth = a[2, 0] * x + a[2, 1] * y + a[2, 2]
    dx = (a[0, 0] * x + a[0, 1] * y + a[0, 2]) / depth - x
    dy = (a[1, 0] * x + a[1, 1] * y + a[1, 2]) / depth - y
    return np.stack([dx, dy], -1)


def residual_flow(flow: Tensor) -> tuple[Tensor, Tensor]:
    """A flow field without the motion of the camera.

    Args:
        flow: float ``[H, W, 2]``: (dx, dy) in pixels.

    Returns:
        The residual, float32 ``[H, W, 2]``, and the homography that was removed, float64 ``[3, 3]``.
    """
    if flow.dim() != 3 or flow.shape[-1] != 2:
        raise ValueError(f"expected flow [H, W, 2], got {list(flow.shape)}")
    field = flow.float().numpy()
    matrix = fit_homography(field)
    return torch.from_numpy(field - homography_flow(matrix, *field.shape[:2])), torch.from_numpy(matrix)
