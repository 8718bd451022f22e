"""Instances painted over the video: a translucent fill, a contour and a number that stays with its instance."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from s2d.data.types import Tracks
from s2d.data.video import Video, write_video
from s2d.ops import BitMasks, unpack_masks
from s2d.viz.palette import instance_colour, text_colour

FILL = 0.38
# Frames whose masks are decoded together.
CHUNK = 8
# Where a label would sit is found on a reduced mask: its place need not be exact to the pixel.
ANCHOR_SIDE = 96
# How strongly a label stays where it was, against the depth of its place inside the mask.
INERTIA = 0.35


class OverlayPainter:
    """Paints the masks of successive frames; keeps the labels from jumping between frames.

    Args:
        size: (H, W) of the frames, pixels.
        emphasis: factor on lines and labels, for pictures that are shown smaller than they are.
    """

    def __init__(self, size: tuple[int, int], emphasis: float = 1.0) -> None:
        self.line = max(2, round(emphasis * min(size) / 220))
        self.text = max(12, round(emphasis * min(size) / 20))
        self._places: dict[int, np.ndarray] = {}

    def paint(self, frame: Tensor, masks: Tensor) -> Tensor:
        """One frame with its instances.

        Args:
            frame: uint8 ``[3, H, W]`` RGB.
            masks: bool ``[N, H, W]``; the index is the instance. Where instances overlap, the lowest index is seen, as
                in the label maps.

        Returns:
            uint8 ``[3, H, W]``.
        """
        picture = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        seen: dict[int, np.ndarray] = {}
        free = np.ones(picture.shape[:2], dtype=bool)
        for index, mask in enumerate(masks.numpy()):
            visible = mask & free
            if visible.any():
                seen[index] = visible
                free &= ~mask
        for index in reversed(seen):
            _fill_and_outline(picture, seen[index], instance_colour(index), self.line)
        taken: list[np.ndarray] = []
        for index, mask in seen.items():
            taken.append(self._label_place(index, mask, taken))
            _paste(picture, _label(index, self.text), taken[-1])
        self._places = dict(zip(seen, taken, strict=True))
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous()

    def _label_place(self, index: int, mask: np.ndarray, taken: list[np.ndarray]) -> np.ndarray:
        """(x, y): deep inside the mask, near the place in the frame before, beside the labels that are placed."""
        scale = max(1.0, max(mask.shape) / ANCHOR_SIDE)
        small = cv2.resize(
            mask.astype(np.uint8),
            (max(1, round(mask.shape[1] / scale)), max(1, round(mask.shape[0] / scale))),
            interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_NEAREST,
        )
        if not small.any():
            small = cv2.resize(mask.astype(np.uint8) * 255, small.shape[::-1], interpolation=cv2.INTER_AREA)
        depth = cv2.distanceTransform(np.pad((small > 0).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        inside = depth > 0
        y, x = np.mgrid[: small.shape[0], : small.shape[1]]
        for other in taken:
            depth = depth - max(small.shape) * (
                np.hypot(x - other[0] / scale, y - other[1] / scale) < self.text / scale
            )
        if index in self._places:
            before = self._places[index] / scale
            depth = depth - INERTIA * np.hypot(x - before[0], y - before[1])
        depth = np.where(inside, depth, -np.inf)
        row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
        target = (np.array([column, row]) + 0.5) * scale
        # A label glides: half of the way each frame.
        return target if index not in self._places else (self._places[index] + target) / 2


def write_overlay(path: str | Path, video: Video, tracks: Tracks, *, progress: bool = True) -> None:
    """Write the video with its instances as H.264 at the frame rate of the video.

    Args:
        path: ends in ``.mp4``.
        video: frames of the size of the masks.
        tracks: instances on these frames.

    Raises:
        ValueError: tracks and video differ in size or number of frames.
    """
    if (tracks.size, tracks.num_frames) != (video.size, video.num_frames):
        raise ValueError(
            f"expected tracks of {video.num_frames} frames of {video.size}, got {tracks.num_frames} of {tracks.size}"
        )
    spacing = np.diff(video.timestamps)
    varies = len(spacing) > 0 and float(np.abs(spacing - 1 / float(video.fps)).max()) > 0.25 / float(video.fps)
    write_video(
        path,
        _painted(video, tracks, progress),
        video.fps,
        timestamps=video.timestamps if varies else None,
    )


def _painted(video: Video, tracks: Tracks, progress: bool) -> Iterator[Tensor]:
    painter = OverlayPainter(video.size)
    for t, frame in enumerate(tqdm(video, total=video.num_frames, desc="overlay", disable=not progress)):
        if t % CHUNK == 0:
            bits = tracks.bits(slice(t, t + CHUNK))
        yield painter.paint(frame, unpack_masks(BitMasks(bits.words[:, t % CHUNK], bits.width)))


def _fill_and_outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    """Tint the mask and draw its outline, in place; only the box around the mask is touched."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    margin = line + 3
    box = (slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin))
    inside, part = mask[box], picture[box].copy()
    part[inside] = (part[inside] * (1 - FILL) + np.array(colour) * FILL).astype(np.uint8)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # A dark seam keeps the outline visible on a background of its own colour.
    seam = cv2.drawContours(part.copy(), contours, -1, (15, 15, 15), line + 2, cv2.LINE_AA)
    part = cv2.addWeighted(seam, 0.4, part, 0.6, 0)
    picture[box] = cv2.drawContours(part, contours, -1, colour, line, cv2.LINE_AA)


@cache
def _label(index: int, height: int) -> np.ndarray:
    """The number of an instance on a rounded plate: float32 ``[h, w, 4]`` RGBA in [0, 1].

    Drawn four times too large and reduced, because Pillow's shapes have hard edges.
    """
    times = 4
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"), round(height * 0.8) * times)
    text = str(index + 1)
    left, top, right, bottom = font.getbbox(text)
    tall = round(height * 1.25) * times
    wide = max(tall, (right - left) + round(height * 0.6) * times)
    wide += -wide % times
    plate = Image.new("RGBA", (wide, tall), (*instance_colour(index), 0))
    draw = ImageDraw.Draw(plate)
    draw.rounded_rectangle((0, 0, wide - 1, tall - 1), tall // 2, fill=(255, 255, 255, 235))
    rim = max(1, height // 12) * times
    draw.rounded_rectangle((rim, rim, wide - 1 - rim, tall - 1 - rim), tall // 2 - rim, fill=instance_colour(index))
    where = ((wide - left - right) / 2, (tall - top - bottom) / 2)
    draw.text(where, text, font=font, fill=text_colour(instance_colour(index)))
    small = plate.resize((wide // times, tall // times), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float32) / 255


def _paste(picture: np.ndarray, label: np.ndarray, place: np.ndarray) -> None:
    """Blend a label centred at (x, y), moved so that it stays inside the frame, in place."""
    height, width = min(label.shape[0], picture.shape[0]), min(label.shape[1], picture.shape[1])
    label = label[:height, :width]
    x = int(np.clip(round(place[0] - width / 2), 0, picture.shape[1] - width))
    y = int(np.clip(round(place[1] - height / 2), 0, picture.shape[0] - height))
    under = picture[y : y + height, x : x + width]
    alpha = label[..., 3:]
    under[:] = (under * (1 - alpha) + label[..., :3] * 255 * alpha).round().astype(np.uint8)
