"""Sphinx reads pages whose blocks have run (`blocks.py`), with pictures and numbers made on the spot.

`made:FILE` in an image is a file of the page's folder, `picture:ROOM` what `pictures.py` draws, and `{{numbers: ROOM}}`
the table of `numbers_of.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numbers_of
import pictures
from blocks import Pages, run_group
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject, PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging

logger = logging.getLogger(__name__)


def begin(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    """Run the pages that will be read: those of one folder in order, three folders at a time."""
    source, work = Path(app.srcdir), Path(app.doctreedir).parent / "pages"
    pages, groups = Pages(source, work), defaultdict(list)
    for page in names:
        groups[pages.first(page)].append(page)
    # Two are long; the third process has the many short ones ready in time. New processes, as this one has threads.
    app.pool = ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn"))
    app.work, app.read = pages.work, {}
    for group in sorted(groups.values(), key=len, reverse=True):
        app.read |= dict.fromkeys(group, app.pool.submit(run_group, source, work, group))


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """What Sphinx parses in place of the file."""
    running: Future = app.read[page]
    text, folder = running.result()[page]
    here = (app.srcdir / page).parent

    def drawn(match: re.Match) -> str:
        kind, name = match.groups()
        path = folder / name if kind == "made" else pictures.draw(name, app.work / "pictures")
        return f"]({os.path.relpath(path, here)})"

    text = re.sub(r"\]\((made|picture):(\S+?)\)", drawn, text)
    source[0] = re.sub(r"^\{\{numbers: (\w+)\}\}$", lambda match: numbers_of.table(match[1]), text, flags=re.M)


def finish(app: Sphinx, error: Exception | None) -> None:
    if hasattr(app, "pool"):
        app.pool.shutdown(cancel_futures=True)


class Named(PyXRefRole):
    """A name in a docstring: a link if it has a page, whatever module it is in, and else plain."""

    def process_link(self, env, refnode, has_explicit_title, title, target):
        refnode["refdomain"], refnode["reftype"], refnode["named"] = "py", "obj", True
        # `merge` alone may be anything: such words are looked for in their own module.
        refnode["refspecific"] = not (target.isalpha() and target.islower())
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


def setup(app: Sphinx) -> dict:
    app.add_role("named", Named())
    app.connect("env-before-read-docs", begin)
    app.connect("source-read", read)
    app.connect("missing-reference", plain)
    app.connect("autodoc-process-docstring", several, priority=600)  # after napoleon
    app.connect("env-check-consistency", complete)
    app.connect("build-finished", finish)
    # As the docstrings call them.
    next(field for field in PyObject.doc_field_types if field.name == "variable").label = "Attributes"
    # A property's docstring is a sentence, whose colon does not end a type.
    GoogleDocstring._consume_inline_attribute = lambda self: ("", self._consume_to_end())
    return {"parallel_read_safe": False}
