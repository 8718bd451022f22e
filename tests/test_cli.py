"""The command line: what it prints, and with which exit code it ends."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import s2d
from s2d import cli
from s2d.data.types import Tracks
from s2d.data.video import write_video
from s2d.data.ytvis import write_ytvis
from s2d.ops import rle_encode

COMMANDS = ("doctor", "run", "propose", "discover", "merge", "distill", "predict", "evaluate", "bench")


@pytest.fixture
def invoke():
    def call(*arguments):
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def tracks():
    masks = torch.zeros(1, 4, 12, 20, dtype=torch.bool)
    masks[:, :, 2:8, 3:9] = True
    return Tracks("clip", (12, 20), rle_encode(masks[0]), torch.ones(1, 4, dtype=torch.bool), torch.tensor([0.9]))


def test_help_lists_every_command_without_loading_the_stages(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in COMMANDS)
    code = "import sys, s2d.cli; print(sum(m.startswith('s2d.stages') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "0"


def test_python_m_s2d_is_the_command():
    result = subprocess.run([sys.executable, "-m", "s2d", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"s2d {s2d.__version__}\n")


def test_doctor_reports(invoke):
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "bitmask" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "missing.mp4", "-o", "{out}"), "no such file"),
        (("run", "-o", "{out}"), "got neither"),
        (("run", "missing.mp4", "--demo", "-o", "{out}"), "got both"),
        (("run", "--demo", "--recipe", "huge", "-o", "{out}"), "expected a recipe"),
        (("run", "{text}", "-o", "{out}"), "video"),
        (("run", "{text}", "--decoder", "vhs", "-o", "{out}"), "decoder"),
        (("run", "{text}", "--decoder", "dali", "-o", "{out}"), "dali"),
        (("propose", "missing.mp4", "-o", "{out}"), "no such file"),
        (("discover", "missing.mp4", "masks", "-o", "{out}"), "no such file"),
        (("merge", "missing", "-o", "{out}"), "no folder"),
        (("distill", "missing.mp4", "keymasks.json", "-o", "{out}"), "no such file"),
        (("predict", "missing.mp4", "--weights", "model.pt", "-o", "{out}"), "no such file"),
        (("evaluate", "missing.json", "truth.json"), "no such file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(invoke, tmp_path, arguments, sentence):
    (tmp_path / "text.mp4").write_text("this is no video")
    places = {"out": tmp_path / "out", "text": tmp_path / "text.mp4"}
    result = invoke(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2, result.stderr
    assert result.stderr.startswith("s2d: expected")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_interrupt_says_how_to_go_on(monkeypatch, invoke, tmp_path):
    from s2d.stages import run as run_module

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run", interrupted)
    result = invoke("run", "--demo", "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "\ns2d: interrupted; the same command with --resume continues\n"


def test_run_closes_with_tables(monkeypatch, invoke, tmp_path, tracks):
    from s2d.stages import run as run_module

    measures = {"propose": {"seconds": 1.25, "peak_mb": 300.0}, "render": {"seconds": 2.0, "peak_mb": 1200.0}}
    finished = run_module.RunResult(tmp_path / "out", tracks, measures, ("a note",), 0.8125)
    seen = {}
    monkeypatch.setattr(run_module, "run", lambda *args, **kwargs: seen.update(kwargs, args=args) or finished)
    result = invoke("run", "--demo", "-o", tmp_path / "out", "--seed", 3, "--threads", 2, "--decoder", "pyav")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert "1          0.90     4/4              36" in lines
    assert "together      3.2" in lines
    assert "note: a note" in lines
    assert "mean tube IoU with the ground truth: 0.812" in lines
    settings = seen["args"][2]
    assert (settings.seed, settings.threads, settings.decoder) == (3, 2, "pyav")
    quiet = invoke("run", "--demo", "-o", tmp_path / "out", "--quiet")
    assert quiet.output == "a note\n"


def test_evaluate_prints_the_numbers(invoke, tmp_path, tracks):
    write_ytvis(tmp_path / "truth.json", tracks)
    run_folder = tmp_path / "runs/clip"
    run_folder.mkdir(parents=True)
    write_ytvis(run_folder / "tracks.json", tracks)
    for predictions in (run_folder / "tracks.json", run_folder, tmp_path / "runs"):
        result = invoke("evaluate", predictions, tmp_path / "truth.json")
        assert result.exit_code == 0, result.stderr
        assert result.output.splitlines()[2].split() == ["clip", "1.000", "1.000", "1.000"]
    other = dataclasses.replace(tracks, video="video")
    write_ytvis(run_folder / "tracks.json", other)
    write_ytvis(tmp_path / "truth.json", [tracks, dataclasses.replace(tracks, video="another")])
    assert invoke("evaluate", run_folder, tmp_path / "truth.json").exit_code == 2
    assert invoke("evaluate", run_folder, tmp_path / "truth.json", "--video", "clip").exit_code == 0
    assert "got 'cat'" in invoke("evaluate", run_folder, tmp_path / "truth.json", "--video", "cat").stderr
    refused = invoke("evaluate", run_folder, tmp_path / "truth.json", "--video", "clip", "--metric", "x")
    assert "one of all, tube, j, ytvis" in refused.stderr


def test_a_truncated_video_is_told(invoke, tmp_path):
    frames = torch.randint(0, 255, (40, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "whole.mp4", frames, 25)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "broken.json").write_text("{")
    result = invoke("discover", tmp_path / "cut.mp4", tmp_path / "broken.json", "-o", tmp_path / "keymasks.json")
    assert result.exit_code == 2
    assert "of 40 frames: the file ends early" in result.stderr
