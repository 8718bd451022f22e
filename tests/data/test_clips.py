"""Clips: which frames are drawn, what the augmentation does to frames and masks alike."""

from __future__ import annotations

import pytest
import torch

from s2d.data.clip_plan import ClipFormat, draw_frames, draw_plan, transform_frames, transform_masks
from s2d.data.clips import (
    AnnotatedFrames,
    ClipSettings,
    annotate,
    choose_frames,
    read_frames,
)
from s2d.data.memory_loader import draw_clip
from s2d.data.types import Tracks
from s2d.ops import pack_masks, rle_encode, unpack_masks

PLAIN = ClipSettings(crop=(1.0, 1.0), flip=0.0, color=0.0, rotation=0.0, rotation_jitter=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(keep: list[list[int]], frames: int = 12, size: tuple[int, int] = (24, 40)) -> AnnotatedFrames:
    """Instances that each own a corner block, annotated in the frames listed."""
    kept = torch.zeros(len(keep), frames, dtype=torch.bool)
    for n, listed in enumerate(keep):
        kept[n, listed] = True
    masks = torch.zeros(len(keep), frames, *size, dtype=torch.bool)
    for n in range(len(keep)):
        masks[n, :, 2 + 8 * n : 8 + 8 * n, 4:16] = kept[n][:, None, None]
    images = torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, *size).contiguous()
    return AnnotatedFrames(images, torch.arange(frames), pack_masks(masks), kept, kept.float())


def frames_of(clips: AnnotatedFrames, settings: ClipSettings, generator: torch.Generator) -> torch.Tensor:
    return draw_frames(clips.times, clips.keep, clips.weights, settings, generator)


def augment(
    frames: torch.Tensor, masks: torch.Tensor, settings: ClipSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    size = tuple(frames.shape[-2:])
    plan = draw_plan(torch.arange(len(frames)), size, size, settings, generator)
    return transform_frames(frames, plan, ClipFormat(size)), transform_masks(masks, plan, size)


def test_consecutive_clips_hold_as_many_annotated_frames_as_they_can():
    settings = ClipSettings(frames=3, consecutive=1.0)
    run = generator()
    drawn = [frames_of(data([[5, 6, 7]]), settings, run).tolist() for _ in range(20)]
    assert all(clip == [5, 6, 7] for clip in drawn)
    alone = {tuple(frames_of(data([[5]]), settings, run).tolist()) for _ in range(60)}
    assert alone == {(3, 4, 5), (4, 5, 6), (5, 6, 7)}
    at_the_end = {tuple(frames_of(data([[11]]), settings, run).tolist()) for _ in range(5)}
    assert at_the_end == {(9, 10, 11)}


def test_other_clips_stay_within_the_gap_and_are_in_order():
    settings = ClipSettings(frames=3, consecutive=0.0, max_gap=3)
    run = generator()
    drawn = [frames_of(data([[6]]), settings, run).tolist() for _ in range(60)]
    assert all(6 in clip and clip == sorted(set(clip)) and len(clip) == 3 for clip in drawn)
    assert {t for clip in drawn for t in clip} == set(range(3, 10))


def test_a_gap_without_frames_takes_the_nearest():
    sparse = data([[1]], frames=4)
    thinned = AnnotatedFrames(sparse.frames, torch.tensor([0, 50, 100, 400]), sparse.masks, sparse.keep, sparse.weights)
    settings = ClipSettings(frames=3, consecutive=0.0, max_gap=20)
    assert frames_of(thinned, settings, generator()).tolist() == [0, 1, 2]


def test_a_video_shorter_than_a_clip_repeats_its_last_frame():
    assert frames_of(data([[0]], frames=2), ClipSettings(frames=4), generator()).tolist() == [0, 1, 1, 1]
    assert frames_of(data([[0]], frames=1), ClipSettings(frames=3, consecutive=0.0), generator()).tolist() == [
        0,
        0,
        0,
    ]


def test_weights_decide_how_often_a_frame_is_drawn():
    clips = data([[2, 9]])
    clips.weights[0, 2], clips.weights[0, 9] = 0.9, 0.1
    settings, run = ClipSettings(frames=1, consecutive=1.0), generator()
    drawn = [int(frames_of(clips, settings, run)) for _ in range(400)]
    assert set(drawn) == {2, 9}
    assert 0.85 < drawn.count(2) / 400 < 0.95


def test_balance_decides_how_often_an_instance_is_drawn():
    clips = data([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11]])
    shares = {}
    for balance in (0.0, 1.0):
        settings, run = ClipSettings(frames=1, balance=balance), generator()
        drawn = [int(frames_of(clips, settings, run)) for _ in range(400)]
        shares[balance] = drawn.count(11) / 400
    assert 0.05 < shares[0.0] < 0.15
    assert 0.43 < shares[1.0] < 0.57


def test_nothing_annotated_is_refused():
    with pytest.raises(ValueError, match="at least one annotated frame"):
        frames_of(data([[]]), ClipSettings(), generator())


def test_a_plain_clip_is_what_is_in_the_video():
    clips = data([[3, 4], [4]])
    settings = ClipSettings(**{**vars(PLAIN), "frames": 2})
    clip, targets, times = draw_clip(clips, settings, generator(3))
    torch.testing.assert_close(clip, clips.frames[times].float())
    present = clips.keep[:, times].any(1)
    assert torch.equal(targets.masks, unpack_masks(clips.masks)[:, times][present])
    assert torch.equal(targets.keep, clips.keep[:, times][present])


