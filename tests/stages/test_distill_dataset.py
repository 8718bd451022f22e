"""Training on a dataset from disk, the rounds between, and the processes that share it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from s2d.cli import app
from s2d.data.datasets import open_dataset
from s2d.data.datasets.annotations import with_annotations
from s2d.data.types import Tracks
from s2d.data.ytvis import read_ytvis, write_ytvis
from s2d.errors import InputError
from s2d.models import VideoMask2Former, load_checkpoint
from s2d.models.checkpoint import save_checkpoint
from s2d.ops import rle_encode
from s2d.stages.distill_dataset import distill_dataset, validate
from s2d.training.recipe import load_recipe

RECIPE = """
checkpoint_every = 5
validate_every = 8
[model]
depth = 10
width = 8
norm = "GN"
hidden_dim = 16
nheads = 2
mask_dim = 8
encoder_layers = 1
encoder_ffn = 16
encoder_dropout = 0.1
decoder_layers = 2
decoder_ffn = 16
num_queries = 4
input_short_side = 32
[clips]
frames = 2
batch = 2
size = [32, 48]
decoder = "pyav"
rotation = 5.0
[loss]
num_points = 64
class_loss = 2.0
label_drop = 0.1
frame_drop = 0.2
match_class = 0.0
[teacher]
threshold = 0.1
[optimizer]
learning_rate = 1e-3
backbone_multiplier = 1.0
clip_norm = 1.0
[execution]
micro_batch = 1
[[rounds]]
name = "sparse"
annotations = "keymasks"
steps = 16
distill_from = 6
[[rounds]]
name = "dense"
annotations = "predictions"
steps = 4
threshold = 0.1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three videos of a square that wanders, annotated on two frames of six; and the recipe."""
    folder = tmp_path_factory.mktemp("dataset")
    tracks = []
    for number in range(3):
        frames = np.full((6, 36, 52, 3), 40 + 20 * number, np.uint8)
        masks = torch.zeros(6, 36, 52, dtype=torch.bool)
        (folder / f"JPEGImages/video{number}").mkdir(parents=True)
        for t in range(6):
            masks[t, 8 : 20 + number, 4 + 5 * t : 18 + 5 * t] = True
            frames[t][masks[t].numpy()] = 220
            Image.fromarray(frames[t]).save(folder / f"JPEGImages/video{number}/{t:05d}.jpg")
        annotated = torch.tensor([[True, False, False, True, False, False]])
        kept = masks & annotated[0][:, None, None]
        tracks.append(Tracks(f"video{number}", (36, 52), rle_encode(kept), annotated, torch.ones(1)))
    write_ytvis(folder / "train.json", tracks)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def run(*words: object, check: bool = True) -> Result:
    """The command, in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0 or not check, done.output
    return done


