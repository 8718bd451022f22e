"""The tester tested: faults planted in the real kernels, each of which the emulator has to catch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import emulator
import pytest


@dataclass(frozen=True)
class Fault:
    """A change of one source of a room, a call that runs into it, and what is to be said."""

    name: str
    source: str
    before: str
    after: str
    call: str
    caught: str


BITMASK, BINDING, FLOW = "bitmask/bitmask.cu", "bitmask/bitmask_cuda.cpp", "flow_warp_iou/flow_warp_iou.cu"
COMPONENTS = "connected_components/connected_components.cu"
ATTENTION = "ms_deform_attn/ms_deform_attn.cu"

FAULTS = [
    Fault(
        "a missing barrier",
        BITMASK,
        "right = bottom = -1;\n  }\n  __syncthreads();",
        "right = bottom = -1;\n  }",
        "mask_bbox(dense)",
        r"(race: .*of shared memory that thread \d+ |shared memory that nobody has written).*at bitmask.cu:\d+",
    ),
    Fault(
        "a missing barrier around global memory",
        BITMASK,
        "keep[i] = !any;\n    __syncthreads();",
        "keep[i] = !any;",
        "mask_nms(tubes(9, 2, 9, 9), scores, 0.5)",
        r"race: .*a buffer of 9 bytes",
    ),
    Fault(
        "an off-by-one at the image edge",
        BITMASK,
        "pixel + k >= 0 && pixel + k < pixels",
        "pixel + k >= 0 && pixel + k <= pixels",
        "pack_masks(dense)",
        r"out of bounds: a thread reads 1 bytes 0 bytes past a buffer of 1050 bytes at bitmask.cu:\d+",
    ),
    Fault(
        "a write past the last pixel",
        BITMASK,
        "p < min(pixel + kRun, pixels)",
        "p < pixel + kRun",
        "unpack_masks(pack_masks(dense))",
        r"out of bounds: a thread \w+ \d bytes .*past a buffer",
    ),
    Fault(
        "a mask without the calling lane",
        BITMASK,
        "total = warp_sum(total);\n  if (threadIdx.x % kWarp == 0 && total) atomicAdd(area",
        "total = __reduce_add_sync(0x0000ffffu, total);\n  if (threadIdx.x % kWarp == 0 && total) atomicAdd(area",
        "mask_area(dense)",
        r"the mask of a warp operation at bitmask.cu:\d+ does not name the lane that calls it, thread \(\d+, 0, 0\)",
    ),
    Fault(
        "a mask that names lanes of another branch",
        BITMASK,
        "total = warp_sum(total);\n  if",
        "if (threadIdx.x % 32 < 16) total = __reduce_add_sync(~0u, total);\n  __syncwarp();\n  if",
        "mask_area(dense)",
        r"not every thread reaches the same point: .*waits in a warp operation at bitmask.cu:\d+; .*waits in a warp",
    ),
    Fault(
        "a barrier that some threads do not reach",
        BITMASK,
        "right = bottom = -1;\n  }\n  __syncthreads();",
        "right = bottom = -1;\n  }\n  if (threadIdx.x < 40) __syncthreads();",
        "mask_bbox(dense)",
        r"not every thread reaches the same point: .*waits at a barrier at bitmask.cu:\d+; thread .* at bitmask.cu:\d+",
    ),
    Fault(
        "a thread that leaves before the barrier",
        BITMASK,
        "  __syncthreads();\n  if (threadIdx.x == 0) {\n    const bool empty",
        "  if (threadIdx.x == 255) return;\n  __syncthreads();\n  if (threadIdx.x == 0) {\n    const bool empty",
        "mask_bbox(dense)",
        r"not every thread reaches the same point: .*has ended",
    ),
    Fault(
        "an atomic that is none",
        BITMASK,
        "atomicMax(&right, x + highest_bit(word));",
        "right = right > x + highest_bit(word) ? right : x + highest_bit(word);",
        "mask_bbox(dense)",
        r"race: ",
    ),
    Fault(
        "blocks that write the same place",
        BITMASK,
        "boxes + blockIdx.x * 4;",
        "boxes;",
        "mask_bbox(dense)",
        r"race: .*thread 0 of block \d has written",
    ),
    Fault(
        "an index past a local array",
        BITMASK,
        "for (int k = 0; k < kTileRows / 8; ++k) {",
        "for (int k = 0; k <= kTileRows / 8; ++k) {",
        "mask_iou(dense, dense)",
        r"out of bounds: index 8 of an array at bitmask.cu:\d+",
    ),
    Fault(
        "a misaligned vector load",
        BITMASK,
        "reinterpret_cast<uintptr_t>(masks + start) % kRun",
        "reinterpret_cast<uintptr_t>(masks + start) % 8",
        "pack_masks(masks((2, 5, 72))[1:])",
        r"misaligned: a pointer is no multiple of what it points to at bitmask.cu:\d+",
    ),
    Fault(
        "shared memory taken as zero",
        BITMASK,
        "right = bottom = -1;\n",
        "bottom = -1;\n",
        "mask_bbox(dense)",
        r"a thread \w+ 4 bytes of shared memory that nobody has written at bitmask.cu:\d+",
    ),
    Fault(
        "another stream",
        BITMASK,
        "kThreads, stream, masks,",
        "kThreads, nullptr, masks,",
        "pack_masks(dense)",
        r"expected the current stream, got another",
    ),
    Fault(
        "no device guard",
        BINDING,
        "const DeviceGuard guard(masks.get_device_index());",
        "",
        "pack_masks(dense)",
        r"expected a device guard around the launch, got none",
    ),
    Fault(
        "a grid that is too small",
        BITMASK,
        "unpack_kernel, grid_for(ceil_div(rows * width, kRun), kThreads)",
        "unpack_kernel, grid_for(rows * width / kRun, kThreads)",
        "unpack_masks(pack_masks(masks((1, 1, 4097))))",
        r"differs",
    ),
    Fault(
        "a missing barrier in a template",
        FLOW,
        "    __syncthreads();\n    uint64_t columns",
        "    uint64_t columns",
        "warp()",
        r"(race: .*of shared memory|shared memory that nobody has written).*at flow_warp_iou.cu:\d+",
    ),
    Fault(
        "an off-by-one at the right edge",
        FLOW,
        "column < static_cast<uint32_t>(bounds.width)",
        "column <= static_cast<uint32_t>(bounds.width)",
        "warp()",
        r"differs|out of bounds: a thread reads 4 bytes 0 bytes past a buffer",
    ),
    Fault(
        "a shuffle over half of the lanes",
        FLOW,
        "__shfl_xor_sync(kAll, bits, size)",
        "__shfl_xor_sync(0x0000ffffu, bits, size)",
        "warp()",
        r"the mask of a warp operation at flow_warp_iou.cu:\d+ does not name the lane that calls it",
    ),
    Fault(
        "a union that is no atomic",
        COMPONENTS,
        "const uint32_t old = atomicMin(parents + high, low);",
        "const uint32_t old = parents[high];\n    parents[high] = min(old, low);",
        "connected_components(specks)",
        r"race: .*of shared memory",
    ),
    Fault(
        "a plain read of what others update",
        COMPONENTS,
        "return *static_cast<const volatile uint32_t*>(place);",
        "return *place;",
        "connected_components(specks)",
        r"race: a thread (reads|updates) .*of shared memory that thread \d+ of block \d has (updated|read)",
    ),
    Fault(
        "a lost link: what another thread has linked meanwhile is joined no more",
        COMPONENTS,
        "a = old;",
        "return;",
        "connected_components(specks)",
        r"differs",
    ),
    Fault(
        "a tile's border that is not joined",
        COMPONENTS,
        "if (tiles > 1) {",
        "if (tiles > 2) {",
        "connected_components(specks)",
        r"differs",
    ),
    Fault(
        "sums of four that are no atomics",
        ATTENTION,
        "atomicAdd(reinterpret_cast<float4*>(place), make_float4(values[0], values[1], values[2], values[3]));",
        "for (int k = 0; k < 4; ++k) place[k] += values[k];",
        "attend()",
        r"race: a thread (reads|writes) .*a buffer of 256 bytes",
    ),
    Fault(
        "sums of four at a place for one",
        ATTENTION,
        "atomicAdd(reinterpret_cast<float4*>(place),",
        "atomicAdd(reinterpret_cast<float4*>(place - 1),",
        "attend()",
        r"misaligned: ",
    ),
]


# Each library in turn replaces the operators of the last: a planted fault stays in a process of its own.
RUNNER = """
import json, sys
import torch
from emulator import Emulator
from s2d import use_impl
from s2d.ops import *
from s2d.testing.cases.bitmask import masks, tubes
from s2d.testing.cases import connected_components as components
from s2d.testing.cases.flow_warp_iou import noise

