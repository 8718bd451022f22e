"""Runs the code blocks of the pages, and shows what they print.

    ```python                        runs in one namespace a page, in a folder of the page's own
    ```sh                            runs in bash, in the same folder; `s2d` is the package that is documented
    ```sh not run: REASON            is shown with the reason
    ```toml file: NAME               is written into the folder, and shown
    ```text said by: FILE            is a message; what stands between its `...` must stand in that file of the sources

Between `---` at the top of a page, `after: PAGE` begins where that page ended, in its folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)(?: (not run|file|said by): (.+?))?\n(.*?)^```$", re.M | re.S)
AFTER = re.compile(r"\A---\nafter: (\S+)\n---\n")


class BlockError(RuntimeError):
    """A block failed, or a message that is not the program's."""


class Pages:
    """The pages that were run so far: each with its text, outputs included, and its folder."""

    def __init__(self, source: Path, work: Path) -> None:
        self.source, self.work = source, work.resolve()
        self.done: dict[str, tuple[str, Path]] = {}
        (self.work / "bin").mkdir(parents=True, exist_ok=True)
        command = self.work / "bin/s2d"
        # Whole at any moment: other processes that run pages call it.
        temporary = command.with_suffix(f".{os.getpid()}")
        temporary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m s2d "$@"\n')
        temporary.chmod(0o755)
        temporary.replace(command)
        paths = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
        # The work of these pages is too small to share: threads would wait for each other.
        self.environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def first(self, page: str) -> str:
        """The page that the folder of this one began with."""
        earlier = AFTER.match((self.source / f"{page}.md").read_text())
        return self.first(earlier[1]) if earlier else page

    def run(self, page: str) -> tuple[str, Path]:
        """The text of a page with what its blocks print, and the folder that they ran in.

        Raises:
            BlockError: names the page and the block.
        """
        if page not in self.done:
            text = (self.source / f"{page}.md").read_text()
            if earlier := AFTER.match(text):
                folder = self.run(earlier[1])[1]
            else:
                folder = self.work / page
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            names: dict = {"__name__": "__main__"}
            text = FENCE.sub(lambda block: self._block(page, block, folder, names), AFTER.sub("", text))
            self.done[page] = text, folder
        return self.done[page]

    def _block(self, page: str, block: re.Match, folder: Path, names: dict) -> str:
        language, mark, argument, code = block.groups()
        if mark == "not run":
            return _shown(language, code, f"Not run here: {argument}")
        if mark == "file":
            (folder / argument).write_text(code)
            return _shown(language, code, argument)
        if mark == "said by":
            said = (ROOT / argument).read_text()
            missing = [part.strip() for part in re.split(r"\.\.\.|\n", code) if part.strip() not in said]
            if missing:
                raise BlockError(f"{page}: expected {argument} to say {missing[0]!r}, got no such words")
            return _shown(language, code)
        if language not in ("python", "sh"):
            return block[0]
        try:
            output = self._python(code, folder, names) if language == "python" else self._shell(code, folder)
        except Exception as error:
            # The traceback of a page's own code begins below this file.
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else traceback.format_exc(limit=-3)
            raise BlockError(f"{page}: this block failed:\n\n{code}\n{said}") from None
        return block[0] + ("\n\n" + _shown("text", output, kind="output") if output.strip() else "")

    def _python(self, code: str, folder: Path, names: dict) -> str:
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(code, "<page>", "exec"), names)
        return output.getvalue()

    def _shell(self, code: str, folder: Path) -> str:
        command = ["bash", "-euo", "pipefail", "-c", code]
        return subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, check=True
        ).stdout


def _shown(language: str, code: str, caption: str | None = None, kind: str | None = None) -> str:
    options = [f":caption: {caption}"] * bool(caption) + [f":class: {kind}"] * bool(kind)
    return "\n".join([f"````{{code-block}} {language}", *options, "", code.rstrip(), "````"])


def run_group(source: Path, work: Path, pages: list[str]) -> dict[str, tuple[str, Path]]:
    """Text and folder of some pages; a function that a process of their own can run."""
    book = Pages(source, work)
    return {page: book.run(page) for page in pages}
