"""Files that are whole or absent: written beside their place, then moved there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2d.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it takes the place of ``path`` once the block ends well.

    The temporary name keeps the suffix, because encoders choose a format by it. Missing parent folders are made. After
    an error or Ctrl-C the temporary file is gone and ``path`` is what it was.

    Raises:
        InputError: the folder cannot be made or written to, ``path`` is a folder, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    if path.is_dir():
        raise InputError(f"expected a file to write at {path}, got a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise InputError(f"expected a folder that can be written to at {path.parent}, got: {_reason(error)}") from None
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"expected room on the disk for {path}, got: {_reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def abandoned_for(path: Path) -> str | None:
    """The name of the file that ``path`` was to become, if it is a temporary one of `atomic_write`.

    Who was killed while writing leaves it behind; it is for the next one to delete.
    """
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.partial(\.[^.]*)?", path.name)
    return match and match[1] + (match[2] or "")


def write_json(path: str | os.PathLike, obj: Any, *, indent: int | None = None) -> None:
    """Write ``obj`` as UTF-8 JSON, keys in the order given. ValueError for NaN and infinities, which JSON has not."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(obj, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """The contents of a JSON file.

    Raises:
        InputError: there is no such file, it cannot be read, or it is not JSON; names the file and the place in it.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"expected a json file at {path}, got nothing: no such file") from None
    except OSError as error:
        raise InputError(f"expected a json file at {path}, got: {_reason(error)}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"expected json in {path}, got something else at {where}: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError):
        raise InputError(f"expected json in {path}, got bytes that are not json text") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
