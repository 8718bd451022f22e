"""Clips of videos in memory: the order on any number of processes, from any step on, and copy-paste."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from s2d.data.clip_plan import paste, present
from s2d.data.clips import AnnotatedFrames, ClipBatch, ClipSettings, ClipTargets
from s2d.data.memory_loader import MemoryLoader, draw_clip
from s2d.errors import InputError
from s2d.ops import pack_masks

SETTINGS = ClipSettings(frames=2, batch=4, consecutive=0.5)


def video(name: str, level: int = 0, frames: int = 9, size: tuple[int, int] = (24, 40)) -> AnnotatedFrames:
    """Grey of one level, with a square that is annotated on even frames."""
    keep = (torch.arange(frames) % 2 == 0)[None]
    masks = torch.zeros(1, frames, *size, dtype=torch.bool)
    masks[:, :, 8:16, 10:26] = keep[:, :, None, None]
    images = torch.full((frames, 3, *size), level, dtype=torch.uint8)
    return AnnotatedFrames(images, torch.arange(frames) + 100, pack_masks(masks), keep, keep.float(), name)


def videos(number: int = 3) -> list[AnnotatedFrames]:
    return [video(f"v{n}", 50 * n + 50) for n in range(number)]


def seen(batches: list[ClipBatch]) -> list[tuple]:
    """What tells the clips apart, in their order."""
    found = []
    for batch in batches:
        for name, times, clip, target in zip(
            batch.names, batch.times.tolist(), batch.frames, batch.targets, strict=True
        ):
            pixels = (float(clip.double().sum()), int(target.masks.sum()), target.keep.tolist())
            found.append((name, tuple(times), *pixels))
    return found


def test_a_run_goes_on_from_any_step():
    loader = MemoryLoader(videos(), SETTINGS, seed=3)
    whole = list(islice(loader.batches(), 7))
    assert seen(list(islice(MemoryLoader(videos(), SETTINGS, seed=3).batches(4), 3))) == seen(whole[4:])
    assert seen(list(islice(MemoryLoader(videos(), SETTINGS, seed=4).batches(), 7))) != seen(whole)
    assert whole[0].frames.shape == (4, 2, 3, 24, 40)
    assert all(100 <= t < 109 for batch in whole for t in batch.times.flatten().tolist())


def test_two_processes_see_what_one_sees():
    one = seen(list(islice(MemoryLoader(videos(), SETTINGS, seed=1).batches(1), 3)))
    parts = [
        seen(list(islice(MemoryLoader(videos(), SETTINGS, seed=1, rank=r, world=2).batches(1), 3))) for r in (0, 1)
    ]
    assert [clip for pair in zip(*parts, strict=True) for clip in pair] == one
    with pytest.raises(InputError, match="a batch that 3 processes can share equally, got 4 clips"):
        MemoryLoader(videos(), SETTINGS, world=3)


def test_each_epoch_has_every_video_once_in_an_order_of_its_own():
    names = [clip[0] for clip in seen(list(islice(MemoryLoader(videos(4), SETTINGS).batches(), 12)))]
    epochs = [tuple(names[n : n + 4]) for n in range(0, 48, 4)]
    assert all(set(epoch) == {"v0", "v1", "v2", "v3"} for epoch in epochs)
    assert len(set(epochs)) > 3


def test_clips_have_one_size_whatever_the_videos_have():
    mixed = [video("small"), video("large", size=(48, 60))]
    batch = next(MemoryLoader(mixed, SETTINGS).batches())
    assert batch.frames.shape == (4, 2, 3, 24, 40)
    assert {target.masks.shape[-2:] for target in batch.targets} == {(24, 40)}


def test_pasted_instances_cover_what_lies_below():
    below, above = (torch.zeros(1, 2, 4, 6, dtype=torch.bool) for _ in range(2))
    below[:, :, 1:3, 1:4] = True
    above[:, 0, 1:3, 3:5] = True
    above[:, 1] = True
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    frames, targets = paste(
        torch.zeros(2, 3, 4, 6), ClipTargets(below, first), torch.ones(2, 3, 4, 6), ClipTargets(above, second)
    )
    assert torch.equal(frames, above[0, :, None].expand(2, 3, 4, 6).float())
    assert torch.equal(targets.masks, torch.cat([below & ~above, above]))
    assert torch.equal(targets.keep, torch.cat([first, second]))
    assert len(present(targets)) == 2
    frames, targets = paste(frames, targets, frames, ClipTargets(below[:0], first[:0]))
    assert len(targets) == 2
    hidden = ClipTargets(torch.cat([below & ~below, above]), targets.keep)
    assert present(hidden).keep.tolist() == [[False, True]]


def test_copy_paste_brings_instances_of_another_video():
    """Each pixel of a pasted instance has the level of the donor, which is the same in all frames of the clip."""
    plain = replace(SETTINGS, batch=1, color=0.0, rotation=0.0, rotation_jitter=0.0, consecutive=1.0)
    counts = []
    for share in (0.0, 0.5, 1.0):
        settings = replace(plain, copy_paste=share)
        pasted = 0
        for n in range(40):
            run = torch.Generator().manual_seed(n)
            clip, targets, _ = draw_clip(video("below", 50), settings, run, donor=video("above", 200))
            levels = [set(clip[:, 0][mask].round().tolist()) for mask in targets.masks]
            assert all(len(found) == 1 for found in levels)
            pasted += {200.0} in levels
            # With the same draws nothing else changes.
            run = torch.Generator().manual_seed(n)
            before, _, _ = draw_clip(video("below", 50), plain, run)
            assert torch.equal(clip[clip < 125], before[clip < 125])
        counts.append(pasted)
    assert counts[0] == 0
    assert 10 <= counts[1] <= 30
    assert counts[2] == 40


def test_the_official_behaviour_draws_every_frame():
    frames = video("v", 100).frames[:3].clone()
    frames[:, :, :, 20:] = 200
    data = replace(video("v"), frames=frames.repeat(3, 1, 1, 1))
    for behaviour, distinct in {"corrected": 1, "official": 3}.items():
        settings = ClipSettings(rotation_jitter=0.0, behaviour=behaviour)
        clip, _, _ = draw_clip(data, settings, torch.Generator().manual_seed(0))
        assert len({float(frame.double().sum()) for frame in clip}) == distinct
