from __future__ import annotations

import dataclasses

import pytest
import torch

from s2d.metrics import link_greedily
from s2d.ops import unpack_masks


def box(x, width=8, size=(12, 64)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[2:10, x : x + width] = True
    return mask


def test_two_moving_boxes_become_two_tracks(make_frame_masks):
    items = [(t, box(4 + t), 0.5) for t in range(6)] + [(t, box(50 - t), 1.0) for t in range(6)]
    tracks = link_greedily(make_frame_masks(items, 6))
    assert tracks.annotated.all()
    assert tracks.scores.tolist() == [1.0, 0.5]
    masks = torch.stack([torch.stack([box(50 - t) for t in range(6)]), torch.stack([box(4 + t) for t in range(6)])])
    assert torch.equal(unpack_masks(tracks.bits()), masks)


def test_a_short_gap_is_bridged_and_a_long_one_is_not(make_frame_masks):
    seen = make_frame_masks([(t, box(10), 1.0) for t in (0, 3, 4)], 8)
    bridged = link_greedily(seen, max_gap=2)
    assert len(bridged) == 1
    assert bridged.annotated[0].nonzero().flatten().tolist() == [0, 3, 4]
    assert bridged.scores[0] == pytest.approx(3 / 8)
    assert len(link_greedily(seen, max_gap=1)) == 2


def test_the_better_overlap_wins_and_one_mask_serves_one_track(make_frame_masks):
    items = [(0, box(10), 1.0), (0, box(14), 1.0), (1, box(13), 1.0)]
    tracks = link_greedily(make_frame_masks(items, 2), iou_threshold=0.1)
    assert tracks.annotated.tolist() == [[True, True], [True, False]]
    assert int(tracks.bits().words[0, 0, 5].item()) == (0xFF << 14)


def test_no_masks_give_no_tracks(make_frame_masks):
    masks = make_frame_masks([(0, box(0), 1.0)], 3)
    empty = dataclasses.replace(masks, rle=masks.rle[[]], frames=masks.frames[:0], scores=masks.scores[:0])
    tracks = link_greedily(empty)
    assert len(tracks) == 0
    assert tracks.annotated.shape == (0, 3)
