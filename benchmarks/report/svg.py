"""Charts as SVG: logarithmic axes, text that says what every mark is, colours from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from ``low`` to ``high`` onto 0 to ``length``."""

    low: float
    high: float
    length: float

    @staticmethod
    def over(values: Sequence[float], length: float, room: float = 1.15) -> Scale:
        return Scale(min(values) / room, max(values) * room, length)

    def __call__(self, value: float) -> float:
        return round(self.length * math.log(value / self.low) / math.log(self.high / self.low), 2)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers inside the axis: 1, 3, 10, or only powers of ten where there are many."""
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**e for e in exponents for s in steps if self.low <= s * 10.0**e <= self.high]
            if len(found) <= most:
                break
        return found


def label(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:g}"


def text(x: float | str, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def line(x1, y1, x2, y2, kind: str, title: str = "") -> str:
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}">{inside}</line>'


def dot(x: float | str, y: float, kind: str, title: str, radius: float = 4) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{radius}" class="{kind}"><title>{escape(title)}</title></circle>'


def strip(scale: Scale, marks: Sequence[str], height: int = 22) -> str:
    """A row of a dot plot, as wide as its place; the marks use percentages of it."""
    grid = "".join(line(f"{scale(t)}%", 0, f"{scale(t)}%", height, "one" if t == 1 else "grid") for t in scale.ticks())
    return f'<svg class="strip" height="{height}" width="100%">{grid}{"".join(marks)}</svg>'


def strip_axis(scale: Scale, unit: str = "") -> str:
    marks = [text(f"{scale(t)}%", 13, label(t) + unit, "middle", "tick") for t in scale.ticks()]
    return f'<svg class="strip" height="18" width="100%">{"".join(marks)}</svg>'


@dataclass(frozen=True)
class Series:
    """A line of a panel; each point is (x, y, what it is)."""

    name: str
    points: tuple[tuple[float, float, str], ...]


def _apart(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved so that labels do not overlap, in the order given."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    over = max(0.0, max(moved) - high)
    moved = [place - over for place in moved]
    for before, after in reversed(list(pairwise(order))):
        moved[before] = min(moved[before], moved[after] - gap)
    return [max(place, low) for place in moved]


def panel(title: str, series: Sequence[Series], x_label: str, names: dict[float, str] | None = None) -> str:
    """Ratios against a number, one line a series, its name at its end; ``names`` says what x are called."""
    width, height, left, right, top, bottom = 460, 250, 44, 150, 34, 40
    xs = sorted({x for one in series for x, _, _ in one.points})
    ys = [y for one in series for _, y, _ in one.points]
    x_scale = Scale.over(xs, width - left - right, 1.0 if len(xs) > 1 else 1.5)
    y_scale = Scale.over([*ys, 1.0], height - top - bottom, 1.2)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(left + x_scale(x), 1), round(height - bottom - y_scale(y), 1)

    parts = [text(0, 15, title, kind="title")]
    for tick in y_scale.ticks(5):
        y = place(xs[0], tick)[1]
        parts.append(line(left - 6, y, width - right + 6, y, "one" if tick == 1 else "grid"))
        parts.append(text(left - 12, y + 4, label(tick), "end", "tick"))
    for x in xs:
        parts.append(text(place(x, 1)[0], height - bottom + 18, (names or {}).get(x, label(x)), "middle", "tick"))
    parts.append(text(left + (width - left - right) / 2, height - 4, x_label, "middle", "tick"))
    ends = _apart([place(*one.points[-1][:2])[1] for one in series], 15, top, height - bottom)
    for index, (one, end) in enumerate(zip(series, ends, strict=True)):
        places = [place(x, y) for x, y, _ in one.points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" class="line c{index % 6}"/>')
        parts += [dot(*at, f"c{index % 6}", said) for at, (_, _, said) in zip(places, one.points, strict=True)]
        parts.append(text(width - right + 14, end + 4, one.name, kind=f"name c{index % 6}"))
    return f'<svg class="panel" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
