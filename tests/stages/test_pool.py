from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.errors import InputError
from s2d.stages.pool import Pool, Shard, map_videos

TASKS = '''
import os, signal, time
from s2d.errors import InputError

def task(name, source):
    if name.startswith("exit"):
        os._exit(3)
    if name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("bad"):
        raise InputError("expected a video, got a potato")
    if name.startswith("bug"):
        return {}["key"]
    return {"name": name, "source": str(source), "worker": os.getpid()}

def slow(name, source):
    time.sleep(0.05)
    return name

class Unwelcome:
    """Cannot be unpickled."""
    def __reduce__(self):
        return os._exit, (5,)
'''


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module that worker processes can import, too: they get this process's path."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "pool_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(folder)
    import pool_tasks

    return pool_tasks


def videos(*names):
    return {name: Path("/videos") / name for name in names}


def name_of(name, source):
    return {"name": name}


def results(out):
    return {path.stem for path in out.glob("*.json")}


# ---- processes ----


def test_bad_videos_and_dying_workers_stop_nothing(tasks, tmp_path):
    out = tmp_path / "out"
    named = videos("a", "bad", "exit", "b", "bug", "killed")
    summary = map_videos(tasks.task, named, out, {}, pool=Pool(workers=1, threads=1), progress=False)
    assert (summary.done, summary.empty, summary.pending) == (["a", "b"], [], 0)
    reasons = {name: failure.reason for name, failure in summary.failed.items()}
    assert reasons == {
        "bad": "expected a video, got a potato",
        "exit": "the process that worked on it ended with exit code 3",
        "bug": "KeyError: 'key'",
        "killed": "the process that worked on it was killed by SIGKILL, perhaps for want of memory",
    }
    listed = json.loads((out / "failed.json").read_text())
    assert {entry["video"]: entry["reason"] for entry in listed} == reasons
    assert [entry["video"] for entry in listed if entry["traceback"]] == ["bug"]
    first, second = (json.loads((out / f"{name}.json").read_text()) for name in "ab")
    assert first["source"] == "/videos/a"
    # Another process took over from the one that died.
    assert len({first["worker"], second["worker"], os.getpid()}) == 3
    text = summary.text().splitlines()
    assert [line.split() for line in text[2:6]] == [["done", "2"], ["empty", "0"], ["failed", "4"], ["together", "6"]]
    assert "bad: expected a video, got a potato" in text


def test_workers_that_cannot_begin_end_the_run(tasks, tmp_path):
    words = "expected worker processes that can begin, got one that ended with exit code 5 before its first video"
    with pytest.raises(InputError, match=words):
        map_videos(tasks.Unwelcome(), videos("a", "b"), tmp_path / "out", {}, pool=Pool(1, 1), progress=False)


