"""What ``s2d bench`` does."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks import builds, gate, results, suites
from benchmarks.harness import ROOT, Key, Missing, Pair, environment, pinned_threads, table, thread_counts
from benchmarks.report.goals import write_readme
from benchmarks.report.page import page
from s2d.data.files import atomic_write
from s2d.errors import InputError
from s2d.viz.table import text_table


def bench(name: str | None, *, quick: bool, compare: str | None, save: bool) -> bool:
    """Run suites, or compare them with what was; whether all is well."""
    names = suites.named(name)
    if save and (quick or compare):
        raise InputError(f"expected --save without {'--quick' if quick else '--compare'}, got both")
    facts = environment()
    counts = " and ".join(map(str, thread_counts()))
    print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['cpu_isa']}; {counts} threads, kept on as many cores; "
        f"torch {facts['torch']}, commit {facts['commit']}\n"
    )
    if compare is None:
        right = sum(run(suite, quick, save) for suite in names) == len(names)
        if save:
            print(f"kept in {results.keep_ceilings()}")
        return right
    if Path(compare).is_file():
        measure = partial(against_file, results.read(Path(compare)), quick)
    else:
        measure = partial(builds.measure, (builds.build(compare), ROOT), quick, partial(print, "left out:"))
    return sum(print_verdict(gate.judge(suite, measure), compare) for suite in names) == len(names)


def report(output: Path) -> None:
    """Draw the page and write the README's table."""
    write_readme(results.fullest())
    with atomic_write(output) as temporary:
        temporary.write_text(page(filter(results.pairs_of, map(results.read, results.files()))), "utf-8")
    print(f"{output}, and the table of README.md")


def run(suite: str, quick: bool, save: bool) -> bool:
    """Time a suite, print it and keep it; False where something differs from its peer."""
    pairs: list[Pair] = []
    missing: list[Missing] = []
    failed: list[str] = []
    for threads in thread_counts():
        with pinned_threads(threads):
            for item in tqdm(suites.comparisons(suite, quick), desc=f"{suite}, {threads} threads", disable=None):
                try:
                    outcome = suites.measured(item)
                except Exception as error:
                    failed.append(f"{item.op}, {item.case}: {error}")
                    continue
                if isinstance(outcome, Missing):
                    missing.append(outcome)
                else:
                    pairs.append(outcome[0])
    print(f"{suite}\n\n{table(pairs)}\n")
    for one in missing:
        print(f"missing: {one.peer or 'all peers'} of {one.op}, {one.case}: {one.reason}")
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    if save and not failed:
        results.keep_pairs(suite, pairs, missing)
    return not failed


def against_file(content: dict, quick: bool, suite: str, only: set | None) -> dict[Key, gate.Spread]:
    """How much of its ratio to the peer each pair lost since the file was written, as if ours had become slower."""
    facts = environment()
    if any(content["machine"][name] != facts[name] for name in results.MACHINE):
        raise InputError(
            f"expected results of this machine, {[facts[name] for name in results.MACHINE]}, "
            f"got those of {list(content['machine'].values())}"
        )
    before = {pair.key: pair for pair in results.pairs_of(content).get(suite, [])}
    spreads = {}
    for threads in thread_counts():
        with pinned_threads(threads):
            for item in suites.comparisons(suite, quick):
                if isinstance(item, Missing) or item.key not in (before if only is None else only):
                    continue
                outcome = suites.measured(item)
                if not isinstance(outcome, Missing):
                    then, now = before[item.key], outcome[0]
                    spreads[item.key] = gate.Spread(
                        then.ratio_low / now.ratio_high, then.ratio / now.ratio, then.ratio_high / now.ratio_low
                    )
    return spreads


def print_verdict(verdict: gate.Verdict, reference: str) -> bool:
    """Time over time before of every case; True where nothing is slower."""
    slower = verdict.slower()
    rows = []
    for case, spreads in verdict.repeats.items():
        values = "; ".join(f"{one.middle:.2f} ({one.low:.2f}-{one.high:.2f})" for one in spreads)
        word = "slower" if case in slower else "faster" if spreads[0].high < 1 / gate.SLOWER else ""
        rows.append([", ".join(map(str, case)) + " threads", values, word])
    if not rows:
        print(f"{verdict.suite}: nothing that {reference} has, too\n")
    else:
        print(text_table([f"{verdict.suite}, time / time at {reference}", "median (bounds)", ""], rows) + "\n")
    for case in slower:
        print(f"slower in each of {gate.REPEATS} repeats: {', '.join(map(str, case))} threads", file=sys.stderr)
    return not slower
