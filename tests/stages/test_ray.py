"""Tasks on Ray: a local one, and clusters that are not there."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from s2d.errors import InputError
from s2d.stages import _ray
from s2d.stages.pool import Pool, map_videos

pytest.importorskip("ray", reason="needs the extra [ray]")

TASKS = """
import os
from s2d.errors import InputError

def task(name, source):
    if name == "exit":
        os._exit(3)
    if name == "bad":
        raise InputError("expected a video, got a potato")
    return {"name": name, "source": str(source)}
"""


def test_a_local_ray(tmp_path, monkeypatch):
    import ray

    (tmp_path / "ray_tasks.py").write_text(TASKS)
    # Ray's workers inherit the environment, not this process's path.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    import ray_tasks

    named = {name: tmp_path / name for name in ("a", "exit", "b", "bad")}
    summary = map_videos(
        ray_tasks.task, named, tmp_path / "out", {}, pool=Pool(workers=1, threads=1, ray="local"), progress=False
    )
    assert summary.done == ["a", "b"]
    assert summary.failed["bad"].reason == "expected a video, got a potato"
    assert summary.failed["exit"].reason.startswith("the process that worked on it died: ")
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nowhere.invalid:6379"])
def test_an_address_where_nothing_listens(address):
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"expected a Ray cluster at {address}, got: "):
        Pool(ray=address).check()
    assert time.monotonic() - begin < 20


def test_an_address_where_something_else_listens(monkeypatch):
    """Ray would wait for two minutes and then end the process."""
    monkeypatch.setattr(_ray, "_RAY_PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"expected a Ray cluster at {address}, got no answer in 1 s"):
            Pool(ray=address).check()


def test_what_is_no_address():
    with pytest.raises(InputError, match="expected a Ray cluster at nonsense, got: ValueError: "):
        Pool(ray="nonsense").check()


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"expected the package ray, which --ray needs, got none: pip install 's2d\[ray\]'"
    ):
        Pool(ray="local").check()
