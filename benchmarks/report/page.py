"""The page: one static file, its charts drawn from the files of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from benchmarks import results
from benchmarks.harness import Pair
from benchmarks.report.goals import Goal, cases, goals, is_peer, named, number
from benchmarks.report.svg import Scale, Series, dot, label, line, panel, strip, strip_axis, text

# What cases vary, and how a chart calls it.
SIZES = {"frames": "frames of a clip", "points": "points", "masks": "masks", "pixels": "pixels"}


def title_of(pair: Pair) -> str:
    spread = f"{number(pair.ratio_low)} to {number(pair.ratio_high)}"
    threads = f"{pair.threads} thread{'s' * (pair.threads > 1)}"
    return f"{pair.op}, {pair.case}, against {pair.peer}, {threads}: {number(pair.ratio)} (quartiles {spread})"


def best_peers(pairs: Iterable[Pair]) -> dict[tuple[str, int], dict[str, Pair]]:
    """By operator and threads, for each case the peer that comes nearest."""
    found: dict[tuple[str, int], dict[str, Pair]] = {}
    for pair in filter(is_peer, pairs):
        nearest = found.setdefault((pair.op, pair.threads), {})
        if pair.case not in nearest or pair.ratio < nearest[pair.case].ratio:
            nearest[pair.case] = pair
    return found


def row(name: str, small: str, chart: str, value: str = "") -> str:
    name = f'{escape(name)} <span class="soft">{escape(small)}</span>'
    return f'<div class="row"><div class="name">{name}</div>{chart}<div class="value">{value}</div></div>'


def axis(scale: Scale) -> str:
    return f'<div class="row axis"><div class="name"></div>{strip_axis(scale)}<div class="value"></div></div>'


def overview(suites: dict[str, list[Pair]]) -> Iterator[str]:
    """Every operator on one thread against the peer that comes nearest to it."""
    yield "<h2>Against the best peer</h2>"
    yield (
        "<p>A dot is a case on one thread: the best peer's time over ours; right of 1 we are faster. The line through "
        "it joins the quartiles of neighbouring runs, and the stroke is the goal against that peer: the dot is "
        '<b class="good">green</b> where it is reached, <b class="bad">red</b> where it is not, blue where there is '
        "none. On the right the lowest and the highest case.</p>"
    )
    ratios = [value for pairs in suites.values() for p in pairs if is_peer(p) for value in (p.ratio_low, p.ratio_high)]
    scale = Scale.over([*ratios, 1.0], 100)
    for suite, pairs in suites.items():
        found = {op: list(of.values()) for (op, threads), of in best_peers(pairs).items() if threads == 1}
        if not found:
            continue
        yield f"<h3>{escape(suite)}</h3>" + axis(scale)
        for op, members in found.items():
            marks = []
            for pair in members:
                kind = "plain" if pair.goal is None else "good" if pair.ratio >= pair.goal else "bad"
                ends = f"{scale(pair.ratio_low)}%", f"{scale(pair.ratio_high)}%"
                marks.append(line(ends[0], 11, ends[1], 11, "spread"))
                marks.append(dot(f"{scale(pair.ratio)}%", 11, kind, title_of(pair)))
            for aim in {pair.goal for pair in members if pair.goal is not None}:
                marks.append(line(f"{scale(aim)}%", 4, f"{scale(aim)}%", 18, "goal", f"goal {aim:g}"))
            low, high = (number(pick(pair.ratio for pair in members)) for pick in (min, max))
            peers = list(dict.fromkeys(pair.peer for pair in members))
            small = peers[0] + (" and others" if len(peers) > 1 else "")
            yield row(op, small, strip(scale, marks), low if low == high else f"{low} to {high}")


def goal_table(found: list[Goal]) -> Iterator[str]:
    met = sum(goal.reached == len(goal.pairs) for goal in found)
    yield f"<h2>Goals</h2><p>{met} of {len(found)} are reached in every case, on one thread.</p>"
    yield "<div class='wide'><table class='goals'><tr><th>operator<th>peer<th>case<th>ratio<th>goal</tr>"
    for goal in found:
        kind = "good" if goal.reached == len(goal.pairs) else "bad"
        cells = "".join(f"<td>{escape(cell)}" for cell in (named(goal.suite, goal.op), goal.peer, cases(goal.pairs)))
        yield f'<tr>{cells}<td class="short">{goal.ratio}<td class="short {kind}">{escape(goal.said)}</tr>'
    yield "</table></div>"


def sweeps(suites: dict[str, list[Pair]], what: str) -> Iterator[tuple[str, list[Series]]]:
    """Operators whose cases differ in one number: a line for each peer and value of the others."""
    for suite, pairs in suites.items():
        lines: dict[str, dict[tuple, list[Pair]]] = {}
        for pair in filter(is_peer, pairs):
            if what in pair.at and pair.threads == 1:
                others = tuple((name, value) for name, value in pair.at.items() if name != what)
                lines.setdefault(pair.op, {}).setdefault((pair.peer, others), []).append(pair)
        for op, groups in lines.items():
            groups = {key: found for key, found in groups.items() if len({pair.at[what] for pair in found}) > 1}
            varied = {pair for key in groups for pair in key[1] if len({dict(o).get(pair[0]) for _, o in groups}) > 1}
            series = []
            for (peer, others), found in groups.items():
                rest = ", ".join(_setting(*other) for other in others if other in varied)
                ordered = sorted(found, key=lambda pair: pair.at[what])
                points = tuple((pair.at[what], pair.ratio, title_of(pair)) for pair in ordered)
                series.append(Series(rest if len({p for p, _ in groups}) == 1 and rest else peer, points))
            if series:
                yield named(suite, op), series


def _setting(name: str, value: float) -> str:
    return f"{value:.0%} of keys" if name == "density" else f"{name} {value:g}"


def charts(heading: str, said: str, panels: list[str]) -> str:
    return f"<h2>{heading}</h2><p>{said}</p><div class='panels'>{''.join(panels)}</div>" if panels else ""


def threads(suites: dict[str, list[Pair]]) -> Iterator[str]:
    """One thread and all: of each operator the first case that both have."""
    rows, ratios = [], [1.0]
    for suite, pairs in suites.items():
        found: dict[tuple, list[Pair]] = {}
        for pair in filter(is_peer, pairs):
            found.setdefault((pair.op, pair.case, pair.peer), []).append(pair)
        first = {}
        for key, members in found.items():
            if len(members) > 1:
                first.setdefault(key[0], sorted(members, key=lambda pair: pair.threads))
        rows += [(suite, op, members) for op, members in first.items()]
        ratios += [pair.ratio for members in first.values() for pair in members]
    if not rows:
        return
    most = rows[0][2][-1].threads
    yield (
        f"<h2>Against threads</h2><p>The same ratio on one thread (open) and on {most} (filled), both sides alike; "
        "on the right how many times faster the threads make us.</p>"
    )
    scale = Scale.over(ratios, 100)
    yield axis(scale)
    for suite, op, members in rows:
        few, many = members[0], members[-1]
        marks = [line(f"{scale(few.ratio)}%", 11, f"{scale(many.ratio)}%", 11, "spread")]
        marks += [dot(f"{scale(few.ratio)}%", 11, "open", title_of(few))]
        marks += [dot(f"{scale(many.ratio)}%", 11, "plain", title_of(many))]
        faster = f"{few.ours_ms / many.ours_ms:.1f} times"
        yield row(named(suite, op), few.peer, strip(scale, marks), faster)


def roofline(suites: dict[str, list[Pair]], ceilings: dict) -> Iterator[str]:
    """Operations a second against operations a byte under this machine's roof; below, what only moves bytes."""
    if "1" not in ceilings:
        return
    copy, peak = ceilings["1"]["copy_gb_s"], ceilings["1"]["fma_gflop_s"]
    yield (
        "<h2>Against the machine</h2><p>One thread. The roof is measured: a copy moves "
        f"{copy:.1f} GB/s, a product of float32 matrices computes {peak:.0f} GFLOP/s (commit {ceilings['commit']}, "
        f"{ceilings['date']}). Bytes are those of inputs and outputs, each once; operations those of the definition. "
        "What a cache holds moves faster than a copy.</p>"
    )
    found: dict[str, Pair] = {}
    for suite, pairs in suites.items():
        for pair in pairs:
            if pair.threads == 1 and pair.bytes:
                found.setdefault(named(suite, pair.op), pair)
    computing = {name: pair for name, pair in found.items() if pair.flops}
    if computing:
        yield f'<div class="wide">{roof(computing, copy, peak)}</div>'
    speeds = {name: pair.bytes / pair.ours_ms / 1e6 for name, pair in found.items() if not pair.flops}
    if speeds:
        scale = Scale.over([*speeds.values(), copy], 100)
        yield f"<h3>Bytes alone: GB/s, the stroke is a copy</h3>{axis(scale)}"
        for name, speed in speeds.items():
            at = f"{scale(copy)}%"
            marks = [line(at, 2, at, 20, "goal", f"copy, {copy:.1f} GB/s")]
            marks.append(dot(f"{scale(speed)}%", 11, "plain", f"{name}, {found[name].case}: {speed:.2g} GB/s"))
            yield row(name, found[name].case, strip(scale, marks), f"{speed / copy:.0%} of a copy")


