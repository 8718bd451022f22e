"""Test files that can be imported here, one a line: python -m benchmarks.gpu.importable FOLDER_OR_FILE ...

A file that needs a package which is not installed is left out and named on the error output. Anything else that is
wrong with a file is left to pytest to tell.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing_package(path: Path) -> str | None:
    """The package whose absence keeps a file from being imported, or None."""
    spec = importlib.util.spec_from_file_location(f"importable_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        return error.name
    except BaseException:  # a skip of the whole file is an outcome, too
        return None
    return None


def files_of(names: list[str]) -> list[Path]:
    """The test files of folders and files."""
    folders = [Path(name) for name in names]
    return [file for path in folders for file in (sorted(path.rglob("test_*.py")) if path.is_dir() else [path])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.importable", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="folders or files")
    parser.add_argument("--but", nargs="*", default=[], help="folders or files to leave out in silence")
    chosen = parser.parse_args(arguments)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    sys.path.extend(str(ROOT / folder) for folder in settings.get("pythonpath", []))
    unwanted = set(files_of(chosen.but))
    for path in files_of(chosen.names):
        if path in unwanted:
            continue
        needed = [path.parent / "conftest.py", path]
        absent = next((package for file in needed if file.exists() and (package := missing_package(file))), None)
        if absent is None:
            print(path)
        else:
            print(f"left out: {path} needs the package {absent}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
