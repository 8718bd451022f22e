"""Windows, stitching and resuming of `predict`, with a model that sees instances by their colour."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2d.data.video import Video
from s2d.errors import InputError
from s2d.models import ModelConfig, VideoMask2Former
from s2d.models.inference import binary_masks
from s2d.models.video_mask2former import padded_size
from s2d.ops import mask_iou, unpack_masks
from s2d.stages._refine import refined_masks
from s2d.stages.predict import PredictSettings, predict

FRAMES, HEIGHT, WIDTH = 30, 60, 100
# Instances by colour; the grey of the background is none.
PALETTE = torch.tensor([[250.0, 0.0, 0.0], [0.0, 250.0, 0.0], [0.0, 0.0, 250.0]])
SETTINGS = PredictSettings(window=8, overlap=4, score_threshold=0.5)


def scene() -> tuple[Video, torch.Tensor]:
    """Boxes that drift: one always there, one that leaves after frame 15, one that comes at frame 12: [3, T, H, W]."""
    masks = torch.zeros(3, FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    frames = torch.full((FRAMES, 3, HEIGHT, WIDTH), 120, dtype=torch.uint8)
    for t in range(FRAMES):
        masks[0, t, 8:24, 4 + 2 * t : 28 + 2 * t] = True
        masks[1, t, 32:52, 8:32] = t < 16
        masks[2, t, 32:52, 60:92] = t >= 12
        for colour, mask in zip(PALETTE, masks[:, t], strict=True):
            frames[t, :, mask] = colour.to(torch.uint8)[:, None]
    return Video.from_frames(frames, name="scene"), masks


class ColourModel(nn.Module):
    """Query (i + shift) finds colour i; the shift changes from window to window, so that only masks tell who is who.

    The last two queries repeat the first instance: exactly, and as junk with a low score.
    """

    def __init__(self, shuffles: bool = True) -> None:
        super().__init__()
        self.config = ModelConfig(input_short_side=HEIGHT)
        self.register_buffer("pixel_mean", torch.zeros(1), persistent=False)
        self.weight = nn.Parameter(torch.zeros(1))
        self.shuffles = shuffles
        self.calls: list[tuple[int, torch.Tensor | None]] = []
        self.dies_at = None
        self.sem_seg_head = SimpleNamespace(predictor=SimpleNamespace(decode=self.decode, class_embed=nn.Identity()))

    def frame_features(self, frames):
        """Logits of the colours as mask features, and one level for show."""
        assert not self.training
        frames = frames.float()
        near = (frames[:, None] - PALETTE[None, :, :, None, None]).abs().amax(2) < 40
        height, width = padded_size(tuple(frames.shape[-2:]))
        near = F.pad(near.float(), (0, width - frames.shape[-1], 0, height - frames.shape[-2])) * 20 - 10
        return F.avg_pool2d(near, 4), [torch.zeros(len(frames), 1, 2, 2)]

    def decode(self, mask_features, levels, frame_keep):
        if self.dies_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append((mask_features.shape[1], frame_keep))
        shift = len(self.calls) % 3 if self.shuffles else 0
        order = torch.tensor([(i - shift) % 3 for i in range(3)] + [0, 0])
        chance = self.chances()[torch.cat([order[:3], torch.tensor([3, 4])])]
        return [(torch.stack([chance, 1 - chance], -1).log()[None], torch.eye(3)[order][None])]

    def chances(self):
        return torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1])


def assert_tracks(tracks, masks):
    """One track per instance, in the order of the scores, with its masks."""
    assert (tracks.size, tracks.num_frames, tracks.video) == ((HEIGHT, WIDTH), FRAMES, "scene")
    assert len(tracks) == len(masks)
    assert torch.equal(tracks.annotated, masks.any((-2, -1)))
    assert mask_iou(tracks.bits(), masks).diag().min() > 0.95
    torch.testing.assert_close(tracks.scores, torch.tensor([0.9, 0.8, 0.7]))


def test_windows_are_stitched_into_tracks():
    video, masks = scene()
    model = ColourModel()
    tracks = predict(video, model, SETTINGS, progress=False)
    assert_tracks(tracks, masks)
    assert len(model.calls) == 7
    assert {frames for frames, _ in model.calls} == {8}


def test_hidden_frames_fill_the_last_window():
    video, _ = scene()
    model = ColourModel()
    predict(video, model, SETTINGS, progress=False)
    *earlier, (_, last) = model.calls
    assert all(keep is None for _, keep in earlier)
    # Frames 24 to 29 are six: two hidden copies follow.
    assert last.tolist() == [[True] * 6 + [False] * 2]


def test_a_short_video_is_one_clip():
    video, masks = scene()
    model = ColourModel()
    assert_tracks(predict(video, model, PredictSettings(window=64, overlap=4), progress=False), masks)
    assert model.calls == [(FRAMES, None)]


def test_no_window_sees_the_whole_and_no_overlap_stitches_nothing():
    video, _ = scene()
    tracks = predict(video, ColourModel(), PredictSettings(window=10, overlap=0), progress=False)
    # Three windows: the box that stays gives three tracks, the others live in two windows each.
    assert len(tracks) == 7
    assert int(tracks.annotated.sum()) == 30 + 16 + 18


def test_masks_are_of_the_source_size():
    video, masks = scene()
    tracks = predict(video.resized(size=(30, 50)), ColourModel(), SETTINGS, progress=False)
    assert_tracks(tracks, masks)


def test_duplicates_and_junk_are_dropped():
    video, _ = scene()
    everything = dataclasses.replace(SETTINGS, nms_threshold=1.0, score_threshold=0.05)
    assert len(predict(video, ColourModel(shuffles=False), everything, progress=False)) == 5
    lenient = dataclasses.replace(SETTINGS, score_threshold=0.05)
    assert len(predict(video, ColourModel(shuffles=False), lenient, progress=False)) == 3
    strict = dataclasses.replace(SETTINGS, score_threshold=0.75)
    assert len(predict(video, ColourModel(), strict, progress=False)) == 2
    few = dataclasses.replace(SETTINGS, top_k=1)
    assert len(predict(video, ColourModel(), few, progress=False)) == 1


def test_scores_are_means_over_the_frames_that_show_the_instance():
    video, _ = scene()

    class Moody(ColourModel):
        def chances(self):
            return torch.tensor([0.5, 0.5, 0.4, 0.1, 0.1]) if len(self.calls) == 4 else super().chances()

    tracks = predict(video, Moody(shuffles=False), SETTINGS, progress=False)
    # The fourth window, frames 12 to 19, is trusted from 14 to 17: half of each overlap.
    first, second, third = (30 - 4) * 0.9 + 4 * 0.5, (16 - 2) * 0.8 + 2 * 0.5, (18 - 4) * 0.7 + 4 * 0.4
    expected = torch.tensor([first / 30, second / 16, third / 18])
    torch.testing.assert_close(tracks.scores, expected)


def test_refinement_draws_masks_to_the_edges_of_the_frame():
    generator = torch.Generator().manual_seed(0)
    height, width, cell = 96, 160, 8
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = torch.stack([(y - 48) ** 2 + (x - centre) ** 2 < 30**2 for centre in (60, 90)])
    frames = torch.where(truth[:, None], 170, 80) + torch.randint(-10, 11, (2, 3, height, width), generator=generator)
    blurred = F.avg_pool2d(truth.float()[None], cell) * 8 - 4
    logits = torch.cat([blurred, torch.full_like(blurred, -5), torch.full_like(blurred, 5)])
    # Half the size of the source enters the model, which answers at a quarter of that.
    inner = (height // 2, width // 2)
    assert logits.shape[-2:] == (height // cell, width // cell)
    logits = F.pad(
        logits, (0, padded_size(inner)[1] // 4 - width // cell, 0, padded_size(inner)[0] // 4 - height // cell)
    )
    refined = refined_masks(logits, frames.to(torch.uint8), inner)
    assert refined.shape == (3, 2, height, width)
    plain = mask_iou(binary_masks(logits, inner, (height, width))[:1], truth[None]).item()
    assert mask_iou(refined[:1], truth[None]).item() > 1 - 0.4 * (1 - plain)
    assert not unpack_masks(refined[1:2]).any()
    assert unpack_masks(refined[2:]).all()
    # A source that is larger than the grid of the fit: functions of colour are enlarged, not masks.
    larger = F.interpolate(frames.float(), scale_factor=3).to(torch.uint8)
    wanted = truth[None].repeat_interleave(3, -1).repeat_interleave(3, -2)
    assert mask_iou(refined_masks(logits, larger, inner)[:1], wanted).item() > 1 - 0.4 * (1 - plain)


def test_refinement_can_be_switched_off():
    video, _ = scene()
    refined = predict(video, ColourModel(), SETTINGS, progress=False)
    plain = predict(video, ColourModel(), dataclasses.replace(SETTINGS, refine=False), progress=False)
    assert torch.equal(refined.annotated, plain.annotated)
    assert mask_iou(refined.bits(), plain.bits()).diag().min() > 0.9
    assert not torch.equal(refined.rle.counts, plain.rle.counts)


def test_a_video_without_instances_has_no_tracks():
    frames = torch.full((12, 3, HEIGHT, WIDTH), 120, dtype=torch.uint8)
    tracks = predict(Video.from_frames(frames), ColourModel(), SETTINGS, progress=False)
    assert len(tracks) == 0
    assert tracks.annotated.shape == (0, 12)
    assert len(tracks.rle) == 0


def assert_equal(a, b):
    assert torch.equal(a.rle.counts, b.rle.counts)
    assert torch.equal(a.rle.offsets, b.rle.offsets)
    assert torch.equal(a.annotated, b.annotated)
    assert torch.equal(a.scores, b.scores)


def test_an_interrupted_call_continues(tmp_path):
    video, _ = scene()
    whole = predict(video, ColourModel(shuffles=False), SETTINGS, progress=False)
    model = ColourModel(shuffles=False)
    model.dies_at = 4
    with pytest.raises(KeyboardInterrupt):
        predict(video, model, SETTINGS, work=tmp_path, progress=False)
    assert model.training
    model.dies_at, model.calls = None, []
    assert_equal(predict(video, model, SETTINGS, work=tmp_path, progress=False), whole)
    assert len(model.calls) == 3
    model.calls = []
    assert_equal(predict(video, model, SETTINGS, work=tmp_path, progress=False), whole)
    assert model.calls == []


def test_windows_of_another_model_or_other_settings_are_not_used(tmp_path):
    video, _ = scene()
    model = ColourModel(shuffles=False)
    predict(video, model, SETTINGS, work=tmp_path, progress=False)
    for change in ("weights", "settings"):
        model.calls = []
        if change == "weights":
            nn.init.ones_(model.weight)
        settings = SETTINGS if change == "weights" else dataclasses.replace(SETTINGS, nms_threshold=0.5)
        predict(video, model, settings, work=tmp_path, progress=False)
        assert len(model.calls) == 7, change


def test_a_real_model_gives_the_same_twice():
    torch.manual_seed(0)
    config = ModelConfig(
        depth=10,
        width=8,
        norm="GN",
        hidden_dim=32,
        nheads=4,
        mask_dim=16,
        encoder_layers=1,
        encoder_ffn=32,
        decoder_layers=2,
        decoder_ffn=32,
        num_queries=5,
        input_short_side=32,
    )
    model = VideoMask2Former(config)
    video, _ = scene()
    settings = dataclasses.replace(SETTINGS, score_threshold=0.0, nms_threshold=1.0)
    first, second = (predict(video, model, settings, progress=False) for _ in range(2))
    assert_equal(first, second)
    assert len(first) > 0
    assert unpack_masks(first.bits()).any((-2, -1)).equal(first.annotated)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window": 0}, "window and top_k of at least 1, got 0 and 50"),
        ({"window": 8, "overlap": 5}, "overlap from 0 to half of window = 8, got 5"),
        ({"score_threshold": 1.5}, r"score_threshold in \[0, 1\], got 1.5"),
    ],
)
def test_settings_refuse(values, words):
    with pytest.raises(InputError, match=words):
        PredictSettings(**values)