def roof(pairs: dict[str, Pair], copy: float, peak: float) -> str:
    width, height, left, bottom, top = 900, 400, 56, 46, 24
    points = {name: (p.flops / p.bytes, p.flops / p.ours_ms / 1e6, title_of(p)) for name, p in pairs.items()}
    ridge = peak / copy
    x = Scale.over([*(x for x, _, _ in points.values()), ridge / 8, ridge * 8], width - left - 20, 1.6)
    speeds = [speed for _, speed, _ in points.values()]  # below the lowest there is room for names
    y = Scale.over([*speeds, min(speeds) / 3, peak], height - top - bottom, 1.6)

    def place(intensity: float, speed: float) -> tuple[float, float]:
        return round(left + x(intensity), 1), round(height - bottom - y(speed), 1)

    parts = []
    for tick in x.ticks():
        at = place(tick, y.low)[0]
        parts += [
            line(at, top, at, height - bottom, "grid"),
            text(at, height - bottom + 18, label(tick), "middle", "tick"),
        ]
    for tick in y.ticks():
        at = place(x.low, tick)[1]
        parts += [line(left, at, width - 20, at, "grid"), text(left - 8, at + 4, label(tick), "end", "tick")]
    parts.append(text(width / 2, height - 8, "operations a byte", "middle", "tick"))
    parts.append(text(left, 12, "GFLOP/s", "end", "tick"))
    start = max(x.low, y.low / copy)
    corners = [place(start, start * copy), place(ridge, peak), place(x.high, peak)]
    parts.append(f'<polyline class="roof" points="{" ".join(f"{a},{b}" for a, b in corners)}"/>')
    parts.append(text(corners[2][0], corners[2][1] - 7, f"matrix product, {peak:.0f} GFLOP/s", "end", "tick"))
    middle = math.sqrt(start * ridge)
    at = place(middle, middle * copy)
    parts.append(text(at[0] - 8, at[1] - 4, f"copy, {copy:.1f} GB/s", "end", "tick"))
    taken: list[tuple[float, float]] = []
    for name, (intensity, speed, said) in sorted(points.items(), key=lambda item: -item[1][1]):
        at = place(intensity, speed)
        parts.append(dot(*at, "plain", f"{said}; {speed:.3g} GFLOP/s"))
        down = at[1] + 4
        while any(abs(down - other) < 15 and abs(at[0] - across) < 210 for across, other in taken):
            down += 16
        if down > at[1] + 4:
            parts.append(line(*at, at[0] + 7, down - 4, "grid"))
        taken.append((at[0], down))
        right = at[0] < width - 240
        parts.append(text(at[0] + (9 if right else -9), down, name, "start" if right else "end"))
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def history(suites: dict[str, list[Pair]], kept: list[dict]) -> list[str]:
    """Of each suite that was kept more than once: the ratios with a goal, by commit, and their geometric mean."""
    panels = []
    for suite in suites:
        entries = sorted((e for e in kept if e["suite"] == suite), key=lambda entry: entry["date"])
        common = set.intersection(*(set(entry["ratios"]) for entry in entries)) if entries else set()
        if len(entries) < 2 or not common:
            continue
        names = {2.0**n: entry["commit"] for n, entry in enumerate(entries)}  # even steps of a logarithm
        points = []
        for n, entry in enumerate(entries):
            mean = math.exp(sum(math.log(entry["ratios"][key]) for key in common) / len(common))
            points.append((2.0**n, mean, f"{entry['commit']}, {entry['date']}: {number(mean)}"))
        series = Series(f"mean of {len(common)} ratios" if len(common) > 1 else "one ratio", tuple(points))
        panels.append(panel(suite, [series], "commit", names))
    return panels


