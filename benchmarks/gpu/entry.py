"""What the GPU benchmark of a room is made of, and how the rooms are found.

``bench_<op>.py`` in this folder is the contribution of a room (``bench_model.py`` is of the whole model):

    FULL, TINY, SMALL   lists of sizes: to be timed; for a dry run on a CPU; odd ones for the sanitizers
    entries(*sizes)     the room's `Entry`s for one of them
    NEEDS               the rooms it stands on, where that is not the one it is named after
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from s2d.ops import BitMasks
from s2d.ops._dispatch import Room


@dataclass(frozen=True)
class Peer:
    """Another way to the same result.

    Attributes:
        run: called with what ``prepare`` returns.
        agree: whether our result and the peer's are the same, as far as the peer can be exact.
        prepare: turns our inputs into what the peer starts from; not timed.
        capturable: whether its calls can be captured into a CUDA graph.
    """

    run: Callable[..., Any]
    agree: Callable[[Any, Any], bool]
    prepare: Callable[..., tuple] = lambda *inputs: inputs
    capturable: bool = True


@dataclass(frozen=True)
class Entry:
    """One operator on one case.

    Attributes:
        op: the operator.
        case: sizes and settings, in words.
        make: inputs on a device from a seed, ``make(device, seed)``.
        ours: the call that is timed.
        check: ``check(result, *inputs)``: whether the result is right. Nothing else is done where it is not.
        bytes: what has to be moved through device memory: each input read once, each output written once.
        operations: how many of ``unit`` the call does.
        unit: what is counted, a name in `floor.Rates.of`; "" where the bytes alone matter.
        peers: by name.
        goal_us: microseconds aimed at, or None.
        goal_share: the share of the floor (bytes at the speed of a copy) aimed at, or None.
        syncs: why the call waits for the device; every call without a reason must be capturable into a CUDA graph.
    """

    op: str
    case: str
    make: Callable[[str, int], tuple]
    ours: Callable[..., Any]
    check: Callable[..., bool]
    bytes: int
    operations: int = 0
    unit: str = ""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    goal_us: float | None = None
    goal_share: float | None = None
    syncs: str = ""


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with the function applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, BitMasks):
        return BitMasks(function(value.words), value.width)
    if isinstance(value, (tuple, list)):
        return tuple(mapped(function, part) for part in value)
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a nested result."""
    found: list[Tensor] = []
    mapped(lambda tensor: found.append(tensor) or tensor, value)
    return found


def size_of(value: Any) -> int:
    """Bytes of every tensor in ``value``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal to the bit, NaN being equal to NaN."""
    left, right = tensors(a), tensors(b)
    return len(left) == len(right) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)
        for x, y in zip(left, right, strict=True)
    )


def equals(definition: Callable[..., Any]) -> Callable[..., bool]:
    """A check: the result is exactly that of the definition."""
    return lambda result, *inputs: same(result, definition(*inputs))


def compiled(function: Callable) -> Callable:
    """The function through torch.compile; on the CPU only its tracing, as the code made for it would say nothing.

    Compiled at the first call: to list entries shall cost nothing.
    """

    @cache
    def ready(backend: str) -> Callable:
        return torch.compile(function, dynamic=False, backend=backend)

    return lambda *inputs: ready("inductor" if tensors(inputs)[0].is_cuda else "eager")(*inputs)


def rooms() -> dict[str, ModuleType]:
    """The benchmark modules, by the name of their room."""
    names = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    return {name: importlib.import_module(f"benchmarks.gpu.bench_{name}") for name in names}


def entries(sizes: str) -> list[tuple[str, Entry]]:
    """Room and entry of everything at ``"FULL"``, ``"TINY"`` or ``"SMALL"`` sizes."""
    return [
        (room, entry)
        for room, module in rooms().items()
        for one in getattr(module, sizes)
        for entry in module.entries(*one)
    ]


def needs(name: str) -> list[Room]:
    """The rooms that the benchmark of this name stands on."""
    names = getattr(rooms()[name], "NEEDS", (name,))
    return [importlib.import_module(f"s2d.ops.{room}").ROOM for room in names]


def waits_for(name: str, device: str = "cuda") -> str | None:
    """Why a benchmark has nothing to run on a GPU yet, or None; raises where there are kernels that cannot run here."""
    if device == "cpu":
        return None
    waiting = [room.name for room in needs(name) if not room.on_gpu]
    if waiting:
        return f"{name} waits for GPU kernels of {', '.join(waiting)}"
    for room in needs(name):
        room.choose(torch.device(device), "native")
    return None
