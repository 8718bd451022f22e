"""The command line: a thin face of the stages.

Stages are imported inside the commands, so that ``s2d --help`` and ``s2d doctor`` answer at once and wherever they can.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import s2d
from s2d.errors import InputError

app = typer.Typer(
    name="s2d",
    help="Unsupervised video instance segmentation: a video in, instance tracks out; no labels, no weights, no GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

dataset_app = typer.Typer(help="Datasets on disk: verify one, or bring it into one json.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")

VideoArgument = Annotated[Path, typer.Argument(help="A video file, or a folder of images.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.", show_default=False)]
Decoder = Annotated[str, typer.Option(help="auto, pyav or dali.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Equal numbers give equal results.", show_default="all")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete earlier results in the same place first.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted job.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars and no table.")]
RecipeOption = Annotated[str, typer.Option(help="Name of a recipe, or path of a .toml file.")]
One2x = Annotated[
    float | None,
    typer.Option(
        metavar="MAX",
        help="Leave out of the merged file instances of which more than this share of masks covers several others.",
        show_default="all are kept",
    ),
]
WorkingSide = Annotated[int, typer.Option(min=16, help="Short side of the frames that are searched, pixels.")]


def main() -> None:
    """The command ``s2d``."""
    app(prog_name="s2d")


def _said_plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input is a sentence and exit code 2, Ctrl-C a sentence and 130; neither shows a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            print(f"s2d: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            hint = "; the same command with --resume continues" if "resume" in kwargs else ""
            print(f"\ns2d: interrupted{hint}", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"s2d {s2d.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command("doctor")
@_said_plainly
def doctor_command() -> None:
    """Say what was built, what runs here and what is missing."""
    from s2d.doctor import report

    print(report())


@app.command("run")
@_said_plainly
def run_command(
    output: Output,
    video: Annotated[
        Path | None, typer.Argument(help="A video file, or a folder of images; none with --demo.", show_default=False)
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Generate a clip with known instances instead.")] = False,
    proposals: Annotated[
        Path | None, typer.Option(help="Masks of single frames to start from: label maps (PNG), COCO or YTVIS json.")
    ] = None,
    recipe: RecipeOption = "cpu-small",
    decoder: Decoder = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    working_short_side: WorkingSide = 360,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """All stages: a video in, instance tracks out."""
    from s2d.stages.run import RunSettings, run

    if demo == (video is not None):
        raise InputError("expected a video or --demo, got " + ("both" if demo else "neither"))
    settings = RunSettings(
        proposals=None if proposals is None else str(proposals),
        recipe=recipe,
        decoder=decoder,
        seed=seed,
        threads=threads,
        working_short_side=working_short_side,
    )
    result = run(video, output, settings, overwrite=overwrite, resume=resume, progress=not quiet)
    if not quiet:
        print(_summary(result))
    elif result.notes:
        print("\n".join(result.notes))


@app.command("propose")
@_said_plainly
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

    opened = _open(video, short_side=working_short_side)
    settings = ProposeSettings()
    fingerprint = {"input": identify(video), "settings": settings, "size": opened.size}
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume) as work:
        write_proposals(output, propose(opened, settings, work=work, progress=not quiet))


@app.command("discover")
@_said_plainly
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
    motion: Annotated[
        str,
        typer.Option(
            help="What leads from frame to frame: dis (needs no weights), raft:WEIGHTS (torchvision's), files:FOLDER "
            "(.flo, KITTI .png or .npz) or cotracker3:CHECKOUT:CHECKPOINT."
        ),
    ] = "dis",
    motion_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the motion prior; may be repeated. dis: quality (ultrafast, fast, medium); raft: iterations, "
            "device; cotracker3: grid, query_frames, device.",
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
    workers: Annotated[
        int | None, typer.Option(min=1, help="Videos at a time, of many.", show_default="half the CPUs")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Many videos on a Ray cluster: host:port, auto, or local for one here."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Of many videos only part I of N, from 1; OUT may be shared.")
    ] = None,
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
        if not quiet:
            print("\n" + summary.text() + (f"\n\nkeymasks.json: {merged.text()}" if merged else ""))
        if summary.failed:
            where = output / "failed.json"
            print(
                f"s2d: {len(summary.failed):,} videos failed: {where} says why; --resume tries again", file=sys.stderr
            )
            raise typer.Exit(1)
        return
    for name, value in {"--workers": workers, "--ray": ray, "--shard": shard, "--one2x": one2x}.items():
        if value is not None:
            raise InputError(f"expected a folder of videos for {name}, got one video: {video}")
    opened = _open(video, short_side=working_short_side)
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


@app.command("merge")
@_said_plainly
def merge_command(
    folder: Annotated[Path, typer.Argument(help="YTVIS json files, as discover leaves them.", show_default=False)],
    output: Output,
    one2x: One2x = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """One YTVIS json of a folder of them: ids renumbered."""
    from s2d.stages.merge import list_results, merge

    files = [path for path in list_results(folder) if path.resolve() != output.resolve()]
    if output.exists() and not overwrite:
        raise InputError(f"expected a place without results, got {output}: begin again with --overwrite")
    merged = merge(files, output, one2x=one2x, progress=not quiet)
    if not quiet:
        print(merged.text())


@app.command("distill")
@_said_plainly
def distill_command(
    video: VideoArgument,
    keymasks: Annotated[Path, typer.Argument(help="What discover wrote.", show_default=False)],
    output: Output,
    recipe: RecipeOption = "cpu-small",
    decoder: Decoder = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the model on the keymasks of a video."""
    from s2d.data.types import Keymasks
    from s2d.data.ytvis import read_ytvis
    from s2d.models.checkpoint import save_checkpoint
    from s2d.stages.distill import distill
    from s2d.stages.job import file_job
    from s2d.stages.workspace import identify
    from s2d.training.recipe import load_recipe

    opened = _open(video, decoder=decoder)
    found = [item for item in read_ytvis(keymasks) if isinstance(item, Keymasks)]
    if len(found) != 1:
        raise InputError(f"expected the keymasks of one video in {keymasks}, got those of {len(found)}")
    chosen = dataclasses.replace(load_recipe(recipe), seed=seed)
    fingerprint = {"input": identify(video), "keymasks": identify(keymasks), "recipe": chosen}
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume) as work:
        save_checkpoint(distill(opened, found[0], chosen, work=work, progress=not quiet), output)


