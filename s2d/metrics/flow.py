"""How good optical flow is: end-point error, and KITTI's share of outliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FlowQuality:
    """Flow against ground truth, over the pixels whose true flow is known.

    Attributes:
        end_point_error: mean of ``|flow - truth|``, pixels.
        outliers: share, in [0, 1], of pixels off by more than 3 px and by more than 5 % of the length of their true
            flow (the KITTI 2015 benchmark's Fl).
        pixels: how many pixels count.
    """

    end_point_error: float
    outliers: float
    pixels: int


def flow_quality(flow: np.ndarray, truth: np.ndarray) -> FlowQuality:
    """Compare flow with the true one.

    Args:
        flow: float ``[H, W, 2]``, (dx, dy) in pixels; a NaN where the truth is known gives NaN.
        truth: the same size, NaN where it is unknown.

    Raises:
        ValueError: two sizes, or a truth that is known nowhere.
    """
    if flow.shape != truth.shape or flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f"expected flow and truth [H, W, 2], got {list(flow.shape)} and {list(truth.shape)}")
    known = ~np.isnan(truth).any(-1)
    if not known.any():
        raise ValueError("expected a truth that is known somewhere, got only NaN")
    wanted = truth[known].astype(np.float64)
    error = np.linalg.norm(flow[known] - wanted, axis=-1)
    outliers = (error > 3) & (error > 0.05 * np.linalg.norm(wanted, axis=-1))
    # An error that is no number is no good flow.
    outliers |= np.isnan(error)
    return FlowQuality(float(error.mean()), float(outliers.mean()), int(known.sum()))
