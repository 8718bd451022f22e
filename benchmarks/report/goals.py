"""The table of goals: which ratio was aimed at, and what was reached."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.harness import ROOT, Pair
from benchmarks.suites import OPS
from s2d.data.files import atomic_write
from s2d.errors import InputError

BEGIN, END = "<!-- written by `s2d bench report` -->", "<!-- up to here -->"


def number(ratio: float) -> str:
    """Two digits, or more before the point."""
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 0.095 else f"{ratio:.2f}"


def is_peer(pair: Pair) -> bool:
    """Not ourselves in another form."""
    return not pair.peer.startswith("s2d")


@dataclass(frozen=True)
class Goal:
    """The cases of an operator with one goal against one peer, on one thread."""

    suite: str
    op: str
    peer: str
    aim: float
    pairs: tuple[Pair, ...]

    @property
    def reached(self) -> int:
        return sum(pair.ratio >= self.aim for pair in self.pairs)

    @property
    def ratio(self) -> str:
        low, high = (number(pick(pair.ratio for pair in self.pairs)) for pick in (min, max))
        return low if low == high else f"{low} to {high}"

    @property
    def said(self) -> str:
        if self.reached in (0, len(self.pairs)):
            return f"{self.aim:g}, {'reached' if self.reached else 'not reached'}"
        return f"{self.aim:g}, reached in {self.reached} of {len(self.pairs)}"


def goals(suites: dict[str, list[Pair]]) -> Iterator[Goal]:
    """All of them, in the order in which they were measured."""
    for suite, pairs in suites.items():
        groups: dict[tuple[str, str, float], list[Pair]] = {}
        for pair in pairs:
            if pair.goal is not None and pair.threads == 1 and is_peer(pair):
                groups.setdefault((pair.op, pair.peer, pair.goal), []).append(pair)
        for (op, peer, aim), members in groups.items():
            yield Goal(suite, op, peer, aim, tuple(members))


def named(suite: str, op: str) -> str:
    """The operator, with its room where its own name does not tell it."""
    return op if op.startswith(suite) else f"{suite}, {op}"


def cases(pairs: Sequence[Pair]) -> str:
    return pairs[0].case + (f" and {len(pairs) - 1} more" if len(pairs) > 1 else "")


def table(content: dict) -> str:
    """The goals as a Markdown table, peers of the same cases in one row, and what was measured where."""
    rows: dict[tuple, list[Goal]] = {}
    for goal in goals(results.pairs_of(content)):
        rows.setdefault((goal.suite, goal.op, tuple(pair.case for pair in goal.pairs)), []).append(goal)
    lines = ["| operator | case | peer | ratio | goal |", "|---|---|---|---|---|"]
    for (suite, op, _), members in rows.items():
        operator = re.sub(r"^(\w+)", r"`\1`", named(suite, op))
        columns = (("; ".join(texts)) for texts in zip(*((g.peer, g.ratio, g.said) for g in members), strict=True))
        lines.append(f"| {operator} | {cases(members[0].pairs)} | {' | '.join(columns)} |")
    machine = content["machine"]
    commits = sorted({s["environment"]["commit"] for s in content["suites"].values() if "pairs" in s})
    said = (
        f"On one thread of {machine['processor']} ({machine['cores']} cores, {machine['cpu_isa']}), "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}; of several cases, the lowest and the highest ratio. "
        "`s2d bench OP` measures one again and `s2d bench report` draws it all; `benchmarks/results` has every number."
    )
    if waiting := [name for name in OPS if name not in content["suites"]]:
        said += f" Still to be measured there: {', '.join(f'`{name}`' for name in waiting)}."
    lines += ["", textwrap.fill(said, 140, break_on_hyphens=False)]
    return "\n".join(lines)


def with_table(readme: str, content: dict) -> str:
    """The text of a README with the table between its markers. InputError where it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"expected a README with {BEGIN} and {END}, got one without")
    return f"{before}{BEGIN}\n\n{table(content)}\n\n{END}{after}"


def write_readme(content: dict, path: Path = ROOT / "README.md") -> None:
    text = with_table(path.read_text("utf-8"), content)
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")
