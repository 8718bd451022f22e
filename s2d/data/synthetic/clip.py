"""Clips made from a seed: what is in them, and the one that the demo runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from s2d.data.synthetic.creatures import SPECIES, Coat
from s2d.data.synthetic.render import Rendering, layer_flow, render
from s2d.data.synthetic.scene import Actor, CameraView, Waypoint, camera_maps
from s2d.data.synthetic.texture import seabed
from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.ops import PointTracks, rle_encode

SAND = ((0.86, 0.78, 0.6), (0.6, 0.5, 0.36), (0.3, 0.34, 0.3))

# Shell or body first, then limbs or fins; each with base, second and mark colour.
COATS = {
    "turtle": (
        (Coat("scutes", ((0.36, 0.42, 0.16), (0.22, 0.3, 0.1), (0.78, 0.74, 0.42)), 0.17),
         Coat("scutes", ((0.28, 0.38, 0.24), (0.2, 0.28, 0.18), (0.62, 0.66, 0.46)), 0.06)),
        (Coat("scutes", ((0.42, 0.24, 0.12), (0.3, 0.16, 0.08), (0.85, 0.66, 0.36)), 0.15),
         Coat("spots", ((0.34, 0.26, 0.2), (0.24, 0.18, 0.14), (0.7, 0.6, 0.44)), 0.07)),
    ),
    "fish": (
        (Coat("bands", ((0.96, 0.42, 0.1), (0.85, 0.26, 0.06), (0.98, 0.93, 0.84)), 0.1),
         Coat("bands", ((0.95, 0.5, 0.12), (0.88, 0.32, 0.08), (0.3, 0.1, 0.05)), 0.05)),
        (Coat("spots", ((0.16, 0.5, 0.72), (0.1, 0.34, 0.6), (0.95, 0.85, 0.3)), 0.09),
         Coat("mottled", ((0.9, 0.78, 0.25), (0.75, 0.55, 0.15), (0.9, 0.78, 0.25)), 0.06)),
    ),
    "octopus": (
        (Coat("spots", ((0.55, 0.2, 0.42), (0.4, 0.12, 0.36), (0.93, 0.66, 0.78)), 0.09),
         Coat("spots", ((0.58, 0.22, 0.44), (0.42, 0.14, 0.38), (0.9, 0.6, 0.74)), 0.06)),
        (Coat("mottled", ((0.3, 0.26, 0.56), (0.18, 0.16, 0.42), (0.3, 0.26, 0.56)), 0.12),
         Coat("spots", ((0.32, 0.28, 0.58), (0.2, 0.18, 0.44), (0.72, 0.7, 0.9)), 0.05)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SyntheticSettings:
    """What a generated clip contains.

    Attributes:
        frames: T.
        size: (H, W) in pixels.
        fps: frames per second.
        objects: animals that move over the ground.
        static_objects: animals that lie still: only the camera moves them in the picture.
        object_size: body length as a share of the picture's shorter side, (least, greatest).
        articulation: how far limbs swing, 0 for rigid objects.
        scale_change: by which share the size of an object changes along its path.
        perspective: change of apparent scale over an object's length, at most.
        camera: strength of camera motion (pan, turn, zoom, tilt), 0 for a fixed camera.
        occlusion: the first two moving objects meet, one above the other.
        reentry: the last moving object leaves the picture and comes back.
        shadow: share of the light that the shadow under an object takes.
        noise: standard deviation of the sensor's noise, grey levels.
    """

    frames: int = 60
    size: tuple[int, int] = (240, 432)
    fps: Fraction = Fraction(25)
    objects: int = 3
    static_objects: int = 1
    object_size: tuple[float, float] = (0.3, 0.5)
    articulation: float = 1.0
    scale_change: float = 0.3
    perspective: float = 0.25
    camera: float = 1.0
    occlusion: bool = True
    reentry: bool = True
    shadow: float = 0.25
    noise: float = 2.0

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self.size) < 16 or self.objects < 0 or self.static_objects < 0:
            raise ValueError(
                "s2d::SyntheticSettings: expected at least 1 frame, 16 pixels a side and 0 objects, "
                f"got {self.frames}, {self.size}, {self.objects} and {self.static_objects}"
            )


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """A generated clip and everything that is true about it.

    Attributes:
        video: the frames, in memory.
        tracks: the visible pixels of every object that is ever seen; ``annotated`` where it is seen.
        forward: float32 ``[T - 1, H, W, 2]``: (dx, dy) in pixels from each pixel of frame t to its place in t + 1.
        backward: the same from frame t + 1 to t, on the grid of t + 1.
        visible: bool ``[T - 1, H, W]``: the surface at a pixel of frame t is still seen in t + 1.
        backward_visible: bool ``[T - 1, H, W]``: that of a pixel of frame t + 1 was already seen in t.
        owners: int16 ``[T, H, W]``: 0 for the background, n + 1 for track n.
        layers: int16 ``[T, H, W]``: the rigid piece seen at each pixel (a shell, a flipper, ...).
        maps: float64 ``[T, L, 3, 3]``: from each piece's own coordinates to the picture's pixels.
    """

    video: Video
    tracks: Tracks
    forward: Tensor
    backward: Tensor
    visible: Tensor
    backward_visible: Tensor
    owners: Tensor
    layers: Tensor
    maps: Tensor

    def track(self, points: Tensor, frame: Tensor) -> PointTracks:
        """Where points of the surfaces seen at some pixels are in every frame, also where something hides them.

        A point is visible where its nearest pixel shows the piece that it lies on.

        Args:
            points: float32 ``[G, 2]``: (x, y) in pixels, in the picture.
            frame: int64 ``[G]`` in [0, T): the frame each point belongs to.
        """
        length, height, width = self.layers.shape
        column, row = points.round().long().unbind(1)
        piece = self.layers[frame, row, column].long()
        moves = self.maps[:, piece] @ torch.linalg.inv(self.maps[frame, piece])
        there = moves @ torch.cat([points.double(), points.new_ones(len(points), 1).double()], 1)[..., None]
        places = (there[..., :2, 0] / there[..., 2:, 0]).float()
        column, row = places.round().long().unbind(2)
        within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen = self.layers[torch.arange(length)[:, None], row.clamp(0, height - 1), column.clamp(0, width - 1)]
        return PointTracks(places.transpose(0, 1).contiguous(), (within & (seen == piece)).T.contiguous())


def generate_clip(
    settings: SyntheticSettings | None = None, *, seed: int = 0, name: str | None = None
) -> SyntheticClip:
    """A clip of animals on a sea bed; the same settings and seed always give the same clip."""
    settings = settings or SyntheticSettings()
    rng = np.random.default_rng(seed)
    camera = camera_maps(_camera_views(settings, rng), settings.size, settings.frames)
    actors = [_random_actor(settings, index, camera, rng) for index in range(settings.objects)]
    # What lies on the ground is below what swims.
    still = [_still_actor(settings, index, rng) for index in range(settings.static_objects)]
    return _finish(still + actors, camera, settings, rng, name or f"synthetic-{seed}")


def demo_clip() -> SyntheticClip:
    """The clip of ``s2d run --demo``: 48 frames of 240 x 416 at 25 a second, seen by a camera that drifts and zooms.

    A turtle crosses the picture and grows; a fish passes below it and leaves; an octopus moves, rests, and moves on.
    """
    settings = SyntheticSettings(frames=48, size=(240, 416), shadow=0.22, noise=1.5)
    rng = np.random.default_rng(7)
    views = [CameraView(0, -8, -4, 0.0, 1.0), CameraView(24, 10, 3, 0.015, 1.03), CameraView(47, 26, 6, -0.01, 1.08)]
    camera = camera_maps(views, settings.size, settings.frames)
    animals = {name: SPECIES[name](rng, size * 1.5, COATS[name][0]) for name, size in _DEMO_SIZES.items()}
    octopus = Actor(
        animals["octopus"],
        (
            Waypoint(0, 300, 78, np.deg2rad(-30), 92),
            Waypoint(14, 338, 62, np.deg2rad(-20), 92),
            Waypoint(26, 338, 62, np.deg2rad(-20), 92),
            Waypoint(48, 372, 150, np.deg2rad(60), 98),
        ),
        strokes=0.03,
        liveliness=(1.0, 0.25, 0.25, 1.0),
    )
    fish = Actor(
        animals["fish"],
        (
            Waypoint(0, 330, 206, np.deg2rad(190), 104),
            Waypoint(24, 196, 166, np.deg2rad(200), 100),
            Waypoint(47, 72, 78, np.deg2rad(215), 94),
        ),
        strokes=0.07,
    )
    turtle = Actor(
        animals["turtle"],
        (
            Waypoint(0, 70, 84, np.deg2rad(30), 118, tilt=0.1),
            Waypoint(24, 142, 138, np.deg2rad(18), 126),
            Waypoint(48, 236, 156, np.deg2rad(-14), 136, tilt=-0.1),
        ),
        strokes=0.045,
    )
    return _finish([octopus, fish, turtle], camera, settings, rng, "demo")


_DEMO_SIZES = {"turtle": 130, "fish": 104, "octopus": 96}


def _camera_views(settings: SyntheticSettings, rng: Generator) -> list[CameraView]:
    """A slow drift through three random views; the middle one is at rest."""
    pan = 0.08 * settings.camera * np.array(settings.size[::-1])
    last = settings.frames - 1
    views = []
    for t, weight in ((0, -1.0), (last / 2, 0.0), (last, 1.0)):
        x, y = weight * pan * rng.uniform(0.5, 1, 2) * rng.choice([-1, 1], 2)
        turn, zoom, tilt_x, tilt_y = weight * settings.camera * rng.uniform(-1, 1, 4) * (0.06, 0.12, 0.06, 0.06)
        views.append(CameraView(t, x, y, turn, 1 + zoom, tilt_x, tilt_y))
    return views if last > 0 else views[:1]


def _random_actor(settings: SyntheticSettings, index: int, camera: np.ndarray, rng: Generator) -> Actor:
    height, width = settings.size
    last = max(settings.frames - 1, 1)
    size = rng.uniform(*settings.object_size) * min(settings.size)
    margin = 0.35 * size
    low, high = np.array([margin, margin]), np.array([width - margin, height - margin])
    times = np.array([-2, 0.33 * last, 0.66 * last, last + 2])
    places = rng.uniform(np.minimum(low, high), np.maximum(low, high), (4, 2))
    # From one half of the picture to the other, so that something happens.
    places[0, 0], places[3, 0] = (low[0], high[0]) if rng.random() < 0.5 else (high[0], low[0])
    if settings.occlusion and index < 2 and settings.objects > 1:
        meeting = np.array([width / 2, height / 2])
        times = np.array([-2, 0.5 * last, last + 2])
        places = np.stack([places[0], meeting, places[3]])
        places[0, 1], places[2, 1] = (low[1], high[1]) if index == 0 else (high[1], low[1])
    if settings.reentry and index == settings.objects - 1 and (index > 1 or not settings.occlusion):
        top = rng.random() < 0.5
        times = np.array([-2, 0.2 * last, 0.4 * last, 0.6 * last, 0.8 * last, last + 2])
        places[1:3, 1] = 0.25 * height if top else 0.75 * height
        away = np.array([[x, -0.75 * size if top else height + 0.75 * size] for x in places[1:3, 0]])
        places = np.concatenate([places[:2], away, places[2:]])
    ground = np.stack(
        [_to_ground(camera[int(np.clip(t, 0, settings.frames - 1))], p) for t, p in zip(times, places, strict=True)]
    )
    ahead = np.gradient(ground, axis=0)
    headings = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    grown = size * (1 + settings.scale_change * np.linspace(-0.5, 0.5, len(times)) * rng.choice([-1, 1]))
    tilts = settings.perspective * rng.uniform(-1, 1, (len(times), 2))
    path = tuple(
        Waypoint(float(t), x, y, heading, length, tilt, roll)
        for t, (x, y), heading, length, (tilt, roll) in zip(times, ground, headings, grown, tilts, strict=True)
    )
    return _dress(index, size, path, settings.articulation, rng.uniform(0.03, 0.07), rng)


def _still_actor(settings: SyntheticSettings, index: int, rng: Generator) -> Actor:
    height, width = settings.size
    size = rng.uniform(*settings.object_size) * min(settings.size)
    x, y = rng.uniform(0.2, 0.8, 2) * (width, height)
    path = (Waypoint(0, x, y, rng.uniform(0, 2 * np.pi), size),)
    return _dress(index + 2, size, path, 0.0, 0.0, rng)


def _dress(
    index: int, size: float, path: tuple[Waypoint, ...], liveliness: float, strokes: float, rng: Generator
) -> Actor:
    """An animal of the next species in one of its coats, on a path."""
    species = sorted(SPECIES)[index % len(SPECIES)]
    coats = COATS[species][int(rng.integers(len(COATS[species])))]
    return Actor(SPECIES[species](rng, 1.5 * size, coats), path, strokes, liveliness)


def _to_ground(camera: np.ndarray, place: Sequence[float]) -> np.ndarray:
    x, y, w = np.linalg.inv(camera) @ (*place, 1.0)
    return np.array([x / w, y / w])


def _finish(
    actors: list[Actor], camera: np.ndarray, settings: SyntheticSettings, rng: Generator, name: str
) -> SyntheticClip:
    """Lay the ground, draw, and read off what is true."""
    height, width = settings.size
    corners = [_to_ground(m, p) for m in camera for p in ((0, 0), (width, 0), (0, height), (width, height))]
    low, high = np.floor(np.min(corners, 0)) - 4, np.ceil(np.max(corners, 0)) + 4
    ground = seabed(rng, (int(high[1] - low[1]), int(high[0] - low[0])), 0.25 * min(settings.size) + 10, SAND)
    offset = np.array([[1, 0, low[0]], [0, 1, low[1]], [0, 0, 1]])
    drawn = render(
        ground, camera @ offset, actors, camera, settings.size, shadow=settings.shadow, noise=settings.noise, rng=rng
    )
    forward, visible = layer_flow(drawn.layers, drawn.maps, 1)
    backward, backward_visible = layer_flow(drawn.layers, drawn.maps, -1)
    tracks, owners = _tracks(drawn, len(actors), name)
    frames = torch.from_numpy(drawn.frames).permute(0, 3, 1, 2)
    return SyntheticClip(
        video=Video.from_frames(frames, settings.fps, name),
        tracks=tracks,
        forward=torch.from_numpy(forward),
        backward=torch.from_numpy(backward),
        visible=torch.from_numpy(visible),
        backward_visible=torch.from_numpy(backward_visible),
        owners=owners,
        layers=torch.from_numpy(drawn.layers),
        maps=torch.from_numpy(drawn.maps),
    )


def _tracks(drawn: Rendering, number: int, name: str) -> tuple[Tracks, Tensor]:
    """Tracks of the actors that are seen at all, and the owner map renumbered to them."""
    seen = [actor for actor in range(1, number + 1) if (drawn.owners == actor).any()]
    renumber = np.zeros(number + 1, dtype=np.int16)
    renumber[seen] = np.arange(1, len(seen) + 1)
    owners = torch.from_numpy(renumber[drawn.owners])
    masks = torch.stack([owners == n + 1 for n in range(len(seen))]) if seen else torch.zeros(0, *owners.shape).bool()
    tracks = Tracks(
        video=name,
        size=tuple(owners.shape[1:]),
        rle=rle_encode(masks.flatten(0, 1)),
        annotated=masks.flatten(2).any(2),
        scores=torch.ones(len(seen)),
    )
    return tracks, owners
