"""Every GPU operator keeps to torch's current stream and device, and can be captured into a CUDA graph."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.gpu.entry import entries, mapped, needs, same, tensors, waits_for

ENTRIES = entries("TINY")
NAMES = [f"{entry.op}-{entry.case}" for _, entry in ENTRIES]


@pytest.fixture(params=ENTRIES, ids=NAMES)
def entry(request: pytest.FixtureRequest):
    """Each entry of the GPU benchmark whose room has a GPU kernel."""
    name, one = request.param
    rooms = needs(name)
    if not all(room.on_gpu for room in rooms):
        pytest.skip(waits_for(name))
    reason = next(filter(None, (room.missing("cuda") for room in rooms)), None)
    if reason is None and not torch.cuda.is_available():
        reason = "there is no CUDA device"
    if reason is not None:
        if os.environ.get("S2D_REQUIRE_CUDA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return one


def fill(targets, sources) -> None:
    for target, source in zip(tensors(targets), tensors(sources), strict=True):
        target.copy_(source)


def test_waits_for_what_its_stream_did_before(entry):
    inputs = entry.make("cuda", 0)
    late = mapped(torch.zeros_like, inputs)
    assert not same(entry.ours(*late), entry.ours(*inputs)), "the inputs do not matter: the test could not fail"
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # cycles: some 50 ms, in which another stream would find zeros
        fill(late, inputs)
        result = entry.ours(*late)
    side.synchronize()
    assert entry.check(result, *inputs)


def test_a_graph_computes_anew(entry):
    if entry.syncs:
        pytest.skip(f"not capturable: {entry.syncs}")
    inputs, others = entry.make("cuda", 0), entry.make("cuda", 1)
    static = mapped(torch.clone, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        entry.ours(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = entry.ours(*static)
    for now in (inputs, others, inputs):
        fill(static, now)
        graph.replay()
        assert entry.check(result, *now)


def test_runs_on_the_device_of_its_inputs(entry):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = mapped(lambda tensor: tensor.to("cuda:1"), entry.make("cuda", 0))
    with torch.cuda.device(0):
        result = entry.ours(*inputs)
        assert torch.cuda.current_device() == 0
    assert all(tensor.device == torch.device("cuda:1") for tensor in tensors(result))
    assert entry.check(result, *inputs)
