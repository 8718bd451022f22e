from __future__ import annotations

import math

import pytest
import torch

from s2d.metrics import KeymaskQuality, keymask_quality

SIZE = (20, 40)


def box(x: int, width: int = 8) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[4:12, x : x + width] = True
    return mask


EMPTY = torch.zeros(SIZE, dtype=torch.bool)


@pytest.fixture
def truth(make_tracks):
    """Two instances, 16 pixels apart, in four frames."""
    return make_tracks(torch.stack([torch.stack([box(x + t) for t in range(4)]) for x in (0, 16)]))


def test_counts_of_a_small_case(truth, make_tracks, make_frame_masks):
    """Instance 0 has three right masks and one of the other object; instance 1 is a false mask; one frame is missed."""
    false = box(30, 6)
    items = [
        (0, box(0), 1.0),
        (1, box(1), 1.0),
        (2, box(2), 1.0),
        (3, box(19), 1.0),
        (0, false, 1.0),
        (1, box(17), 1.0),
    ]
    proposals = make_frame_masks(items, 4)
    found = make_tracks(
        torch.stack(
            [torch.stack([box(0), box(1), box(2), box(19)]), torch.stack([false, EMPTY, EMPTY, EMPTY])],
        )
    )
    quality = keymask_quality(found, proposals, truth)
    assert (quality.keymasks, quality.right, quality.recovered, quality.in_one_piece, quality.proposed) == (
        5,
        3,
        3,
        3,
        5,
    )
    assert (quality.objects_found, quality.objects_proposed, quality.instances, quality.proposals) == (1, 2, 2, 6)
    assert quality.purity == pytest.approx(3 / 5)
    assert quality.recall == pytest.approx(3 / 5)
    assert quality.f1 == pytest.approx(3 / 5)
    assert quality.objects == 0.5
    assert quality.mean_kept_iou == pytest.approx(4 / 5)
    assert quality.mean_dropped_iou == pytest.approx(1)


def test_two_halves_of_an_object_are_pure_but_not_in_one_piece(truth, make_tracks, make_frame_masks):
    proposals = make_frame_masks([(t, box(t), 1.0) for t in range(4)], 4)
    halves = torch.stack(
        [torch.stack([box(0), EMPTY, EMPTY, EMPTY]), torch.stack([EMPTY, box(1), box(2), box(3)])],
    )
    quality = keymask_quality(make_tracks(halves), proposals, truth)
    assert (quality.purity, quality.recall, quality.linked_recall, quality.objects) == (1, 1, 0.75, 1)


def test_a_proposal_shows_an_object_only_above_the_threshold(truth, make_tracks, make_frame_masks):
    """Half of the box: IoU 0.5 is not above 0.5."""
    proposals = make_frame_masks([(0, box(0, 4), 1.0), (1, box(1, 5), 1.0)], 4)
    found = make_tracks(torch.stack([box(0, 4), box(1, 5), EMPTY, EMPTY])[None])
    quality = keymask_quality(found, proposals, truth, threshold=0.5)
    assert (quality.keymasks, quality.right, quality.proposed) == (2, 1, 1)
    assert keymask_quality(found, proposals, truth, threshold=0.4).right == 2


def test_two_proposals_of_one_object_in_a_frame_are_one_true_mask(truth, make_tracks, make_frame_masks):
    proposals = make_frame_masks([(0, box(0), 1.0), (0, box(0, 7), 1.0)], 4)
    quality = keymask_quality(make_tracks(torch.stack([box(0), EMPTY, EMPTY, EMPTY])[None]), proposals, truth)
    assert (quality.proposed, quality.recovered) == (1, 1)
    assert quality.mean_dropped_iou == pytest.approx(7 / 8)


def test_nothing_found_and_nothing_true(truth, make_tracks, make_frame_masks):
    proposals = make_frame_masks([(0, box(0), 1.0)], 4)
    nothing = make_tracks(torch.zeros(0, 4, *SIZE))
    quality = keymask_quality(nothing, proposals, truth)
    assert (quality.recall, quality.f1, quality.mean_dropped_iou) == (0, 0, 1)
    assert math.isnan(quality.purity)
    found = make_tracks(torch.stack([box(0), EMPTY, EMPTY, EMPTY])[None])
    quality = keymask_quality(found, proposals, nothing)
    assert quality.purity == 0
    assert math.isnan(quality.recall)


def test_videos_add_up(truth, make_tracks, make_frame_masks):
    proposals = make_frame_masks([(0, box(0), 1.0), (1, box(30, 6), 1.0)], 4)
    found = make_tracks(torch.stack([box(0), box(30, 6), EMPTY, EMPTY])[None])
    one = keymask_quality(found, proposals, truth)
    both = one + one + KeymaskQuality()
    assert (both.keymasks, both.right, both.proposals) == (4, 2, 4)
    assert both.purity == one.purity


def test_other_sizes_are_refused(truth, make_tracks, make_frame_masks):
    proposals = make_frame_masks([(0, box(0), 1.0)], 5)
    with pytest.raises(ValueError, match="expected proposals of"):
        keymask_quality(make_tracks(torch.zeros(0, 4, *SIZE)), proposals, truth)
