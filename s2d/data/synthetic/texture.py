"""Textures made of noise: sea beds, skins and scutes. Everything is drawn from a seeded generator."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from scipy.spatial import cKDTree

Colour = tuple[float, float, float]


def cloud(rng: Generator, size: tuple[int, int], cell: float, octaves: int = 4, gain: float = 0.5) -> np.ndarray:
    """Fractal value noise: float32 ``[H, W]`` about 0.5, within [0, 1]; ``cell`` is its coarsest scale in pixels."""
    height, width = size
    total = np.zeros(size, dtype=np.float32)
    amplitude = 1.0
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        grid = rng.standard_normal((int(height / step) + 4, int(width / step) + 4)).astype(np.float32)
        enlarged = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += amplitude * enlarged[int(step) : int(step) + height, int(step) : int(step) + width]
        amplitude *= gain
    spread = 4.0 * max(float(total.std()), 1e-6)
    return np.clip((total - total.mean()) / spread + 0.5, 0, 1)


def cells(rng: Generator, size: tuple[int, int], spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random Voronoi cells about ``spacing`` pixels wide.

    Returns:
        Distance to the nearest centre in units of the spacing, distance from the border between cells in pixels (both
        float32 ``[H, W]``), and the cell of each pixel (int64 ``[H, W]``).
    """
    height, width = size
    rows, columns = int(height / spacing) + 3, int(width / spacing) + 3
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2).astype(np.float64)
    centres = (grid + rng.uniform(-0.42, 0.42, grid.shape) - 0.5) * spacing
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    distance, index = cKDTree(centres).query(pixels, k=2)
    between = (distance[:, 1] - distance[:, 0]) / 2
    return (
        (distance[:, 0] / spacing).reshape(size).astype(np.float32),
        between.reshape(size).astype(np.float32),
        index[:, 0].reshape(size),
    )


def mix(first: np.ndarray | Colour, second: np.ndarray | Colour, share: np.ndarray) -> np.ndarray:
    """``first`` where the share is 0, ``second`` where it is 1; colours ``[H, W, 3]`` in [0, 1]."""
    weight = np.clip(share, 0, 1)[..., None]
    return (1 - weight) * np.asarray(first, dtype=np.float32) + weight * np.asarray(second, dtype=np.float32)


def seabed(rng: Generator, size: tuple[int, int], scale: float, palette: tuple[Colour, Colour, Colour]) -> np.ndarray:
    """Sand with ripples, pebbles and darker patches: uint8 ``[H, W, 3]``.

    Args:
        scale: pixels of the coarsest structure; a quarter of the picture's height looks right.
        palette: light sand, dark sand, rock; RGB in [0, 1].
    """
    light, dark, rock = palette
    height, width = size
    patches = cloud(rng, size, scale, 3)
    bend = cloud(rng, size, scale * 1.2, 2) * 9 + np.linspace(0, height / scale * 5.5, height)[:, None]
    ripple = 0.5 + 0.5 * np.sin(2 * np.pi * (bend + np.linspace(0, width / scale, width)[None]))
    grain = cloud(rng, size, scale / 9, 4, gain=0.85)
    ground = mix(light, dark, 0.75 * (patches - 0.25) + 0.3 * ripple * (1 - patches))
    ground *= (0.72 + 0.56 * grain)[..., None]

    growth = np.clip((patches - 0.62) * 6, 0, 1) * (0.35 + 0.65 * cloud(rng, size, scale / 6, 3))
    ground = mix(ground, np.asarray(rock, np.float32) * (0.55 + 0.9 * grain)[..., None], growth)

    centre, border, cell = cells(rng, size, scale / 6)
    chosen = rng.random(cell.max() + 1) < 0.16
    radius = rng.uniform(0.16, 0.36, cell.max() + 1)[cell]
    tint = rng.uniform(0.75, 1.25, (cell.max() + 1, 1)) * (0.5 * np.asarray(light) + 0.5 * np.asarray(rock))
    inside = np.clip((radius - centre) * scale / 6 * 0.6, 0, 1) * chosen[cell]
    domed = 0.65 + 0.55 * np.sqrt(np.clip(1 - (centre / radius) ** 2, 0, 1))
    stones = tint[cell].astype(np.float32) * (domed * (0.8 + 0.4 * grain))[..., None]
    ground = mix(ground, stones, inside * np.clip(border, 0, 1))
    return (np.clip(ground, 0, 1) * 255).round().astype(np.uint8)


def skin(rng: Generator, size: tuple[int, int], scale: float, pattern: str, palette: tuple[Colour, ...]) -> np.ndarray:
    """Animal skin: float32 ``[H, W, 3]`` in [0, 1].

    Args:
        scale: pixels of one pattern element.
        pattern: ``"spots"``, ``"bands"`` (across x), ``"scutes"`` (plates with pale seams) or ``"mottled"``.
        palette: base, second, mark; RGB in [0, 1].
    """
    base, second, mark = palette
    coat = mix(base, second, cloud(rng, size, scale * 1.5, 4, gain=0.65))
    if pattern == "spots":
        centre, _, cell = cells(rng, size, scale)
        radius = rng.uniform(0.18, 0.42, cell.max() + 1)[cell]
        coat = mix(coat, mark, (radius - centre) * scale * 0.5)
    elif pattern == "bands":
        wobble = (cloud(rng, size, scale * 1.5, 2) - 0.5) * scale * 0.8
        wave = np.sin(2 * np.pi * (np.arange(size[1])[None] + wobble) / (2 * scale))
        coat = mix(coat, mark, 0.5 + 3.0 * (wave - 0.35))
    elif pattern == "scutes":
        _, border, cell = cells(rng, size, scale)
        coat *= rng.uniform(0.75, 1.2, cell.max() + 1)[cell][..., None].astype(np.float32)
        coat = mix(mark, coat, (border - 0.02 * scale) / max(0.06 * scale, 1))
    elif pattern != "mottled":
        raise ValueError(f"s2d::skin: expected pattern spots, bands, scutes or mottled, got {pattern!r}")
    fine = cloud(rng, size, max(scale / 4, 2.0), 3, gain=0.8)
    return np.clip(coat * (0.75 + 0.5 * fine)[..., None], 0, 1).astype(np.float32)


def relief(mask: np.ndarray, roundness: float) -> np.ndarray:
    """Soft light from the upper left on a body that bulges inside its outline: float32 ``[H, W]`` about 1.

    Args:
        mask: uint8 ``[H, W]``, non-zero inside.
        roundness: width of the rounded rim in pixels.
    """
    depth = np.clip(cv2.distanceTransform(mask, cv2.DIST_L2, 5) / max(roundness, 1), 0, 1)
    height = np.sqrt(1 - (1 - depth) ** 2) * roundness
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), max(roundness / 5, 0.7))
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    light = (0.45 * slope_x + 0.55 * slope_y + 0.85) / np.sqrt(slope_x**2 + slope_y**2 + 1)
    return (0.42 + 0.72 * np.clip(light, 0, 1.3)).astype(np.float32)
