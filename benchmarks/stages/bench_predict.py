"""Seconds and memory of prediction against the official order: python -m benchmarks.stages.bench_predict [--quick]

The official-size model (ResNet-50, 100 queries, best 50, NMS 0.75) on frames of 640 x 360. The peer is
`official_predict`: the same weights through the plain references, in the official order. Both must give the same tracks
before anything is timed. Every measurement is a process of its own, ours and the peer's in turn; processor seconds are
given beside those on the clock, because machines are shared. A second table follows memory up to 300 frames of
160 x 90, as one clip and in windows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.harness import RESULTS, Comparison, environment, peer_module
from benchmarks.stages.official_predict import Found, official_predict
from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.models import ModelConfig, VideoMask2Former
from s2d.stages import predict as stage
from s2d.stages.measure import Meter
from s2d.viz.table import text_table

SIZE, SMALL = (360, 640), (90, 160)
# Frames, and how often each is measured.
LENGTHS = {3: 2, 8: 1, 36: 1}
MEMORY_LENGTHS = (8, 36, 100, 300)
PARTS = ("backbone", "pixel decoder", "decoder", "masks")


class Parts:
    """Seconds and peak memory of named parts, added up and maximised over their calls."""

    def __init__(self) -> None:
        self.measures: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        meter = Meter()
        result = call()
        now = meter.read()
        before = self.measures.setdefault(name, dict.fromkeys(now, 0.0))
        for key, value in now.items():
            before[key] = max(before[key], value) if key == "peak_mb" else before[key] + value
        return result

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Measure every call of ``owner.attribute``."""
        call = getattr(owner, attribute)
        setattr(owner, attribute, lambda *args, **kwargs: self(name, lambda: call(*args, **kwargs)))


def build_model(short_side: int) -> VideoMask2Former:
    """The official sizes for frames of that short side; random weights, spread out so that queries differ."""
    torch.manual_seed(0)
    model = VideoMask2Former(ModelConfig(input_short_side=short_side)).eval()
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        predictor.class_embed.weight.mul_(3)
        for layer in predictor.transformer_cross_attention_layers:
            layer.multihead_attn.in_proj_weight.mul_(2)
    return model


def moving_frames(number: int, size: tuple[int, int]) -> Tensor:
    """Waves that drift, and noise: uint8 ``[T, 3, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    waves = 0.02 + 0.13 * torch.rand(6, 3, 2, 1, 1, generator=generator)
    y, x = torch.meshgrid(*(torch.arange(side).float() for side in size), indexing="ij")
    frames = torch.empty(number, 3, *size, dtype=torch.uint8)
    for t in range(number):
        light = sum(torch.sin(wave[:, 0] * (y + 2 * t) + wave[:, 1] * (x - 3 * t)) for wave in waves)
        noise = torch.randint(-20, 21, (3, *size), generator=generator)
        frames[t] = (127.5 + 35 * light + noise).clamp(0, 255).to(torch.uint8)
    return frames


def measure_task(task: dict[str, Any]) -> dict[str, Any]:
    """One prediction, in this process."""
    torch.set_num_threads(task["threads"])
    frames, model = moving_frames(task["frames"], tuple(task["size"])), build_model(task["size"][0])
    parts = Parts()
    meter = Meter()
    base = meter.read()["peak_mb"]
    if task["who"] == "official":
        meter = Meter()
        found = official_predict(model, frames, 50, 0.75, parts)
        scores, codes = found.scores, found.codes
    else:
        settings = in_one_piece(task["window"], task["precision"])
        video = Video.from_frames(frames)
        parts.around(model.backbone, "forward", "backbone")
        parts.around(model.sem_seg_head.pixel_decoder, "forward", "pixel decoder")
        parts.around(model.sem_seg_head.predictor, "decode", "decoder")
        for name in ("_encoded", "stitch"):
            parts.around(stage, name, "masks")
        estimate = stage.plan_windows(video, model, settings).bytes / 1e6
        meter = Meter()
        tracks = stage.predict(video, model, settings, progress=False)
        scores, codes = tracks.scores, by_track(tracks)
    whole = meter.read()
    peak = max(whole["peak_mb"], *(part["peak_mb"] for part in parts.measures.values()))
    result = {**whole, "peak_mb": peak, "base_mb": base, "parts": parts.measures}
    if task["who"] != "official":
        result["estimate_mb"] = round(estimate, 1)
    if task["keep"]:
        torch.save({"scores": scores, "codes": texts(codes)}, task["keep"])
    return result


def in_one_piece(window: int | None = None, precision: str = "fp32") -> stage.PredictSettings:
    """Settings that leave a clip in one piece unless windows are asked for."""
    return stage.named_settings("s2d", window=window, memory="1TB", precision=precision)


def by_track(tracks: Tracks) -> list[list[dict]]:
    """COCO's codes of each track's frames."""
    codes = tracks.rle.to_coco()
    return [codes[n : n + tracks.num_frames] for n in range(0, len(codes), tracks.num_frames)]


def measure(quick: bool) -> Iterator[Comparison]:
    """The prediction of three frames, in this process."""
    size = SMALL if quick else SIZE
    frames, model = moving_frames(3, size), build_model(size[0])
    video = Video.from_frames(frames)

    def ours() -> Found:
        tracks = stage.predict(video, model, in_one_piece(), progress=False)
        return Found(tracks.scores, by_track(tracks))

    yield Comparison(
        "predict",
        ours,
        lambda: official_predict(model, frames, 50, 0.75, lambda _, call: call()),
        peer="the official order",
        agree=lambda a, b: bool(compare_tracks(a.scores, texts(a.codes), b.scores, texts(b.codes), size)),
        case=f"3 frames of {size[0]}x{size[1]}, ResNet-50, 100 queries",
        seconds=0,
        minimum_runs=3,
    )


def texts(codes: list[list[dict]]) -> list[list[str]]:
    """The counts of COCO's codes, without their sizes."""

    def text(counts: bytes | str) -> str:
        return counts.decode() if isinstance(counts, bytes) else counts

    return [[text(code["counts"]) for code in track] for track in codes]


