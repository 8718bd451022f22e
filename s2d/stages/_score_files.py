"""Scores as text, json, csv and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2d.data.files import atomic_write, write_json
from s2d.errors import InputError
from s2d.metrics.scores import Scores
from s2d.viz.table import text_table

SUFFIXES = (".json", ".csv", ".md")


def check_suffix(path: Path) -> None:
    """InputError where `write_scores` would not know the format."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"expected the output to end in {', '.join(SUFFIXES)}, got {path.name}")


def write_scores(path: Path, scores: Scores, comparison: dict[str, Any] | None = None) -> None:
    """Write everything there is, in the format of the suffix; what is not defined is null, or empty."""
    check_suffix(path)
    if path.suffix.lower() == ".json":
        content = {
            "overall": scores.overall,
            "intervals": {name: list(ends) for name, ends in scores.intervals().items()},
            "videos": scores.videos,
            "instances": scores.instances,
            "notes": list(scores.notes),
            **({} if comparison is None else {"comparison": comparison}),
        }
        write_json(path, _plain(content), indent=1)
        return
    text = _csv(scores) if path.suffix.lower() == ".csv" else _markdown(scores, comparison)
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def scores_text(scores: Scores, most: int = 30) -> str:
    """Tables for the terminal; of many videos the ``most`` worst ones."""
    intervals = scores.intervals()
    rows = [[name, cell(value), _ends(intervals.get(name))] for name, value in scores.overall.items()]
    blocks = [text_table(["all videos", "", "95 % interval"], rows)]
    names = sorted(scores.videos, key=lambda name: _rank(scores.videos[name][scores.main]))
    if len(names) > 1:
        columns = list(scores.videos[names[0]])
        rows = [[name, *(cell(scores.videos[name][column]) for column in columns)] for name in names[:most]]
        blocks.append(text_table(["video, worst first", *columns], rows))
    if len(names) > most:
        blocks.append(f"{len(names) - most:,} more videos are in the file that --output writes.")
    return "\n\n".join([*blocks, *scores.notes])


def cell(value: Any) -> str:
    """Three decimals, integers as they are, a dash for what is not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _ends(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{cell(ends[0])} to {cell(ends[1])}"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(scores: Scores) -> str:
    """One table: a row for all videos, then one for each video, then one for each instance."""
    rows = [{"level": "all", **scores.overall}]
    rows += [{"level": "video", "video": name, **values} for name, values in scores.videos.items()]
    rows += [{"level": "instance", **values} for values in scores.instances]
    columns = list(dict.fromkeys(["level", "video", "instance", *(name for row in rows for name in row)]))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(rows))
    return out.getvalue()


def _markdown(scores: Scores, comparison: dict[str, Any] | None) -> str:
    intervals = scores.intervals()
    rows = [[name, cell(value), _ends(intervals.get(name))] for name, value in scores.overall.items()]
    blocks = ["## All videos", _table(["", "value", "95 % interval"], rows)]
    if comparison is not None:
        rows = [
            [name, *(cell(change[key]) for key in ("before", "after", "change"))]
            for name, change in comparison["videos"].items()
        ]
        blocks += ["## Change by video", _table(["video", "before", "after", "change"], rows)]
    if scores.videos:
        columns = list(next(iter(scores.videos.values())))
        rows = [[name, *(cell(values[column]) for column in columns)] for name, values in scores.videos.items()]
        blocks += ["## Videos", _table(["video", *columns], rows)]
    if scores.instances:
        columns = list(scores.instances[0])
        rows = [[cell(row[column]) for column in columns] for row in scores.instances]
        blocks += ["## Instances", _table(columns, rows)]
    return "\n\n".join([*blocks, *scores.notes]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *escaped])
