"""Frames and clips a second of the decoders of video, of the loader on them, and what stays in memory and open.

All readers are run in turn, on VP9 files that are written first; what they return is compared with PyAV's frames before
it is timed. Times of a machine that does other work mean little: what counts is the ratio to plain PyAV in the same
round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.harness import Comparison, Missing, environment
from benchmarks.stages.video_readers import Reader, all_readers, ours
from s2d.data import dali
from s2d.data.clip_loader import ClipLoader
from s2d.data.clips import ClipSettings
from s2d.data.datasets import open_dataset
from s2d.viz.table import text_table

# (H, W), frames of the file, random clips and their frames, size after the resize
SIZES = {"480p": ((480, 854), 48, 2, 8, (240, 427)), "1080p": ((1080, 1920), 6, 1, 3, (360, 640))}
ROUNDS = 3
PEER = "PyAV, 1 thread"


def write_clip(path: Path, size: tuple[int, int], frames: int, codec: str = "libvpx-vp9") -> Path:
    """Waves that move under fixed noise, a key frame every 30."""
    height, width = size
    y, x = np.ogrid[:height, :width]
    noise = np.random.default_rng(0).integers(-12, 12, (height, width, 1))
    options = {"g": "30", "deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {"g": "30"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 4_000_000
        for t in range(frames):
            planes = (np.sin(0.02 * x + 0.2 * t + c) + np.cos(0.03 * y - 0.1 * t * c) for c in range(3))
            image = (128 + 50 * np.stack(list(planes), -1) + noise).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


def failing(readers: dict[str, Reader], path: Path, frames: int, clip: int) -> dict[str, str]:
    """Those that do not give the frames that were asked for, nearer to them than to their neighbours, and why not."""
    wrong = {}
    for start in (0, (frames - clip) // 2, frames - clip):
        expected = readers[PEER](path, start, clip, None)
        for name, read in readers.items():
            try:
                found = read(path, start, clip, None)
            except Exception as error:
                wrong[name] = f"fails at frame {start}: {str(error).strip().splitlines()[0].rpartition('] ')[2]}"
                continue
            level = float((found - expected).abs().mean())
            if level > min(6, 0.5 * float((found[1:] - expected[:-1]).abs().mean())):
                wrong[name] = f"differs at frame {start} by {level:.1f} levels"
    return wrong


def time_in_turn(
    readers: dict[str, Reader], call: Callable[[Reader], int], label: str
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each round of every reader, and the frames of a round."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    count = 0
    for _ in tqdm(range(ROUNDS), desc=label, unit="round"):
        for name, read in readers.items():
            began = time.perf_counter()
            count = call(read)
            seconds[name].append(time.perf_counter() - began)
    return seconds, count


def measure_readers(label: str, folder: Path) -> dict:
    """Rates of every reader by access and resize, and the ratio to `PEER` of the same round."""
    size, frames, clips, clip, small = SIZES[label]
    path = write_clip(folder / f"{label}.webm", size, frames)
    readers, missing = all_readers()
    missing |= failing(readers, path, frames, clip)
    readers = {name: read for name, read in readers.items() if name not in missing}
    starts = np.random.default_rng(1).integers(0, frames - clip, clips).tolist()
    rows = []
    for target in (None, small):
        cases: dict[str, Callable[[Reader], int]] = {
            "sequential": lambda read, target=target: len(read(path, 0, frames, target)),
            "random clips": lambda read, target=target: sum(len(read(path, start, clip, target)) for start in starts),
        }
        for access, call in cases.items():
            seconds, count = time_in_turn(readers, call, f"{label}, {access}, to {target or size}")
            for name, own in seconds.items():
                rate = 1 / statistics.median(own)
                ratio = statistics.median(p / s for p, s in zip(seconds[PEER], own, strict=True))
                row = {"access": access, "resize": "none" if target is None else f"{small[1]}x{small[0]}"}
                row |= {"reader": name, "frames_per_second": round(count * rate, 1), "ratio": round(ratio, 2)}
                rows.append(row | ({} if access == "sequential" else {"clips_per_second": round(clips * rate, 2)}))
    return {"rows": rows, "not loaded": missing}


def measure(quick: bool) -> Iterator[Comparison | Missing]:
    """Ours against every other reader of a clip from the middle of a file."""
    size, frames, clip = ((240, 427), 32, 8) if quick else SIZES["480p"][:3]
    case = f"{clip} frames of {size[0]}x{size[1]}, VP9"
    with tempfile.TemporaryDirectory() as folder:
        path = write_clip(Path(folder) / "clip.webm", size, frames)
        readers, missing = all_readers()
        missing |= failing(readers, path, frames, clip)
        for name, reason in missing.items():
            yield Missing("video clip", case, name, torch.get_num_threads(), reason)
        for name, read in readers.items():
            if name not in missing and read is not ours:
                yield Comparison(
                    "video clip",
                    lambda: ours(path, 9, clip, None),
                    lambda read=read: read(path, 9, clip, None),
                    peer=name,
                    agree=lambda a, b: a.shape == b.shape,  # `failing` has compared them
                    case=case,
                    seconds=0.3 if quick else 2.0,
                    minimum_runs=3,
                )


def measure_loader(folder: Path) -> dict:
    """Clips a second of the loader, and how much of its work a step of training on a GPU hides."""
    videos = folder / "videos"
    videos.mkdir()
    for number in range(2):
        write_clip(videos / f"{number}.webm", SIZES["480p"][0], 90)
    dataset = open_dataset(videos)
    rows = []
    decoders = ("pyav", "dali") if dali.missing() is None else ("pyav",)
    for decoder in tqdm(decoders, desc="loader", unit="decoder"):
        for workers in (1, 2):
            settings = ClipSettings(size=(240, 427), frames=4, batch=2, decoder=decoder, workers=workers)

            def run(work: float, settings: ClipSettings = settings) -> float:
                loader = ClipLoader(dataset, settings, clips_per_video=6)
                batches = iter(loader)
                next(batches)
                began = time.perf_counter()
                for _ in batches:
                    time.sleep(work)  # a step on a GPU, for which the CPU only waits
                return (time.perf_counter() - began) / (len(loader) - 1)

            alone = min(run(0.0) for _ in range(2))
            both = min(run(alone) for _ in range(2))
            row = {"decoder": decoder, "workers": workers, "clips_per_second": round(settings.batch / alone, 2)}
            # 1: a step as long as loading hides all of it; 0: one waits for the other.
            rows.append(row | {"ms_a_batch": round(alone * 1e3, 1), "hidden": round(2 - both / alone, 2)})
    return {"rows": rows}


def measure_memory(folder: Path, number: int) -> dict:
    """Memory and open files while ``number`` random clips are read, ten times on the way."""
    videos = folder / "soak"
    videos.mkdir()
    for n in range(4):
        write_clip(videos / f"{n}.webm", (48, 64), 60)
    rows = []
    for decoder in ("pyav", "dali") if dali.missing() is None else ("pyav",):
        settings = ClipSettings(size=(48, 48), frames=4, batch=10, copy_paste=0.25, decoder=decoder)
        loader = ClipLoader(open_dataset(videos), settings, clips_per_video=number // 4)
        every = len(loader) // 10
        for count, _ in enumerate(tqdm(loader, desc=f"memory, {decoder}", unit="batch"), 1):
            if count % every == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
                files = len(os.listdir("/proc/self/fd"))
                rows.append({"decoder": decoder, "clips": count * 10, "memory_mb": memory, "files": files})
    return {"rows": rows}


def main() -> int:
    parts = {
        **{f"readers-{label}": partial(measure_readers, label) for label in SIZES},
        "loader": measure_loader,
        "soak": measure_memory,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=parts, nargs="+", default=list(parts), help="only these (default: all)")
    parser.add_argument("--clips", type=int, default=10_000, help="of the soak")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results, after each part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.part:
        with tempfile.TemporaryDirectory() as folder:
            options = {"number": arguments.clips} if name == "soak" else {}
            result = parts[name](Path(folder), **options)
        columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
        print("\n" + text_table(columns, [[str(row.get(column, "")) for column in columns] for row in result["rows"]]))
        for reader, reason in result.get("not loaded", {}).items():
            print(f"{reader} was left out: {reason}")
        if arguments.save:
            results.keep("video", {name: {"environment": environment()} | result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
