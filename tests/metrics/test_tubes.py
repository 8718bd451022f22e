from __future__ import annotations

import pytest
import torch

from s2d.metrics import at_size, match_tubes, mean_tube_iou, tube_iou


def test_tube_iou_counts_all_voxels_at_once(make_tracks, blobs):
    generator = torch.Generator().manual_seed(0)
    a, b = blobs(generator, 3, 20), blobs(generator, 4, 20)
    expected = torch.tensor(
        [[float((p & g).sum()) / max(float((p | g).sum()), 1.0) for g in b] for p in a], dtype=torch.float64
    )
    assert torch.allclose(tube_iou(make_tracks(a), make_tracks(b)), expected, atol=0, rtol=1e-15)


def test_tube_iou_of_empty_tubes_is_zero(make_tracks):
    empty = torch.zeros(1, 3, 8, 8)
    assert float(tube_iou(make_tracks(empty), make_tracks(empty))) == 0.0


def test_frames_that_one_side_lacks_count_in_the_union(make_tracks):
    truth = torch.ones(1, 4, 8, 8)
    half = truth.clone()
    half[:, 2:] = 0
    assert float(tube_iou(make_tracks(half), make_tracks(truth))) == 0.5


def test_sizes_that_differ_are_refused(make_tracks):
    with pytest.raises(ValueError, match="equal frames, height and width"):
        tube_iou(make_tracks(torch.ones(1, 2, 8, 8)), make_tracks(torch.ones(1, 2, 8, 9)))


def test_matching_maximises_the_sum_and_not_each_step():
    # Greedy would take 0.9 and leave 0.1; the best sum is 0.8 + 0.8.
    assert match_tubes(torch.tensor([[0.9, 0.8], [0.8, 0.1]])) == [(1, 0), (0, 1)]


def test_mean_tube_iou_counts_missed_instances_as_zero(make_tracks):
    truth = torch.zeros(2, 3, 8, 8)
    truth[0, :, :4], truth[1, :, 4:] = 1, 1
    assert mean_tube_iou(make_tracks(truth[:1]), make_tracks(truth)) == 0.5
    assert mean_tube_iou(make_tracks(truth.flip(0)), make_tracks(truth)) == 1.0
    assert mean_tube_iou(make_tracks(truth[:0]), make_tracks(truth)) == 0.0


def test_mean_tube_iou_of_no_truth_is_not_a_number(make_tracks):
    truth = torch.zeros(0, 3, 8, 8)
    assert mean_tube_iou(make_tracks(truth), make_tracks(truth)) != mean_tube_iou(
        make_tracks(truth), make_tracks(truth)
    )


def test_at_size_repeats_pixels_and_comes_back(make_tracks, blobs):
    masks = blobs(torch.Generator().manual_seed(1), 2, 18)
    tracks = make_tracks(masks, scores=[0.25, 0.5])
    large = at_size(tracks, (40, 140))
    assert large.size == (40, 140)
    assert torch.equal(large.annotated, tracks.annotated)
    assert float(tube_iou(large, make_tracks(masks.repeat_interleave(2, 2).repeat_interleave(2, 3)))[0, 0]) == 1.0
    back = at_size(large, (20, 70))
    assert torch.equal(back.rle.counts, tracks.rle.counts)
    assert at_size(tracks, tracks.size) is tracks
