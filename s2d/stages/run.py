"""Run: a video in, instance tracks out; all stages in one folder, to be continued when interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import s2d
from s2d.data.coco import read_proposals, write_proposals
from s2d.data.files import write_json
from s2d.data.synthetic import demo_clip
from s2d.data.types import FrameMasks, Keymasks, Tracks
from s2d.data.video import Video, open_video, write_video
from s2d.data.ytvis import read_ytvis, write_ytvis
from s2d.errors import InputError
from s2d.metrics import mean_tube_iou
from s2d.models.checkpoint import load_checkpoint, save_checkpoint
from s2d.motion.prior import make_prior
from s2d.ops import RLE
from s2d.stages.discover import DiscoverSettings, discover
from s2d.stages.distill import distill
from s2d.stages.job import use_threads
from s2d.stages.predict import PredictSettings, predict
from s2d.stages.propose import ProposeSettings, load_proposals, propose
from s2d.stages.render import render
from s2d.stages.workspace import Workspace, check_folder, identify
from s2d.training.recipe import load_recipe

PRODUCTS = (
    "demo.mp4",
    "ground_truth.json",
    "keymasks.json",
    "model.pt",
    "tracks.json",
    "masks",
    "overlay.mp4",
    "timeline.png",
    "run.json",
)
LIBRARIES = ("torch", "numpy", "av", "opencv-python-headless", "scikit-image", "scikit-learn", "scipy")
NOTHING_MOVES = "nothing moves in this video: no instance was found"


# One small model learns from a single video: a weak instance costs it more than a rare one gives.
FEW_AND_SURE = {
    "likeness": 0.4,
    "outlier": 0.0,
    "least_masks": 3,
    "least_share": 0.0,
    "weakest": 0.25,
    "max_instances": 10,
}


@dataclass(frozen=True)
class RunSettings:
    """Parameters of a whole run.

    Attributes:
        proposals: label maps or json to take the single-frame masks from; None finds them by motion.
        motion: what leads from frame to frame in `discover`: a word of `s2d.motion.prior.make_prior`.
        recipe: name or path of the recipe of `distill`.
        decoder: see `s2d.data.video.open_video`.
        seed: of everything drawn.
        threads: of torch and OpenCV; results are equal, bit for bit, at equal numbers. None: as torch is set.
        working_short_side: propose and discover see frames of this short side, pixels; smaller videos as they are.
    """

    proposals: str | None = None
    motion: str = "dis"
    recipe: str = "cpu-small"
    decoder: str = "auto"
    seed: int = 0
    threads: int | None = None
    working_short_side: int = 360
    propose: ProposeSettings = field(default_factory=ProposeSettings)
    discover: DiscoverSettings = field(default_factory=lambda: DiscoverSettings(**FEW_AND_SURE))
    predict: PredictSettings = field(default_factory=PredictSettings)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        out: the folder of results.
        tracks: instances at the original size of the video.
        measures: ``seconds``, ``cpu_seconds`` and ``peak_mb`` (10^6 bytes) of each stage.
        notes: what a user should know, one sentence each.
        mean_tube_iou: with the ground truth of the demo; None for other videos.
    """

    out: Path
    tracks: Tracks
    measures: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    mean_tube_iou: float | None = None


