"""Whole runs around stand-ins for the stages: order, files, resume, refusals."""

from __future__ import annotations

import dataclasses
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from s2d.data.ytvis import read_ytvis
from s2d.errors import InputError
from s2d.metrics import tube_iou
from s2d.stages.run import NOTHING_MOVES, PRODUCTS, RunSettings, run

STAGES = ["propose", "discover", "distill", "predict", "render"]


@pytest.fixture
def settings():
    return RunSettings(threads=1, working_short_side=24)


def test_a_run_leaves_every_result(clip_path, tmp_path, stand_ins, settings):
    out = tmp_path / "out"
    result = run(clip_path, out, settings, progress=False)
    assert stand_ins.calls == STAGES
    assert {path.name for path in out.iterdir()} == {*PRODUCTS, "work"} - {"demo.mp4", "ground_truth.json"}
    assert {path.name for path in (out / "work").iterdir()} == {"proposals.json", "state.json"}
    assert len(result.tracks) == 2
    assert list(result.measures) == STAGES
    assert result.notes == ()
    assert result.mean_tube_iou is None


def test_json_results_are_whole_dictionaries(clip_path, tmp_path, stand_ins, settings):
    run(clip_path, tmp_path / "out", settings, progress=False)
    for name, size in (("tracks.json", (48, 80)), ("keymasks.json", (24, 40))):
        content = json.loads((tmp_path / "out" / name).read_text())
        assert {"info", "videos", "categories", "annotations"} <= set(content)
        assert (content["videos"][0]["height"], content["videos"][0]["width"]) == size
        assert all(0 < annotation["score"] <= 1 for annotation in content["annotations"])
    assert read_ytvis(tmp_path / "out/keymasks.json")[0].annotated.sum() == 6


def test_run_json_says_how_it_was_made(clip_path, tmp_path, stand_ins, settings):
    run(clip_path, tmp_path / "out", settings, progress=False)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["decoder"] == "pyav"
    assert (record["seed"], record["threads"], record["instances"]) == (0, 1, 2)
    assert record["input"] | {"path": None} == {
        "path": None,
        "name": "clip",
        "height": 48,
        "width": 80,
        "frames": 6,
        "fps": "10",
    }
    assert record["versions"]["torch"] == torch.__version__
    assert all(stage["seconds"] >= 0 and stage["peak_mb"] > 10 for stage in record["stages"].values())


