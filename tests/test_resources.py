"""No GPU kernel takes more registers than its ceiling, and none spills; read from the binaries, so no GPU is needed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s2d.testing import resources
from s2d.testing.resources import Ceiling, Usage

ROOT = Path(__file__).parents[1]
CUDA_ROOMS = {path.parent.name for path in ROOT.glob("csrc/*/*.cu")}
TRITON_ROOMS = {path.stem for path in ROOT.glob("kernels/*.py")}

TOY_TRITON = """
import triton
import triton.language as tl

@triton.jit
def double_kernel(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)
"""

# A hundred sums at once do not fit into the 32 registers that the command line leaves it.
TOY_CUDA = """
enum Mode : int { kPlain };
namespace s2d::toy {
namespace {
template <typename T, Mode kMode>
__global__ void greedy_kernel(const T* in, T* out, int n) {
  __shared__ T tile[8];
  T sums[100] = {};
  for (int i = 0; i < n; ++i) {
#pragma unroll
    for (int k = 0; k < 100; ++k) sums[k] += in[i] * in[i + k];
  }
  tile[threadIdx.x % 8] = in[0];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 100; ++k) out[k] = sums[k] + tile[k % 8];
}
}
void launch(const float* in, float* out, int n) { greedy_kernel<float, kPlain><<<1, 1>>>(in, out, n); }
}
"""


def needs_a_reader() -> None:
    reason = resources.missing()
    if reason is not None:
        pytest.skip(reason)


def needs_triton() -> None:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled")


def cuda_usages() -> list[Usage]:
    needs_a_reader()
    usages = resources.cuda_usages()
    if usages is None:
        pytest.skip("s2d/_cuda.so was not built: there was no nvcc, or S2D_CUDA=OFF")
    return usages


def triton_usages() -> list[Usage]:
    needs_a_reader()
    needs_triton()
    return resources.triton_usages()


@pytest.mark.parametrize("usages", [cuda_usages, triton_usages])
def test_every_kernel_is_within_its_ceiling_and_every_ceiling_has_a_kernel(usages):
    assert resources.problems(usages(), resources.ceilings()) == []


def test_the_table_has_the_rooms_that_have_gpu_kernels():
    assert {name.partition("::")[0] for name in resources.ceilings()} == CUDA_ROOMS | TRITON_ROOMS


def test_every_triton_room_lists_its_variants():
    needs_triton()
    assert {room for room, module in resources.triton_modules().items() if module.VARIANTS} == TRITON_ROOMS


def test_every_cuda_room_has_kernels_in_the_library():
    rooms = {use.kernel.partition("::")[0] for use in cuda_usages()}
    assert rooms == CUDA_ROOMS


def test_ceilings_leave_room_for_whole_blocks():
    for name, limit in resources.ceilings().items():
        assert limit.registers in (32, 40, 48, 64, 80, 128, 255), name


def test_what_is_wrong_is_said():
    limits = {
        "toy::a": Ceiling(32),
        "toy::a<1>": Ceiling(64, stack=16),
        "toy::gone": Ceiling(32),
        "other::b": Ceiling(8),
    }
    fine = [Usage("toy::a", 80, 32, 0, 1), Usage("toy::a<0>", 90, 31, 0, 0), Usage("toy::a<1>", 90, 64, 16, 0)]
    assert resources.problems(fine, limits) == ["toy::gone: a ceiling without a kernel"]
    wrong = [
        Usage("toy::a", 80, 33, 0, 0),
        Usage("toy::a<0>", 90, 32, 8, 0),
        Usage("toy::a<1>", 100, 65, 16, 0),
        Usage("toy::new", 90, 8, 0, 0),
        Usage("toy::gone", 90, 8, 0, 163 * 1024 + 1),
        Usage("toy::gone", 80, 8, 0, 163 * 1024 + 1),
    ]
    assert resources.problems(wrong, limits) == [
        "toy::a for sm_80: 33 registers, the ceiling is 32",
        "toy::a<0> for sm_90: 8 bytes of stack (spills), the ceiling is 0",
        "toy::a<1> for sm_100: 65 registers, the ceiling is 64",
        "toy::new for sm_90: no ceiling in resources.toml",
        "toy::gone for sm_80: 166913 bytes of shared memory, a block has at most 166912",
    ]


@pytest.mark.parametrize(("architecture", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_products_of_halves_run_on_tensor_cores_and_their_tiles_come_by_sixteen_bytes(architecture, instruction):
    needs_a_reader()
    needs_triton()
    module = resources.triton_modules()["masked_attention"]
    seen = set()
    for variant in module.VARIANTS:
        kinds, constants = variant["signature"].values(), variant["constants"]
        if not {"*fp16", "*bf16"} & set(kinds) or constants.get("LANES", constants.get("GROUP")) not in (32, 8):
            continue
        text = resources.instructions("masked_attention", variant, architecture)
        assert re.search(rf"\b{instruction}\b", text), variant
        assert re.search(r"\bLDGSTS\S*\.128\b", text), variant
        seen.add(variant["kernel"].__name__)
    assert seen == {"attend_kernel", "backward_kernel", "product_mask_kernel"}


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_a_triton_kernel_over_its_ceiling_is_reported(tmp_path, monkeypatch, architecture):
    needs_a_reader()
    needs_triton()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "toy.py"
    source.write_text(TOY_TRITON)
    spec = importlib.util.spec_from_file_location("toy", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    variant = {
        "kernel": module.double_kernel,
        "signature": {"x": "*fp32", "y": "*fp32", "n": "i32"},
        "constants": {"BLOCK": 1024},
        "options": {"num_warps": 4, "num_stages": 2},
    }
    use = resources.compile_variant("toy", variant, architecture)
    name = "toy::double_kernel<fp32, BLOCK=1024, num_warps=4, num_stages=2>"
    assert (use.kernel, use.architecture, use.stack) == (name, architecture, 0)
    assert 8 < use.registers < 64
    assert resources.problems([use], {"toy::double_kernel": Ceiling(64)}) == []
    assert resources.problems([use], {"toy::double_kernel": Ceiling(8)}) == [
        f"{name} for sm_{architecture}: {use.registers} registers, the ceiling is 8"
    ]


def test_a_cuda_kernel_that_spills_is_reported(tmp_path):
    needs_a_reader()
    compiler = shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if compiler is None:
        pytest.skip("there is no nvcc")
    source, library = tmp_path / "toy.cu", tmp_path / "toy.so"
    source.write_text(TOY_CUDA)
    options = ["-shared", "-Xcompiler=-fPIC", "-maxrregcount=32", "-arch=sm_90", "-o", str(library)]
    subprocess.run([compiler, *options, str(source)], check=True, timeout=120)
    (use,) = resources.read_binary(library)
    assert (use.kernel, use.architecture) == ("toy::greedy_kernel<float, 0>", 90)
    assert use.registers <= 32
    assert use.shared >= 32
    assert use.stack > 0
    assert resources.problems([use], {"toy::greedy_kernel": Ceiling(32)}) == [
        f"toy::greedy_kernel<float, 0> for sm_90: {use.stack} bytes of stack (spills), the ceiling is 0"
    ]


@pytest.mark.parametrize(
    ("function", "short"),
    [
        ("s2d::bitmask::(anonymous namespace)::pack_kernel(unsigned char const*, long)", "bitmask::pack_kernel"),
        (
            "void s2d::room::(anonymous namespace)::k<unsigned long, (s2d::room::Mode)1, false>(s2d::Warp, int)",
            "room::k<unsigned long, 1, false>",
        ),
        ("cost_kernel", "cost_kernel"),
    ],
)
def test_names_are_short(function, short):
    assert resources.short_name(function) == short


def test_the_command_prints_one_table(tmp_path):
    cuda = cuda_usages()
    command = [sys.executable, "-m", "s2d.testing.resources"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("| kernel | arch | registers | ceiling |")
    assert len(lines) >= 2 + len(cuda)
    assert f"| {cuda[0].kernel} | sm_{cuda[0].architecture} | {cuda[0].registers} |" in result.stdout
    assert Path(resources.__file__).with_suffix(".toml").is_file()