def test_a_crop_is_a_share_of_the_largest_box_of_the_clips_shape():
    for share, extent in {1.0: [48, 48], 0.5: [24, 24]}.items():
        settings = ClipSettings(crop=(share, share))
        plan = draw_plan(torch.arange(3), (48, 80), (30, 30), settings, generator())
        assert plan.extent.tolist() == [extent] * 3
    wide = draw_plan(torch.arange(3), (48, 80), (10, 40), ClipSettings(crop=(1.0, 1.0)), generator())
    assert wide.extent.tolist() == [[20, 80]] * 3


def test_masks_move_with_the_pixels_and_all_frames_alike():
    """A frame that is white exactly in its mask stays so, whatever crop, flip and rotation are drawn."""
    masks = torch.zeros(1, 3, 48, 80, dtype=torch.bool)
    masks[0, :, 14:34, 22:50] = True
    frames = masks[0, :, None].expand(-1, 3, -1, -1).to(torch.uint8) * 255
    settings = ClipSettings(crop=(0.6, 1.0), flip=0.5, color=0.0, rotation=15.0, rotation_jitter=0.0)
    moved_at_all = 0
    for seed in range(12):
        clip, moved = augment(frames, masks, settings, generator(seed))
        assert (clip[0] - clip[2]).abs().max() == 0, "coherent in time"
        assert ((clip[0, 0] > 127) == moved[0, 0]).float().mean() > 0.99
        moved_at_all += int(not torch.equal(moved, masks))
    assert moved_at_all == 12


def test_a_square_stays_a_square_under_rotation():
    masks = torch.zeros(1, 1, 60, 120, dtype=torch.bool)
    masks[0, 0, 20:40, 50:70] = True
    frames = torch.zeros(1, 3, 60, 120, dtype=torch.uint8)
    settings = ClipSettings(crop=(1.0, 1.0), flip=0.0, color=0.0, rotation=45.0, rotation_jitter=0.0)
    for seed in range(4):
        _, moved = augment(frames, masks, settings, generator(seed))
        assert moved.sum() == pytest.approx(400, rel=0.1)


def test_rotation_alone_jitters_between_frames():
    masks = torch.zeros(1, 2, 48, 48, dtype=torch.bool)
    masks[..., 4:20, 4:20] = True
    frames = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    _, moved = augment(frames, masks, ClipSettings(rotation=0.0, rotation_jitter=10.0), generator())
    assert not torch.equal(moved[0, 0], moved[0, 1])


def test_colour_changes_brightness_and_stays_in_range():
    frames = torch.full((2, 3, 16, 16), 250, dtype=torch.uint8)
    means = set()
    for seed in range(6):
        clip, _ = augment(
            frames,
            torch.zeros(0, 2, 16, 16, dtype=torch.bool),
            ClipSettings(crop=(1.0, 1.0), rotation=0, rotation_jitter=0, color=0.3),
            generator(seed),
        )
        assert clip.min() >= 0
        assert clip.max() <= 255
        means.add(round(clip.mean().item()))
    assert len(means) > 2


def test_a_keymask_that_the_crop_cut_away_is_kept_as_a_negative():
    clips = data([[3], [4]])
    masks = unpack_masks(clips.masks)
    # The first instance has a second annotation far to the right, which a crop of the left half loses.
    clips.keep[0, 4] = True
    masks[0, 4, 2:8, 36:40] = True
    clips = AnnotatedFrames(clips.frames, clips.times, pack_masks(masks), clips.keep, clips.weights)
    settings = ClipSettings(**{**vars(PLAIN), "frames": 2, "crop": (0.5, 0.5)})
    for seed in range(200):
        _, targets, _ = draw_clip(clips, settings, generator(seed))
        lost = targets.keep & ~targets.masks.flatten(2).any(2)
        if lost.any():
            return
    pytest.fail("no crop lost the annotation")


def test_frames_near_annotations_are_chosen():
    annotated = torch.zeros(1000, dtype=torch.bool)
    annotated[[100, 500]] = True
    assert choose_frames(annotated[:50], 100).tolist() == list(range(50))
    near = choose_frames(annotated, 10)
    assert near.tolist() == sorted(near.tolist())
    assert all(min(abs(t - 100), abs(t - 500)) <= 3 for t in near.tolist())
    spread = choose_frames(torch.ones(1000, dtype=torch.bool), 10)
    assert len(spread) == 10
    assert spread.diff().max() < 250


def test_annotations_shrink_by_area_and_frames_are_read_by_number():
    masks = torch.zeros(1, 3, 40, 60, dtype=torch.bool)
    masks[0, 1, 10:30, 20:40] = True
    annotated = torch.tensor([[True, True, False]])
    tracks = Tracks("v", (40, 60), rle_encode(masks[0]), annotated, torch.ones(1))
    stream = [torch.full((3, 20, 30), t, dtype=torch.uint8) for t in range(3)]
    times = torch.tensor([1, 2])
    found = annotate(read_frames(iter(stream), times), times, tracks, torch.tensor([[0.1, 0.7, 0.9]]))
    assert found.frames[:, 0, 0, 0].tolist() == [1, 2]
    assert torch.equal(unpack_masks(found.masks)[0, 0], masks[0, 1, ::2, ::2])
    assert found.keep.tolist() == [[True, False]]
    torch.testing.assert_close(found.weights, torch.tensor([[0.7, 0.0]]))
