"""Results of the GPU benchmark: one row an entry, as a Markdown table and as JSON."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.entry import Entry
from benchmarks.gpu.floor import Rates, nvidia_smi
from benchmarks.gpu.timing import Times, cache_bytes, ratio
from benchmarks.harness import environment


@dataclass(frozen=True)
class PeerRow:
    """A peer's microseconds (as called, from a CUDA graph) and its time over ours."""

    name: str
    eager_us: float
    graph_us: float | None
    ratio: float


@dataclass(frozen=True)
class Row:
    """One entry, timed.

    Attributes:
        eager_us, graph_us: median microseconds of a call: launched from Python, replayed from a CUDA graph.
        floor_us: what the entry's bytes take at the speed of a copy.
        share_of_floor: floor over the time without launches: also the share of the copy's bandwidth that is reached.
        share_of_rate: of the device's rate for the entry's operations; None where either is unknown.
        goal_met: None where there is no goal.
    """

    op: str
    case: str
    eager_us: float
    graph_us: float | None
    bytes: int
    gigabytes_per_second: float
    floor_us: float
    share_of_floor: float
    operations: int
    unit: str
    share_of_rate: float | None
    goal_us: float | None
    goal_share: float | None
    goal_met: bool | None
    syncs: str
    peers: tuple[PeerRow, ...]


def row(entry: Entry, ours: Times, peers: Mapping[str, Times], rates: Rates) -> Row:
    seconds, floor, rate = ours.median(), entry.bytes / rates.copy_bytes, rates.of(entry.unit)
    met = None
    if entry.goal_us is not None:
        met = seconds * 1e6 <= entry.goal_us
    if entry.goal_share is not None:
        met = met is not False and floor / seconds >= entry.goal_share

    def microseconds(times: Times) -> tuple[float, float | None]:
        graph = Times(times.graph, None).median() * 1e6 if times.graph else None
        return Times(times.eager, None).median() * 1e6, graph

    return Row(
        entry.op,
        entry.case,
        *microseconds(ours),
        bytes=entry.bytes,
        gigabytes_per_second=entry.bytes / seconds / 1e9,
        floor_us=floor * 1e6,
        share_of_floor=floor / seconds,
        operations=entry.operations,
        unit=entry.unit,
        share_of_rate=entry.operations / seconds / rate if rate else None,
        goal_us=entry.goal_us,
        goal_share=entry.goal_share,
        goal_met=met,
        syncs=entry.syncs,
        peers=tuple(PeerRow(name, *microseconds(times), ratio(ours, times)) for name, times in peers.items()),
    )


def _goal(one: Row) -> str:
    goals = [] if one.goal_us is None else [f"{one.goal_us:g} us"]
    goals += [] if one.goal_share is None else [f"{one.goal_share:.0%} of floor"]
    return "" if not goals else f"{' and '.join(goals)}: {'met' if one.goal_met else '**missed**'}"


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table; the last columns name the fastest peer and how many times longer it takes."""
    lines = [
        "| op | case | us | us with launch | GB/s | floor us | of floor | of rate | goal | best peer | peer / ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        alone = f"{one.graph_us:.1f}" if one.graph_us is not None else "syncs" if one.syncs else "-"
        rate = "" if one.share_of_rate is None else f"{one.share_of_rate:.0%} {one.unit}"
        best = min(one.peers, key=lambda peer: peer.ratio, default=None)
        lines.append(
            f"| {one.op} | {one.case} | {alone} | {one.eager_us:.1f} | {one.gigabytes_per_second:.0f} "
            f"| {one.floor_us:.1f} | {one.share_of_floor:.0%} | {rate} | {_goal(one)} "
            f"| {best.name if best else ''} | {f'**{best.ratio:.2f}**' if best else ''} |"
        )
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine(device: str) -> dict[str, Any]:
    """The device, the versions, the commit and the time a result belongs to."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        **environment(),
        "device": name,
        "driver": nvidia_smi("driver_version") if device == "cuda" else None,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "cupy": _version("cupy-cuda13x"),
        "l2_bytes": cache_bytes(device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def file_name(device_name: str) -> str:
    """``gpu_h200`` for "NVIDIA H200"."""
    words = re.sub(r"[^a-z0-9]+", "_", device_name.lower().removeprefix("nvidia")).strip("_")
    return f"gpu_{words}"


def text(facts: Mapping[str, Any], rates: Rates, rows: list[Row], notes: list[str]) -> str:
    """The whole report in Markdown."""
    popcounts = "" if rates.popcounts is None else f", {rates.popcounts / 1e12:.1f} T popc32/s"
    heading = (
        f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}, triton {facts['triton']}, "
        f"commit {facts['commit']}, {facts['date']}\n\n"
        f"Copy {rates.copy_bytes / 1e12:.2f} TB/s, bf16 product {rates.bf16_flops / 1e12:.0f} TFLOP/s{popcounts}"
    )
    return "\n".join([heading, "", table(rows), "", *notes]).rstrip() + "\n"


def save(folder: Path, facts: Mapping[str, Any], rates: Rates, rows: list[Row], notes: list[str]) -> tuple[Path, Path]:
    """Write ``gpu_<device>.json`` and ``.md`` into the folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"environment": dict(facts), "rates": asdict(rates), "rows": [asdict(r) for r in rows], "notes": notes}
    written = []
    for suffix, data in ((".json", json.dumps(content, indent=1) + "\n"), (".md", text(facts, rates, rows, notes))):
        target = folder / (file_name(facts["device"]) + suffix)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(data)
        temporary.replace(target)
        written.append(target)
    return written[0], written[1]
