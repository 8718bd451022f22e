"""Time of calls on a device: in turn, on inputs that no cache holds, and, by CUDA graphs, without launches."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.entry import mapped, size_of

BATCH_SECONDS = 2e-3  # of calls between two readings of the clock
CACHES = 3  # copies of the inputs are this many times the L2 cache
MOST_COPIES = 64


def cache_bytes(device: str) -> int:
    """Size of the L2 cache; 0 for the CPU, whose times are not meant to say anything."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0


def rotation(inputs: tuple, device: str) -> list[tuple]:
    """Copies of the inputs, enough that calls in turn over all of them find none in the cache."""
    wanted = math.ceil(CACHES * cache_bytes(device) / max(size_of(inputs), 1))
    number = min(max(wanted, 1), MOST_COPIES)
    return [inputs] + [mapped(torch.clone, inputs) for _ in range(number - 1)]


def seconds_of(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of one call, the mean of some in a row: between CUDA events, or by the wall clock on the CPU."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) * 1e-3 / repeats


class Turns:
    """A call over copies of its inputs, each time the next."""

    def __init__(self, run: Callable[..., Any], inputs: tuple, device: str) -> None:
        self.run, self.copies, self.turn = run, rotation(inputs, device), 0

    def __call__(self) -> Any:
        self.turn = (self.turn + 1) % len(self.copies)
        return self.run(*self.copies[self.turn])


def captured(turns: Turns, seconds: float, right: Callable[[Any], bool]) -> tuple[Callable[[], None], int]:
    """A CUDA graph of calls that take ``seconds`` each, as its replay and the number of calls in it.

    Raises:
        RuntimeError: the call cannot be captured (it waits for the device).
        AssertionError: what a replay gives is not ``right``.
    """
    rounds = math.ceil(min(max(BATCH_SECONDS / 2 / max(seconds, 1e-7), 1), MOST_COPIES) / len(turns.copies))
    number = rounds * len(turns.copies)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        turns()
    torch.cuda.current_stream().wait_stream(side)
    graph, result = torch.cuda.CUDAGraph(), None
    with torch.cuda.graph(graph):
        for call in range(number):
            result = turns.run(*turns.copies[call % len(turns.copies)])
    # Memory of the graph may hold right values from before: only a replay shall bring them back.
    mapped(lambda tensor: tensor.zero_(), result)
    graph.replay()
    assert right(result), "the replay of its CUDA graph differs from the call"
    return graph.replay, number


@dataclass(frozen=True)
class Times:
    """Seconds of each call in every round: as called, and from a CUDA graph where it could be captured."""

    eager: list[float]
    graph: list[float] | None

    @property
    def best(self) -> list[float]:
        """Without the cost of launching, where that is known."""
        return self.graph or self.eager

    def median(self) -> float:
        return statistics.median(self.best)


@dataclass
class Runner:
    """One way to call something, ready to be timed; `measure` times some in turn."""

    turns: Turns
    repeats: int
    graph: tuple[Callable[[], None], int] | None

    @staticmethod
    def ready(
        run: Callable[..., Any], inputs: tuple, device: str, right: Callable[[Any], bool], capture: bool
    ) -> Runner:
        turns = Turns(run, inputs, device)
        for _ in range(2):
            turns()  # compiles, loads modules, fills the allocator
        seconds = seconds_of(turns, 1, device)
        repeats = max(1, min(1000, int(BATCH_SECONDS / max(seconds, 1e-7))))
        return Runner(turns, repeats, captured(turns, seconds, right) if capture and device == "cuda" else None)


def measure(runners: list[Runner], device: str, seconds: float) -> list[Times]:
    """Time the runners in turn, round by round, for about ``seconds`` and no fewer than five rounds."""
    eager: list[list[float]] = [[] for _ in runners]
    graphs: list[list[float]] = [[] for _ in runners]
    start = time.perf_counter()
    while len(eager[0]) < 5 or (time.perf_counter() - start < seconds and len(eager[0]) < 101):
        for runner, called, replayed in zip(runners, eager, graphs, strict=True):
            called.append(seconds_of(runner.turns, runner.repeats, device))
            if runner.graph is not None:
                replay, number = runner.graph
                replayed.append(seconds_of(replay, 1, device) / number)
    return [Times(called, replayed or None) for called, replayed in zip(eager, graphs, strict=True)]


def ratio(ours: Times, peer: Times) -> float:
    """Peer's time over ours, the median over rounds; both from graphs, or both as called."""
    pairs = (ours.graph, peer.graph) if ours.graph and peer.graph else (ours.eager, peer.eager)
    return statistics.median(theirs / mine for mine, theirs in zip(*pairs, strict=True))