def warp():
    case = noise(2, 3, 4, 37, 70)
    return flow_warp_counts(case.source, case.target, case.flow, None, case.reverse)

def attend():
    # Whole numbers at the centres of pixels: every sum is exact, in whatever order.
    numbers = torch.Generator().manual_seed(0)
    value, grad = (torch.randint(-9, 9, shape, generator=numbers).float() for shape in ((1, 16, 1, 4), (1, 40, 4)))
    locations = (torch.randint(0, 4, (1, 40, 1, 1, 20, 2), generator=numbers) + 0.5) / 4
    leaves = [value.requires_grad_(), locations.requires_grad_(), torch.ones(1, 40, 1, 1, 20, requires_grad=True)]
    out = ms_deform_attn(leaves[0], [(4, 4)], *leaves[1:])
    out.backward(grad)
    return (out.detach(), *(leaf.grad for leaf in leaves))

def words_of(result):
    return [getattr(part, "words", part) for part in (result if isinstance(result, tuple) else [result])]

torch.use_deterministic_algorithms(True)  # fills fresh memory
dense, scores = masks((3, 5, 70)), torch.linspace(0, 1, 9)
specks = components.noise((1, 150, 70), 0.6)
for library, call in json.load(sys.stdin):
    emulator = Emulator(library)
    with use_impl("reference"):
        expected = eval(call)
    outcomes = []
    for order in (0, 1, 2026):
        emulator.set_order(order)
        try:
            ours = eval(call)
            same = all(torch.equal(a, b) for a, b in zip(words_of(ours), words_of(expected), strict=True))
            outcomes.append("equal" if same else "differs")
        except Exception as error:
            outcomes.append(str(error))
    print(json.dumps(outcomes))
