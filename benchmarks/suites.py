"""The benchmarks by name: a suite is what one operator or stage yields on some number of threads."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.harness import Comparison, Missing, Pair, PeerMissing, time_pair
from s2d.errors import InputError

HERE = Path(__file__).parent
OPS = tuple(sorted(file.stem.removeprefix("bench_") for file in (HERE / "ops").glob("bench_*.py")))
# Stages with peers; the others measure quality and are commands of their own.
STAGES = ("coco_masks", "evaluate", "predict", "train_step", "video")


def named(text: str | None) -> tuple[str, ...]:
    """The suites that a name, the beginning of one, or nothing at all asks for."""
    if text is None:
        return OPS + STAGES
    if text in OPS + STAGES:
        return (text,)
    found = tuple(name for name in OPS + STAGES if name.startswith(text))
    if len(found) != 1:
        raise InputError(f"expected one of {', '.join(OPS + STAGES)}, got {text}")
    return found


def load(name: str) -> Callable[[bool], Iterator[Comparison]]:
    """``measure`` of a suite."""
    return importlib.import_module(f"benchmarks.{'ops' if name in OPS else 'stages'}.bench_{name}").measure


def comparisons(name: str, quick: bool) -> Iterator[Comparison | Missing]:
    """What a suite yields; a peer without which it cannot even make its inputs ends it, named."""
    try:
        yield from load(name)(quick)
    except PeerMissing as error:
        yield Missing(name, "all that follow", "", torch.get_num_threads(), str(error))


def measured(item: Comparison | Missing) -> tuple[Pair, list[float]] | Missing:
    """`time_pair`, where the peer can be run."""
    if isinstance(item, Missing):
        return item
    try:
        return time_pair(item)
    except PeerMissing as error:
        return Missing(**item.key._asdict(), reason=str(error))
