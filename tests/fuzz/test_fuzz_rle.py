"""A short run of the fuzzer, and that it sees what it is for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "fuzz_rle.py"
HEADERS = Path(__file__).parents[2] / "csrc"


def fuzz(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("isa", ["baseline", "avx512"])
def test_no_input_leads_out_of_bounds(isa, monkeypatch):
    monkeypatch.setenv("S2D_CPU_ISA", isa)
    done = fuzz("--inputs", "20000")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_read_out_of_bounds_is_seen(tmp_path):
    for folder in ("common", "host", "rle"):
        shutil.copytree(HEADERS / folder, tmp_path / folder)
    header = tmp_path / "rle/coco_strings.h"
    check = "if (next == end) return"
    assert check in header.read_text()
    header.write_text(header.read_text().replace(check, "if (next == nullptr) return"))
    done = fuzz("--inputs", "2000", "--headers", str(tmp_path))
    assert done.returncode == 1
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
