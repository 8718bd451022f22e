"""Articulated animals: textured parts that hang on joints."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from s2d.data.synthetic.texture import Colour, relief, skin


@dataclass(frozen=True, eq=False)
class Part:
    """A rigid textured piece. Its own frame has the joint at the origin; lengths are in body lengths.

    Attributes:
        colour: float32 ``[h, w, 3]`` in [0, 255], drawn past the outline so that sampling at the edge bleeds nothing.
        cover: float32 ``[h, w]`` in [0, 1]: the share of each texture pixel inside the outline; 0 on the rim.
        origin: where texture pixel (0, 0) lies in the part's frame.
        resolution: texture pixels in a body length.
        parent: index of the part it hangs on; None for the body.
        joint: the joint in the parent's frame.
        angle: at rest, radians, clockwise on the screen (y points down).
        swing: amplitude in radians; the part swings with ``sin(2 pi (cycles + phase))``.
        phase: see swing.
        below: drawn before the part it hangs on.
    """

    colour: np.ndarray
    cover: np.ndarray
    origin: tuple[float, float]
    resolution: float
    parent: int | None = None
    joint: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    swing: float = 0.0
    phase: float = 0.0
    below: bool = True


@dataclass(frozen=True, eq=False)
class Creature:
    """Parts, parents before children. The body is about one body length long and looks along +x."""

    name: str
    parts: tuple[Part, ...]

    def drawing_order(self) -> list[int]:
        """Part indices from the lowest to the topmost."""
        order: list[int] = []
        for index, part in enumerate(self.parts):
            place = len(order) if part.parent is None else order.index(part.parent) + (not part.below)
            order.insert(place, index)
        return order

    def pose(self, cycles: float, liveliness: float) -> np.ndarray:
        """Texture pixels to body coordinates for every part: float64 ``[P, 3, 3]``.

        Args:
            cycles: how many strokes have been swum; the swing's argument.
            liveliness: scales every swing.
        """
        frames, maps = [], []
        for part in self.parts:
            angle = part.angle + liveliness * part.swing * np.sin(2 * np.pi * (cycles + part.phase))
            frame = shift(*part.joint) @ turn(angle)
            if part.parent is not None:
                frame = frames[part.parent] @ frame
            frames.append(frame)
            maps.append(frame @ shift(*part.origin) @ stretch(1 / part.resolution))
        return np.stack(maps)


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def turn(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=np.float64)


def stretch(factor: float) -> np.ndarray:
    return np.diag([factor, factor, 1.0])


@dataclass(frozen=True)
class Coat:
    """How a part is painted: pattern and palette of `skin`, size of a pattern element in body lengths."""

    pattern: str
    palette: tuple[Colour, Colour, Colour]
    scale: float = 0.12


def make_part(rng: Generator, outline: np.ndarray, coat: Coat, resolution: float, **where) -> Part:
    """A part from the outline ``[P, 2]`` in its own frame; ``where`` are the remaining fields of `Part`."""
    margin = 3.0 / resolution
    low, high = outline.min(0) - margin, outline.max(0) + margin
    width, height = np.ceil((high - low) * resolution).astype(int) + 1
    fine = 4
    polygon = ((outline - low) * resolution * fine * 16).round().astype(np.int32)
    mask = np.zeros((height * fine, width * fine), dtype=np.uint8)
    cv2.fillPoly(mask, [polygon], 255, shift=4)
    cover = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    inside = (cover > 0.5).astype(np.uint8)
    rim = 0.8 * float(cv2.distanceTransform(inside, cv2.DIST_L2, 5).max())
    paint = skin(rng, (height, width), coat.scale * resolution, coat.pattern, coat.palette)
    colour = np.clip(paint * relief(inside, rim)[..., None], 0, 1) * 255
    return Part(colour.astype(np.float32), cover, (float(low[0]), float(low[1])), resolution, **where)


def oval(length: float, width: float, egg: float = 0.0, start: float | None = None, points: int = 72) -> np.ndarray:
    """An oval along x from ``start`` (default: centred on the joint); ``egg`` > 0 makes the far end blunter."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x = np.cos(angle)
    y = np.sin(angle) * (1 + egg * x)
    left = -length / 2 if start is None else start
    return np.stack([(x + 1) / 2 * length + left, y * width / 2], 1)


def limb(length: float, root: float, tip: float) -> np.ndarray:
    """A tapered limb along +x: the hull of a circle ``root`` wide at the joint and one ``tip`` wide at the end."""
    end = oval(tip, tip) + np.array([length, 0.0])
    return cv2.convexHull(np.concatenate([oval(root, root), end]).astype(np.float32))[:, 0]


