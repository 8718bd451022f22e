"""``s2d propose``."""

from __future__ import annotations

from s2d.cli._options import Output, Overwrite, Quiet, Resume, Threads, VideoArgument, WorkingSide, open_video


def propose_command(
    video: VideoArgument,
    output: Output,
    threads: Threads = None,
    working_short_side: WorkingSide = 360,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Masks of single frames, by motion (COCO json)."""
    from s2d.data.coco import write_proposals
    from s2d.stages.job import file_job
    from s2d.stages.propose import ProposeSettings, propose
    from s2d.stages.workspace import identify

    opened = open_video(video, short_side=working_short_side)
    settings = ProposeSettings()
    fingerprint = {"input": identify(video), "settings": settings, "size": opened.size}
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume) as work:
        write_proposals(output, propose(opened, settings, work=work, progress=not quiet))