def measured(suites: dict[str, list[Pair]], kept: dict[str, dict]) -> Iterator[str]:
    yield "<h2>What was measured where</h2><div class='wide'><table>"
    yield "<tr><th>suite<th>commit<th>date<th>torch<th>python<th>pairs<th>missing peers</tr>"
    for name, pairs in suites.items():
        suite = kept[name]
        facts = [suite["environment"].get(key) or "" for key in ("commit", "date", "torch", "python")]
        absent = "; ".join(sorted({f"{one['peer']}: {one['reason']}" for one in suite.get("missing", [])}))
        cells = [name, *facts, len(pairs), absent or "none"]
        yield "<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in cells) + "</tr>"
    yield "</table></div>"


def section(content: dict) -> str:
    """All of one machine and release."""
    suites = results.pairs_of(content)
    machine = content["machine"]
    size_panels = [
        panel(name, series, SIZES[what]) for what in SIZES for name, series in sweeps(suites, what) if what in SIZES
    ]
    density_panels = []
    for name, series in sweeps(suites, "density"):
        values = {x for one in series for x, _, _ in one.points}
        names = {x: f"{x:.0%}" for x in values}
        density_panels.append(panel(name, series, "share of keys that a mask leaves", names))
    parts = [
        f"<p><b>{escape(machine['processor'])}</b>, {machine['cores']} cores, {machine['cpu_isa']}; "
        f"s2d {content['release']}. Both sides were run in turn in one process, after their results were compared.</p>",
        *overview(suites),
        *goal_table(list(goals(suites))),
        charts("Against size", "The peer's time over ours, on one thread. Both axes are logarithmic.", size_panels),
        charts("Against the density of masks", "The sparser the masks, the more there is to skip.", density_panels),
        *threads(suites),
        *roofline(suites, content["ceilings"]),
        charts(
            "Across commits", "Geometric means of the ratios that have a goal.", history(suites, content["history"])
        ),
        *measured(suites, content["suites"]),
    ]
    return "\n".join(parts)


def page(contents: Iterable[dict]) -> str:
    """The whole file."""
    style = (Path(__file__).parent / "style.css").read_text("utf-8")
    body = "\n<hr>\n".join(map(section, contents))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>s2d against its peers</title>\n<style>\n{style}</style>\n"
        f"<h1>s2d against its peers</h1>\n{body}\n</html>\n"
    )