@app.command("predict")
@_said_plainly
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
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 and so on.")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile, for many frames.")] = False,
    decoder: Decoder = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Instance tracks on all frames (YTVIS json)."""
    from s2d.data.ytvis import write_ytvis
    from s2d.models.checkpoint import load_checkpoint
    from s2d.models.inference import compile_frame_parts
    from s2d.motion._networks import find_device
    from s2d.stages.job import file_job
    from s2d.stages.predict import named_settings, plan_windows, predict
    from s2d.stages.workspace import identify

    chosen = named_settings(settings, window=window, memory=memory, precision=precision)
    opened = _open(video, decoder=decoder)
    model = load_checkpoint(weights).to(find_device(device))
    if not quiet:
        print(f"s2d: {plan_windows(opened, model, chosen)}", file=sys.stderr)
    if compiled:
        compile_frame_parts(model)
    fingerprint = {"input": identify(video), "weights": identify(weights), "settings": chosen, "compile": compiled}
    with file_job(output, fingerprint, threads=threads, overwrite=overwrite, resume=resume) as work:
        write_ytvis(output, predict(opened, model, chosen, work=work, progress=not quiet), fps=float(opened.fps))


@app.command("evaluate")
@_said_plainly
def evaluate_command(
    predictions: Annotated[
        Path,
        typer.Argument(help="YTVIS or COCO json, folders of label maps, or folders of runs.", show_default=False),
    ],
    ground_truth: Annotated[Path, typer.Argument(help="The same, without runs.", show_default=False)],
    metric: Annotated[
        str,
        typer.Option(
            help="ytvis, coco, davis, davis-semi or davis16: a benchmark's numbers; tube, j or all: a short summary."
        ),
    ] = "all",
    video: Annotated[
        str | None, typer.Option(help="Name in the ground truth of the one video that was predicted.")
    ] = None,
    classes: Annotated[
        bool | None, typer.Option("--classes/--no-classes", help="Whether categories count.", show_default="for coco")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="All numbers, videos and instances: .json, .csv or .md.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Predictions to tell what got better and worse from.")
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Videos or folders of images, for --overlays.")
    ] = None,
    overlays: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Paint OTHER and PREDICTIONS side by side for what changed most."),
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Of the videos, for the intervals.")] = 1000,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """AP, J and F against ground truth, as the benchmarks define them."""
    from s2d.stages.evaluate import BENCHMARKS, EvaluateSettings, run_benchmark, summary

    if metric in BENCHMARKS:
        settings = EvaluateSettings(metric, video, classes, output, compare, frames, overlays, draws, seed)
        text = run_benchmark(predictions, ground_truth, settings, progress=not quiet)
        if not quiet:
            print(text)
        return
    for name, value in {"--output": output, "--compare": compare, "--overlays": overlays}.items():
        if value is not None:
            raise InputError(f"expected --metric {', '.join(BENCHMARKS)} for {name}, got {metric}")
    print(summary(predictions, ground_truth, metric, video))


DatasetPath = Annotated[Path, typer.Argument(help="The dataset's folder, or a YouTube-VIS json.", show_default=False)]
DatasetFormat = Annotated[
    str | None,
    typer.Option(help="ytvis, davis, mose, vipseg, sav, sav-frames or videos.", show_default="what it looks like"),
]
DatasetSplit = Annotated[str | None, typer.Option(help="Name of a split.", show_default="all, or the only one")]


@dataset_app.command("check")
@_said_plainly
def dataset_check_command(
    path: DatasetPath,
    format: DatasetFormat = None,
    split: DatasetSplit = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every frame, too.")] = False,
    quiet: Quiet = False,
) -> None:
    """Look for missing and unreadable frames, sizes and lengths that differ, masks that cannot be read.

    Exit code 1 if anything is wrong.
    """
    from s2d.data.datasets import open_dataset
    from s2d.data.datasets.check import check_dataset
    from s2d.viz.table import text_table

    dataset = open_dataset(path, format, split)
    report = check_dataset(dataset, decode=decode, progress=not quiet)
    most = 100
    for problem in report.problems[:most]:
        print(f"{problem.kind}: {problem.message}")
    if len(report.problems) > most:
        print(f"and {len(report.problems) - most:,} more")
    if not quiet:
        rows = [["videos", f"{report.videos:,}"], ["frames", f"{report.frames:,}"]]
        rows += [["videos with masks", f"{report.annotated:,}"], ["instances", f"{report.instances:,}"]]
        rows += [[kind, f"{count:,}"] for kind, count in report.counts().items()]
        print("\n" + text_table([f"{dataset.format} dataset", "found"], rows))
    if report.problems:
        raise typer.Exit(1)


@dataset_app.command("convert")
@_said_plainly
def dataset_convert_command(
    path: DatasetPath,
    output: Output,
    format: DatasetFormat = None,
    split: DatasetSplit = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The masks of a dataset as one YouTube-VIS json."""
    from s2d.data.datasets import open_dataset, write_dataset

    if output.exists() and not overwrite:
        raise InputError(f"expected a place without results, got {output}: begin again with --overwrite")
    number = write_dataset(output, open_dataset(path, format, split), progress=not quiet)
    if not quiet:
        print(f"{output}: {number:,} videos")


