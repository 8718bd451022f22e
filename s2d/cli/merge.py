"""``s2d merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2d.cli._options import One2x, Output, Overwrite, Quiet
from s2d.errors import InputError


def merge_command(
    folder: Annotated[Path, typer.Argument(help="YTVIS json files, as discover leaves them.", show_default=False)],
    output: Output,
    one2x: One2x = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """One YTVIS json of a folder of them: ids renumbered."""
    from s2d.stages.merge import list_results, merge

    files = [path for path in list_results(folder) if path.resolve() != output.resolve()]
    if output.exists() and not overwrite:
        raise InputError(f"expected a place without results, got {output}: begin again with --overwrite")
    merged = merge(files, output, one2x=one2x, progress=not quiet)
    if not quiet:
        print(merged.text())
