"""The command line: a thin face of the stages, one file a command.

Stages are imported inside the commands, so that ``s2d --help`` and ``s2d doctor`` answer at once and wherever they can.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

import s2d
from s2d.cli.bench import bench_command
from s2d.cli.dataset import check_command, convert_command
from s2d.cli.discover import discover_command
from s2d.cli.distill import distill_command
from s2d.cli.doctor import doctor_command
from s2d.cli.evaluate import evaluate_command
from s2d.cli.merge import merge_command
from s2d.cli.predict import predict_command
from s2d.cli.propose import propose_command
from s2d.cli.pseudo_label import pseudo_label_command
from s2d.cli.run import run_command
from s2d.errors import InputError

app = typer.Typer(
    name="s2d",
    help="Unsupervised video instance segmentation: a video in, instance tracks out; no labels, no weights, no GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dataset_app = typer.Typer(help="Datasets on disk: verify one, or bring it into one json.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")


def main() -> None:
    """The command ``s2d``."""
    app(prog_name="s2d")


def _said_plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input is a sentence and exit code 2, Ctrl-C a sentence and 130; neither shows a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            print(f"s2d: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            hint = "; the same command with --resume continues" if "resume" in kwargs else ""
            print(f"\ns2d: interrupted{hint}", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"s2d {s2d.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


for _name, _command in {
    "doctor": doctor_command,
    "run": run_command,
    "propose": propose_command,
    "discover": discover_command,
    "merge": merge_command,
    "distill": distill_command,
    "predict": predict_command,
    "pseudo-label": pseudo_label_command,
    "evaluate": evaluate_command,
    "bench": bench_command,
}.items():
    app.command(_name)(_said_plainly(_command))
for _name, _command in {"check": check_command, "convert": convert_command}.items():
    dataset_app.command(_name)(_said_plainly(_command))
