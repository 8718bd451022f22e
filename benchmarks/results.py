"""What was measured, as it is kept: ``benchmarks/results/<machine>-<release>.json``.

machine, release          what the file is of
ceilings                  by number of threads: speed of a copy and of a matrix product
suites.<name>             environment (versions, commit, date), pairs, missing; what else a stage measures
history                   for each suite and commit the ratios that have a goal
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import ceilings
from benchmarks.harness import RESULTS, Missing, Pair, environment, pinned_threads, thread_counts
from benchmarks.suites import OPS, STAGES
from s2d.data.files import atomic_write, read_json
from s2d.errors import InputError

MACHINE = ("processor", "cores", "cpu_isa")
_LINE = 600  # what is shorter than so many characters stands on one line of a file


def place(facts: dict[str, Any]) -> Path:
    """The file of a machine and release."""
    words = "_".join(str(facts[name]) for name in MACHINE)
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '_', words.lower())}-{facts['s2d']}.json"


def read(path: Path) -> dict[str, Any]:
    """The content of a file. InputError where it is none of ours."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"machine", "release", "suites"} <= content.keys():
        raise InputError(f"expected a file of `s2d bench --save`, got {path}, which has no suites")
    return content


def files() -> list[Path]:
    """All files of CPUs, the newest release last."""
    return sorted(path for path in RESULTS.glob("*-*.json") if not path.name.startswith("gpu_"))


def fullest() -> dict[str, Any]:
    """What has the most pairs: the README shows it. InputError where nothing was kept."""
    contents = [read(path) for path in files()]
    if not contents:
        raise InputError(f"expected files of `s2d bench --save` in {RESULTS}, got none")
    return max(contents, key=lambda content: sum(map(len, pairs_of(content).values())))


def pairs_of(content: dict[str, Any]) -> dict[str, list[Pair]]:
    """The timed pairs of each suite, operators first."""
    timed = {name: suite["pairs"] for name, suite in content["suites"].items() if "pairs" in suite}
    return {name: [Pair(**pair) for pair in timed[name]] for name in sorted(timed, key=(OPS + STAGES).index)}


def keep(suite: str, part: dict[str, Any]) -> Path:
    """Write a part of what a suite measured into this machine's file, in place of what had its names."""
    facts = environment()
    path = place(facts)
    content = read(path) if path.exists() else _empty(facts)
    content["suites"][suite] = content["suites"].get(suite, {}) | part
    _write(path, content)
    return path


def keep_pairs(suite: str, pairs: Iterable[Pair], missing: Iterable[Missing]) -> Path:
    """The same of timed pairs, with their history."""
    facts, pairs = environment(), list(map(_rounded, pairs))
    path = keep(
        suite, {"environment": facts, "pairs": [asdict(p) for p in pairs], "missing": [asdict(m) for m in missing]}
    )
    content = read(path)
    entry = {"suite": suite, "commit": facts["commit"], "date": facts["date"], "ratios": ratios(pairs)}
    others = [e for e in content["history"] if (e["suite"], e["commit"]) != (suite, facts["commit"])]
    content["history"] = [*others, entry]
    _write(path, content)
    return path


def _rounded(pair: Pair) -> Pair:
    return Pair(**{key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in asdict(pair).items()})


def ratios(pairs: Iterable[Pair]) -> dict[str, float]:
    """Those that have a goal, on one thread, by what they are of."""
    return {f"{p.op} | {p.case} | {p.peer}": p.ratio for p in pairs if p.goal is not None and p.threads == 1}


def keep_ceilings() -> Path:
    """Measure this machine's ceilings and write them into its file."""
    facts = environment()
    measured = {}
    for threads in thread_counts():
        with pinned_threads(threads):
            measured[str(threads)] = ceilings.measure()
    path = place(facts)
    content = read(path) if path.exists() else _empty(facts)
    content["ceilings"] = measured | {"commit": facts["commit"], "date": facts["date"]}
    _write(path, content)
    return path


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(_lines(content) + "\n", "utf-8")


def _lines(value: Any, margin: str = "") -> str:
    """JSON with a line for every pair or row, whatever is short, so that a change is one in the file, too."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(text) < _LINE or not isinstance(value, (dict, list)):
        return text
    deeper = margin + " "
    if isinstance(value, dict):
        parts, ends = [f"{json.dumps(key)}: {_lines(item, deeper)}" for key, item in value.items()], "{}"
    else:
        parts, ends = [_lines(item, deeper) for item in value], "[]"
    return f"{ends[0]}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{margin}{ends[1]}"


def _empty(facts: dict[str, Any]) -> dict[str, Any]:
    machine = {name: facts[name] for name in MACHINE}
    return {"machine": machine, "release": facts["s2d"], "ceilings": {}, "suites": {}, "history": []}
