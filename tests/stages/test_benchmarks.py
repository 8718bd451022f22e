"""`s2d evaluate` with the metrics of the benchmarks: all forms of input, tables, intervals, comparison, refusals."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from s2d.cli import app
from s2d.data.label_maps import write_label_maps
from s2d.data.types import Tracks
from s2d.data.video import open_video, write_video
from s2d.data.ytvis import write_ytvis, ytvis_dict
from s2d.errors import InputError
from s2d.ops import rle_encode
from s2d.stages.evaluate import benchmark

FRAMES, SIZE = 5, (48, 64)


def tracks(video, shift=0, number=2, frames=FRAMES, size=SIZE):
    """Boxes side by side, moved to the right by some pixels."""
    masks = torch.zeros(number, frames, *size, dtype=torch.bool)
    for n in range(number):
        masks[n, :, 8:40, 4 + 30 * n + shift : 24 + 30 * n + shift] = True
    annotated = torch.ones(number, frames, dtype=torch.bool)
    scores = torch.linspace(0.9, 0.5, number)
    return Tracks(video, size, rle_encode(masks.flatten(0, 1)), annotated, scores)


TRUTH = [tracks("cat"), tracks("dog")]
SHIFTED = [tracks("cat", 4), tracks("dog")]


@pytest.fixture
def files(tmp_path):
    """The same truth as json and as folders of label maps, and predictions of which those for the cat are shifted."""
    write_ytvis(tmp_path / "truth.json", TRUTH)
    write_ytvis(tmp_path / "shifted.json", SHIFTED)
    for name, side in (("truth", TRUTH), ("shifted", SHIFTED)):
        for item in side:
            write_label_maps(tmp_path / name / item.video, item)
    for item in SHIFTED:
        write_ytvis(tmp_path / "runs" / item.video / "tracks.json", item)
    results = [
        {key: annotation[key] for key in ("video_id", "category_id", "segmentations", "score")}
        for annotation in ytvis_dict(SHIFTED)["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def quiet(predictions, truth, metric, **options):
    return benchmark(predictions, truth, metric, draws=20, progress=False, **options).scores


FORMS = [(p, t) for p in ("shifted.json", "shifted", "runs") for t in ("truth.json", "truth")]


# Results with ids need a truth with ids.
@pytest.mark.parametrize(("predictions", "truth"), [*FORMS, ("results.json", "truth.json")])
def test_all_forms_of_the_same_have_the_same_numbers(files, truth, predictions):
    scores = quiet(files / predictions, files / truth, "ytvis")
    # Boxes of 20 columns that are shifted by 4: 16 of 24 are shared, which is enough for 4 of 10 thresholds.
    assert scores.videos["cat"]["ap"] == pytest.approx(0.4)
    assert scores.videos["dog"]["ap"] == pytest.approx(1.0)
    assert [row["iou"] for row in scores.instances] == pytest.approx([2 / 3, 2 / 3, 1, 1])
    assert [row["found"] for row in scores.instances] == pytest.approx([0.4, 0.4, 1, 1])
    if predictions == "results.json":
        return
    scores = quiet(files / predictions, files / truth, "davis")
    assert scores.videos["cat"]["j_mean"] == pytest.approx(2 / 3)
    assert scores.videos["dog"]["j_and_f"] == 1


def test_in_memory_and_class_aware():
    with_classes, without = (quiet(SHIFTED, TRUTH, "ytvis", classes=classes).overall for classes in (True, False))
    assert with_classes == pytest.approx(without, nan_ok=True)
    assert quiet(SHIFTED, TRUTH, "davis").overall["j_mean"] == pytest.approx((2 / 3 + 1) / 2)
    for metric in ("davis-semi", "davis16"):
        assert quiet(TRUTH, TRUTH, metric).overall["j_and_f"] == 1


def test_semi_supervised_objects_are_not_assigned(files):
    swapped = [
        Tracks(t.video, t.size, t.rle[torch.arange(2 * FRAMES).roll(FRAMES)], t.annotated, t.scores) for t in TRUTH
    ]
    assert quiet(swapped, TRUTH, "davis").overall["j_mean"] == 1
    assert quiet(swapped, TRUTH, "davis-semi").overall["j_mean"] == 0


def test_categories_count_if_asked(files):
    results = json.loads((files / "results.json").read_text())
    (files / "other.json").write_text(json.dumps([{**result, "category_id": 2} for result in results]))
    truth = json.loads((files / "truth.json").read_text())
    truth["categories"].append({"id": 2, "name": "other"})
    (files / "truth.json").write_text(json.dumps(truth))
    assert quiet(files / "other.json", files / "truth.json", "ytvis").overall["ap50"] == pytest.approx(1)
    assert quiet(files / "other.json", files / "truth.json", "ytvis", classes=True).overall["ap50"] == 0


def test_crowds_and_ignored_videos_do_not_count(files):
    truth = json.loads((files / "truth.json").read_text())
    truth["videos"][0]["ignore"] = True
    (files / "ignored.json").write_text(json.dumps(truth))
    scores = quiet(files / "shifted.json", files / "ignored.json", "ytvis")
    assert (list(scores.videos), scores.overall["ap"]) == (["dog"], pytest.approx(1))
    assert "1 videos" in scores.notes[1]
    truth["videos"][0]["ignore"] = False
    truth["annotations"][0]["iscrowd"] = 1
    (files / "crowd.json").write_text(json.dumps(truth))
    rows = quiet(files / "shifted.json", files / "crowd.json", "ytvis").instances
    assert [row["ignored"] for row in rows] == [True, False, False, False]


def test_coco_results_of_masks_and_of_boxes(tmp_path):
    truth = {
        "images": [{"id": 1, "height": 8, "width": 8, "file_name": "one.jpg"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 5], "area": 16, "iscrowd": 0}
            | {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
        ],
    }
    result = {"image_id": 1, "category_id": 1, "score": 0.5}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for name, extra in (
        ("boxes", {"bbox": [0, 0, 4, 5]}),
        ("masks", {"segmentation": {"size": [8, 8], "counts": [0, 64]}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps([result | extra]))
    assert quiet(tmp_path / "boxes.json", tmp_path / "truth.json", "coco").overall["ap"] == pytest.approx(1)
    scores = quiet(tmp_path / "masks.json", tmp_path / "truth.json", "coco")
    assert scores.overall["ap"] == 0
    assert scores.instances[0]["iou"] == 0.25
    assert math.isnan(scores.overall["ap_large"])
    assert scores.videos["one.jpg"]["ap"] == 0


def test_intervals_are_those_of_drawn_videos():
    scores = benchmark(SHIFTED, TRUTH, "davis", draws=200, seed=3, progress=False).scores
    assert set(scores.samples["j_mean"].round(6)) == {0.666667, 0.833333, 1.0}
    assert scores.intervals()["j_mean"] == pytest.approx((2 / 3, 1))
    again = benchmark(SHIFTED, TRUTH, "davis", draws=200, seed=3, progress=False).scores
    np.testing.assert_array_equal(scores.samples["j_mean"], again.samples["j_mean"])
    drawn = benchmark(SHIFTED, TRUTH, "ytvis", draws=50, progress=False).scores
    # Weights of videos stand for copies of them.
    copies = [Tracks(f"{t.video}{n}", t.size, t.rle, t.annotated, t.scores) for t in TRUTH[:1] for n in range(2)]
    found = [Tracks(f"{t.video}{n}", t.size, t.rle, t.annotated, t.scores) for t in SHIFTED[:1] for n in range(2)]
    assert drawn.samples["ap"].min() == pytest.approx(quiet(found, copies, "ytvis").overall["ap"])


@pytest.mark.parametrize("suffix", ["json", "csv", "md"])
def test_everything_is_written(files, suffix):
    out = files / f"scores.{suffix}"
    result = invoke(
        files / "shifted.json",
        files / "truth.json",
        "--metric",
        "davis",
        "-o",
        out,
        "--compare",
        files / "truth.json",
        "-q",
    )
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    text = out.read_text()
    if suffix == "json":
        data = json.loads(text)
        assert data["videos"]["dog"]["j_mean"] == 1
        assert data["instances"][0]["video"] == "cat"
        assert data["comparison"]["videos"]["cat"]["change"] < 0
        assert len(data["intervals"]["j_and_f"]) == 2
    elif suffix == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["level"] for row in rows] == ["all", "video", "video", *["instance"] * 4]
        assert float(rows[1]["j_mean"]) == pytest.approx(2 / 3)
    else:
        assert "| cat | 1.000 |" in text
        assert "## Instances" in text


def test_two_results_are_compared_with_pictures(files, tmp_path):
    frames = torch.full((FRAMES, 3, *SIZE), 90, dtype=torch.uint8)
    write_video(files / "frames/cat.mp4", frames, 10)
    arguments = (files / "truth.json", files / "truth.json", "--metric", "ytvis", "--compare", files / "shifted.json")
    result = invoke(*arguments, "--frames", files / "frames", "--overlays", files / "pictures")
    assert result.exit_code == 0, result.stderr
    assert "1 videos got better, 0 worse, 1 did not change." in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["cat", "0.400", "1.000", "+0.600"] in lines
    assert "nan" not in result.stdout  # there is no large object
    # The dog did not change and needs no frames.
    assert [path.name for path in (files / "pictures").iterdir()] == ["cat.mp4"]
    painted = open_video(files / "pictures/cat.mp4")
    assert (painted.num_frames, painted.size) == (FRAMES, (SIZE[0], 2 * SIZE[1] + 8))
    refused = invoke(*arguments, "--overlays", files / "pictures")
    assert "expected --compare and --frames for --overlays" in refused.stderr


def refusal(predictions, truth, metric="davis", **options):
    with pytest.raises(InputError) as refused:
        quiet(predictions, truth, metric, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_refused_in_a_sentence(files):
    assert "ground truth (cat, dog), got 'cow'" in refusal([tracks("cow"), *TRUTH], TRUTH)
    assert "ground truth (cat, dog), got 'cow'" in refusal([tracks("cow"), *TRUTH], TRUTH, "ytvis")
    assert "sequence 'dog', got none" in refusal(TRUTH[:1], TRUTH)
    assert "(5, 48, 64) of sequence 'cat', got (4, 48, 64)" in refusal([tracks("cat", frames=4), TRUTH[1]], TRUTH)
    assert "at most 2 tracks of sequence 'cat', got 3" in refusal([tracks("cat", -4, 3), TRUTH[1]], TRUTH, "davis-semi")
    write_ytvis(files / "short.json", [tracks("cat", frames=4), TRUTH[1]])
    assert "5 masks, one a frame, of video 'cat', instance 1," in refusal(
        files / "short.json", files / "truth.json", "ytvis"
    )
    write_ytvis(files / "large.json", [tracks("cat", size=(48, 66)), TRUTH[1]])
    text = refusal(files / "large.json", files / "truth.json", "ytvis")
    assert "video 'cat', instance 1, in the results, got [48, 66] in frame 0" in text
    (files / "shifted/dog/00003.png").unlink()
    assert "frame '00003' of sequence 'dog'" in refusal(files / "shifted", files / "truth")
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[0, 0] = 21
    Image.fromarray(labels).save(files / "shifted/dog/00003.png")
    assert "at most 20 in frame '00003' of sequence 'dog'" in refusal(files / "shifted", files / "truth")
    assert "one of ytvis, coco, davis, davis-semi, davis16, got 'x'" in refusal(TRUTH, TRUTH, "x")
    assert "(cat, dog), got 'cow'" in refusal(files / "shifted.json", files / "truth.json", "ytvis", video="cow")
    results = json.loads((files / "results.json").read_text())
    for change, words in (
        ({"video_id": 9}, "video_id of result 1 in the results to be one of the videos, got 9"),
        ({"score": float("nan")}, "got nan for result 1 of video 'cat'"),
    ):
        (files / "broken.json").write_text(json.dumps([{**results[0], **change}]))
        assert words in refusal(files / "broken.json", files / "truth.json", "ytvis")
    twice = ytvis_dict(TRUTH)
    twice["annotations"][1]["id"] = 1
    (files / "twice.json").write_text(json.dumps(twice))
    assert "annotations with different ids" in refusal(files / "shifted.json", files / "twice.json", "ytvis")


def test_the_command_line_refuses_what_it_cannot_do(files):
    arguments = files / "shifted.json", files / "truth.json"
    assert ".json, .csv, .md, got x.txt" in invoke(*arguments, "--metric", "ytvis", "-o", "x.txt").stderr
    assert "for --output, got all" in invoke(*arguments, "-o", files / "x.json").stderr
    assert (
        "got coco"
        in invoke(*arguments, "--metric", "coco", "--compare", "a", "--frames", "a", "--overlays", "b").stderr
    )
