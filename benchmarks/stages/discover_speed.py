"""Seconds of each step of discovery, how they grow, and what the official way would compute.

On a machine that does other work, too, set ``OMP_WAIT_POLICY=PASSIVE``: threads that wait for each other actively
multiply the time of short operators there.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.stages import discover_cases as cases
from s2d.data.synthetic import ProposalNoise, perturb_proposals
from s2d.data.types import FrameMasks, Tracks
from s2d.data.video import Video
from s2d.motion.dis import DisPrior
from s2d.motion.prior import MotionPrior
from s2d.ops import RLE, rle_area
from s2d.stages import discover as stage
from s2d.stages._agreement import Agreement
from s2d.viz.table import text_table

# The functions whose calls are timed, by the name of the step.
STEPS: dict[str, tuple[ModuleType, str]] = {
    "masks at the size of the flow": (stage, "_resize"),
    "cuts in the flow": (stage, "without_cuts"),
    "coverage by points": (stage, "_coverage"),
    "agreement by points": (stage.evidence, "trajectory_agreement"),
    "agreement by pixels": (stage.evidence, "flow_agreement"),
    "both together": (stage.evidence, "joint_agreement"),
    "grouping": (stage, "linkage_groups"),
    "duplicates": (stage, "join_duplicates"),
    "choice": (stage, "keep_best"),
    "keymasks": (stage, "_keymasks"),
}


@contextlib.contextmanager
def timed(note: Callable[[Agreement], None]) -> Iterator[dict[str, float]]:
    """Seconds that the named functions of the stage take inside the block; ``note`` gets the agreement."""
    seconds = dict.fromkeys(STEPS, 0.0)
    before = {step: getattr(module, name) for step, (module, name) in STEPS.items()}

    def wrap(step: str, call: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **options)
            seconds[step] += time.perf_counter() - start
            if isinstance(result, Agreement):
                note(result)
            return result

        return wrapped

    try:
        for step, (module, name) in STEPS.items():
            setattr(module, name, wrap(step, before[step]))
        yield seconds
    finally:
        for step, (module, name) in STEPS.items():
            setattr(module, name, before[step])


def many_proposals(truth: Tracks, each: int) -> FrameMasks:
    """So many proposals a frame, or nearly: perturbed masks of the objects, and false ones."""
    noise = ProposalNoise(miss=0.1, false_masks=3.0)
    parts = [perturb_proposals(truth, noise, seed=seed) for seed in range(1 + each // (len(truth) + 1))]
    frames = torch.cat([part.frames for part in parts])
    order = frames.argsort(stable=True)
    ranks = torch.arange(len(order)) - torch.searchsorted(frames[order], frames[order])
    chosen = order[ranks < each]
    rle, scores = RLE.cat([part.rle for part in parts]), torch.cat([part.scores for part in parts])
    return FrameMasks(truth.video, truth.size, truth.num_frames, rle[chosen], frames[chosen], scores[chosen])


def first_frames(proposals: FrameMasks, frames: int, each: int) -> FrameMasks:
    """The first masks of each of the first frames."""
    ranks = torch.arange(len(proposals)) - torch.searchsorted(proposals.frames, proposals.frames)
    chosen = ((ranks < each) & (proposals.frames < frames)).nonzero().flatten()
    parts = proposals.rle[chosen], proposals.frames[chosen], proposals.scores[chosen]
    return FrameMasks(proposals.video, proposals.size, frames, *parts)


class Run(NamedTuple):
    """Seconds of each step, and bytes of what is kept of all pairs of masks."""

    seconds: dict[str, float]
    stored: int


def run_timed(frames: Tensor, proposals: FrameMasks, prior: MotionPrior, runs: int = 3) -> Run:
    """The least seconds of each step over some runs."""
    video = Video.from_frames(frames[: proposals.num_frames])
    settings = stage.DiscoverSettings()
    best: dict[str, float] = {}
    stored = 0

    def note(agreement: Agreement) -> None:
        nonlocal stored
        arrays = (agreement.iou.data, agreement.iou.indices, agreement.iou.indptr, *agreement.sees)
        stored = sum(array.nbytes for array in arrays)

    for _ in range(runs):
        with timed(note) as seconds:
            start = time.perf_counter()
            stage.discover(video, proposals, settings, motion=prior, progress=False)
            whole = time.perf_counter() - start
            seconds["the rest"] = whole - sum(seconds.values())
            seconds["all after the flow"] = whole
        best = {step: min(value, best.get(step, value)) for step, value in seconds.items()}
    return Run(best, stored)


def official_cost(proposals: FrameMasks, lines: int = 50, iterations: int = 6) -> dict[str, float]:
    """Passes of CoTracker3 that the official code makes, and about how many floating point operations they are.

    Two passes over the video a mask (visibility, matches), each on frames of 384 x 512. Counted, 2 a multiplication
    and addition: the encoder, convolutions at strides 2 to 16, 26 G multiplications a frame; and for each point, frame
    and iteration the correlation of 7 x 7 with 7 x 7 features of width 128 at four levels, the MLP (2,401 - 384 - 256)
    that reads it, and three blocks over time and three over space of width 384, 16 M multiplications together.
    Points: those of a ``lines x lines`` grid over the frame that lie in the mask.
    """
    passes = 2 * len(proposals)
    points = lines**2 * rle_area(proposals.rle).double().mean().item() / math.prod(proposals.size)
    encoder = 2 * 26e9 * proposals.num_frames
    tracker = 2 * 16e6 * points * proposals.num_frames * iterations
    return {"passes": passes, "points": round(points, 1), "flops": passes * (encoder + tracker)}


def speed(quick: bool) -> dict[str, Any]:
    """The clip dogs-scale, 83 frames of 854 x 480, with ten proposals a frame; then fewer frames, and more masks."""
    case = cases.real("dogs-scale", short_side=480)
    truth, small = case.truth, case.video.resized(short_side=stage.DiscoverSettings().short_side)
    frames = small.clip(0, 30 if quick else small.num_frames)
    many = many_proposals(truth, 10 if quick else 40)
    start = time.perf_counter()
    prior = cases.KeptPrior(DisPrior().scene, "dis")
    prior.scene(frames, 0, small)
    flow = time.perf_counter() - start
    ten = first_frames(many, len(frames), 10)
    main = run_timed(frames, ten, prior)
    cost = official_cost(ten)
    print(
        f"{len(frames)} frames of 854 x 480 followed at {small.size[1]} x {small.size[0]}, {len(ten)} proposals, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    rows = [["flow (DIS)", f"{flow:.2f}"], *([step, f"{value:.3f}"] for step, value in main.seconds.items())]
    print(text_table(["step", "seconds"], rows))
    print(
        f"the official way: {cost['passes']} passes of CoTracker3 over the video, about {cost['flops']:.1e} operations"
    )
    result = {"frames": len(frames), "proposals": len(ten), "flow": flow, "official": cost, "load": os.getloadavg()[0]}
    result |= {"threads": torch.get_num_threads(), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY")}
    result |= {"seconds": main.seconds, "stored bytes": main.stored, "growth": {}}
    if quick:
        return result
    lengths, numbers = (20, 40, 80), (5, 10, 20, 40)
    for name, sizes, make in (
        ("frames", lengths, lambda size: (size, 10)),
        ("masks a frame", numbers, lambda size: (40, size)),
    ):
        chosen = [first_frames(many, *make(size)) for size in sizes]
        runs = []
        for proposals in chosen:
            part = cases.KeptPrior(DisPrior().scene, "dis")
            part.scene(frames[: proposals.num_frames], 0, small)
            runs.append(run_timed(frames, proposals, part, 2))
        product = [len(proposals) * proposals.num_frames for proposals in chosen]
        seconds = [run.seconds["all after the flow"] for run in runs]
        stored = [run.stored for run in runs]
        result["growth"][name] = {
            "sizes": sizes,
            "masks": [len(proposals) for proposals in chosen],
            "seconds": seconds,
            "stored bytes": stored,
            "exponent of seconds": exponent(sizes, seconds),
            "exponent of bytes": exponent(sizes, stored),
            "exponent of frames x masks": exponent(sizes, product),
        }
        rows = [
            [str(size), str(len(p)), f"{sec:.3f}", f"{b / 1e6:.2f}"]
            for size, p, sec, b in zip(sizes, chosen, seconds, stored, strict=True)
        ]
        print("\n" + text_table([name, "masks", "seconds", "MB stored"], rows))
        grown = result["growth"][name]
        print(
            f"seconds grow with exponent {grown['exponent of seconds']:.2f}, stored bytes with "
            f"{grown['exponent of bytes']:.2f}, frames x masks with {grown['exponent of frames x masks']:.2f}"
        )
    return result


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares slope of log values over log sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
