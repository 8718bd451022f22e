from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from s2d.data.types import Tracks
from s2d.data.video import Video
from s2d.ops import rle_encode
from s2d.viz import OverlayPainter, instance_colour, write_overlay

GREY = 128


@pytest.fixture
def frame():
    return torch.full((3, 120, 160), GREY, dtype=torch.uint8)


@pytest.fixture
def square():
    mask = torch.zeros(1, 120, 160, dtype=torch.bool)
    mask[0, 30:100, 40:120] = True
    return mask


def tracks_of(masks):
    number, _, height, width = masks.shape
    rle = rle_encode(masks.reshape(-1, height, width))
    return Tracks("clip", (height, width), rle, masks.flatten(2).any(2), torch.ones(number))


def test_only_the_mask_and_its_rim_are_painted(frame, square):
    painted = OverlayPainter((120, 160)).paint(frame, square)
    changed = (painted != GREY).any(0)
    rim = torch.zeros_like(square[0])
    rim[24:106, 34:126] = True
    assert not (changed & ~rim).any()
    assert changed[square[0]].all()
    assert torch.equal(frame, torch.full_like(frame, GREY))


def test_the_fill_leans_to_the_colour_of_the_instance(frame, square):
    painted = OverlayPainter((120, 160)).paint(frame, square)
    pixel = painted[:, 90, 110].double()
    colour = torch.tensor(instance_colour(0)).double()
    share = (pixel - GREY) / (colour - GREY)
    assert torch.allclose(share, torch.full((3,), 0.38, dtype=torch.float64), atol=0.05)


def test_nothing_to_paint_changes_nothing(frame):
    painter = OverlayPainter((120, 160))
    assert torch.equal(painter.paint(frame, torch.zeros(0, 120, 160, dtype=torch.bool)), frame)
    assert torch.equal(painter.paint(frame, torch.zeros(3, 120, 160, dtype=torch.bool)), frame)


def test_labels_differ_between_instances_and_stay_with_them(frame, square):
    two = torch.cat([square, torch.zeros_like(square)])
    first = OverlayPainter((120, 160)).paint(frame, two)
    other = OverlayPainter((120, 160)).paint(frame, two.flip(0))
    assert not torch.equal(first, other)
    painter = OverlayPainter((120, 160))
    painter.paint(frame, two)
    assert torch.equal(painter.paint(frame, two), first)


def test_a_label_does_not_jump_with_a_small_change(frame):
    painter = OverlayPainter((120, 160))
    # Two equal lobes, of which now one, now the other is a little deeper.
    places = []
    for t in range(6):
        mask = torch.zeros(1, 120, 160, dtype=torch.bool)
        mask[0, 50:70, 20:140] = True
        mask[0, 30 - t % 2 * 4 : 90 + t % 2 * 4, 20:60] = True
        mask[0, 30 - (t + 1) % 2 * 4 : 90 + (t + 1) % 2 * 4, 100:140] = True
        painter.paint(frame, mask)
        places.append(painter._places[0].copy())
    assert np.abs(np.diff([place[0] for place in places])).max() < 5


def test_labels_of_neighbours_stand_apart_and_in_their_masks(frame):
    left, right = (torch.zeros(1, 120, 160, dtype=torch.bool) for _ in range(2))
    left[0, 50:70, 60:80], right[0, 50:70, 80:100] = True, True
    painter = OverlayPainter((120, 160))
    painter.paint(frame, torch.cat([left, right]))
    assert painter._places[1][0] - painter._places[0][0] >= painter.text - 1
    assert all(mask[0, int(y), int(x)] for mask, (x, y) in zip((left, right), painter._places.values(), strict=True))


def test_where_masks_overlap_the_better_one_is_seen(frame, square):
    around = torch.zeros_like(square)
    around[0, 10:110, 20:140] = True
    painted = OverlayPainter((120, 160)).paint(frame, torch.cat([square, around]))
    alone = OverlayPainter((120, 160)).paint(frame, square)
    assert torch.equal(painted[:, 45:90, 60:115], alone[:, 45:90, 60:115])
    hidden = OverlayPainter((120, 160)).paint(frame, torch.cat([around, square]))
    assert torch.equal(hidden, OverlayPainter((120, 160)).paint(frame, around))


def test_a_mask_of_one_pixel_or_at_the_border_is_labelled_inside(frame):
    mask = torch.zeros(2, 120, 160, dtype=torch.bool)
    mask[0, 119, 159] = mask[1, 0, 0] = True
    painted = OverlayPainter((120, 160)).paint(frame, mask)
    assert (painted[:, 105:, 145:] != GREY).any()
    assert (painted[:, :15, :15] != GREY).any()


def test_frames_smaller_than_a_label_are_painted():
    tiny = torch.zeros(3, 6, 9, dtype=torch.uint8)
    assert OverlayPainter((6, 9)).paint(tiny, torch.ones(1, 6, 9, dtype=torch.bool)).shape == (3, 6, 9)


def test_colours_are_distinct_and_fixed():
    colours = [instance_colour(index) for index in range(21)]
    assert len(set(colours)) == 21
    assert colours[0] == (230, 159, 0)
    assert all(min(colour) >= 0 and max(colour) <= 255 for colour in colours)


def test_the_overlay_keeps_length_rate_and_size(tmp_path):
    video = Video.from_frames(torch.full((11, 3, 47, 63), GREY, dtype=torch.uint8), fps=12)
    masks = torch.zeros(1, 11, 47, 63, dtype=torch.bool)
    masks[0, 5:, 10:40, 10:40] = True
    write_overlay(tmp_path / "overlay.mp4", video, tracks_of(masks), progress=False)
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 12)
    assert len(frames) == 11
    assert abs(int(frames[4][30, 30, 2]) - GREY) < 12
    assert int(frames[5][36, 13, 2]) < GREY - 25


def test_tracks_of_another_video_are_refused(tmp_path):
    video = Video.from_frames(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected tracks of 3 frames"):
        write_overlay(tmp_path / "x.mp4", video, tracks_of(torch.ones(1, 2, 8, 8, dtype=torch.bool)))
