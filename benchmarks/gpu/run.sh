#!/usr/bin/env bash
# Builds, tests, checks, times and profiles the GPU kernels on this machine: benchmarks/gpu/run.sh --help
set -euo pipefail

parts=(build test sanitize bench profile)
limit=470   # seconds of one part
skipped=77  # a part's exit status where this machine lacks the tool

usage() {
  cat <<'TEXT'
benchmarks/gpu/run.sh [part ...]

Runs parts on a machine with an NVIDIA GPU, all of them by default, each for 470 seconds at most:

  build     installs the package with CUDA kernels for this GPU's architecture; what was built; registers and spills
  test      the tests that can be imported here, a missing GPU being a failure
  sanitize  compute-sanitizer (memcheck, racecheck, synccheck, initcheck) over small cases of every operator
  bench     every operator against the device's floor and its peers
  profile   hardware counters of one launch of every kernel (ncu)

Needs Python with torch (CUDA), nvcc, cmake, ninja, pybind11, scikit-build-core, numpy, pytest; no network. Uses the
python3 in PATH, and installs into it. Results go to $OUT, or to benchmarks/results: gpu_<device>.json and .md.
The architecture is asked of the GPU; S2D_CUDA_ARCHITECTURES overrides it.
TEXT
}

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

# The path of a program of the CUDA toolkit, or nothing.
tool() {
  command -v "$1" || ls "${CUDA_HOME:-/usr/local/cuda}/bin/$1" 2>/dev/null || true
}

run_build() {
  local architecture=${S2D_CUDA_ARCHITECTURES:-}
  if [[ -z $architecture ]]; then
    architecture=$(python3 -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())')
  fi
  say "install with CUDA kernels for $architecture"
  S2D_CUDA=ON S2D_CUDA_ARCHITECTURES=$architecture python3 -m pip install --no-build-isolation --no-deps -e .
  say "what was built"
  python3 -c 'from s2d.doctor import report; print(report())'
  python3 -c 'import sys; from s2d import _native; sys.exit(_native.missing("cuda"))'
  say "registers and spills"
  python3 -m s2d.testing.resources
}

run_tests_of() {
  local files options=(-rs)
  mapfile -t files < <(python3 -m benchmarks.gpu.importable "$@")
  if ! command -v lint-imports >/dev/null; then
    options+=(--deselect tests/test_imports.py::test_layers_hold)  # needs the package import-linter
  fi
  if python3 -c 'import xdist' 2>/dev/null; then
    options+=(-n 8 --dist loadfile)
  fi
  S2D_REQUIRE_CUDA=1 OMP_NUM_THREADS=2 python3 -m pytest "${options[@]}" "${files[@]}"
}

run_test() {
  local failed=0
  say "operators"
  run_tests_of tests/ops tests/nn tests/test_*.py || failed=1
  say "everything else"
  run_tests_of tests/*/ --but tests/ops tests/nn tests/simt || failed=1
  return "$failed"
}

run_sanitize() {
  local program output check failed=0
  program=$(tool compute-sanitizer)
  if [[ -z $program ]]; then
    echo "skipped: there is no compute-sanitizer in PATH or ${CUDA_HOME:-/usr/local/cuda}/bin"
    return "$skipped"
  fi
  say "$program on a sum"
  if ! output=$("$program" --report-api-errors no --error-exitcode 86 \
    python3 -c 'import torch; print(torch.ones(3, device="cuda").sum().item())' 2>&1); then
    printf '%s\n' "$output" | tail -n 15
    echo "skipped: compute-sanitizer does not work on this machine"
    return "$skipped"
  fi
  # Without torch's allocator each tensor has its own memory, so that a step out of it is seen. Kernels of torch itself
  # are not examined: libraries inside it race on purpose.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for check in memcheck racecheck synccheck initcheck; do
    say "$check"
    local options=(--tool "$check" --error-exitcode 86 --print-limit 20 --kernel-name-exclude 'kns=native,kns=cub')
    if [[ $check == memcheck ]]; then
      options+=(--report-api-errors no)
    elif [[ $check == initcheck ]]; then
      options+=(--check-api-memory-access no)
    fi
    if "$program" "${options[@]}" python3 -m benchmarks.gpu.sweep; then
      echo "$check: clean"
    else
      echo "$check: FAILED with exit status $?"
      failed=1
    fi
  done
  return "$failed"
}

run_bench() { python3 -m benchmarks.gpu.bench --out "$results"; }

run_profile() { python3 -m benchmarks.gpu.ncu --out "$results"; }

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
results=${OUT:-benchmarks/results}
export PYTHONUNBUFFERED=1

# A part runs in a shell of its own, so that `timeout` can end it with all it started.
if [[ ${1:-} == --part ]]; then
  case $2 in
    build) run_build ;;
    test) run_test ;;
    sanitize) run_sanitize ;;
    bench) run_bench ;;
    profile) run_profile ;;
  esac
  exit
fi

for argument in "$@"; do
  if [[ $argument == -h || $argument == --help ]]; then
    usage
    exit 0
  fi
  if [[ " ${parts[*]} " != *" $argument "* ]]; then
    echo "benchmarks/gpu/run.sh: expected parts of: ${parts[*]}, got $argument" >&2
    exit 2
  fi
done

if (($# == 0)); then
  set -- "${parts[@]}"
fi
failed=0
summary=()
for part in "$@"; do
  say "part $part"
  start=$SECONDS
  status=0
  timeout --kill-after=10 "$limit" bash "benchmarks/gpu/run.sh" --part "$part" || status=$?
  case $status in
    0) outcome="ok" ;;
    "$skipped") outcome="skipped" ;;
    124 | 137) outcome="TIMED OUT" failed=1 ;;
    *) outcome="FAILED" failed=1 ;;
  esac
  summary+=("$part: $outcome (rc $status, $((SECONDS - start)) s)")
done

say "summary"
printf '%s\n' "${summary[@]}"
exit "$failed"
