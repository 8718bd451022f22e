"""Tasks on a Ray cluster, or on a local one that lives as long as they do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from s2d.errors import InputError
from s2d.stages._workers import Failure, Task, attempt
from s2d.stages.job import use_threads

_TCP_PATIENCE, _RAY_PATIENCE = 5.0, 30.0
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
_PROBE = f"import ray, sys; ray.init(address=sys.argv[1], **{_QUIET!r})"


def run_on_ray(
    task: Task, videos: Iterable[tuple[str, Path]], *, address: str, workers: int | None, threads: int
) -> Iterator[tuple[str, Any]]:
    """Values, or `Failure`, by name in the order in which they come. Closing the iterator ends what is running.

    Every node needs this package, and the videos and masks at the same absolute paths. A task is never tried twice.

    Args:
        task: see `Task`.
        videos: names and places.
        address: of the cluster, host:port or ray://host:port; "auto" for the one that Ray finds; "local" for one of
            this machine, which ends with the iterator.
        workers: tasks at a time, at most; None (not with "local") for as many as the cluster's CPUs allow.
        threads: CPU threads, and Ray's CPUs, of each.

    Raises:
        InputError: Ray is not installed, or no node has so many CPUs. Where no cluster answers, Ray ends the process
            after minutes: `check_ray` finds that out first.
    """
    ray = _import_ray()
    local = {"num_cpus": workers * threads, "include_dashboard": False} if address == "local" else {}
    ray.init(address=address, **local, **_QUIET)
    try:
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if threads > most:
            raise InputError(
                f"expected a node with {threads} CPUs in the Ray cluster at {address}, got at most {most:g}"
            )
        at_once = workers or max(1, int(ray.cluster_resources()["CPU"] // threads))
        remote = ray.remote(num_cpus=threads, max_retries=0)(_attempt)
        shared = ray.put(task)
        waiting, running = deque(videos), {}
        while waiting or running:
            while waiting and len(running) < at_once:
                name, source = waiting.popleft()
                running[remote.remote(shared, name, source, threads)] = name
            (ready,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(ready)
            try:
                value = ray.get(ready)
            except ray.exceptions.RayError as error:
                # Of what Ray says only the first line is about the task; the others are where its logs are.
                value = Failure(f"the process that worked on it died: {str(error).strip().splitlines()[0]}")
            yield name, value
    finally:
        ray.shutdown()


def _attempt(task: Task, name: str, source: Path, threads: int) -> Any:
    with use_threads(threads):
        return attempt(task, name, source)


def check_ray(address: str) -> None:
    """InputError unless Ray is installed and a cluster answers at ``address``, or it is "local"."""
    _import_ray()
    if address != "local":
        _check_reachable(address)


def _import_ray() -> ModuleType:
    # Nothing is sent anywhere unless the user wants it, and a task sees the GPUs, which a motion prior may use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError("expected the package ray, which --ray needs, got none: pip install 's2d[ray]'") from None
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there, and then ends the process: one of ours tries it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdecimal():
            socket.create_connection((host, int(port)), _TCP_PATIENCE).close()
        probe = [sys.executable, "-c", _PROBE, address]
        result = subprocess.run(probe, capture_output=True, text=True, errors="replace", timeout=_RAY_PATIENCE)
    except subprocess.TimeoutExpired:
        raise InputError(f"expected a Ray cluster at {address}, got no answer in {_RAY_PATIENCE:.0f} s") from None
    except (OSError, OverflowError) as error:
        raise InputError(f"expected a Ray cluster at {address}, got: {error}") from None
    if result.returncode != 0:
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        # The last error is that nothing came about; where Ray says why (a token is missing), it does so before.
        reason = next((line for line in said if line.startswith("ray.exceptions.")), said[-1])
        raise InputError(f"expected a Ray cluster at {address}, got: {reason}")