def _open(video: Path, **options: Any) -> Any:
    """The video; what a user should know about it goes to stderr."""
    from s2d.data.video import open_video

    opened = open_video(video, **options)
    for note in opened.notes:
        print(f"s2d: {note}", file=sys.stderr)
    return opened


def _summary(result: Any) -> str:
    """The closing tables of a run."""
    from s2d.ops import rle_area
    from s2d.viz.table import text_table

    tracks = result.tracks
    areas = rle_area(tracks.rle).view(tracks.annotated.shape)
    rows = []
    for n in range(len(tracks)):
        seen = int(tracks.annotated[n].sum())
        mean = float(areas[n].sum()) / max(seen, 1)
        rows.append([str(n + 1), f"{tracks.scores[n]:.2f}", f"{seen}/{tracks.num_frames}", f"{mean:,.0f}"])
    stages = [[name, f"{m['seconds']:.1f}", f"{m['peak_mb']:,.0f}"] for name, m in result.measures.items()]
    stages.append(["together", f"{sum(m['seconds'] for m in result.measures.values()):.1f}", ""])
    blocks = [text_table(["instance", "score", "frames", "mean area (px)"], rows)] if rows else []
    blocks.append(text_table(["stage", "seconds", "peak MB"], stages))
    blocks += [f"note: {note}" for note in result.notes]
    if result.mean_tube_iou is not None:
        blocks.append(f"mean tube IoU with the ground truth: {result.mean_tube_iou:.3f}")
    blocks.append(f"results are in {result.out}{'/' if not str(result.out).endswith('/') else ''}")
    return "\n" + "\n\n".join(blocks)
