"""Discovery in thousands of videos: the stage `discover` for each, then one file of all."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s2d.data.image_folder import SUFFIXES, list_images
from s2d.data.video import open_video
from s2d.data.video_folder import find_proposals, list_videos
from s2d.data.ytvis import ytvis_dict
from s2d.errors import InputError
from s2d.motion.cache import with_cache
from s2d.motion.prior import MotionPrior, make_prior
from s2d.stages.discover import DiscoverSettings, discover
from s2d.stages.merge import Merged, check_one2x, merge
from s2d.stages.pool import Pool, Shard, Summary, map_videos
from s2d.stages.propose import load_proposals

_NOTHING = b'"annotations": []}'


@dataclass(frozen=True)
class Motion:
    """A motion prior by its word, so that every process can make its own: see `make_prior` and `with_cache`."""

    word: str = "dis"
    options: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None

    def prior(self) -> MotionPrior:
        """Made once in a process: a network's weights take longer to load than a video to go through."""
        return _prior(self.word, tuple(self.options.items()), self.cache)


@functools.cache
def _prior(word: str, options: tuple[tuple[str, str], ...], cache: Path | None) -> MotionPrior:
    return with_cache(make_prior(word, **dict(options)), cache)


def discover_dataset(
    dataset: Path,
    proposals: Path,
    out: Path,
    settings: DiscoverSettings | None = None,
    *,
    motion: Motion = Motion(),
    working_short_side: int = 360,
    pool: Pool | None = None,
    shard: Shard | None = None,
    one2x: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> tuple[Summary, Merged | None]:
    """The keymasks of every video of a folder, in ``out/VIDEO.json``, and of all in ``out/keymasks.json``.

    The merged file is written by the run that finishes last (of all shards), without the videos that failed. How videos
    are lost or not, and what `failed.json` is: see `map_videos`.

    Args:
        dataset: a folder with a folder of frames, or a video file, for each video (`list_videos`).
        proposals: a folder with a folder of label maps, or a COCO or YTVIS json, for each video (`find_proposals`).
        out: where results go.
        settings: of `discover`; None for the defaults.
        motion: the motion prior.
        working_short_side: frames are read with at most this short side, pixels.
        pool: where the work is done; None for processes.
        shard: the part of the videos that is this run's; None for all.
        one2x: instances more ambiguous than this are left out of the merged file, see `merge`.
        overwrite, resume: see `map_videos`.
        progress: show bars.

    Returns:
        What has become of the videos, and what the merged file holds: None if it was not written, as other shards have
        videos to come or no video has a result.

    Raises:
        InputError: no such folder, no video, no masks for any of them, and what `map_videos`, `merge` and `make_prior`
            raise.
    """
    settings = settings or DiscoverSettings()
    for what, folder in (("videos", dataset), ("masks, one of each video", proposals)):
        if not folder.is_dir():
            raise InputError(
                f"expected a folder of {what}, at {folder}, got " + ("a file" if folder.exists() else "nothing")
            )
    if out.resolve().is_relative_to(dataset.resolve()):
        raise InputError(f"expected a place for results that is not among the videos, got {out}")
    videos = list_videos(dataset)
    if not any((proposals / name).exists() or (proposals / f"{name}.json").exists() for name in videos):
        raise InputError(
            f"expected masks of the videos of {dataset} in {proposals}, VIDEO/ or VIDEO.json, "
            f"got none for any of {len(videos)} videos"
        )
    check_one2x(one2x)
    fingerprint = {
        "settings": settings,
        "motion": motion.prior().fingerprint(),
        "working_short_side": working_short_side,
    }
    # A cluster's processes have working folders of their own.
    motion = replace(motion, cache=None if motion.cache is None else motion.cache.absolute())
    summary = map_videos(
        DiscoverOne(proposals.absolute(), settings, motion, working_short_side),
        {name: path.absolute() for name, path in videos.items()},
        out,
        fingerprint,
        pool=pool,
        shard=shard,
        is_empty=_is_empty,
        products=("keymasks.json",),
        label="discover",
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )
    files = [path for path in (out / f"{name}.json" for name in videos) if path.exists()]
    if summary.pending or not files:
        return summary, None
    return summary, merge(files, out / "keymasks.json", one2x=one2x, progress=progress)


@dataclass(frozen=True)
class DiscoverOne:
    """The task of one video: its YTVIS dictionary, as `write_ytvis` would write it.

    Beside that, ``file_names`` are the names of the frames where they are images, and ``notes`` has what a user should
    know of a video that was not read without trouble.
    """

    proposals: Path
    settings: DiscoverSettings
    motion: Motion
    working_short_side: int

    def __call__(self, name: str, source: Path) -> dict[str, Any]:
        masks = find_proposals(self.proposals, name)
        video = replace(open_video(source, short_side=self.working_short_side), name=name)
        found = discover(video, load_proposals(masks, video), self.settings, motion=self.motion.prior(), progress=False)
        result = ytvis_dict(found, fps=float(video.fps))
        (entry,) = result["videos"]
        if source.is_dir():
            entry["file_names"] = [f"{name}/{path.name}" for path in list_images(source, SUFFIXES)]
        if video.notes:
            entry["notes"] = list(video.notes)
        return result


def _is_empty(path: Path) -> bool:
    """Whether a result has no instance: by its end, as thousands of files are looked at."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, len(_NOTHING) + 1), os.SEEK_END)
        return file.read().strip() == _NOTHING
