"""``s2d discover``: one video, or a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import (
    MotionOption,
    One2x,
    Output,
    Overwrite,
    Quiet,
    Resume,
    ShardOption,
    Threads,
    Workers,
    WorkingSide,
    open_video,
    tell_outcome,
)
from s2d.errors import InputError


def discover_command(
    video: Annotated[
        Path, typer.Argument(help="A video file, a folder of images, or a folder of videos.", show_default=False)
    ],
    proposals: Annotated[Path, typer.Argument(help="Label maps (a folder), COCO or YTVIS json.", show_default=False)],
    output: Output,
    scoring: Annotated[str, typer.Option(help="trajectory, flow or both.")] = "both",
    grouping: Annotated[
        str, typer.Option(help="linkage, or paper: the whole procedure of the paper, all its settings included.")
    ] = "linkage",
    motion: MotionOption = "dis",
    motion_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the motion prior; may be repeated. dis: quality (ultrafast, fast, medium, fine); raft: "
            "iterations, device; cotracker3: grid, query_frames, device.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep motion there in half precision, to be read instead of computed another time (at most 20 GB).",
            show_default="$S2D_CACHE, else nothing is kept",
        ),
    ] = None,
    threads: Threads = None,
    working_short_side: WorkingSide = 360,
    workers: Workers = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Many videos on a Ray cluster: host:port, auto, or local for one here."),
    ] = None,
    shard: ShardOption = None,
    one2x: One2x = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Keymasks: instances on some frames (YTVIS json); of one video, or of a folder of videos.

    Of a folder, VIDEO/NAME/ (frames) or VIDEO/NAME.mp4 is a video and PROPOSALS/NAME/ (label maps) or
    PROPOSALS/NAME.json has its masks. OUT is a folder then: NAME.json for every video and, when all are there,
    keymasks.json with all of them. failed.json says why videos failed; exit code 1 if any did, and --resume tries
    them again. --threads counts for each worker.
    """
    from s2d.data.video_folder import holds_videos
    from s2d.data.ytvis import write_ytvis
    from s2d.motion.cache import with_cache
    from s2d.motion.prior import make_prior, parse_options
    from s2d.stages.discover import DiscoverSettings, discover
    from s2d.stages.discover_dataset import Motion, discover_dataset
    from s2d.stages.job import file_job
    from s2d.stages.pool import Pool, Shard
    from s2d.stages.propose import load_proposals
    from s2d.stages.workspace import identify

    preset = DiscoverSettings.paper if grouping == "paper" else DiscoverSettings
    settings = preset(grouping=grouping, scoring=scoring)
    if holds_videos(video):
        summary, merged = discover_dataset(
            video,
            proposals,
            output,
            settings,
            motion=Motion(motion, parse_options(motion_option or []), cache),
            working_short_side=working_short_side,
            pool=Pool(workers, threads, ray),
            shard=None if shard is None else Shard.parse(shard),
            one2x=one2x,
            overwrite=overwrite,
            resume=resume,
            progress=not quiet,
        )
        tell_outcome(summary, merged, output / "keymasks.json", quiet=quiet)
        return
    for name, value in {"--workers": workers, "--ray": ray, "--shard": shard, "--one2x": one2x}.items():
        if value is not None:
            raise InputError(f"expected a folder of videos for {name}, got one video: {video}")
    opened = open_video(video, short_side=working_short_side)
    masks = load_proposals(proposals, opened)
    prior = with_cache(make_prior(motion, **parse_options(motion_option or [])), cache)
    fingerprint = {
        "input": identify(video),
        "proposals": identify(proposals),
        "settings": settings,
        "motion": prior.fingerprint(),
        "size": opened.size,
    }
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume):
        found = discover(opened, masks, settings, motion=prior, progress=not quiet)
        write_ytvis(output, found, fps=float(opened.fps))
