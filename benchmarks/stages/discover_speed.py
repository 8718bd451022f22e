"""Seconds of each step of discovery, how they and what is stored grow, and what the official way would compute.

Seconds are given twice: on the clock and of the processors. On a machine that does other work, too, set
``OMP_WAIT_POLICY=PASSIVE``: threads that wait for each other actively multiply the time of short operators there.
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
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.stages import discover_cases as cases
from s2d.data.synthetic import ProposalNoise, perturb_proposals
from s2d.data.types import FrameMasks, Tracks
from s2d.data.video import Video
from s2d.motion.dis import DisPrior
from s2d.motion.prior import MotionPrior
from s2d.ops import RLE, TrackCoverage, rle_area, rle_encode
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


def clocks() -> np.ndarray:
    """Seconds on the clock and of the processors, all threads together."""
    return np.array([time.perf_counter(), time.process_time()])


@contextlib.contextmanager
def timed(note: Callable[[Agreement | TrackCoverage], None]) -> Iterator[dict[str, np.ndarray]]:
    """`clocks` of the named functions of the stage inside the block; ``note`` gets what is stored of pairs of masks."""
    seconds = {step: np.zeros(2) for step in STEPS}
    before = {step: getattr(module, name) for step, (module, name) in STEPS.items()}

    def wrap(step: str, call: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = clocks()
            result = call(*arguments, **options)
            seconds[step] += clocks() - start
            if isinstance(result, (Agreement, TrackCoverage)):
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


def label_maps(size: tuple[int, int], frames: int, each: int) -> FrameMasks:
    """Frames cut into so many masks each, the cells around points that jitter: no two overlap."""
    rng = np.random.default_rng(0)
    sites = rng.random((each, 2)) * size
    pixels = np.stack(np.indices(size), -1).reshape(-1, 2)
    cells = []
    for _ in range(frames):
        owner = cKDTree(sites + 3 * rng.standard_normal(sites.shape)).query(pixels)[1].reshape(size)
        cells.append(rle_encode(torch.from_numpy(owner == np.arange(each)[:, None, None])))
    index = torch.arange(frames).repeat_interleave(each)
    return FrameMasks("cells", size, frames, RLE.cat(cells), index, torch.ones(len(index)))


class Run(NamedTuple):
    """`clocks` of each step, and bytes of what is kept of all pairs of masks."""

    seconds: dict[str, np.ndarray]
    stored: int


def run_timed(frames: Tensor, proposals: FrameMasks, prior: MotionPrior, runs: int = 3) -> Run:
    """The least seconds of each step over some runs."""
    video = Video.from_frames(frames[: proposals.num_frames])
    settings = stage.DiscoverSettings()
    best: dict[str, np.ndarray] = {}
    stored: dict[type, int] = {}

    def note(kept: Agreement | TrackCoverage) -> None:
        if isinstance(kept, Agreement):
            arrays = (kept.iou.data, kept.iou.indices, kept.iou.indptr, *kept.sees)
        else:
            arrays = tuple(tensor.numpy() for tensor in kept)
        stored[type(kept)] = sum(array.nbytes for array in arrays)

    for _ in range(runs):
        with timed(note) as seconds:
            start = clocks()
            stage.discover(video, proposals, settings, motion=prior, progress=False)
            whole = clocks() - start
            seconds["the rest"] = whole - sum(seconds.values())
            seconds["all after the flow"] = whole
        best = {step: np.minimum(value, best.get(step, value)) for step, value in seconds.items()}
    return Run(best, sum(stored.values()))


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
    start = clocks()
    prior = cases.KeptPrior(DisPrior().scene, "dis")
    prior.scene(frames, 0, small)
    flow = (clocks() - start).tolist()
    ten = first_frames(many, len(frames), 10)
    main = run_timed(frames, ten, prior)
    cost = official_cost(ten)
    print(
        f"{len(frames)} frames of 854 x 480 followed at {small.size[1]} x {small.size[0]}, {len(ten)} proposals, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    rows = [["flow (DIS)", *map("{:.2f}".format, flow)]]
    rows += [[step, *map("{:.3f}".format, value)] for step, value in main.seconds.items()]
    print(text_table(["step", "seconds", "of the processors"], rows))
    print(
        f"the official way: {cost['passes']} passes of CoTracker3 over the video, about {cost['flops']:.1e} operations"
    )
    result = {"frames": len(frames), "proposals": len(ten), "official": cost, "load": os.getloadavg()[0]}
    result |= {"threads": torch.get_num_threads(), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY")}
    for place, name in enumerate(("seconds", "seconds of the processors")):
        result[name] = {"flow": flow[place]} | {step: value[place] for step, value in main.seconds.items()}
    result |= {"stored bytes": main.stored, "growth": {}}
    if quick:
        return result
    lengths, numbers = (20, 40, 80), (5, 10, 20, 40)
    for name, sizes, make in (
        ("frames", lengths, lambda size: first_frames(many, size, 10)),
        ("masks a frame", numbers, lambda size: first_frames(many, 40, size)),
        ("masks a frame that do not overlap", numbers, lambda size: label_maps(truth.size, 40, size)),
    ):
        chosen = [make(size) for size in sizes]
        runs = []
        for proposals in chosen:
            part = cases.KeptPrior(DisPrior().scene, "dis")
            part.scene(frames[: proposals.num_frames], 0, small)
            runs.append(run_timed(frames, proposals, part, 2))
        measured = {
            "seconds": [run.seconds["all after the flow"][1] for run in runs],
            "bytes": [run.stored for run in runs],
            "frames x masks": [len(proposals) * proposals.num_frames for proposals in chosen],
        }
        exponents = {what: exponent(sizes, values) for what, values in measured.items()}
        result["growth"][name] = {"sizes": sizes} | measured | {"exponents": exponents}
        rows = [
            [str(size), str(len(p)), f"{run.seconds['all after the flow'][1]:.3f}", f"{run.stored / 1e6:.2f}"]
            for size, p, run in zip(sizes, chosen, runs, strict=True)
        ]
        print("\n" + text_table([name, "masks", "seconds of the processors", "MB stored"], rows))
        print("exponents: " + ", ".join(f"{what} {value:.2f}" for what, value in exponents.items()))
    return result


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares slope of log values over log sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
