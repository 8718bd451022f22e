"""Draws a scene layer by layer, and reads flow and visibility off the same maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from s2d.data.synthetic.creatures import Part
from s2d.data.synthetic.scene import Actor


@dataclass(frozen=True, eq=False)
class Rendering:
    """A drawn clip. Layer 0 is the background; parts are numbered from 1, actor by actor.

    Attributes:
        frames: uint8 ``[T, H, W, 3]`` RGB.
        layers: int16 ``[T, H, W]``: the layer seen at each pixel.
        owners: int16 ``[T, H, W]``: 0 for the background, i + 1 for actor i.
        maps: float64 ``[T, L, 3, 3]``: layer coordinates to picture pixels.
    """

    frames: np.ndarray
    layers: np.ndarray
    owners: np.ndarray
    maps: np.ndarray


def render(
    background: np.ndarray,
    background_maps: np.ndarray,
    actors: Sequence[Actor],
    camera: np.ndarray,
    size: tuple[int, int],
    *,
    shadow: float,
    noise: float,
    rng: Generator,
) -> Rendering:
    """Draw actors, the first lowest, over a background.

    Args:
        background: uint8 ``[h, w, 3]``.
        background_maps: background pixels to picture pixels, float64 ``[T, 3, 3]``.
        camera: ground plane to picture pixels, float64 ``[T, 3, 3]``.
        size: (H, W) of the picture.
        shadow: how much of the light the shadow below an actor takes, in [0, 1].
        noise: standard deviation of the sensor's noise in grey levels.
    """
    num_frames = len(camera)
    maps = [background_maps[:, None]] + [camera[:, None] @ actor.maps(num_frames) for actor in actors]
    first = np.cumsum([0] + [m.shape[1] for m in maps])
    maps = np.concatenate(maps, axis=1)
    frames = np.empty((num_frames, *size, 3), dtype=np.uint8)
    layers = np.zeros((num_frames, *size), dtype=np.int16)
    owners = np.zeros((num_frames, *size), dtype=np.int16)
    orders = [actor.creature.drawing_order() for actor in actors]
    for t in range(num_frames):
        picture = cv2.warpPerspective(
            background, maps[t, 0], size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        ).astype(np.float32)
        for number, actor in enumerate(actors):
            start = first[number + 1]
            _draw_actor(picture, layers[t], actor, orders[number], maps[t, start:], start, shadow)
            seen = (layers[t] >= start) & (layers[t] < first[number + 2])
            owners[t][seen] = number + 1
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * noise
        frames[t] = np.clip(picture, 0, 255).round().astype(np.uint8)
    return Rendering(frames, layers, owners, maps)


def _draw_actor(
    picture: np.ndarray,
    layers: np.ndarray,
    actor: Actor,
    order: Sequence[int],
    maps: np.ndarray,
    first_layer: int,
    shadow: float,
) -> None:
    """Draw the parts of one actor, and its shadow before them, into ``picture`` and ``layers``."""
    drawn = []
    for index in order:
        part = actor.creature.parts[index]
        window = _window(part, maps[index], picture.shape[:2])
        if window is not None:
            top, left, height, width = window
            local = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ maps[index]
            cover = cv2.warpPerspective(part.cover, local, (width, height), flags=cv2.INTER_LINEAR)
            colour = cv2.warpPerspective(
                part.colour, local, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            drawn.append((np.s_[top : top + height, left : left + width], index, cover, colour))
    if shadow > 0 and drawn:
        shade = np.zeros(picture.shape[:2], dtype=np.float32)
        for window, _, cover, _ in drawn:
            np.maximum(shade[window], cover, out=shade[window])
        reach = max(2.0, 0.02 * min(shade.shape))
        moved = np.array([[1, 0, 0.8 * reach], [0, 1, 1.2 * reach]])
        shade = cv2.GaussianBlur(cv2.warpAffine(shade, moved, shade.shape[::-1]), (0, 0), 0.7 * reach)
        picture *= (1 - shadow * shade)[..., None]
    for window, index, cover, colour in drawn:
        picture[window] += cover[..., None] * (colour - picture[window])
        layers[window][cover > 0.5] = first_layer + index


def _window(part: Part, texture_map: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of what the part can touch in the picture; None where it is outside."""
    height, width = part.cover.shape
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]])
    x, y, w = texture_map @ corners.T
    x, y = x / w, y / w
    left, right = max(int(np.floor(x.min())), 0), min(int(np.ceil(x.max())) + 1, size[1])
    top, bottom = max(int(np.floor(y.min())), 0), min(int(np.ceil(y.max())) + 1, size[0])
    return None if right <= left or bottom <= top else (top, left, bottom - top, right - left)


def layer_flow(layers: np.ndarray, maps: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact flow of every pixel to the next (``step`` 1) or the previous frame (``step`` -1).

    Args:
        layers: int16 ``[T, H, W]``.
        maps: float64 ``[T, L, 3, 3]``.

    Returns:
        Flow float32 ``[T - 1, H, W, 2]``, (dx, dy) in pixels, and visibility bool ``[T - 1, H, W]``: whether the same
        layer is seen at the pixel nearest to where the flow leads. Entry t starts from frame t, or t + 1 backwards.
    """
    num_frames, height, width = layers.shape
    flow = np.empty((num_frames - 1, height, width, 2), dtype=np.float32)
    visible = np.zeros((num_frames - 1, height, width), dtype=bool)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.stack([columns, rows], -1).astype(np.float32)
    for t in range(num_frames - 1):
        here, there = (t, t + 1) if step == 1 else (t + 1, t)
        moves = maps[there] @ np.linalg.inv(maps[here])
        x, y, w = (
            row[0][layers[here]] * columns + row[1][layers[here]] * rows + row[2][layers[here]]
            for row in moves.transpose(1, 2, 0)
        )
        flow[t, ..., 0] = x / w - columns
        flow[t, ..., 1] = y / w - rows
        column, row = np.rint(pixels + flow[t]).astype(np.int64).transpose(2, 0, 1)  # float32, as flow_warp_iou rounds
        within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        visible[t][within] = layers[there][row[within], column[within]] == layers[here][within]
    return flow, visible