def run(
    path: str | Path | None,
    out: str | Path,
    settings: RunSettings | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Find, learn and track the instances of one video.

    Each stage reads the files that the one before has written, so that a continued run computes the same as one
    that was never interrupted.

    Args:
        path: a video file or a folder of images; None generates the demo clip into ``out``.
        out: folder of the results, made where it is missing; its parent exists.
        settings: parameters of the stages.
        overwrite: delete the results of an earlier run in ``out`` first.
        resume: continue the unfinished run in ``out``; the input and the settings must be the same.
        progress: show a bar for each stage.

    Returns:
        `RunResult`; without instances where nothing moves.

    Raises:
        InputError: the video, the proposals, the motion prior, the recipe or ``out`` cannot be used.
    """
    settings = settings or RunSettings()
    settings = dataclasses.replace(settings, threads=settings.threads or torch.get_num_threads())
    out = Path(out)
    new = not out.exists()
    check_folder(out)
    try:
        _protect(out, path, settings.proposals, overwrite)
        with use_threads(settings.threads):
            return _Run(path, out, settings, overwrite, resume, progress).all_stages()
    except InputError:
        if new:
            # A folder without results is no trace worth leaving; with some in it, this fails and it stays.
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


class _Run:
    """One run: the methods are its stages, in order."""

    def __init__(
        self, path: str | Path | None, out: Path, settings: RunSettings, overwrite: bool, resume: bool, progress: bool
    ) -> None:
        self.path, self.out, self.settings, self.progress = path, out, settings, progress
        self.recipe = dataclasses.replace(load_recipe(settings.recipe), seed=settings.seed)
        self.motion = make_prior(settings.motion)
        # A video that cannot be read must not cost the results that --overwrite would delete.
        video = None if path is None else self._open(path)
        self.work = Workspace.open(
            out / "work",
            self._fingerprint(),
            [out / name for name in PRODUCTS],
            overwrite=overwrite,
            resume=resume,
        )
        self.video = self._demo() if video is None else video
        self.working = self.video.resized(short_side=settings.working_short_side)

    def all_stages(self) -> RunResult:
        proposals = self._propose()
        keymasks = self._discover(proposals)
        self._distill(keymasks)
        tracks = self._predict(keymasks)
        self._stage(
            "render", lambda _: render(self.video, tracks, keymasks, proposals, self.out, progress=self.progress)
        )
        notes = [*self.video.notes]
        if len(tracks) == 0:
            notes.append(NOTHING_MOVES if len(keymasks) == 0 else "the model is sure of no instance: no track was kept")
        quality = None
        if self.path is None:
            quality = mean_tube_iou(tracks, read_ytvis(self.out / "ground_truth.json")[0])
        result = RunResult(self.out, tracks, self.work.measures, tuple(notes), quality)
        write_json(self.out / "run.json", self._record(result), indent=1)
        self.work.complete()
        return result

    def _stage(self, name: str, body: Callable[[Path], object]) -> None:
        """Run a stage unless it was finished before; ``body`` takes the folder for partial work."""
        if not self.work.finished(name):
            with self.work.stage(name) as partial:
                body(partial)

    def _demo(self) -> Video:
        def generate(_: Path) -> None:
            clip = demo_clip()
            write_video(self.out / "demo.mp4", clip.video, clip.video.fps)
            write_ytvis(self.out / "ground_truth.json", clip.tracks, fps=float(clip.video.fps))

        self._stage("demo", generate)
        return self._open(self.out / "demo.mp4")

    def _propose(self) -> FrameMasks:
        file = self.work.folder / "proposals.json"

        def body(partial: Path) -> None:
            if self.settings.proposals is not None:
                masks = load_proposals(Path(self.settings.proposals), self.working)
            else:
                masks = propose(self.working, self.settings.propose, work=partial, progress=self.progress)
            write_proposals(file, masks)

        self._stage("propose", body)
        return dataclasses.replace(read_proposals(file), video=self.video.name)

    def _discover(self, proposals: FrameMasks) -> Keymasks:
        file = self.out / "keymasks.json"

        def body(_: Path) -> None:
            found: Tracks = no_tracks(self.working)
            if len(proposals):
                settings, motion = self.settings.discover, self.motion
                found = discover(self.working, proposals, settings, motion=motion, progress=self.progress)
            write_ytvis(file, found, fps=float(self.video.fps))

        self._stage("discover", body)
        keymasks = read_ytvis(file)[0]
        return keymasks if isinstance(keymasks, Keymasks) else no_keymasks(self.working)

    def _distill(self, keymasks: Keymasks) -> None:
        def body(partial: Path) -> None:
            if len(keymasks):
                model = distill(self.video, keymasks, self.recipe, work=partial, progress=self.progress)
                save_checkpoint(model, self.out / "model.pt")

        self._stage("distill", body)

    def _predict(self, keymasks: Keymasks) -> Tracks:
        file = self.out / "tracks.json"

        def body(partial: Path) -> None:
            tracks = no_tracks(self.video)
            if len(keymasks):
                model = load_checkpoint(self.out / "model.pt")
                tracks = predict(self.video, model, self.settings.predict, work=partial, progress=self.progress)
            write_ytvis(file, tracks, fps=float(self.video.fps))

        self._stage("predict", body)
        return read_ytvis(file)[0]

    def _open(self, path: str | Path) -> Video:
        video = open_video(path, decoder=self.settings.decoder)
        if video.num_frames < 2:
            raise InputError(
                f"expected a video of at least 2 frames, got {video.num_frames} in {path}: nothing can move"
            )
        return video

    def _fingerprint(self) -> dict[str, Any]:
        proposals = self.settings.proposals
        return {
            "s2d": s2d.__version__,
            "input": "demo" if self.path is None else identify(Path(self.path)),
            "proposals": None if proposals is None else identify(Path(proposals)),
            # Proposals, motion and recipe count by what they hold, not by where they lie.
            "settings": dataclasses.replace(self.settings, proposals=None, motion="", recipe=self.recipe.name),
            "motion": self.motion.fingerprint(),
            "recipe": self.recipe,
        }

    def _record(self, result: RunResult) -> dict[str, Any]:
        """What ``run.json`` says."""
        video = self.video
        return {
            "s2d": s2d.__version__,
            "versions": {"python": platform.python_version()}
            | {name: version for name in LIBRARIES if (version := _version(name))},
            "machine": platform.machine(),
            "input": {
                "path": None if self.path is None else str(self.path),
                "name": video.name,
                "height": video.size[0],
                "width": video.size[1],
                "frames": video.num_frames,
                "fps": str(video.fps),
            },
            "decoder": video.decoder,
            "seed": self.settings.seed,
            "threads": self.settings.threads,
            "settings": dataclasses.asdict(self.settings),
            "recipe": dataclasses.asdict(self.recipe),
            "stages": result.measures,
            "instances": len(result.tracks),
            "mean_tube_iou": result.mean_tube_iou,
            "notes": list(result.notes),
        }


def no_tracks(video: Video) -> Tracks:
    """No instance at all."""
    nothing = torch.zeros(0, video.num_frames, dtype=torch.bool)
    return Tracks(video.name, video.size, RLE.empty(0, *video.size), nothing, torch.zeros(0))


def no_keymasks(video: Video) -> Keymasks:
    """No keymask at all."""
    return Keymasks(**vars(no_tracks(video)), mask_scores=torch.zeros(0, video.num_frames))


def _protect(out: Path, path: str | Path | None, proposals: str | None, overwrite: bool) -> None:
    """Refuse to delete what no run wrote, or what this run reads."""
    if not overwrite:
        return
    present = [out / name for name in (*PRODUCTS, "work") if (out / name).exists()]
    if present and not ((out / "run.json").is_file() or (out / "work/state.json").is_file()):
        raise InputError(f"expected a folder of results to overwrite, got one that s2d did not write: {present[0]}")
    for source in (path, proposals):
        for product in present:
            if source is not None and Path(source).resolve().is_relative_to(product.resolve()):
                raise InputError(f"expected an input that --overwrite does not delete, got {source}")


def _version(library: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(library)
    return None
