from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from s2d import cli
from s2d.data.types import Keymasks
from s2d.data.ytvis import write_ytvis, ytvis_dict
from s2d.errors import InputError
from s2d.ops import rle_encode
from s2d.stages.merge import list_results, merge


def keymasks(video, number=2, one2x=0.0):
    """Instances with a mask in the first of two frames."""
    masks = torch.zeros(number * 2, 8, 12, dtype=torch.bool)
    masks[::2, 2:5, 3:9] = True
    annotated = torch.tensor([[True, False]] * number).reshape(number, 2)
    return Keymasks(
        video,
        (8, 12),
        rle_encode(masks),
        annotated,
        torch.linspace(0.9, 0.5, number),
        mask_scores=0.5 * annotated,
        one2x=torch.full((number,), one2x),
        visibility_ranges=(((0, 1),),) * number,
    )


@pytest.fixture
def folder(tmp_path):
    """Three videos, and what lies beside them in the results of a dataset."""
    videos = [keymasks("v1", 2, 0.25), keymasks("v2", 0), keymasks("v10", 3, 0.75)]
    for video in videos:
        write_ytvis(tmp_path / f"{video.video}.json", video)
    (tmp_path / "failed.json").write_text("[]")
    (tmp_path / "keymasks.json").write_text("old")
    (tmp_path / "work").mkdir()
    return tmp_path, videos


def test_merged_files_are_the_json_of_all_videos(folder):
    path, videos = folder
    merged = merge(list_results(path), path / "keymasks.json", progress=False)
    assert (merged.videos, merged.instances, merged.dropped) == (3, 5, 0)
    assert json.loads((path / "keymasks.json").read_text()) == ytvis_dict(videos)


@pytest.mark.parametrize(("most", "kept"), [(1.0, 5), (0.75, 5), (0.5, 2), (0.0, 0)])
def test_ambiguous_instances_are_dropped_and_ids_have_no_gap(folder, most, kept):
    path, _ = folder
    merged = merge(list_results(path), path / "out.json", one2x=most, progress=False)
    data = json.loads((path / "out.json").read_text())
    assert (merged.instances, merged.dropped) == (kept, 5 - kept)
    assert [annotation["id"] for annotation in data["annotations"]] == list(range(1, kept + 1))
    assert [video["id"] for video in data["videos"]] == [1, 2, 3]
    assert all(annotation["one2x"] <= most for annotation in data["annotations"])


def test_files_of_several_videos_and_of_others(tmp_path):
    """Official ground truth: no names, many categories, no one2x."""
    data = ytvis_dict([keymasks("a"), keymasks("b")])
    for video in data["videos"]:
        del video["name"]
        video["id"] += 40
    for annotation in data["annotations"]:
        annotation["video_id"] += 40
        annotation["category_id"] = 7
        del annotation["one2x"]
    (tmp_path / "both.json").write_text(json.dumps(data))
    write_ytvis(tmp_path / "c.json", keymasks("c"))
    merge([tmp_path / "both.json", tmp_path / "c.json"], tmp_path / "out.json", one2x=0.0, progress=False)
    merged = json.loads((tmp_path / "out.json").read_text())
    assert [annotation["video_id"] for annotation in merged["annotations"]] == [1, 1, 2, 2, 3, 3]
    assert {annotation["category_id"] for annotation in merged["annotations"]} == {1}
    write_ytvis(tmp_path / "d.json", keymasks("b"))
    with pytest.raises(InputError, match=r"each video in one file, got b in both\.json and d\.json"):
        merge([tmp_path / "both.json", tmp_path / "d.json"], tmp_path / "out.json", progress=False)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"videos": [{"name": "a"}]}', '{"videos": [{"id": 1}]}', '{"videos": 1}']
)
def test_what_cannot_be_merged_is_named_and_leaves_nothing(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    write_ytvis(tmp_path / "a.json", keymasks("a"))
    with pytest.raises(InputError, match=r"json in .*bad\.json"):
        merge(list_results(tmp_path), tmp_path / "out.json", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "bad.json"}


def test_memory_is_that_of_one_file(tmp_path):
    video = keymasks("v", 40)
    for n in range(60):
        write_ytvis(tmp_path / f"{n}.json", replace(video, video=f"v{n}"))
    size = (tmp_path / "0.json").stat().st_size
    tracemalloc.start()
    merge(list_results(tmp_path), tmp_path / "keymasks.json", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "keymasks.json").stat().st_size > 50 * size
    assert peak < 20 * size


def test_the_command(folder):
    path, _ = folder

    def invoke(*arguments):
        return CliRunner().invoke(cli.app, ["merge", *map(str, arguments)])

    result = invoke(path, "-o", path / "out.json", "--one2x", 0.5)
    assert (result.exit_code, result.stdout) == (0, "2 instances in 3 videos, without 3 that are ambiguous\n")
    for arguments, words in (
        ((path, "-o", path / "out.json"), "expected a place without results"),
        ((path / "none", "-o", path / "out2.json"), "expected a folder of json files"),
        ((path / "work", "-o", path / "out2.json"), "at least one json"),
        ((path, "-o", path / "out2.json", "--one2x", 2), "one2x in [0, 1], got 2"),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2
        assert words in refused.stderr
    assert invoke(path, "-o", path / "out.json", "--overwrite", "-q").stdout == ""
    assert len(json.loads((path / "out.json").read_text())["annotations"]) == 5