def in_process(who: str, frames: int, size: tuple[int, int] = SIZE, **options: Any) -> dict[str, Any]:
    """`measure_task` in a fresh process."""
    task = {"who": who, "frames": frames, "size": size, "window": None, "precision": "fp32", "threads": 1, "keep": None}
    command = [sys.executable, "-m", "benchmarks.stages.bench_predict", "--task", json.dumps({**task, **options})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def check(ours: Path, official: Path, size: tuple[int, int]) -> dict[str, float]:
    """How far the tracks differ; AssertionError if by more than rounding."""
    left, right = torch.load(ours), torch.load(official)
    return compare_tracks(left["scores"], left["codes"], right["scores"], right["codes"], size)


def compare_tracks(
    scores: Tensor, codes: list[list[str]], other: Tensor, others: list[list[str]], size: tuple[int, int]
) -> dict[str, float]:
    """The same of tracks in memory."""
    coco = peer_module("pycocotools.mask")
    assert len(scores) == len(other), f"{len(scores)} and {len(other)} tracks"
    difference = float((scores - other).abs().max())
    pixels = [
        coco.decode({"size": list(size), "counts": a}) != coco.decode({"size": list(size), "counts": b})
        for mine, theirs in zip(codes, others, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    differing = sum(int(part.sum()) for part in pixels) / (len(pixels) * size[0] * size[1])
    assert difference < 1e-4, f"scores differ by {difference}"
    assert differing < 1e-4, f"{differing:.2e} of the pixels differ"
    return {"tracks": len(scores), "score_difference": difference, "differing_pixels": differing}


def speed(lengths: dict[int, int], threads: int) -> dict[str, Any]:
    """Ours and the official order in turn, by length of the clip."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for frames, runs in lengths.items():
            kept = [Path(folder) / f"{who}.pt" for who in ("ours", "official")]
            measured: dict[str, list[dict[str, Any]]] = {"ours": [], "official": [], "ours bf16": []}
            for run in range(runs):
                for who, keep in zip(("ours", "official"), kept, strict=True):
                    options = {"threads": threads, "keep": str(keep) if run == 0 else None}
                    measured[who].append(in_process(who, frames, **options))
                if run == 0:
                    agreement = check(*kept, SIZE)
                measured["ours bf16"].append(in_process("ours", frames, precision="bf16", threads=threads))
            results[str(frames)] = _summary(measured) | {"agreement": agreement, "runs": runs}
            print(_speed_table(frames, results[str(frames)]), flush=True)
    return results


def _summary(measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each, and medians of the ratios of neighbouring runs."""
    result: dict[str, Any] = {}
    for who, runs in measured.items():
        keys = ("seconds", "cpu_seconds", "peak_mb", "base_mb")
        result[who] = {key: round(statistics.median(run[key] for run in runs), 3) for key in keys}
        result[who]["parts"] = {
            part: {key: round(statistics.median(run["parts"][part][key] for run in runs), 3) for key in keys[:3]}
            for part in PARTS
        }
        if who != "official":
            pairs = list(zip(measured["official"], runs, strict=True))
            result[who]["ratio"] = {
                key: round(statistics.median(peer[key] / own[key] for peer, own in pairs), 2) for key in keys[:3]
            }
    return result


def _speed_table(frames: int, result: dict[str, Any]) -> str:
    rows = []
    for part in ("whole", *PARTS):
        row = [part]
        for who in ("official", "ours", "ours bf16"):
            numbers = result[who] if part == "whole" else result[who]["parts"][part]
            row += [f"{numbers['seconds']:.1f} ({numbers['cpu_seconds']:.1f})", f"{numbers['peak_mb']:,.0f}"]
        rows.append(row)
    for who in ("ours", "ours bf16"):
        ratio = result[who]["ratio"]
        line = f"{ratio['seconds']:.2f} on the clock, {ratio['cpu_seconds']:.2f} of processors, {ratio['peak_mb']:.2f}"
        rows.append([f"official / {who}: {line} in memory"])
    head = [f"T = {frames}", *(f"{who} {unit}" for who in ("official", "ours", "bf16") for unit in ("s (CPU s)", "MB"))]
    return text_table(head, [row + [""] * (len(head) - len(row)) for row in rows]) + "\n"


def memory(lengths: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory against the length of the video: official, as one clip, in windows; with the estimate for ours."""
    results: dict[str, dict[str, Any]] = {"official": {}, "one clip": {}, "windows of 32": {}}
    for frames in lengths:
        if frames <= 100:
            results["official"][frames] = in_process("official", frames, SMALL)
        results["one clip"][frames] = in_process("ours", frames, SMALL)
        results["windows of 32"][frames] = in_process("ours", frames, SMALL, window=32)
        rows = [
            [
                who,
                *(f"{points[frames][key]:,.0f}" if key in points[frames] else "" for key in ("peak_mb", "estimate_mb")),
            ]
            for who, points in results.items()
            if frames in points
        ]
        print(text_table([f"T = {frames}, {SMALL[1]} x {SMALL[0]}", "peak MB", "estimate MB"], rows) + "\n", flush=True)
    keys = ("seconds", "cpu_seconds", "peak_mb", "estimate_mb")
    return {
        who: {str(frames): {key: run[key] for key in keys if key in run} for frames, run in points.items()}
        for who, points in results.items()
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Left: processor seconds a frame by part. Right: memory against length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    places, labels = [], []
    for group, (frames, numbers) in enumerate(result["speed"].items()):
        for offset, who in enumerate(("official", "ours", "ours bf16")):
            x, bottom = 4 * group + offset, 0.0
            places.append(x)
            labels.append(f"{who}\nT = {frames}" if offset == 1 else who)
            for index, part in enumerate(PARTS):
                height = numbers[who]["parts"][part]["cpu_seconds"] / int(frames)
                left.bar(x, height, bottom=bottom, color=f"C{index}", label=part if not x else None)
                bottom += height
    left.set_xticks(places, labels, rotation=30, ha="right", fontsize=7)
    left.set_ylabel("processor seconds a frame (640 x 360)")
    left.legend(fontsize=8)
    for who, points in result["memory"].items():
        right.plot([int(n) for n in points], [p["peak_mb"] / 1000 for p in points.values()], marker="o", label=who)
    right.set_xlabel(f"frames ({SMALL[1]} x {SMALL[0]})")
    right.set_ylabel("peak memory of the process, GB")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three frames once, memory of up to 36 frames")
    parser.add_argument("--only", choices=("speed", "memory"), help="one of the two tables")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results, and predict.png")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure_task(json.loads(arguments.task))))
        return 0
    result: dict[str, Any] = {}
    if arguments.only != "memory":
        result["speed"] = speed({3: 1} if arguments.quick else LENGTHS, arguments.threads)
    if arguments.only != "speed":
        result["memory"] = memory(MEMORY_LENGTHS[:2] if arguments.quick else MEMORY_LENGTHS)
    if arguments.save:
        result = {"environment": environment(), "threads": arguments.threads} | result
        print(results.keep("predict", result))
        if {"speed", "memory"} <= set(result):
            plot(result, RESULTS / "predict.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
