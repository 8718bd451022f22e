"""``s2d predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import Decoder, Device, Output, Overwrite, Quiet, Resume, Threads, VideoArgument, open_video


def predict_command(
    video: VideoArgument,
    output: Output,
    weights: Annotated[Path, typer.Option(help="What distill wrote, or an official checkpoint.", show_default=False)],
    settings: Annotated[
        str, typer.Option(help="default; videocutler (10 best) or s2d (50 best, less duplicates): as officially.")
    ] = "default",
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Frames at once.", show_default="32; officially what --memory holds"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="4GB", help="Windows as long as so much memory allows.", show_default="4GB"),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile, for many frames.")] = False,
    decoder: Decoder = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Instance tracks on all frames (YTVIS json)."""
    from s2d.data.ytvis import write_ytvis
    from s2d.devices import find_device
    from s2d.models.checkpoint import load_checkpoint
    from s2d.models.inference import compile_frame_parts
    from s2d.stages.job import file_job
    from s2d.stages.predict import named_settings, plan_windows, predict
    from s2d.stages.workspace import identify

    chosen = named_settings(settings, window=window, memory=memory, precision=precision)
    opened = open_video(video, decoder=decoder)
    model = load_checkpoint(weights).to(find_device(device))
    if not quiet:
        print(f"s2d: {plan_windows(opened, model, chosen)}", file=sys.stderr)
    if compiled:
        compile_frame_parts(model)
    fingerprint = {"input": identify(video), "weights": identify(weights), "settings": chosen, "compile": compiled}
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume) as work:
        write_ytvis(output, predict(opened, model, chosen, work=work, progress=not quiet), fps=float(opened.fps))
