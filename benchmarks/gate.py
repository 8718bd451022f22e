"""Whether something became slower, beyond the noise of this machine.

Neighbouring runs of before and now give the median of how many times longer a case takes, and bounds of it. A case is
suspect where the median is above `SUSPECT`. Two processes of one build differ, too, by where memory happens to lie, and
that stays for their lives: a suspect is measured again from new processes. It is slower only where it is suspect in
every repeat, and in most of them above `SLOWER` and certainly above 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SUSPECT, SLOWER = 1.05, 1.1
REPEATS = 5


@dataclass(frozen=True)
class Spread:
    """Time now over time before: the median of neighbouring runs, between bounds that hold it in 95 of 100 cases."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(ratios: Sequence[float]) -> Spread:
        """The bounds are the values as many ranks away as a binomial distribution strays, whatever the noise is."""
        ordered, number = sorted(ratios), len(ratios)
        first = max(math.floor(number / 2 - math.sqrt(number)), 0)
        return Spread(ordered[first], statistics.median(ordered), ordered[-1 - first])

    @property
    def suspect(self) -> bool:
        return self.middle > SUSPECT


Case = tuple[str, str, int]
"""Operator, case and number of threads, or a key with the peer."""
Measure = Callable[[str, set | None], dict[Case, Spread]]
"""The cases of a suite, all of them or only those of a set."""


@dataclass
class Verdict:
    """The repeats of each case of a suite."""

    suite: str
    repeats: dict[Case, list[Spread]] = field(default_factory=dict)

    def slower(self) -> list[Case]:
        return [
            case
            for case, spreads in self.repeats.items()
            if len(spreads) == REPEATS
            and all(spread.suspect for spread in spreads)
            and statistics.median(spread.middle for spread in spreads) > SLOWER
            and statistics.median(spread.low for spread in spreads) > 1
        ]


def judge(suite: str, measure: Measure) -> Verdict:
    """Measure a suite, and its suspects again until they are acquitted or `REPEATS` times."""
    verdict = Verdict(suite, {case: [spread] for case, spread in measure(suite, None).items()})
    for _ in range(REPEATS - 1):
        suspects = {case for case, spreads in verdict.repeats.items() if all(spread.suspect for spread in spreads)}
        if not suspects:
            break
        for case, spread in measure(suite, suspects).items():
            verdict.repeats[case].append(spread)
    return verdict
