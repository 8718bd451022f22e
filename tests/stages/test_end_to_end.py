"""The real stages on a tiny generated clip, in one go and interrupted in each of them."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from typer.testing import CliRunner

from s2d.cli import app
from s2d.data.synthetic import SyntheticSettings, generate_clip
from s2d.data.video import write_video
from s2d.data.ytvis import read_ytvis, write_ytvis
from s2d.stages import predict as predict_module
from s2d.stages import propose as propose_module
from s2d.stages import render as render_module
from s2d.stages import run as run_module
from s2d.stages.predict import PredictSettings
from s2d.stages.propose import ProposeSettings
from s2d.stages.run import RunSettings, run
from s2d.training.trainer import Trainer

RECIPE = """
checkpoint_every = 2
[model]
depth = 10
width = 8
norm = "GN"
hidden_dim = 32
nheads = 2
mask_dim = 32
encoder_layers = 1
encoder_ffn = 32
decoder_layers = 3
decoder_ffn = 32
num_queries = 6
input_short_side = 64
[clips]
frames = 3
[loss]
match_class = 0.0
num_points = 256
[teacher]
momentum = 0.0
[optimizer]
learning_rate = 3e-3
clip_norm = 1.0
[[rounds]]
name = "sparse"
annotations = "keymasks"
steps = 6
distill_from = 4
[[rounds]]
name = "dense"
annotations = "predictions"
steps = 4
"""


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    """Ten frames of one large animal over the ground."""
    settings = SyntheticSettings(
        frames=10, size=(72, 120), objects=1, static_objects=0, object_size=(0.9, 1.0), occlusion=False, reentry=False
    )
    clip = generate_clip(settings, seed=3)
    path = tmp_path_factory.mktemp("input") / "animal.mp4"
    write_video(path, clip.video, clip.video.fps)
    write_ytvis(path.with_suffix(".json"), clip.tracks)
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    recipe.write_text(RECIPE)
    # A model that has hardly been trained is sure of nothing: a low threshold keeps its tracks.
    return RunSettings(
        recipe=str(recipe),
        seed=1,
        threads=1,
        propose=ProposeSettings(chunk=5, nodes=80, refined=3, margin=2),
        predict=PredictSettings(window=6, overlap=2, score_threshold=0.0),
    )


@pytest.fixture(scope="module")
def whole(clip_path, settings, tmp_path_factory):
    """The results of a run in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(clip_path, out, settings, progress=False)
    return out


def interrupt(monkeypatch, owner, name, call, how):
    """Let the ``call``-th call of ``owner.name`` be met by Ctrl-C: ``how`` is called before it."""
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            how()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def stop():
    raise KeyboardInterrupt


def control_c():
    signal.raise_signal(signal.SIGINT)


def test_a_run_in_one_go_makes_everything(whole, clip_path):
    tracks, keymasks = (read_ytvis(whole / name)[0] for name in ("tracks.json", "keymasks.json"))
    assert (tracks.size, tracks.num_frames) == ((72, 120), 10)
    assert len(keymasks) >= 1
    state = torch.load(whole / "model.pt", weights_only=True)
    assert state["config"]["num_queries"] == 6
    assert json.loads((whole / "run.json").read_text())["recipe"]["rounds"][1]["steps"] == 4
    assert {path.name for path in (whole / "work").iterdir()} == {"proposals.json", "state.json"}


@pytest.mark.parametrize(
    ("owner", "name", "call", "how"),
    [
        pytest.param(propose_module, "_propose_chunk", 2, stop, id="propose"),
        pytest.param(run_module, "discover", 1, stop, id="discover"),
        pytest.param(Trainer, "_one_step", 4, stop, id="distill, between checkpoints"),
        pytest.param(Trainer, "_one_step", 2, control_c, id="distill, first round, Ctrl-C"),
        pytest.param(Trainer, "_one_step", 8, control_c, id="distill, second round, Ctrl-C"),
        pytest.param(predict_module, "_predict_window", 3, stop, id="predict"),
        pytest.param(render_module, "draw_timeline", 1, stop, id="render"),
    ],
)
def test_interrupted_and_continued_gives_the_same_bytes(
    whole, clip_path, settings, tmp_path, monkeypatch, owner, name, call, how
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        calls = interrupt(patch, owner, name, call, how)
        with pytest.raises(KeyboardInterrupt):
            run(clip_path, out, settings, progress=False)
    assert len(calls) == call
    assert not (out / "run.json").exists()
    run(clip_path, out, settings, resume=True, progress=False)
    for file in ("tracks.json", "keymasks.json", "work/proposals.json", "masks/00007.png"):
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list(out.rglob("*.partial*"))


def test_the_commands_do_one_stage_each_and_pass_files_on(clip_path, settings, tmp_path):
    def s2d(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), "--threads", "1", "--quiet"])
        assert result.exit_code == 0, result.stderr
        return result

    proposals, keymasks, model, tracks = (
        tmp_path / name for name in ("proposals.json", "keymasks.json", "model.pt", "tracks.json")
    )
    s2d("propose", clip_path, "-o", proposals)
    s2d("discover", clip_path, proposals, "-o", keymasks)
    s2d("distill", clip_path, keymasks, "-o", model, "--recipe", settings.recipe)
    s2d("predict", clip_path, "--weights", model, "-o", tracks)
    made = {path.name for path in (proposals, keymasks, model, tracks)}
    assert {path.name for path in tmp_path.iterdir()} == made | {"model.pt.log"}
    assert len(read_ytvis(keymasks)[0]) >= 1
    assert read_ytvis(tracks)[0].size == (72, 120)
    table = CliRunner().invoke(app, ["evaluate", str(keymasks), str(clip_path.with_suffix(".json"))])
    assert float(table.output.splitlines()[2].split()[1]) > 0.3
    again = CliRunner().invoke(app, ["propose", str(clip_path), "-o", str(proposals)])
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
