"""The command ``s2d predict``: from a video file and a checkpoint to a json file, its options, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from s2d import cli
from s2d.data.ytvis import read_ytvis
from s2d.models import VideoMask2Former, save_checkpoint
from s2d.stages import predict as stage
from s2d.testing.small_model import SMALL


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(VideoMask2Former(dataclasses.replace(SMALL, num_queries=12)), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def call(*arguments):
    return CliRunner().invoke(cli.app, ["predict", *(str(argument) for argument in arguments)])


def read(path):
    return read_ytvis(path)[0]


def test_a_video_becomes_tracks(clip_path, weights, tmp_path):
    result = call(clip_path, "--weights", weights, "--settings", "videocutler", "-o", tmp_path / "tracks.json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("s2d: one clip of 6 frames, about ")
    tracks = read(tmp_path / "tracks.json")
    assert (len(tracks), tracks.num_frames, tracks.size) == (10, 6, (48, 80))
    assert tracks.annotated.all()
    assert not (tmp_path / "tracks.json.work").exists()
    windows = call(clip_path, "--weights", weights, "--settings", "s2d", "--window", 4, "-o", tmp_path / "w.json")
    assert "windows of 4 frames" in windows.stderr
    assert read(tmp_path / "w.json").num_frames == 6
    assert call(clip_path, "--weights", weights, "-q", "-o", tmp_path / "q.json").stderr == ""


def test_an_interrupted_command_continues(clip_path, weights, tmp_path, monkeypatch):
    options = ("--weights", weights, "--settings", "s2d", "--window", 3, "-q", "-o")
    assert call(clip_path, *options, tmp_path / "whole.json").exit_code == 0
    original, calls = stage.read_clip, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(stage, "read_clip", interrupted)
    stopped = call(clip_path, *options, tmp_path / "tracks.json")
    assert stopped.exit_code == 130
    assert "--resume continues" in stopped.stderr
    assert not (tmp_path / "tracks.json").exists()
    other = call(clip_path, *options, tmp_path / "tracks.json", "--resume", "--precision", "bf16")
    assert (other.exit_code, "settings.precision" in other.stderr) == (2, True)
    assert call(clip_path, *options, tmp_path / "tracks.json", "--resume").exit_code == 0
    # Three windows, of which the first was finished.
    assert len(calls) == 4
    assert (tmp_path / "tracks.json").read_text() == (tmp_path / "whole.json").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--memory", "lots"), "memory such as 4GB or 500MB, got 'lots'"),
        (("--memory", "20MB"), "memory of at least"),
        (("--settings", "coco"), "settings of the name default, videocutler, s2d, got 'coco'"),
        (("--precision", "fp16"), "precision that this CPU computes in"),
        (("--precision", "int8"), "precision of fp32, bf16, fp16, got 'int8'"),
        (("--device", "abacus"), "device such as cpu or cuda, got 'abacus'"),
        (("--weights", "missing.pth"), "checkpoint file, got missing.pth"),
    ],
)
def test_bad_options_are_one_sentence(clip_path, weights, tmp_path, options, sentence):
    result = call(clip_path, "--weights", weights, "-q", "-o", tmp_path / "out" / "tracks.json", *options)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.startswith("s2d: expected")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_real_video(test_data, weights, tmp_path):
    video = test_data / "data" / "clips" / "koala" / "video.mp4"
    options = ("--weights", weights, "--settings", "videocutler", "--window", 32, "-q", "-o", tmp_path / "koala.json")
    result = call(video, *options)
    assert result.exit_code == 0, result.stderr
    tracks = read(tmp_path / "koala.json")
    assert (tracks.num_frames, tracks.size) == (100, (480, 854))
    assert len(tracks) >= 10
    assert tracks.annotated.any(1).all()
