"""Pseudo-label: what a model sees in every video of a dataset, as annotations for the next round of training."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2d.data.datasets import open_dataset
from s2d.data.datasets.sample import Sample
from s2d.data.ytvis import ytvis_dict
from s2d.devices import find_device
from s2d.models.checkpoint import load_checkpoint
from s2d.models.video_mask2former import VideoMask2Former
from s2d.stages.merge import Merged, merge
from s2d.stages.pool import Pool, Shard, Summary, map_videos
from s2d.stages.predict import PredictSettings, predict
from s2d.stages.workspace import identify

SETTINGS = PredictSettings(top_k=100, score_threshold=0.75)
"""Of the paper: up to 100 instances a video, with a score of at least 0.75."""

_MERGED = "annotations.json"


def pseudo_label(
    dataset: Path,
    weights: Path,
    out: Path,
    settings: PredictSettings = SETTINGS,
    *,
    format: str | None = None,
    split: str | None = None,
    device: str = "cpu",
    pool: Pool | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> tuple[Summary, Merged | None]:
    """Predict every video of a dataset, into ``out/VIDEO.json``, and write all as ``out/annotations.json``.

    The merged file is written by the run that finishes last (of all shards), without the videos that failed. How videos
    are lost or not, and what ``failed.json`` is: see `map_videos`.

    Args:
        dataset, format, split: as of `open_dataset`; masks that it may have are not read.
        weights: a checkpoint.
        out: where results go.
        settings: of `predict`; the score threshold decides which instances are annotated.
        device: of the models; every worker has one.
        pool: where the work is done; None for processes.
        shard: the part of the videos that is this run's; None for all.
        overwrite, resume: see `map_videos`.
        progress: show bars.

    Returns:
        What has become of the videos, and what the merged file holds: None if it was not written.

    Raises:
        InputError: as `open_dataset`, `load_checkpoint`, `map_videos` and `merge`.
    """
    find_device(device)
    load_checkpoint(weights)
    names = [sample.name for sample in open_dataset(dataset, format, split)]
    summary = map_videos(
        LabelOne(format, split, weights.absolute(), settings, device),
        dict.fromkeys(names, dataset.absolute()),
        out,
        {"weights": identify(weights), "settings": settings},
        pool=pool,
        shard=shard,
        products=(_MERGED,),
        label="pseudo-label",
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )
    files = [path for path in (out / f"{name}.json" for name in names) if path.exists()]
    if summary.pending or not files:
        return summary, None
    return summary, merge(files, out / _MERGED, progress=progress)


@dataclass(frozen=True)
class LabelOne:
    """The task of one video: the YTVIS dictionary of what the model sees."""

    format: str | None
    split: str | None
    weights: Path
    settings: PredictSettings
    device: str

    def __call__(self, name: str, dataset: Path) -> dict[str, Any]:
        sample = _samples(dataset, self.format, self.split)[name]
        return label_video(sample, _model(self.weights, self.device), self.settings)


def label_video(sample: Sample, model: VideoMask2Former, settings: PredictSettings) -> dict[str, Any]:
    """The YTVIS dictionary of what a model sees in a video; ``file_names`` are those of its images."""
    video = sample.video()
    found = ytvis_dict(predict(video, model, settings, progress=False), fps=float(video.fps))
    (entry,) = found["videos"]
    entry["name"] = sample.name
    if not isinstance(sample.source, Path):
        entry["file_names"] = [f"{image.parent.name}/{image.name}" for image in sample.source]
    return found


@functools.cache
def _samples(path: Path, format: str | None, split: str | None) -> dict[str, Sample]:
    """Opened once in a process."""
    return {sample.name: sample for sample in open_dataset(path, format, split)}


@functools.cache
def _model(weights: Path, device: str) -> VideoMask2Former:
    """Loaded once in a process."""
    return load_checkpoint(weights).to(find_device(device))
