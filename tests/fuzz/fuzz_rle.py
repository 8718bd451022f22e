"""Fuzz the decoders of COCO's masks under AddressSanitizer and UBSan: python tests/fuzz/fuzz_rle.py --inputs 1000000"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "fuzz"

COMPILER = os.environ.get("CXX", "c++")
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-D_GLIBCXX_ASSERTIONS",
]


def build(headers: Path) -> Path:
    """The fuzzer, compiled against the headers of a folder like csrc; from the cache where nothing has changed."""
    source = HERE / "fuzz_rle.cpp"
    used = sorted(path for folder in ("common", "host", "rle") for path in (headers / folder).glob("*.h"))
    content = b"".join(path.read_bytes() for path in [source, *used]) + repr((COMPILER, FLAGS)).encode()
    target = CACHE / f"fuzz_rle-{hashlib.sha256(content).hexdigest()[:16]}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *FLAGS, f"-I{headers}", str(source), "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        temporary.replace(target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headers", type=Path, default=ROOT / "csrc", help="a folder like csrc to take instead")
    arguments = parser.parse_args()
    program = build(arguments.headers)
    start = time.perf_counter()
    code = subprocess.call([str(program), str(arguments.inputs), str(arguments.seed)])
    print(f"{arguments.inputs} inputs, seed {arguments.seed}: {time.perf_counter() - start:.1f} s, exit code {code}")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
