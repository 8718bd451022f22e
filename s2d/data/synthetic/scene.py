"""Who moves where: paths of animals over a plane, and of the camera above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from s2d.data.synthetic.creatures import Creature, shift, stretch, turn


@dataclass(frozen=True)
class Waypoint:
    """Where an animal is at frame ``t``.

    Attributes:
        t: frame; may lie outside the clip.
        x: pixels on the ground plane (the picture's pixels when the camera is at rest).
        y: the same.
        heading: radians, clockwise on the screen from +x.
        size: body length in pixels.
        tilt: perspective, the change of apparent scale over a body length, along the body.
        roll: the same, across the body.
    """

    t: float
    x: float
    y: float
    heading: float
    size: float
    tilt: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True, eq=False)
class Actor:
    """An animal and its path.

    Attributes:
        creature: what moves.
        path: waypoints in order of time; between them everything changes smoothly, and not at all between equal ones.
        strokes: strokes of the limbs per frame.
        liveliness: scales the swing of the limbs: one value, or one for each waypoint.
    """

    creature: Creature
    path: tuple[Waypoint, ...]
    strokes: float = 0.04
    liveliness: float | tuple[float, ...] = 1.0

    def maps(self, num_frames: int) -> np.ndarray:
        """Texture pixels to the ground plane: float64 ``[T, P, 3, 3]``."""
        state = np.array([[w.x, w.y, w.heading, w.size, w.tilt, w.roll] for w in self.path])
        lively = np.broadcast_to(np.asarray(self.liveliness, dtype=np.float64), len(self.path))
        states = along([w.t for w in self.path], np.column_stack([state, lively]), num_frames)
        maps = []
        for t, (x, y, heading, size, tilt, roll, liveliness) in enumerate(states):
            perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt, roll, 1]])
            pose = shift(x, y) @ turn(heading) @ stretch(size) @ perspective
            maps.append(pose @ self.creature.pose(self.strokes * t, liveliness))
        return np.stack(maps)


@dataclass(frozen=True)
class CameraView:
    """How the camera sees the plane at frame ``t``: moved by (x, y) pixels, turned, zoomed and tilted."""

    t: float
    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    zoom: float = 1.0
    tilt_x: float = 0.0
    tilt_y: float = 0.0


def camera_maps(views: Sequence[CameraView], size: tuple[int, int], num_frames: int) -> np.ndarray:
    """Ground plane to picture pixels: float64 ``[T, 3, 3]``; turns and zooms about the middle of the picture.

    ``tilt_x``, ``tilt_y``: the change of scale over the width and the height of the picture.
    """
    height, width = size
    centre = shift((width - 1) / 2, (height - 1) / 2)
    state = np.array([[v.x, v.y, v.turn, np.log(v.zoom), v.tilt_x / width, v.tilt_y / height] for v in views])
    maps = []
    for x, y, angle, log_zoom, tilt_x, tilt_y in along([v.t for v in views], state, num_frames):
        perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
        maps.append(
            centre @ perspective @ stretch(np.exp(log_zoom)) @ turn(angle) @ shift(-x, -y) @ np.linalg.inv(centre)
        )
    return np.stack(maps)


def along(times: Sequence[float], states: np.ndarray, num_frames: int) -> np.ndarray:
    """States ``[K, S]`` at ascending times, interpolated without overshoot to every frame: ``[T, S]``."""
    if len(times) == 1:
        return np.repeat(states, num_frames, axis=0)
    frames = np.clip(np.arange(num_frames), times[0], times[-1])
    return PchipInterpolator(np.asarray(times, dtype=np.float64), states, axis=0)(frames)
