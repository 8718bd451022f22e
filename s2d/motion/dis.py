"""Dense optical flow by DIS (Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016), from OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s2d.errors import InputError

if TYPE_CHECKING:
    from s2d.data.video import Video

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
    "fine": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

FINE_PATCH, FINE_STRIDE = 4, 2
"""Side and distance, in pixels, of the patches of ``"fine"``; the presets have 8 and 3 or 4. A patch that is larger
than an object moves with what is behind it: a small object that goes fast is lost on the coarse levels."""

SMALLEST_SIDE = 16
"""Frames with a side below this many pixels are enlarged before the search: its coarsest patches would not fit."""


@dataclass(frozen=True)
class VideoFlow:
    """Flow between all neighbouring frames of a clip, both ways.

    Attributes:
        forward: float32 or float16 ``[T-1, H, W, 2]``: (dx, dy) in pixels from frame t to frame t+1, on t's grid.
        backward: the same from frame t+1 to frame t, on t+1's grid.
    """

    forward: Tensor
    backward: Tensor


def grey_image(frame: Tensor) -> np.ndarray:
    """The luma of one frame, uint8 ``[H, W]``, from uint8 ``[3, H, W]`` RGB, ``[1, H, W]`` or ``[H, W]``."""
    if frame.dtype != torch.uint8 or frame.dim() not in (2, 3):
        raise ValueError(f"expected a frame uint8 [3, H, W] or [H, W], got {frame.dtype} {list(frame.shape)}")
    if frame.dim() == 3 and frame.shape[0] == 3:
        return cv2.cvtColor(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)
    return np.ascontiguousarray(frame.reshape(frame.shape[-2:]).numpy())


def flow_between(first: np.ndarray, second: np.ndarray, quality: str = "fine") -> np.ndarray:
    """DIS flow between grey images: float32 ``[H, W, 2]``, (dx, dy) from a pixel of ``first`` to it in ``second``.

    Args:
        first: uint8 ``[H, W]``.
        second: the same size.
        quality: ``"ultrafast"``, ``"fast"`` or ``"medium"``: OpenCV's presets; ``"fine"``: the last with small patches.
    """
    if quality not in _PRESETS:
        raise ValueError(f"expected quality to be one of {', '.join(_PRESETS)}, got {quality!r}")
    if first.shape != second.shape:
        raise ValueError(f"expected two frames of one size, got {list(first.shape)} and {list(second.shape)}")
    height, width = first.shape
    enlarge = max(1, -(-SMALLEST_SIDE // max(1, min(height, width))))
    if enlarge > 1:
        larger = (width * enlarge, height * enlarge)
        first, second = (cv2.resize(x, larger, interpolation=cv2.INTER_LINEAR) for x in (first, second))
    method = cv2.DISOpticalFlow_create(_PRESETS[quality])
    if quality == "fine":
        method.setPatchSize(FINE_PATCH)
        method.setPatchStride(FINE_STRIDE)
    flow = method.calc(first, second, None)
    if enlarge > 1:
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / enlarge
    return flow


def dis_flow(first: Tensor, second: Tensor, quality: str = "fine") -> Tensor:
    """DIS flow from one frame to another: where each pixel of ``first`` has gone in ``second``.

    Args:
        first: uint8 ``[3, H, W]`` RGB, or grey ``[H, W]``.
        second: the same size.
        quality: see `flow_between`.

    Returns:
        float32 ``[H, W, 2]``: (dx, dy) in pixels.

    Raises:
        ValueError: frames of two sizes, another dtype, or an unknown quality.
    """
    return torch.from_numpy(flow_between(grey_image(first), grey_image(second), quality))


def video_flow(
    frames: Tensor, *, quality: str = "fine", dtype: torch.dtype = torch.float32, progress: bool = False
) -> VideoFlow:
    """Flow between all neighbouring frames of a clip that fits in memory, both ways.

    Args:
        frames: uint8 ``[T, 3, H, W]`` RGB.
        quality: see `flow_between`.
        dtype: of the result; float16 halves its size and keeps 1/32 px at flows below 64 px.
        progress: show a bar.

    Returns:
        `VideoFlow` of T - 1 pairs (none for one frame).
    """
    height, width = frames.shape[-2:]
    pairs = max(0, len(frames) - 1)
    forward = torch.empty(pairs, height, width, 2, dtype=dtype)
    backward = torch.empty_like(forward)
    first = grey_image(frames[0]) if len(frames) else None
    for t in tqdm(range(pairs), desc="flow", disable=not progress):
        second = grey_image(frames[t + 1])
        forward[t] = torch.from_numpy(flow_between(first, second, quality))
        backward[t] = torch.from_numpy(flow_between(second, first, quality))
        first = second
    return VideoFlow(forward, backward)


class DisPrior:
    """The default `s2d.motion.prior.MotionPrior`: `video_flow`, which needs no weights.

    Args:
        quality: see `flow_between`.
    """

    name = "dis"
    pure = True

    def __init__(self, *, quality: str = "fine") -> None:
        if quality not in _PRESETS:
            raise InputError(f"expected quality of the motion prior dis: {', '.join(_PRESETS)}, got {quality!r}")
        self._quality = quality

    def fingerprint(self) -> dict[str, Any]:
        return {"prior": self.name, "quality": self._quality, "opencv": cv2.__version__}

    def scene(self, frames: Tensor, start: int, video: Video) -> VideoFlow:
        return video_flow(frames, quality=self._quality)
