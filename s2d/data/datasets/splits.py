"""The choice of one of the splits of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from s2d.errors import InputError

T = TypeVar("T")


def choose_split(splits: dict[str, T], split: str | None, path: Path) -> T:
    """The one asked for, or the only one; InputError that names them otherwise."""
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        found = "none was named" if split is None else f"got {split}"
        raise InputError(f"expected one of the splits {', '.join(sorted(splits))} of {path}, {found}")
    return splits[split]


def listed_names(file: Path) -> list[str]:
    """The names in a list of videos, one a line; empty lines are left out."""
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def no_splits(split: str | None, path: Path) -> None:
    """InputError where one is asked for of a dataset that has none."""
    if split is not None:
        raise InputError(f"expected no split of {path}, whose format has none, got {split}")