def turtle(rng: Generator, resolution: float, coats: tuple[Coat, Coat]) -> Creature:
    """A shell, four flippers in two segments, a head and a tail. ``coats``: shell, skin."""
    shell, hide = coats
    parts = [make_part(rng, oval(0.74, 0.6, egg=0.12), shell, resolution)]
    for side in (-1, 1):
        front = side * np.deg2rad(62)
        parts.append(
            make_part(
                rng,
                limb(0.26, 0.19, 0.13),
                hide,
                resolution,
                parent=0,
                joint=(0.2, side * 0.2),
                angle=front,
                swing=side * 0.5,
                phase=0.0,
            )
        )
        parts.append(
            make_part(
                rng,
                limb(0.24, 0.14, 0.05),
                hide,
                resolution,
                parent=len(parts) - 1,
                joint=(0.24, 0.0),
                angle=side * np.deg2rad(38),
                swing=side * 0.45,
                phase=-0.15,
            )
        )
        parts.append(
            make_part(
                rng,
                limb(0.24, 0.15, 0.09),
                hide,
                resolution,
                parent=0,
                joint=(-0.25, side * 0.17),
                angle=side * np.deg2rad(138),
                swing=side * 0.35,
                phase=0.4,
            )
        )
    parts.append(
        make_part(
            rng,
            oval(0.3, 0.2, egg=-0.15, start=-0.06),
            hide,
            resolution,
            parent=0,
            joint=(0.34, 0.0),
            swing=0.16,
            phase=0.2,
        )
    )
    parts.append(
        make_part(rng, limb(0.14, 0.09, 0.03), hide, resolution, parent=0, joint=(-0.34, 0.0), angle=np.pi, swing=0.3)
    )
    return Creature("turtle", tuple(parts))


def fish(rng: Generator, resolution: float, coats: tuple[Coat, Coat]) -> Creature:
    """A head and three hinged tail segments with fins. ``coats``: body, fins."""
    body, fins = coats
    parts = [
        make_part(rng, oval(0.56, 0.36, egg=0.1, start=-0.2), body, resolution, swing=0.08),
        make_part(
            rng,
            limb(0.3, 0.32, 0.2),
            body,
            resolution,
            parent=0,
            joint=(-0.04, 0.0),
            angle=np.pi,
            swing=0.22,
            phase=-0.15,
        ),
        make_part(rng, limb(0.2, 0.2, 0.1), body, resolution, parent=1, joint=(0.24, 0.0), swing=0.32, phase=-0.3),
    ]
    tail = np.array(
        [
            [-0.03, -0.04],
            [0.12, -0.13],
            [0.27, -0.2],
            [0.22, -0.06],
            [0.2, 0.0],
            [0.22, 0.06],
            [0.27, 0.2],
            [0.12, 0.13],
            [-0.03, 0.04],
        ]
    )
    parts.append(make_part(rng, tail, fins, resolution, parent=2, joint=(0.17, 0.0), swing=0.45, phase=-0.45))
    for side in (-1, 1):
        parts.append(
            make_part(
                rng,
                limb(0.22, 0.12, 0.05),
                fins,
                resolution,
                parent=0,
                joint=(0.06, side * 0.13),
                angle=side * np.deg2rad(125),
                swing=side * 0.35,
                phase=0.1,
            )
        )
    return Creature("fish", tuple(parts))


def octopus(rng: Generator, resolution: float, coats: tuple[Coat, Coat]) -> Creature:
    """A mantle and six arms in two segments. ``coats``: mantle, arms."""
    mantle, hide = coats
    parts = [make_part(rng, oval(0.52, 0.4, egg=0.15, start=-0.14), mantle, resolution, swing=0.06)]
    for number, degrees in enumerate(np.linspace(108, 252, 6)):
        angle = np.deg2rad(degrees)
        joint = (-0.06 + 0.1 * np.cos(angle), 0.13 * np.sin(angle))
        parts.append(
            make_part(
                rng,
                limb(0.27, 0.16, 0.11),
                hide,
                resolution,
                parent=0,
                joint=joint,
                angle=angle,
                swing=0.22,
                phase=0.15 * number,
            )
        )
        parts.append(
            make_part(
                rng,
                limb(0.22, 0.115, 0.05),
                hide,
                resolution,
                parent=len(parts) - 1,
                joint=(0.25, 0.0),
                angle=0.35 * np.sign(180.0 - degrees),
                swing=0.5,
                phase=0.15 * number - 0.2,
            )
        )
    return Creature("octopus", tuple(parts))


SPECIES = {"turtle": turtle, "fish": fish, "octopus": octopus}