def test_ctrl_c_ends_all_processes_at_once(tasks, tmp_path, processes):
    out = tmp_path / "out"
    (tmp_path / "modules" / "main.py").write_text(
        "import pool_tasks, sys\n"
        "from pathlib import Path\n"
        "from s2d.stages.pool import Pool, map_videos\n"
        "if __name__ == '__main__':\n"
        "    videos = {f'v{n}': Path(str(n)) for n in range(2000)}\n"
        "    map_videos(pool_tasks.slow, videos, Path(sys.argv[1]), {}, pool=Pool(1, 1))\n"
    )
    interrupted = processes.start(tmp_path / "modules" / "main.py", out)
    processes.wait_for(lambda: len(results(out)) >= 3, "results")
    os.killpg(interrupted.pid, signal.SIGINT)
    _, errors = interrupted.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    # One traceback, the parent's; and no process was ended in a way that leaves something behind.
    assert errors.count("Traceback") == 1
    assert "resource_tracker" not in errors
    processes.wait_for(lambda: processes.are_gone(interrupted.pid), "end of the workers")
    assert 3 <= len(results(out)) < 2000
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_sizes():
    cpus = len(os.sched_getaffinity(0))
    assert Pool()._sizes() == (max(1, cpus // 2), max(1, cpus // max(1, cpus // 2)))
    assert Pool(workers=2 * cpus)._sizes() == (2 * cpus, 1)
    assert Pool(workers=3, threads=4, ray="local")._sizes() == (3, 4)
    assert Pool(ray="auto")._sizes() == (None, 1)


# ---- restarts ----


def test_what_is_done_stays_and_what_failed_is_tried_again(tmp_path, pool_here):
    ready = set("ac")

    def task(name, source):
        if name not in ready:
            raise InputError(f"expected {name}, got nothing")
        return {"name": name}

    def run(**options):
        pool_here.seen.clear()
        return map_videos(task, videos("a", "b", "c"), tmp_path, {"size": 1}, pool=pool_here, progress=False, **options)

    assert list(run(products=("all.json",)).failed) == ["b"]
    (tmp_path / "all.json").touch()
    before = {name: (tmp_path / f"{name}.json").stat().st_ino for name in ready}
    with pytest.raises(InputError, match="expected a place without results, got an unfinished job"):
        run()
    ready.add("b")
    # What a killed run left of this video, and something of another's.
    for name in (".b.0123abcd.partial.json", ".z.0123abcd.partial.json"):
        (tmp_path / name).touch()
    assert run(resume=True, products=("all.json",)).done == ["a", "b", "c"]
    assert pool_here.seen == ["b"]
    assert before == {name: (tmp_path / f"{name}.json").stat().st_ino for name in "ac"}
    # Neither the old list of failures nor what was made of the old results is left.
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.json", "b.json", "c.json", "work", ".z.0123abcd.partial.json")
    }
    assert run(resume=True).done == ["a", "b", "c"]
    assert pool_here.seen == []
    assert run(overwrite=True).done == ["a", "b", "c"]
    assert pool_here.seen == ["a", "b", "c"]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_a_result_that_is_no_json_fails_alone(tmp_path, value, pool_here):
    def task(name, source):
        return value if name == "a" else 1

    summary = map_videos(task, videos("a", "b"), tmp_path, {}, pool=pool_here, progress=False)
    assert summary.done == ["b"]
    assert summary.failed["a"].reason.startswith("its result cannot be written as JSON: ")


def test_another_job_is_refused(tmp_path, pool_here):
    def run(named, size, **options):
        return map_videos(name_of, named, tmp_path, {"size": size}, pool=pool_here, progress=False, **options)

    run(videos("a", "b"), 1)
    for named, size, words in (
        (videos("a", "b"), 2, "got size 2 instead of 1"),
        (videos("a", "b", "c"), 1, "got videos.names .* videos.number 3 instead of 2"),
    ):
        with pytest.raises(InputError, match=words):
            run(named, size, resume=True)
    assert run(videos("a", "b", "c"), 2, overwrite=True).done == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("named", "options", "words"),
    [
        ((), {}, "expected at least one video, got none"),
        (("failed",), {}, r"no video named failed, got one: failed\.json is another result"),
        (("all",), {"products": ("all.json",)}, "no video named all"),
        (("a",), {"shard": Shard(1, 2), "overwrite": True}, "--overwrite without --shard"),
        (("a",), {"resume": True, "overwrite": True}, "got both"),
    ],
)
def test_refusals_leave_nothing(tmp_path, named, options, words, pool_here):
    with pytest.raises(InputError, match=words):
        map_videos(name_of, videos(*named), tmp_path / "out", {}, pool=pool_here, progress=False, **options)
    assert not results(tmp_path / "out")


def test_empty_results_are_told_apart_also_after_a_restart(tmp_path, pool_here):
    for resume in (False, True):
        summary = map_videos(
            name_of,
            videos("a", "nothing"),
            tmp_path,
            {},
            pool=pool_here,
            is_empty=lambda path: "nothing" in path.read_text(),
            resume=resume,
            progress=False,
        )
        assert (summary.done, summary.empty) == (["a"], ["nothing"])


# ---- shards ----


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.text(max_size=3), unique=True, max_size=40), count=st.integers(1, 12))
def test_shards_are_disjoint_and_complete(names, count):
    parts = [Shard.parse(f"{index}/{count}").of(names) for index in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_what_is_no_shard(text):
    with pytest.raises(InputError, match="expected a shard as I/N with I from 1 to N"):
        Shard.parse(text)


def test_shards_share_a_folder(tmp_path, pool_here):
    def task(name, source):
        if name == "v3":
            raise InputError("expected something, got v3")
        return {"name": name}

    named = videos(*(f"v{n}" for n in range(7)))
    for index, pending in ((1, 4), (2, 2), (3, 0)):
        summary = map_videos(task, named, tmp_path, {}, pool=pool_here, shard=Shard(index, 3), progress=False)
        assert summary.pending == pending
        assert set(summary.failed) == ({"v3"} if index == 1 else set())
    assert results(tmp_path) == {"v0", "v1", "v2", "v4", "v5", "v6", "failed"}
    assert [entry["video"] for entry in json.loads((tmp_path / "failed.json").read_text())] == ["v3"]
    whole = map_videos(task, named, tmp_path, {}, pool=pool_here, resume=True, progress=False)
    assert (len(whole.done), list(whole.failed)) == (6, ["v3"])


# ---- a full disk ----


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(small_disk, pool_here):
    out = small_disk / "out"
    other = small_disk / "other"
    other.write_bytes(bytes(120_000))

    def run(resume):
        named = videos(*(f"v{n}" for n in range(10)))
        return map_videos(
            lambda name, source: "x" * 20_000, named, out, {}, pool=pool_here, resume=resume, progress=False
        )

    words = "expected room on the disk for .*json, got: no space left on device; the same command with --resume"
    with pytest.raises(InputError, match=words):
        run(resume=False)
    done = results(out)
    assert 0 < len(done) < 10
    assert len(pool_here.seen) == len(done) + 1
    assert all(len(json.loads((out / f"{name}.json").read_text())) == 20_000 for name in done)
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    other.unlink()
    assert len(run(resume=True).done) == 10
    assert len(pool_here.seen) == 10 - len(done)
