"""What `benchmarks/results` says about an operator, as a table of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def results(room: str) -> list[dict[str, Any]]:
    """Every measurement of a room: ``{"environment": {...}, "pairs": [...], "missing": [...]}``.

    A file is of one room and named like it, or of one machine and release with a suite for each room.
    """
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        suite = content if path.stem == room else content.get("suites", {}).get(room, {})
        if suite.get("pairs"):
            found.append(suite)
    return found


def table(room: str) -> str:
    """Ratios on one thread; where nothing was saved, a sentence says so and what would fill the gap."""
    measured = results(room)
    if not measured:
        return f"No measurement of `{room}` is kept in `benchmarks/results` yet. `s2d bench {room} --save` makes one."
    return "\n\n".join(_one(room, result) for result in measured)


def _one(room: str, result: dict[str, Any]) -> str:
    machine = result["environment"]
    lines = [
        "Peer's time over ours: medians of runs in turn in one process, on one thread of "
        f"{machine['processor']} ({machine['cpu_isa']}), torch {machine['torch']}, commit `{machine['commit']}`. "
        f"`s2d bench {room}` measures them again.",
        "",
        "| | case | peer | ratio (quartiles) | goal |",
        "|---|---|---|---|---|",
    ]
    for pair in result["pairs"]:
        if pair["threads"] == 1:
            ratio = f"**{pair['ratio']:.1f}** ({pair['ratio_low']:.1f}-{pair['ratio_high']:.1f})"
            goal = "" if pair["goal"] is None else f"{pair['goal']:g}"
            lines.append(f"| {pair['op']} | {pair['case']} | {pair['peer']} | {ratio} | {goal} |")
    for gap in result.get("missing", []):
        if gap["threads"] == 1:
            lines.append(f"| {gap['op']} | {gap['case']} | {gap['peer']} | not measured: {gap['reason']} | |")
    return "\n".join(lines)
