"""Small textured scenes whose motion is known."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor


def texture(height: int, width: int, seed: int, tint: tuple[int, int, int] = (128, 128, 128)) -> np.ndarray:
    """Smooth noise around a colour: uint8 ``[H, W, 3]``."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(np.array(tint) + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def moving_disc(
    frames: int = 8,
    size: tuple[int, int] = (96, 128),
    step: tuple[float, float] = (4.0, 1.0),
    pan: tuple[float, float] = (1.5, -0.5),
    radius: int = 16,
) -> tuple[Tensor, Tensor]:
    """A disc that moves by ``step`` = (dx, dy) pixels per frame over a background that the camera pans by ``pan``.

    Returns:
        Frames uint8 ``[T, 3, H, W]`` and the disc's masks, bool ``[T, H, W]``.
    """
    height, width = size
    room = 64
    ground = texture(height + 2 * room, width + 2 * room, 0, (90, 120, 90))
    skin = texture(2 * radius + 9, 2 * radius + 9, 1, (190, 90, 70))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pictures, masks = [], []
    for t in range(frames):
        picture = cv2.remap(ground, x + room - pan[0] * t, y + room - pan[1] * t, cv2.INTER_LINEAR)
        left, top = width * 0.3 + step[0] * t, height * 0.45 + step[1] * t
        mask = (x - left) ** 2 + (y - top) ** 2 <= radius**2
        disc = cv2.remap(skin, x - left + radius + 4, y - top + radius + 4, cv2.INTER_LINEAR)
        pictures.append(np.where(mask[..., None], disc, picture))
        masks.append(mask)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(masks))
