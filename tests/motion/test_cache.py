"""The cache: what is found again, what is not, what is deleted, and what damage and company do."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file

from s2d.data.video import Video
from s2d.errors import InputError
from s2d.motion.cache import CachedPrior, with_cache
from s2d.motion.dis import DisPrior, VideoFlow
from s2d.motion.files import FilesPrior
from s2d.ops import PointTracks

HEIGHT, WIDTH = 6, 10


class Counting:
    """Some motion that follows from the frames; ``calls`` counts how often it was asked for."""

    name = "counting"
    pure = True

    def __init__(self, setting=0, tracks=False):
        self.setting, self.tracks, self.calls = setting, tracks, 0

    def fingerprint(self):
        return {"prior": self.name, "setting": self.setting}

    def scene(self, frames, start, video):
        self.calls += 1
        generator = torch.Generator().manual_seed(int(frames.sum()))
        if self.tracks:
            tracks = 1000 + 100 * torch.rand(len(frames), 7, 2, generator=generator).transpose(0, 1)
            return PointTracks(tracks, torch.rand(7, len(frames), generator=generator) > 0.5)
        flow = torch.randn(2, len(frames) - 1, *frames.shape[2:], 2, generator=generator) * 10
        flow[..., 0, 0, :] = float("nan")
        return VideoFlow(flow[0], flow[1])


def clip(seed=0, length=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (length, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)


def ask(prior, frames):
    return prior.scene(frames, 0, Video.from_frames(frames))


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(12345), b.nan_to_num(12345))


def entries(folder):
    return sorted(folder.glob("[!.]*"))


@pytest.mark.parametrize("length", [1, 4])
def test_flow_is_computed_once(tmp_path, length):
    inner, frames = Counting(), clip(length=length)
    exact = ask(inner, frames)
    first = ask(CachedPrior(inner, tmp_path / "cache"), frames)
    again = ask(CachedPrior(inner, tmp_path / "cache"), frames)
    assert inner.calls == 2
    assert first.forward.dtype == torch.float16
    for direction in ("forward", "backward"):
        assert same(getattr(first, direction), getattr(again, direction))
        assert same(getattr(again, direction), getattr(exact, direction).half())
    (entry,) = entries(tmp_path / "cache")
    assert load_file(entry)["forward"].dtype == torch.float16


def test_tracks_keep_their_precision(tmp_path):
    inner, frames = Counting(tracks=True), clip()
    exact = ask(inner, frames)
    for _ in range(2):
        found = ask(CachedPrior(inner, tmp_path), frames)
        assert isinstance(found, PointTracks)
        assert same(found.tracks, exact.tracks)
        assert torch.equal(found.visible, exact.visible)
    assert inner.calls == 2


def test_other_frames_settings_and_shapes_are_other_entries(tmp_path):
    one, other = Counting(), Counting(setting=1)
    frames = clip()
    changed = frames.clone()
    changed[-1, -1, -1, -1] ^= 1
    for prior, scene in ((one, frames), (other, frames), (one, changed), (one, frames[:-1]), (one, frames.mT)):
        ask(CachedPrior(prior, tmp_path), scene)
    assert (one.calls, other.calls) == (4, 1)
    assert len(entries(tmp_path)) == 5


def test_an_interrupted_job_finds_what_it_had(tmp_path):
    class Interrupted(Counting):
        def scene(self, frames, start, video):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().scene(frames, start, video)

    first, second = Interrupted(), Counting()
    scenes = [clip(seed) for seed in range(4)]
    for scene in scenes[:2]:
        ask(CachedPrior(first, tmp_path), scene)
    with pytest.raises(KeyboardInterrupt):
        ask(CachedPrior(first, tmp_path), scenes[2])
    for scene in scenes:
        ask(CachedPrior(second, tmp_path), scene)
    assert second.calls == 2


def damage(entry, how):
    content = bytearray(entry.read_bytes())
    if how == "cut":
        content = content[:-5]
    elif how == "empty":
        content = b""
    elif how == "text":
        content = b"this is no cache entry"
    elif how == "a bit":
        content[-3] ^= 4
    elif how == "another scene's":
        ask(CachedPrior(Counting(), entry.parent / "other"), clip(5, length=3))
        content = entries(entry.parent / "other")[0].read_bytes()
    entry.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "text", "a bit", "another scene's"])
def test_a_damaged_entry_is_computed_again(tmp_path, how):
    inner, frames = Counting(), clip()
    prior = CachedPrior(inner, tmp_path)
    whole = ask(prior, frames)
    damage(entries(tmp_path)[0], how)
    with pytest.warns(RuntimeWarning, match="is damaged and computed again"):
        found = ask(prior, frames)
    assert same(found.forward, whole.forward)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(ask(prior, frames).forward, whole.forward)
    assert inner.calls == 2


def test_what_was_used_longest_ago_is_deleted(tmp_path):
    inner = Counting()
    ask(CachedPrior(inner, tmp_path), clip(0))
    size = entries(tmp_path)[0].stat().st_size
    prior = CachedPrior(inner, tmp_path, limit=3 * size)

    def age():
        for entry in entries(tmp_path):
            status = entry.stat()
            os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))

    for seed in (1, 2):
        age()
        ask(prior, clip(seed))
    age()
    ask(prior, clip(0))  # read, and so no longer the oldest
    age()
    ask(prior, clip(3))
    assert len(entries(tmp_path)) == 3
    calls = inner.calls
    for seed in (0, 2, 3):
        ask(prior, clip(seed))
    assert inner.calls == calls
    ask(prior, clip(1))
    assert inner.calls == calls + 1


def test_what_does_not_fit_is_not_kept(tmp_path):
    inner = Counting()
    for _ in range(2):
        ask(CachedPrior(inner, tmp_path, limit=10), clip())
    assert inner.calls == 2
    assert not entries(tmp_path)


def test_remains_of_killed_processes_go(tmp_path):
    old, fresh = (tmp_path / f".{name}.partial.safetensors" for name in ("old", "fresh"))
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    ask(CachedPrior(Counting(), tmp_path), clip())
    assert not old.exists()
    assert fresh.exists()


def _work(folder, limit):
    """Several rounds over the same scenes; exit code 0 if every result was right."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    prior = CachedPrior(Counting(), folder, limit=limit)
    for _ in range(5):
        for seed in range(6):
            frames = clip(seed)
            assert same(ask(prior, frames).forward, ask(Counting(), frames).forward.half())


