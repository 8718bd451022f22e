from __future__ import annotations

import dataclasses

import pytest
import torch

from s2d.data.coco import write_proposals
from s2d.data.types import FrameMasks, Tracks
from s2d.data.video import Video, open_video
from s2d.data.ytvis import read_ytvis, write_ytvis
from s2d.errors import InputError
from s2d.ops import mask_iou, mask_nms, rle_encode, unpack_masks
from s2d.stages import propose as stage
from s2d.stages.propose import ProposeSettings, load_proposals, propose
from s2d.testing.scenes import moving_disc

# Three chunks of nine frames.
SETTINGS = ProposeSettings(chunk=4, margin=3, nodes=120)


@pytest.fixture(scope="module")
def scene() -> tuple[Video, torch.Tensor]:
    frames, masks = moving_disc(frames=9)
    return Video.from_frames(frames, 25, "disc"), masks


@pytest.fixture(scope="module")
def proposals(scene) -> FrameMasks:
    return propose(scene[0], SETTINGS, progress=False)


def same(a: FrameMasks, b: FrameMasks) -> bool:
    return (
        (a.video, a.size, a.num_frames) == (b.video, b.size, b.num_frames)
        and torch.equal(a.rle.counts, b.rle.counts)
        and torch.equal(a.rle.offsets, b.rle.offsets)
        and torch.equal(a.frames, b.frames)
        and torch.equal(a.scores, b.scores)
    )


def best_iou(proposals: FrameMasks, masks: torch.Tensor) -> list[float]:
    best = []
    for t, mask in enumerate(masks):
        of_frame = torch.nonzero(proposals.frames == t).flatten()
        best.append(float(mask_iou(proposals.bits(of_frame), mask[None]).max()))
    return best


def test_every_frame_has_a_mask_of_what_moves(scene, proposals):
    video, masks = scene
    assert (proposals.video, proposals.size, proposals.num_frames) == ("disc", video.size, 9)
    assert proposals.scores.dtype == torch.float32
    assert proposals.frames.dtype == torch.int64
    assert bool((proposals.frames.diff() >= 0).all())
    assert bool(((proposals.scores > 0) & (proposals.scores <= 1)).all())
    best = best_iou(proposals, masks)
    assert min(best) > 0.6
    assert sum(best) / len(best) > 0.85


def test_masks_of_a_frame_are_few_distinct_and_ordered(proposals):
    for t in range(proposals.num_frames):
        index = torch.nonzero(proposals.frames == t).flatten()
        scores = proposals.scores[index]
        assert 1 <= len(index) <= SETTINGS.masks
        assert bool((scores.diff() <= 0).all())
        assert len(mask_nms(proposals.bits(index), scores, SETTINGS.overlap)) == len(index)


def test_a_second_run_and_other_threads_give_the_same(scene, proposals):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert same(propose(scene[0], SETTINGS, progress=False), proposals)
    finally:
        torch.set_num_threads(threads)


def test_an_interrupted_call_continues(scene, proposals, tmp_path, monkeypatch):
    real, seen = stage._propose_chunk, []

    def interrupted(video, settings, start, stop, bar):
        seen.append(start)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(video, settings, start, stop, bar)

    monkeypatch.setattr(stage, "_propose_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        propose(scene[0], SETTINGS, work=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert same(propose(scene[0], SETTINGS, work=tmp_path, progress=False), proposals)
    assert seen == [0, 4, 8, 8]


def test_other_settings_do_not_take_kept_chunks(scene, tmp_path):
    propose(scene[0], SETTINGS, work=tmp_path, progress=False)
    fewer = dataclasses.replace(SETTINGS, masks=1)
    masks = propose(scene[0], fewer, work=tmp_path, progress=False)
    assert masks.frames.tolist() == list(range(9))


def test_large_videos_are_looked_at_small_and_masked_large(scene):
    video, masks = scene
    large = video.resized(size=(192, 256))
    result = propose(large, dataclasses.replace(SETTINGS, working_short_side=96), progress=False)
    assert result.size == (192, 256)
    enlarged = torch.nn.functional.interpolate(masks[None].float(), size=(192, 256))[0] > 0.5
    assert min(best_iou(result, enlarged)) > 0.6


@pytest.mark.parametrize("frames", [1, 5])
def test_nothing_where_nothing_moves(scene, frames):
    still = scene[0].frame(0)[None].expand(frames, -1, -1, -1)
    masks = propose(Video.from_frames(still.contiguous()), SETTINGS, progress=False)
    assert len(masks) == 0
    assert masks.num_frames == frames
    assert masks.bits().shape == (0, *scene[0].size)


def test_load_reads_what_propose_made(scene, proposals, tmp_path):
    write_proposals(tmp_path / "proposals.json", proposals)
    assert same(load_proposals(tmp_path / "proposals.json", scene[0]), proposals)


def test_load_takes_instances_of_a_ytvis_file(scene, tmp_path):
    video, masks = scene
    shown = masks.clone()
    shown[2] = False
    annotated = torch.ones(1, 9, dtype=torch.bool)
    annotated[0, 2] = False
    tracks = Tracks("disc", video.size, rle_encode(shown), annotated, torch.tensor([0.5]))
    write_ytvis(tmp_path / "one.json", tracks)
    loaded = load_proposals(tmp_path / "one.json", video)
    assert loaded.frames.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert loaded.scores.tolist() == [0.5] * 8
    assert torch.equal(unpack_masks(loaded.bits()).bool(), masks[loaded.frames])
    write_ytvis(tmp_path / "two.json", [dataclasses.replace(tracks, video="other"), tracks])
    assert same(load_proposals(tmp_path / "two.json", video), loaded)
    write_ytvis(tmp_path / "others.json", [dataclasses.replace(tracks, video=name) for name in ("a", "b")])
    with pytest.raises(InputError, match=r"expected a video named disc .*, got a, b"):
        load_proposals(tmp_path / "others.json", video)


def test_load_says_what_does_not_fit(scene, proposals, tmp_path):
    video, _ = scene
    path = tmp_path / "proposals.json"
    write_proposals(path, proposals)
    with pytest.raises(InputError, match=r"proposals for the 5 frames of short .*, got 9"):
        load_proposals(path, Video.from_frames(video.clip(0, 5), name="short"))
    with pytest.raises(InputError, match=r"the shape of disc, 128 x 128, .*, got 128 x 96"):
        load_proposals(path, video.resized(size=(128, 128)))
    assert len(load_proposals(path, video.resized(size=(192, 256)))) == len(proposals)
    with pytest.raises(InputError, match=r"a folder of label maps or a \.json file"):
        load_proposals(tmp_path / "proposals.txt", video)
    with pytest.raises(InputError, match="label maps"):
        load_proposals(tmp_path, video)
    with pytest.raises(InputError):
        load_proposals(tmp_path / "missing.json", video)


def test_a_real_car_is_found(test_data):
    """DAVIS-2016 car-shadow: ten frames, human ground truth."""
    video = open_video(test_data / "data/davis16/frames/car-shadow")
    part = Video.from_frames(video.clip(10, 20), name="car-shadow")
    (truth,) = (
        tracks for tracks in read_ytvis(test_data / "data/davis16/ytvis_240p.json") if tracks.video == "car-shadow"
    )
    masks = unpack_masks(truth.bits(slice(10, 20))).bool()[0]
    best = best_iou(propose(part, progress=False), masks)
    assert min(best) > 0.5
    assert sum(best) / len(best) > 0.6