"""


def plant(index: int, folder) -> str:
    fault = FAULTS[index]
    source = emulator.ROOT / "csrc" / fault.source
    text = source.read_text()
    assert fault.before in text, f"{fault.source} has changed: plant '{fault.name}' anew"
    planted = folder / str(index) / source.name
    planted.parent.mkdir()
    planted.write_text(text.replace(fault.before, fault.after, 1))
    return str(emulator.build(source.parent.name, f"fault-{index}", {source: planted}))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[list[str]]:
    """What each fault's call came to in three orders of threads, then the same calls without a fault."""
    folder = tmp_path_factory.mktemp("planted")
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(lambda index: plant(index, folder), range(len(FAULTS))))
    calls = [(library, fault.call) for library, fault in zip(libraries, FAULTS, strict=True)]
    calls += [
        (str(emulator.build(room, room)), fault.call) for fault in FAULTS for room in [fault.source.split("/")[0]]
    ]
    environment = {**emulator.os.environ, "PYTHONPATH": str(emulator.HERE)}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("index", range(len(FAULTS)), ids=lambda index: FAULTS[index].name.replace(" ", "-"))
def test_a_planted_fault_is_caught(index, outcomes):
    for outcome in outcomes[index]:
        assert re.search(FAULTS[index].caught, outcome, re.DOTALL), outcome
    assert outcomes[len(FAULTS) + index] == ["equal"] * 3