@pytest.mark.parametrize("limit", [10**9, 4000])
def test_many_processes_share_a_folder(tmp_path, limit):
    """With room for all entries, and with room for two: then they take each other's away all the time."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(tmp_path, limit)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(entry.stat().st_size for entry in entries(tmp_path)) <= limit
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_costs_a_warning(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("s2d.motion.cache.save_file", full)
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        found = ask(CachedPrior(Counting(), tmp_path), clip())
    assert found.forward.shape == (3, HEIGHT, WIDTH, 2)
    assert not list(tmp_path.iterdir())


def test_where_the_folder_comes_from(tmp_path, monkeypatch):
    prior = DisPrior()
    monkeypatch.delenv("S2D_CACHE", raising=False)
    assert with_cache(prior) is prior
    monkeypatch.setenv("S2D_CACHE", "")
    assert with_cache(prior) is prior
    monkeypatch.setenv("S2D_CACHE", str(tmp_path / "environment"))
    ask(with_cache(prior), clip())
    ask(with_cache(prior, tmp_path / "argument"), clip())
    assert [len(entries(tmp_path / name)) for name in ("environment", "argument")] == [1, 1]
    files = FilesPrior(str(tmp_path))
    assert with_cache(files) is files


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path):
    CachedPrior(DisPrior(), tmp_path / "a/b")
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match="expected a folder for the cache"):
            CachedPrior(DisPrior(), tmp_path / place)
    with pytest.raises(ValueError, match="limit of at least 0"):
        CachedPrior(DisPrior(), tmp_path, limit=-1)
    with pytest.raises(ValueError, match="follow from the frames, got files"):
        CachedPrior(FilesPrior(str(tmp_path)), tmp_path)


def test_dis_through_the_cache_is_dis(tmp_path):
    frames = clip()
    found = ask(CachedPrior(DisPrior(), tmp_path), frames)
    assert same(found.backward, ask(DisPrior(), frames).backward.half())
