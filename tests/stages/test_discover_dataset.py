"""Discovery in a folder of videos: the layouts, bad videos, and runs that are killed."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from s2d import cli
from s2d.data.coco import write_proposals
from s2d.data.label_maps import read_label_maps, write_label_maps
from s2d.data.types import Tracks
from s2d.data.video import write_video
from s2d.data.ytvis import read_ytvis, write_ytvis
from s2d.errors import InputError
from s2d.ops import rle_encode
from s2d.stages.discover_dataset import discover_dataset
from s2d.stages.pool import Shard
from s2d.testing.scenes import moving_disc

LENGTH, SIZE = 6, (64, 96)


@pytest.fixture(scope="session")
def clip():
    """Frames uint8 ``[T, 3, H, W]`` and the track of a disc that crosses them."""
    frames, masks = moving_disc(LENGTH, SIZE, radius=12)
    return frames, Tracks("disc", SIZE, rle_encode(masks), torch.ones(1, LENGTH, dtype=torch.bool), torch.ones(1))


@pytest.fixture
def dataset(tmp_path, clip):
    """Adds videos in the official layout: a folder of folders of frames, parallel to one of label maps."""
    frames, track = clip
    places = tmp_path / "frames", tmp_path / "masks"

    def add(*names):
        first = None
        for name in names:
            video, masks = (place / name for place in places)
            if first is not None:
                for path in (video, masks):
                    path.symlink_to(path.with_name(first))
                continue
            video.mkdir(parents=True)
            for t, frame in enumerate(frames):
                Image.fromarray(frame.permute(1, 2, 0).numpy()).save(video / f"{5 * t:05d}.png")
            write_label_maps(masks, track)
            first = name
        return places

    return add


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_each_video_is_found_or_says_why_not(dataset, clip, tmp_path, pool_here):
    frames, track = clip
    good = ("coco", "empty", "file", "maps", "ytvis")
    bad = ("frame", "length", "mask", "none", "shape", "unreadable")
    for name in good + bad:
        places = dataset(name)
    videos, masks = places
    for name in ("coco", "ytvis", "none"):
        (write_proposals if name == "coco" else write_ytvis)(
            masks / f"{name}.json", read_label_maps(masks / name) if name == "coco" else track
        )
        shutil.rmtree(masks / name)
    (masks / "none.json").unlink()
    (masks / "unreadable" / "00000.png").unlink()
    shutil.rmtree(masks / "unreadable")
    (masks / "unreadable.json").write_text("{")
    shutil.rmtree(videos / "file")
    write_video(videos / "file.mp4", frames, 25, crf=1)
    for path in (masks / "empty").iterdir():
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    for path in (masks / "shape").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    (masks / "length" / "00000.png").unlink()
    for path in (masks / "mask" / "00002.png", videos / "frame" / "00010.png"):
        path.write_bytes(path.read_bytes()[:60])
    out = tmp_path / "out"
    arguments = ("discover", videos, masks, "-o", out, "--workers", 2, "--threads", 1)
    result = invoke(*arguments)
    assert result.exit_code == 1, result.stderr
    rows = dict(line.split() for line in result.stdout.splitlines() if len(line.split()) == 2)
    assert [rows[key] for key in ("done", "empty", "failed", "together")] == ["4", "1", "6", "11"]
    assert f"s2d: 6 videos failed: {out / 'failed.json'} says why" in result.stderr
    failed = {entry["video"]: entry for entry in json.loads((out / "failed.json").read_text())}
    words = {
        "frame": "00010.png, got a file that cannot be read",
        "length": "proposals for the 6 frames of length in",
        "mask": "00002.png, got a file that cannot be read",
        "none": "a folder none of label maps or a file none.json, got neither",
        "shape": "proposals of the shape of shape",
        "unreadable": "expected json in",
    }
    assert list(failed) == list(words)
    for name, part in words.items():
        assert part in failed[name]["reason"]
        assert f"{name}: {failed[name]['reason']}" in result.stdout
        assert failed[name]["traceback"] is None
    assert {path.stem for path in out.glob("*.json")} == {*good, "failed", "keymasks"}
    assert [len(read_ytvis(out / f"{name}.json")[0]) for name in good] == [1, 0, 1, 1, 1]
    assert "keymasks.json: 4 instances in 5 videos" in result.stdout
    assert [tracks.video for tracks in read_ytvis(out / "keymasks.json")] == list(good)
    entry = json.loads((out / "maps.json").read_text())["videos"][0]
    assert entry["file_names"] == [f"maps/{5 * t:05d}.png" for t in range(LENGTH)]
    # What is mended is found by the next run, and nothing else is looked at.
    before = {name: (out / f"{name}.json").stat().st_mtime_ns for name in good}
    for name in bad:
        shutil.rmtree(videos / name)
        shutil.rmtree(masks / name, ignore_errors=True)
        (masks / f"{name}.json").unlink(missing_ok=True)
        shutil.copytree(videos / "maps", videos / name)
        shutil.copytree(masks / "maps", masks / name)
    assert "an unfinished job" in invoke(*arguments).stderr
    summary, merged = discover_dataset(videos, masks, out, pool=pool_here, resume=True, progress=False)
    assert (len(summary.done), summary.empty, summary.failed, merged.videos) == (10, ["empty"], {}, 11)
    assert not (out / "failed.json").exists()
    assert before == {name: (out / f"{name}.json").stat().st_mtime_ns for name in good}
    assert len(read_ytvis(out / "keymasks.json")) == 11


def test_a_video_of_many_is_what_it_is_alone(dataset, tmp_path, pool_here):
    """In shards, and through a link of another name, which is the name that counts."""
    videos, masks = dataset("a", "b", "c")
    for index in (1, 2):
        summary, merged = discover_dataset(
            videos, masks, tmp_path / "out", shard=Shard(index, 2), pool=pool_here, progress=False
        )
        assert (merged is None) == (summary.pending > 0) == (index == 1)
    assert (merged.videos, merged.instances) == (3, 3)
    alone = tmp_path / "alone.json"
    assert invoke("discover", videos / "a", masks / "a", "-o", alone, "-q").exit_code == 0
    expected = json.loads(alone.read_text())
    for name in "abc":
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert found["annotations"] == expected["annotations"]
        assert found["videos"][0]["name"] == name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{videos}", "{tmp}/none", "-o", "{out}"), "expected a folder of masks, one of each video, at"),
        (("{videos}", "{videos}/..", "-o", "{out}"), "VIDEO/ or VIDEO.json, got none for any of 2 videos"),
        (("{videos}", "{masks}", "-o", "{videos}/out"), "expected a place for results that is not among the videos"),
        (("{videos}", "{masks}", "-o", "{out}", "--shard", "3/2"), "expected a shard as I/N"),
        (("{videos}", "{masks}", "-o", "{out}", "--one2x", "1.5"), "expected one2x in [0, 1], got 1.5"),
        (("{videos}", "{masks}", "-o", "{out}", "--motion", "raft:none.pth"), "none.pth"),
        (
            ("{videos}", "{masks}", "-o", "{out}", "--ray", "127.0.0.1:1"),
            "expected a Ray cluster at 127.0.0.1:1, got: ",
        ),
        (("{videos}/a", "{masks}/a", "-o", "{out}", "--shard", "1/2"), "expected a folder of videos for --shard"),
        (("{videos}/a", "{masks}/a", "-o", "{out}", "--workers", "2"), "expected a folder of videos for --workers"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(dataset, tmp_path, arguments, words):
    if "--ray" in arguments:
        pytest.importorskip("ray", reason="needs the extra [ray]")
    videos, masks = dataset("a", "b")
    places = {"videos": videos, "masks": masks, "out": tmp_path / "out", "tmp": tmp_path}
    result = invoke("discover", *(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert len(list(videos.iterdir())) == 2


def test_a_name_that_is_taken_is_refused(dataset, tmp_path, pool_here):
    videos, masks = dataset("a", "keymasks")
    with pytest.raises(InputError, match=r"no video named keymasks, got one: keymasks\.json is another result"):
        discover_dataset(videos, masks, tmp_path / "out", pool=pool_here, progress=False)


# ---- a process that is killed ----


def done(out):
    """Number of the inode by name: another one would be another file."""
    return {path.stem: path.stat().st_ino for path in out.glob("[!.]*.json")} if out.is_dir() else {}


def test_a_killed_run_loses_nothing_and_the_next_one_repeats_nothing(dataset, tmp_path, processes):
    names = [f"v{n}" for n in range(50)]
    videos, masks = dataset(*names)
    out = tmp_path / "out"
    command = ("-m", "s2d", "discover", videos, masks, "-o", out, "--workers", 1, "--threads", 1)
    killed = processes.start(*command)
    processes.wait_for(lambda: len(done(out)) >= 5, "results")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    before = done(out)
    assert killed.returncode == -signal.SIGKILL
    assert 5 <= len(before) < 50
    # Its worker does not outlive it, and would not write if it did.
    processes.wait_for(lambda: processes.are_gone(killed.pid), "end of the worker")
    assert len(done(out)) == len(before)

    last = processes.start(*command, "--resume")
    output, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert ["done", "50"] in [line.split() for line in output.splitlines()]
    after = done(out)
    assert set(after) == {*names, "keymasks"}
    assert before.items() <= after.items()
    assert [tracks.video for tracks in read_ytvis(out / "keymasks.json")] == names
    assert {path.name for path in out.iterdir() if path.suffix != ".json"} == {"work"}
