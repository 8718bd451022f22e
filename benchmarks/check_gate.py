"""Whether the gate of ``s2d bench --compare`` can be trusted: python -m benchmarks.check_gate [SUITE ...]

The build of HEAD is compared with itself ten times, which must raise no alarm, and with a copy of itself in which one
function of the first suite takes a fifth longer, which must be found, and nothing else. Quick cases; without a name
`bitmask`, whose planted function is `mask_iou`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import builds, gate, suites

RUNS, SHARE = 10, 0.2
PLANTED = """
import time


def _longer(call):
    def longer(*arguments, **options):
        start = time.thread_time()
        result = call(*arguments, **options)
        until = time.thread_time() + {share} * (time.thread_time() - start)
        while time.thread_time() < until:
            pass
        return result

    return longer


{function} = _longer({function})
"""


def planted(build: Path, folder: Path, function: str, share: float = SHARE) -> Path:
    """A copy of a build in which the function takes longer by that share."""
    shutil.copytree(build / "s2d", folder / "s2d")
    with (folder / "s2d" / "ops" / "__init__.py").open("a") as file:
        file.write(PLANTED.format(function=function, share=share))
    return folder


def judge(suite: str, before: Path, now: Path) -> list[gate.Case]:
    """The cases that are slower; the widest bounds of all go to stdout."""
    verdict = gate.judge(suite, partial(builds.measure, (before, now), True, print))
    slower = verdict.slower()
    first = [spreads[0] for spreads in verdict.repeats.values()]
    again = sum(len(spreads) > 1 for spreads in verdict.repeats.values())
    print(
        f"{suite}: {len(first)} cases, medians {min(s.middle for s in first):.2f} to "
        f"{max(s.middle for s in first):.2f}, "
        f"{again} measured again, slower: {slower or 'none'}",
        flush=True,
    )
    return slower


def main(names: list[str]) -> int:
    build = builds.build("HEAD")
    asked = [suites.named(name)[0] for name in names] or ["bitmask"]
    alarms = [case for _ in range(RUNS) for suite in asked for case in judge(suite, build, build)]
    with tempfile.TemporaryDirectory() as folder:
        found = judge("bitmask", build, planted(build, Path(folder), "mask_iou"))
    wanted = {op for op, *_ in found}
    right = not alarms and wanted == {"mask_iou from bits", "mask_iou from bool"}
    print("as it should be" if right else f"WRONG: {alarms} and {found}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
