"""``s2d bench``: the benchmarks of the checkout, as a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import s2d
from s2d.errors import InputError


def checkout() -> Path:
    """The folder that holds the benchmarks. InputError where s2d is not imported from a checkout."""
    root = Path(s2d.__file__).parents[1]
    if not (root / "benchmarks" / "harness.py").is_file():
        raise InputError(
            f"expected a checkout, where the benchmarks are, got the package that is installed in {root}: clone the "
            "repository and run `pip install -c constraints.txt -e '.[bench]'` in it"
        )
    return root


def bench_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[OP|STAGE|report]",
            help="An operator or a stage, or as much of its name as tells it; report draws what was kept.",
            show_default="all",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small cases only.")] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="REF|FILE",
            help="A commit, built in a folder of its own and run in turn with this checkout, or a file of --save, "
            "whose ratios to the peers are compared; exit code 1 if anything is slower beyond noise.",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the results in benchmarks/results.")] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Of report: the page.", show_default=".benchmarks/report.html")
    ] = Path(".benchmarks/report.html"),
) -> None:
    """Time the operators and stages against their peers, in turn; needs a checkout.

    Every pair is checked for equal results, then run A B A B in one process on one thread and on all.
    """
    sys.path.append(str(checkout()))
    from benchmarks import command

    if name == "report":
        command.report(output)
    elif not command.bench(name, quick=quick, compare=compare, save=save):
        raise typer.Exit(1)