def test_pictures_have_the_size_and_rate_of_the_video(clip_path, tmp_path, stand_ins, settings):
    run(clip_path, tmp_path / "out", settings, progress=False)
    with av.open(str(tmp_path / "out/overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.height, stream.width, stream.average_rate) == ("h264", 48, 80, 10)
        assert sum(1 for _ in container.decode(stream)) == 6
    maps = sorted((tmp_path / "out/masks").iterdir())
    assert len(maps) == 6
    with Image.open(maps[0]) as image:
        assert image.mode == "P"
        labels = np.asarray(image)
    assert labels.shape == (48, 80)
    assert np.unique(labels).tolist() == [0, 1, 2]
    with Image.open(tmp_path / "out/timeline.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_continues_where_it_was(clip_path, tmp_path, stand_ins, settings, stage):
    run(clip_path, tmp_path / "whole", settings, progress=False)
    stand_ins.calls.clear()
    stand_ins.interrupt = stage
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(clip_path, out, settings, progress=False)
    assert not (out / "run.json").exists()
    with pytest.raises(InputError, match=r"unfinished job in .*--resume"):
        run(clip_path, out, settings, progress=False)
    stand_ins.interrupt = None
    done = STAGES.index(stage)
    result = run(clip_path, out, settings, resume=True, progress=False)
    assert stand_ins.calls == STAGES[: done + 1] + STAGES[done:]
    assert (out / "tracks.json").read_bytes() == (tmp_path / "whole/tracks.json").read_bytes()
    assert (out / "keymasks.json").read_bytes() == (tmp_path / "whole/keymasks.json").read_bytes()
    assert list(result.measures) == STAGES


@pytest.mark.parametrize("stage", ["propose", "distill", "predict"])
def test_partial_work_is_handed_back_to_the_stage(clip_path, tmp_path, stand_ins, settings, stage):
    stand_ins.interrupt = stage
    with pytest.raises(KeyboardInterrupt):
        run(clip_path, tmp_path / "out", settings, progress=False)
    stand_ins.interrupt = None
    seen = []
    original = stand_ins.calls.append
    stand_ins.calls = type("Calls", (list,), {"append": lambda self, name: seen.append(name) or original(name)})()
    assert (tmp_path / "out/work" / stage / "half-done").exists()
    run(clip_path, tmp_path / "out", settings, resume=True, progress=False)
    assert seen[0] == stage
    assert not (tmp_path / "out/work" / stage).exists()


def test_resume_of_a_finished_run_computes_nothing(clip_path, tmp_path, stand_ins, settings):
    first = run(clip_path, tmp_path / "out", settings, progress=False)
    stand_ins.calls.clear()
    again = run(clip_path, tmp_path / "out", settings, resume=True, progress=False)
    assert stand_ins.calls == []
    assert again.measures == first.measures


def test_resume_where_nothing_is_begins(clip_path, tmp_path, stand_ins, settings):
    run(clip_path, tmp_path / "out", settings, resume=True, progress=False)
    assert stand_ins.calls == STAGES


def test_resume_refuses_other_settings_and_another_input(clip_path, tmp_path, stand_ins, settings):
    stand_ins.interrupt = "distill"
    with pytest.raises(KeyboardInterrupt):
        run(clip_path, tmp_path / "out", settings, progress=False)
    with pytest.raises(InputError, match=r"settings.seed 7 instead of 0"):
        run(clip_path, tmp_path / "out", RunSettings(threads=1, working_short_side=24, seed=7), resume=True)
    with pytest.raises(InputError, match=r"settings.threads 2 instead of 1"):
        run(clip_path, tmp_path / "out", RunSettings(threads=2, working_short_side=24), resume=True)
    other = tmp_path / "other.mp4"
    other.write_bytes(clip_path.read_bytes() + b"\0" * 8)
    with pytest.raises(InputError, match=r"input.bytes"):
        run(other, tmp_path / "out", settings, resume=True)


def test_results_are_never_replaced_without_being_told(clip_path, tmp_path, stand_ins, settings):
    out = tmp_path / "out"
    run(clip_path, out, settings, progress=False)
    before = (out / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"got results in .*--overwrite"):
        run(clip_path, out, settings, progress=False)
    assert (out / "run.json").read_bytes() == before
    with pytest.raises(InputError, match="got both"):
        run(clip_path, out, settings, overwrite=True, resume=True)
    (out / "masks/stale.png").touch()
    run(clip_path, out, settings, overwrite=True, progress=False)
    assert not (out / "masks/stale.png").exists()


def test_overwrite_spares_foreign_files_and_its_own_input(clip_path, tmp_path, stand_ins, settings):
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks/mine.png").touch()
    with pytest.raises(InputError, match="s2d did not write"):
        run(clip_path, out, settings, overwrite=True)
    assert (out / "masks/mine.png").exists()
    run(clip_path, tmp_path / "done", settings, progress=False)
    with pytest.raises(InputError, match="does not delete"):
        run(tmp_path / "done/overlay.mp4", tmp_path / "done", settings, overwrite=True)
    assert (tmp_path / "done/overlay.mp4").exists()


def test_a_bad_video_does_not_cost_earlier_results(clip_path, tmp_path, stand_ins, settings):
    out = tmp_path / "out"
    run(clip_path, out, settings, progress=False)
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "missing.mp4", out, settings, overwrite=True)
    assert (out / "tracks.json").exists()


def test_a_place_that_cannot_be_written_is_refused_first(clip_path, tmp_path, stand_ins, settings):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="got a file"):
        run(clip_path, tmp_path / "file", settings)
    with pytest.raises(InputError, match="does not exist"):
        run(clip_path, tmp_path / "no/such", settings)
    with pytest.raises(InputError, match="can be written to"):
        run(clip_path, "/proc/s2d", settings)
    assert stand_ins.calls == []


def test_a_refused_run_leaves_no_folder(tmp_path, stand_ins, settings):
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "missing.mp4", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_one_frame_is_refused(tmp_path, stand_ins, settings):
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (40, 32)).save(folder / "0.png")
    with pytest.raises(InputError, match="at least 2 frames, got 1"):
        run(folder, tmp_path / "out", settings)


def test_where_nothing_moves_the_results_are_empty_and_whole(clip_path, tmp_path, stand_ins, settings):
    stand_ins.empty = True
    out = tmp_path / "out"
    result = run(clip_path, out, settings, progress=False)
    assert stand_ins.calls == ["propose", "render"]
    assert result.notes == (NOTHING_MOVES,)
    for name in ("tracks.json", "keymasks.json"):
        assert json.loads((out / name).read_text())["annotations"] == []
    assert len(list((out / "masks").iterdir())) == 6
    assert (out / "overlay.mp4").exists()
    assert (out / "timeline.png").exists()
    assert not (out / "model.pt").exists()
    assert json.loads((out / "run.json").read_text())["notes"] == [NOTHING_MOVES]


def test_masks_can_be_given_instead_of_found(clip_path, tmp_path, stand_ins, settings):
    run(clip_path, tmp_path / "first", settings, progress=False)
    stand_ins.calls.clear()
    found = tmp_path / "first" / "work" / "proposals.json"
    given = RunSettings(threads=1, working_short_side=24, proposals=str(found))
    run(clip_path, tmp_path / "second", given, progress=False)
    assert stand_ins.calls == STAGES[1:]
    first, second = (read_ytvis(tmp_path / name / "tracks.json")[0] for name in ("first", "second"))
    assert tube_iou(first, second).diagonal().tolist() == [1.0, 1.0]


def test_motion_is_chosen_by_its_word(clip_path, tmp_path, stand_ins, settings):
    run(clip_path, tmp_path / "out", settings, progress=False)
    assert stand_ins.motion.name == "dis"
    (tmp_path / "flow").mkdir()
    given = dataclasses.replace(settings, motion=f"files:{tmp_path}/flow")
    with pytest.raises(InputError, match=r"motion.prior 'files' instead of 'dis'"):
        run(clip_path, tmp_path / "out", given, resume=True, progress=False)
    run(clip_path, tmp_path / "other", given, progress=False)
    assert stand_ins.motion.name == "files"
    with pytest.raises(InputError, match=r"expected a motion prior \(dis, raft:WEIGHTS"):
        run(clip_path, tmp_path / "none", dataclasses.replace(settings, motion="guess"), progress=False)
    assert not (tmp_path / "none").exists()
