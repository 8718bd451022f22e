"""Runs the code blocks of the pages while Sphinx reads them, and shows what they print.

    ```python                        runs in one namespace a page, in a folder of the page's own
    ```sh                            runs in bash, in the same folder; `s2d` is the package that is documented
    ```sh not run: REASON            is shown with the reason
    ```toml file: NAME               is written into the folder, and shown
    ```text said by: FILE            is a message; what stands between its `...` must stand in that file of the sources

A block that fails ends the build. Between `---` at the top of a page, `after: PAGE` begins where that page ended, in
its folder. `made:FILE` in an image is a file of the folder, `picture:ROOM` what `pictures.py` draws, and
`{{numbers: ROOM}}` the table of `numbers.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numbers_of
import pictures
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)(?: (not run|file|said by): (.+?))?\n(.*?)^```$", re.M | re.S)
AFTER = re.compile(r"\A---\nafter: (\S+)\n---\n")

logger = logging.getLogger(__name__)


class Pages:
    """The pages that were run so far: each with its text, outputs included, and its folder."""

    def __init__(self, source: Path, work: Path) -> None:
        self.source, self.work = source, work.resolve()
        self.done: dict[str, tuple[str, Path]] = {}
        self.seconds = 0.0
        (self.work / "bin").mkdir(parents=True, exist_ok=True)
        command = self.work / "bin/s2d"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m s2d "$@"\n')
        command.chmod(0o755)
        paths = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
        # The work of these pages is too small to share: threads would wait for each other.
        self.environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(self, page: str, text: str | None = None) -> tuple[str, Path]:
        """The text of a page with what its blocks print, and the folder that they ran in."""
        if page not in self.done:
            text = (self.source / f"{page}.md").read_text() if text is None else text
            earlier = AFTER.match(text)
            folder = self.run(earlier[1])[1] if earlier else self.work / page
            folder.mkdir(parents=True, exist_ok=True)
            names: dict = {"__name__": "__main__"}
            start = time.perf_counter()
            shown = FENCE.sub(lambda block: self._block(page, block, folder, names), AFTER.sub("", text))
            self.seconds += time.perf_counter() - start
            self.done[page] = shown, folder
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
                raise ExtensionError(f"{page}: expected {argument} to say {missing[0]!r}, got no such words")
            return _shown(language, code)
        if language not in ("python", "sh"):
            return block[0]
        try:
            output = self._python(code, folder, names) if language == "python" else self._shell(code, folder)
        except Exception as error:
            # The traceback of a page's own code begins below this file.
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else traceback.format_exc(limit=-3)
            raise ExtensionError(f"{page}: this block failed:\n\n{code}\n{said}") from None
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


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """What Sphinx parses in place of the file."""
    if Path(app.env.doc2path(page)).suffix != ".md":
        return
    text, folder = app.pages.run(page, source[0])
    here = (app.srcdir / page).parent

    def drawn(match: re.Match) -> str:
        kind, name = match.groups()
        path = folder / name if kind == "made" else pictures.draw(name, app.pages.work / "pictures")
        return f"]({os.path.relpath(path, here)})"

    text = re.sub(r"\]\((made|picture):(\S+?)\)", drawn, text)
    source[0] = re.sub(r"^\{\{numbers: (\w+)\}\}$", lambda match: numbers_of.table(match[1]), text, flags=re.M)


class Named(PyXRefRole):
    """A name of Python in a docstring: a link if it has a page, whatever module it is in, and else plain."""

    def process_link(self, env, refnode, has_explicit_title, title, target):
        refnode["refdomain"], refnode["reftype"], refnode["refspecific"] = "py", "obj", True
        refnode["named"] = True
        return super().process_link(env, refnode, has_explicit_title, title, target)


def plain(app: Sphinx, env: BuildEnvironment, node, contnode):
    """A name in a docstring or a type of another package may have no page here; what a page links to has one."""
    package = node.get("reftarget", "").partition(".")[0]
    return contnode if node.get("named") or package in {*sys.stdlib_module_names, "torch", "nn", "numpy"} else None


def several(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """`a, b: text` describes two names; Sphinx would take the first for the type of the second."""
    for number, line in enumerate(lines):
        if field := re.match(r":(ivar|param) ([^:]+):", line):
            lines[number] = line.replace(field[2], field[2].replace(", ", ","), 1)


def complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Every public name has its entry."""
    import s2d.metrics
    import s2d.nn
    import s2d.ops

    described = set(env.domains["py"].objects)
    for module in (s2d.ops, s2d.nn, s2d.metrics):
        for name in module.__all__:
            if f"{module.__name__}.{name}" not in described:
                logger.warning("no page describes %s.%s", module.__name__, name)


def start(app: Sphinx) -> None:
    app.pages = Pages(Path(app.srcdir), Path(app.doctreedir).parent / "pages")


def finish(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        logger.info("code blocks ran for %.0f s", app.pages.seconds)


def setup(app: Sphinx) -> dict:
    app.add_role("named", Named())
    app.connect("builder-inited", start)
    app.connect("source-read", read)
    app.connect("missing-reference", plain)
    app.connect("autodoc-process-docstring", several, priority=600)  # after napoleon
    # A property's docstring is a sentence, whose colon does not end a type.
    GoogleDocstring._consume_inline_attribute = lambda self: ("", self._consume_to_end())
    app.connect("env-check-consistency", complete)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": False}
