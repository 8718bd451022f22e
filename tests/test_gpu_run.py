"""The command that does everything on a GPU machine, with stand-ins for the programs it starts."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.gpu import importable, ncu

RUN = Path(__file__).parents[1] / "benchmarks/gpu/run.sh"
PARTS = ("build", "test", "sanitize", "bench", "profile")


def test_counters_are_read_from_the_profiler():
    text = (
        '==PROF== Connected to process 7\n"ID","Process ID","Kernel Name","CC","dram__bytes_read.sum",'
        '"gpu__time_duration.sum","launch__registers_per_thread"\n"","","","","byte","ns","register/thread"\n'
        '"0","7","s2d::bitmask::<unnamed>::pack_kernel(const unsigned char *, long)","9.0","46,080,000","12,500","18"\n'
        '"1","7","void at::native::fill<int>(int)","9.0","n/a","1,000","16"\n==PROF== Disconnected\n'
    )
    headings, rows = ncu.parse(text)
    assert headings == ["kernel", "us", "MB read", "registers"]
    assert rows == [["bitmask::pack_kernel", "12.5", "46.1", "18"], ["at::native::fill<int>", "1", "n/a", "16"]]
    assert ncu.parse("==ERROR== LibraryNotLoaded\n") == ([], [])
    assert ncu.table(headings, rows).splitlines()[2] == "| bitmask::pack_kernel | 12.5 | 46.1 | 18 |"


def test_only_absent_packages_leave_a_test_file_out(tmp_path, capsys):
    for name, text in {"fine": "import torch", "needs": "import no_such_package", "broken": "1 / 0"}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/conftest.py").write_text("from no_such_package import part")
    (tmp_path / "other/test_below.py").write_text("")
    assert importable.main([str(tmp_path), "--but", str(tmp_path / "test_fine.py")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(tmp_path / "test_broken.py")]
    assert len(printed.err.splitlines()) == 2
    assert f"left out: {tmp_path / 'test_needs.py'} needs the package no_such_package" in printed.err


def shell(*arguments: str, **settings: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **settings}
    return subprocess.run([str(RUN), *arguments], capture_output=True, text=True, timeout=60, env=environment)


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_script_is_bash_and_names_its_parts():
    subprocess.run(["bash", "-n", str(RUN)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(RUN)], check=True)
    usage = shell("--help")
    assert usage.returncode == 0
    assert [line.split()[0] for line in usage.stdout.splitlines() if line.startswith("  ")] == list(PARTS)
    refused = shell("bench", "benhc")
    assert refused.returncode == 2
    assert f"expected parts of: {' '.join(PARTS)}, got benhc" in refused.stderr


def test_the_script_runs_all_it_is_asked_for_and_sums_up(tmp_path):
    program(tmp_path, "python3", 'case "$*" in *gpu.bench*) exit 3 ;; *gpu.ncu*) exit 77 ;; esac')
    result = shell("bench", "profile", "build", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 1
    summary = result.stdout.splitlines()[-3:]
    assert [line.rpartition(",")[0] for line in summary] == [
        "bench: FAILED (rc 3",
        "profile: skipped (rc 77",
        "build: ok (rc 0",
    ]
    assert shell("profile", PATH=f"{tmp_path}:{os.environ['PATH']}").returncode == 0


def test_one_sanitizer_that_finds_something_fails_the_part(tmp_path):
    program(tmp_path, "compute-sanitizer", 'case "$*" in *racecheck*gpu.sweep*) exit 86 ;; esac')
    result = shell("sanitize", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 1
    for line in ("memcheck: clean", "racecheck: FAILED with exit status 86", "synccheck: clean", "initcheck: clean"):
        assert line in result.stdout
    program(tmp_path, "compute-sanitizer", "echo Device not supported; exit 1")
    result = shell("sanitize", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0
    assert "Device not supported\nskipped: compute-sanitizer does not work on this machine" in result.stdout