def start_two(*words: object) -> subprocess.Popen:
    """The command in two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "s2d"]
        + [str(word) for word in words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_two(*words: object) -> None:
    job = start_two(*words)
    _, said = job.communicate()
    assert job.returncode == 0, said


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """What one process makes of all rounds, uninterrupted: 20 steps."""
    out = tmp_path_factory.mktemp("whole") / "model.pt"
    run("distill", folder / "train.json", "--recipe", folder / "recipe.toml", "--threads", 1, "-q", "-o", out)
    return out


def assert_same_weights(one: Path, other: Path) -> None:
    mine, theirs = load_checkpoint(one).state_dict(), load_checkpoint(other).state_dict()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)


def test_all_rounds_with_validation(folder, tmp_path):
    dataset = open_dataset(folder / "train.json")
    recipe = load_recipe(folder / "recipe.toml")
    model, told = distill_dataset(
        dataset, recipe, work=tmp_path / "work", log=tmp_path / "log", validation=dataset, progress=False
    )
    assert not model.training
    assert "clips decoded by pyav: 32" in told.splitlines()[0]
    lines = [json.loads(line) for line in (tmp_path / "log/training.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [(line["round"], line["step"]) for line in steps] == [(0, step) for step in range(16)] + [
        (1, step) for step in range(4)
    ]
    assert not any("kd_loss_mask" in line for line in steps[:6])
    assert all("kd_loss_mask" in line for line in steps[6:16])
    scored = [(line["round"], line["step"]) for line in lines if "val_ap" in line]
    assert scored == [(0, 7), (0, 15), (1, 3)]
    assert set(validate(model, dataset)) >= {"val_ap", "val_ap50", "val_ar10"}
    again, _ = distill_dataset(dataset, recipe, work=tmp_path / "work", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_two_processes_compute_what_one_does(folder, whole, tmp_path):
    words = ["--recipe", folder / "recipe.toml", "--threads", 1, "-q", "-o", tmp_path / "model.pt"]
    run_two("distill", folder / "train.json", *words)
    assert_same_weights(whole, tmp_path / "model.pt")
    logs = [
        [json.loads(line) for line in Path(f"{model}.log/training.jsonl").read_text().splitlines()]
        for model in (whole, tmp_path / "model.pt")
    ]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]] == [*range(16), *range(4)]
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-3) for a, b in zip(*logs, strict=True))


def test_a_killed_process_is_resumed_to_the_same_weights(folder, whole, tmp_path):
    out = tmp_path / "model.pt"
    words = ["distill", folder / "train.json", "--recipe", folder / "recipe.toml", "--threads", 1, "-q", "-o", out]
    job, checkpoint = start_two(*words), Path(f"{out}.work/partial/training.pt")
    while job.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    children = [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    os.kill(children[-1], signal.SIGKILL)
    job.communicate()
    assert job.returncode != 0
    assert not out.exists()
    run_two(*words, "--resume")
    assert_same_weights(whole, out)


def test_pseudo_labels_are_the_annotations_of_the_next_round(folder, tmp_path):
    words = ["distill", folder / "train.json", "--recipe", folder / "recipe.toml", "--set", "rounds.0.steps=4", "-q"]
    run(*words, "-o", tmp_path / "model.pt")
    label = ["pseudo-label", folder / "train.json", "--weights", tmp_path / "model.pt", "-o", tmp_path / "labels"]
    done = run(*label, "--score", "0.1", "--workers", 1, "--threads", 1)
    assert re.search(r"done +3\n", done.stdout)
    merged = tmp_path / "labels/annotations.json"
    labels = with_annotations(open_dataset(folder / "train.json"), merged)
    assert [sample.name for sample in labels] == ["video0", "video1", "video2"]
    assert all(isinstance(sample.source, tuple) and sample.source[0].is_file() for sample in labels)
    assert sum(len(tracks) for tracks in read_ytvis(merged)) == sum(len(sample.tracks()) for sample in labels)
    run(words[0], words[1], merged, *words[2:], "-o", tmp_path / "next.pt", "--weights", tmp_path / "model.pt")
    assert (tmp_path / "next.pt").is_file()


def test_a_video_that_cannot_be_labelled_stops_no_other(folder, tmp_path):
    data, out = shutil.copytree(folder, tmp_path / "data"), tmp_path / "labels"
    (data / "JPEGImages/video1/00002.jpg").write_bytes(b"no image")
    model = VideoMask2Former(load_recipe(folder / "recipe.toml").model)
    save_checkpoint(model, tmp_path / "model.pt")
    words = ["pseudo-label", data / "train.json", "--weights", tmp_path / "model.pt", "-o", out, "--score", "0.1"]
    done = run(*words, "--workers", 1, "--threads", 1, "-q", check=False)
    assert done.exit_code == 1
    assert f"s2d: 1 video failed: {out / 'failed.json'} says why; --resume tries again" in done.stderr
    merged = json.loads((out / "annotations.json").read_text())
    assert [video["name"] for video in merged["videos"]] == ["video0", "video2"]


def test_annotations_of_strange_videos_are_refused(folder, tmp_path):
    (track,) = read_ytvis(folder / "train.json")[:1]
    write_ytvis(tmp_path / "other.json", dataclasses.replace(track, video="stranger"))
    with pytest.raises(InputError, match="got those of stranger"):
        with_annotations(open_dataset(folder / "train.json"), tmp_path / "other.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "loss.points=3"], "expected only .* got points"),
        (["--set", "loss"], "expected a change such as loss.num_points=1000, got 'loss'"),
        (["--set", "clips.batch=3", "--set", "clips.decoder=vhs"], "expected decoder to be one of"),
        (["--device", "cuda:9"], "expected a device of this machine, got 'cuda:9'"),
    ],
)
def test_what_is_refused(folder, tmp_path, words, said):
    out = tmp_path / "model.pt"
    done = run("distill", folder / "train.json", "--recipe", folder / "recipe.toml", "-o", out, *words, check=False)
    assert done.exit_code == 2
    assert re.search(said, done.stderr)
    assert not out.exists()
