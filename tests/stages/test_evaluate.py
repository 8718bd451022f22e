"""Pairing of predictions with ground truth, and the report."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from s2d.data.types import Tracks
from s2d.errors import InputError
from s2d.metrics import average_precision
from s2d.ops import rle_encode
from s2d.stages.evaluate import evaluate


def one_box(video="a", size=(12, 20), frames=4, left=2):
    masks = torch.zeros(1, frames, *size, dtype=torch.bool)
    masks[:, :, size[0] // 4 : size[0] // 2, left : left + size[1] // 4] = True
    return Tracks(video, size, rle_encode(masks[0]), torch.ones(1, frames, dtype=torch.bool), torch.ones(1))


def test_numbers_of_two_videos():
    truth = [one_box("a"), one_box("b")]
    # Six rows of three pixels against five of them shifted by one: 4 of 6 columns are shared.
    report = evaluate([one_box("b", left=3), one_box("a")], truth)
    assert report.videos["a"] == {"mean_tube_iou": 1.0, "j": 1.0, "j_recall": 1.0}
    assert report.videos["b"]["j"] == pytest.approx(4 / 6)
    assert report.overall["mean_tube_iou"] == pytest.approx((1 + 4 / 6) / 2)
    assert report.overall["ap50"] == pytest.approx(1.0)
    assert report.notes == ()
    text = report.text().splitlines()
    assert text[0].split() == ["video", "mean_tube_iou", "j", "j_recall"]
    assert text[4].split() == ["mean", "0.833", "0.833", "1.000"]


@pytest.mark.parametrize(("metric", "names"), [("tube", {"mean_tube_iou"}), ("j", {"j", "j_recall"})])
def test_one_metric_alone(metric, names):
    report = evaluate([one_box()], [one_box()], metric)
    assert set(report.videos["a"]) == names
    assert set(report.overall) == names


def test_ytvis_alone_has_no_numbers_of_single_videos():
    report = evaluate([one_box()], [one_box()], "ytvis")
    assert report.videos == {}
    assert report.text().splitlines()[0].split() == ["all", "videos", *vars(average_precision([]))]


def test_a_single_video_needs_no_name_and_others_do():
    assert evaluate([one_box("x")], [one_box("y")]).overall["j"] == 1.0
    with pytest.raises(InputError, match=r"ground truth \(a, b\), got 'x'.*--video"):
        evaluate([one_box("x")], [one_box("a"), one_box("b")])
    with pytest.raises(InputError, match="several of 'a'"):
        evaluate([one_box("a"), one_box("a")], [one_box("a"), one_box("b")])


def test_videos_without_predictions_are_told():
    report = evaluate([one_box("a")], [one_box("a"), one_box("b")])
    assert report.notes == ("1 of 2 videos of the ground truth have no predictions and do not count.",)


def test_another_size_of_the_same_shape_is_scaled_and_told():
    report = evaluate([one_box(size=(24, 40), left=4)], [one_box()])
    assert report.overall["j"] == 1.0
    assert "24 x 40" in report.notes[0]
    with pytest.raises(InputError, match="shape of 'a', 12 x 20, got 24 x 24"):
        evaluate([one_box(size=(24, 24))], [one_box()])
    with pytest.raises(InputError, match="4 frames of 'a', got 5"):
        evaluate([one_box(frames=5)], [one_box()])


def test_no_tracks_score_zero():
    empty = dataclasses.replace(
        one_box(), rle=one_box().rle[[]], annotated=torch.zeros(0, 4, dtype=torch.bool), scores=torch.zeros(0)
    )
    report = evaluate([empty], [one_box()])
    assert (report.overall["mean_tube_iou"], report.overall["j"], report.overall["ap"]) == (0.0, 0.0, 0.0)
