"""What discovery is measured on: generated and real clips with noisy proposals, and the ways that are compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2d.data.synthetic import LEVELS, SyntheticClip, SyntheticSettings, generate_clip, perturb_proposals
from s2d.data.types import FrameMasks, Tracks
from s2d.data.video import Video, open_video
from s2d.data.ytvis import read_ytvis
from s2d.metrics import KeymaskQuality, at_size, keymask_quality, link_greedily
from s2d.motion.dis import DisPrior, VideoFlow
from s2d.motion.prior import MotionPrior
from s2d.ops import RLE, PointTracks
from s2d.stages.discover import DiscoverSettings, discover

SEEDS = range(1000, 1040)
TUNING_SEEDS = range(5000, 5060)
REAL = {
    "dogs-scale": ("dogs-scale/video.mp4", "ytvis_dogs-scale_koala.json"),
    "koala": ("koala/video.mp4", "ytvis_dogs-scale_koala.json"),
    "boys-beach": ("boys-beach/input_video.mp4", "ytvis_boys-beach_camel.json"),
    "davis_camel": ("davis_camel/input_video.mp4", "ytvis_boys-beach_camel.json"),
}
NOISE_LEVELS = range(1, len(LEVELS) + 1)
QUERY_LINES = 50
THRESHOLDS = (0.3, 0.5)


class Case(NamedTuple):
    """A video, its exact instances, and the priors that carry points through it."""

    video: Video
    truth: Tracks
    priors: dict[str, MotionPrior]


class Way(NamedTuple):
    """One way from proposals to keymasks: settings of `discover` and a prior, or a function of its own."""

    settings: DiscoverSettings | None = None
    prior: str = "flow"
    other: Callable[[FrameMasks], Tracks] | None = None


class KeptPrior:
    """Motion that is computed once for a clip and used by every way."""

    pure = True

    def __init__(self, make: Callable[[Tensor, int, Video], VideoFlow | PointTracks], name: str) -> None:
        self.name, self._make = name, make
        self._kept: dict[tuple[int, int], VideoFlow | PointTracks] = {}

    def fingerprint(self) -> dict[str, Any]:
        return {"prior": self.name}

    def scene(self, frames: Tensor, start: int, video: Video) -> VideoFlow | PointTracks:
        key = start, len(frames)
        if key not in self._kept:
            self._kept[key] = self._make(frames, start, video)
        return self._kept[key]


def each_alone(proposals: FrameMasks) -> Tracks:
    """Every proposal as an instance of its own."""
    number, length = len(proposals), proposals.num_frames
    annotated = torch.zeros(number, length, dtype=torch.bool)
    annotated[torch.arange(number), proposals.frames] = True
    empty = RLE.empty(1, *proposals.size)
    parts = [
        proposals.rle[n] if t == frame else empty for n, frame in enumerate(proposals.frames) for t in range(length)
    ]
    rle = RLE.cat(parts) if parts else RLE.empty(0, *proposals.size)
    return Tracks(proposals.video, proposals.size, rle, annotated, proposals.scores)


def ways(exact_tracks: bool) -> dict[str, Way]:
    """The ways of the main table."""
    found = {
        "all proposals": Way(other=each_alone),
        "linked by IoU": Way(other=link_greedily),
        "official": Way(DiscoverSettings.paper()),
    }
    if exact_tracks:
        found["official, exact tracks"] = Way(DiscoverSettings.paper(), "tracks")
    return found | {
        f"ours, {scoring}": Way(DiscoverSettings(scoring=scoring)) for scoring in ("trajectory", "flow", "both")
    }


def ablations() -> dict[str, Way]:
    """Ours and the official procedure with one thing changed."""
    ours = {
        "ours": {},
        "of a frame's masks the last": {"choice": "last"},
        "3 masks at least": {"least_masks": 3},
        "5 masks at least": {"least_masks": 5},
        "any share of frames": {"least_share": 0.0},
        "outliers are kept": {"outlier": 0.0},
        "parts are kept": {"inside": 1.0},
        "likeness 0.2": {"likeness": 0.2},
        "likeness 0.4": {"likeness": 0.4},
        "across cuts": {"cut": 1.0, "cut_flow": 0.0},
        "the paper's grouping": {"grouping": "paper"},
        "the paper's grids": {"least_points": 1},
    }
    official = {
        "official": {},
        "official, best mask of a frame": {"choice": "score"},
        "official, duplicates joined": {"likeness": 0.3},
        "official, split at cuts": {"cut": 0.4, "cut_flow": 0.3},
        "official, 3 masks make a cluster": {
            "visibility_samples": 3,
            "match_density": ((50, 0.05, 3), (9, 0.1, 3), (0, 0.1, 3)),
        },
    }
    return (
        {name: Way(DiscoverSettings(**change)) for name, change in ours.items()}
        | {"flow of large patches": Way(DiscoverSettings(), "medium")}
        | {name: Way(DiscoverSettings.paper(**change)) for name, change in official.items()}
    )


def generated(seed: int, frames: int = 28) -> Case:
    """A clip of 28 frames of 288 x 160: even seeds have a fixed camera, odd ones a moving one."""
    settings = SyntheticSettings(
        frames=frames,
        size=(160, 288),
        objects=2 + seed // 2 % 3,
        static_objects=seed // 4 % 2,
        camera=float(seed % 2),
    )
    clip = generate_clip(settings, seed=seed)
    return Case(clip.video, clip.tracks, _flows() | {"tracks": KeptPrior(_exact_tracks(clip), "exact")})


def cut_clip(seed: int) -> Case:
    """Two generated clips of 14 frames, one after the other."""
    first, second = (generated(number, 14) for number in (seed, seed + 2))
    video = Video.from_frames(torch.cat([torch.stack(list(case.video)) for case in (first, second)]))
    length = first.truth.num_frames
    parts, annotated = [], []
    empty = RLE.empty(length, *first.truth.size)
    for place, case in enumerate((first, second)):
        for n in range(len(case.truth)):
            tube = case.truth.rle[n * length : (n + 1) * length]
            parts += [tube, empty][:: 1 if place == 0 else -1]
            halves = [case.truth.annotated[n], torch.zeros(length, dtype=torch.bool)]
            annotated.append(torch.cat(halves[:: 1 if place == 0 else -1]))
    truth = Tracks(video.name, first.truth.size, RLE.cat(parts), torch.stack(annotated), torch.ones(len(annotated)))
    return Case(video, truth, _flows())


def real(name: str, short_side: int = 240) -> Case:
    """A clip of ``$S2D_TEST_DATA`` with its masks, at a small size."""
    path, labels = REAL[name]
    video = open_video(clips_folder() / path, short_side=short_side)
    truth = next(tracks for tracks in read_ytvis(clips_folder() / labels) if tracks.video == name)
    return Case(video, at_size(truth, video.size), _flows())


def _flows() -> dict[str, MotionPrior]:
    return {"flow": KeptPrior(DisPrior().scene, "dis"), "medium": KeptPrior(DisPrior(quality="medium").scene, "medium")}


def clips_folder() -> Path:
    folder = os.environ.get("S2D_TEST_DATA")
    if not folder:
        raise SystemExit("expected S2D_TEST_DATA to name the folder that holds data/clips, got nothing")
    return Path(folder) / "data/clips"


def measure(
    case: Case, level: int, seed: int, compared: dict[str, Way]
) -> Iterator[tuple[str, dict[float, KeymaskQuality]]]:
    """The quality of every way, at both thresholds of IoU, on a clip with proposals of a noise level."""
    proposals = perturb_proposals(case.truth, level, seed=seed)
    for name, way in compared.items():
        if way.other is not None:
            found = way.other(proposals)
        else:
            found = discover(case.video, proposals, way.settings, motion=case.priors[way.prior], progress=False)
        yield name, {iou: keymask_quality(found, proposals, case.truth, threshold=iou) for iou in THRESHOLDS}


def _exact_tracks(clip: SyntheticClip) -> Callable[[Tensor, int, Video], PointTracks]:
    """A perfect tracker on a clip that is followed at its own size: a grid of points of every frame."""

    def make(frames: Tensor, start: int, video: Video) -> PointTracks:
        length, height, width = clip.layers.shape
        x, y = ((torch.arange(QUERY_LINES) + 0.5) * (side / QUERY_LINES) - 0.5 for side in (width, height))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
        parts = [clip.track(grid, torch.full((len(grid),), t)) for t in range(length)]
        return PointTracks(*(torch.cat(values) for values in zip(*parts, strict=True)))

    return make
