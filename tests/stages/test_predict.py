"""Windows, stitching and resuming of `predict`, with a model that sees instances by their colour."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from s2d.data.video import Video
from s2d.errors import InputError
from s2d.models import ModelConfig, VideoMask2Former, inference
from s2d.models.inference import binary_masks
from s2d.models.video_mask2former import padded_size
from s2d.ops import mask_iou, unpack_masks
from s2d.stages._memory import clip_bytes
from s2d.stages._refine import refined_masks
from s2d.stages.predict import PredictSettings, named_settings, plan_windows, predict
from s2d.testing.small_model import SMALL

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


def small_model(**changes) -> VideoMask2Former:
    """The real architecture with small numbers and random weights."""
    torch.manual_seed(0)
    return VideoMask2Former(dataclasses.replace(SMALL, **changes)).eval()


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


def test_memory_decides_the_length_of_windows():
    video, masks = scene()
    model = ColourModel()
    asked = PredictSettings(window=None, memory=10**12)
    assert plan_windows(video, model, asked).spans == ((0, FRAMES),)
    assert_tracks(predict(video, model, asked, progress=False), masks)
    weights, inner = model.weight.nbytes, (HEIGHT, WIDTH)
    enough = clip_bytes(model.config, weights, inner, 8)
    for memory, window in ((enough, 8), (enough - 1, 7)):
        plan = plan_windows(video, model, dataclasses.replace(asked, overlap=4, memory=memory))
        assert (plan.window, plan.bytes) == (window, clip_bytes(model.config, weights, inner, window))
        assert plan.bytes <= memory
    assert str(plan_windows(video, model, SETTINGS)).startswith("7 windows of 8 frames, about ")
    assert_tracks(predict(video, model, dataclasses.replace(asked, overlap=4, memory=enough), progress=False), masks)
    with pytest.raises(InputError, match=r"memory of at least .* for one frame of 100 x 60, got 5 MB"):
        plan_windows(video, model, dataclasses.replace(asked, memory=5_000_000))


def test_a_window_takes_no_more_memory_than_estimated():
    code = """
import torch
from s2d.models import ModelConfig, VideoMask2Former, inference
from s2d.models.inference import read_clip
from s2d.stages import _memory
from s2d.stages.measure import Meter
torch.set_num_threads(1)
config = ModelConfig(depth=10, width=16, norm="GN", encoder_layers=1, decoder_layers=3)
model = VideoMask2Former(config).eval()
weights = sum(tensor.nbytes for tensor in model.state_dict().values())
read_clip(model, torch.zeros(1, 3, 96, 160, dtype=torch.uint8))
begin = Meter().read()["peak_mb"]
meter = Meter()
read_clip(model, torch.zeros(60, 3, 96, 160, dtype=torch.uint8))
print((meter.read()["peak_mb"] - begin) * 1e6)
print(_memory.clip_bytes(config, weights, (96, 160), 60) - _memory.clip_bytes(config, weights, (96, 160), 1))
print(meter.read()["peak_mb"] * 1e6, _memory.clip_bytes(config, weights, (96, 160), 60))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, estimated, peak, bound = map(float, done.stdout.split())
    assert peak < bound
    assert 0.5 * estimated < grown < 1.1 * estimated


def test_frames_pass_in_parts_and_hidden_ones_do_not_count():
    model = small_model()
    clip = torch.randint(0, 256, (5, 3, 40, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    parts = []
    with patch.dict(inference._PIXELS_AT_ONCE, cpu=2 * 40 * 64):
        seen = inference.read_clip(model, clip, advance=parts.append)
    assert parts == [2, 2, 1]
    with torch.no_grad():
        whole = model(clip[None])
    torch.testing.assert_close(seen.logits, whole["pred_logits"][0], rtol=1e-4, atol=1e-5)
    masks = torch.stack([seen.mask_logits(torch.arange(5), t) for t in range(5)], 1)
    torch.testing.assert_close(masks, whole["pred_masks"][0], rtol=1e-4, atol=1e-4)
    noise = torch.randint(0, 256, (3, 3, 40, 64), dtype=torch.uint8)
    with torch.no_grad():
        padded = model(torch.cat([clip, noise])[None], (torch.arange(8) < 5)[None])
    seen = inference.read_clip(model, clip, hidden=3)
    torch.testing.assert_close(seen.logits, padded["pred_logits"][0], rtol=1e-4, atol=1e-5)
    masks = torch.stack([seen.mask_logits(torch.arange(5), t) for t in range(5)], 1)
    torch.testing.assert_close(masks, padded["pred_masks"][0, :, :5], rtol=1e-4, atol=1e-4)


def test_precisions_and_compilation(monkeypatch):
    video, _ = scene()
    settings = dataclasses.replace(SETTINGS, score_threshold=0.0, nms_threshold=1.0)
    exact = predict(video, small_model(), settings, progress=False)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        half = predict(video, small_model(), dataclasses.replace(settings, precision="bf16"), progress=False)
        assert not torch.equal(half.scores, exact.scores)
        torch.testing.assert_close(half.scores, exact.scores, rtol=0, atol=0.05)
    with pytest.raises(InputError, match=r"precision that this CPU computes in .*, got fp16"):
        predict(video, small_model(), dataclasses.replace(settings, precision="fp16"), progress=False)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *args: compiled.append(args) or call(*args))
    model = small_model()
    inference.compile_frame_parts(model)
    assert_equal(predict(video, model, settings, progress=False), exact)
    assert compiled


@pytest.mark.parametrize("name", ["videocutler", "s2d"])
def test_official_settings_give_the_official_tracks(test_data, name):
    spec = importlib.util.spec_from_file_location("deterministic", test_data / "parity" / "deterministic.py")
    deterministic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deterministic)
    stored = torch.load(test_data / "parity" / "parity_small.pt", weights_only=True)
    model = VideoMask2Former(ModelConfig(input_short_side=96)).eval()
    state = model.state_dict()
    model.load_state_dict({key: deterministic.det_tensor(key, state[key].shape, "teacher/") for key in state})
    video = Video.from_frames(stored["clip_uint8"].view(3, 3, 96, 128))
    tracks = predict(video, model, named_settings(name), progress=False)
    wanted = stored["inference_teacher"][name == "s2d", 0.75, (96, 128)]
    number = 10 if name == "videocutler" else len(wanted["scores"])
    assert len(tracks) == number
    assert tracks.annotated.all()
    torch.testing.assert_close(tracks.scores, torch.tensor(wanted["scores"][:number]), atol=4e-5, rtol=0)
    packed, shape = wanted["masks"]
    masks = torch.from_numpy(np.unpackbits(packed.numpy()))[: torch.Size(shape).numel()].view(shape)[:number]
    assert (unpack_masks(tracks.bits()) != masks.bool()).double().mean() < 1e-5


def test_official_frames_are_resized_by_pillow():
    frames = torch.randint(0, 256, (2, 3, 90, 120), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clips = []
    model = small_model()
    model.frame_features = lambda frames: clips.append(frames) or VideoMask2Former.frame_features(model, frames)
    tracks = predict(Video.from_frames(frames), model, named_settings("videocutler"), progress=False)
    assert (len(tracks), tracks.size) == (5, (90, 120))
    for found, frame in zip(torch.cat(clips), frames, strict=True):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((43, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image))


def test_official_input_sizes():
    config = ModelConfig()
    sizes = {(480, 854): (360, 641), (854, 480): (641, 360), (240, 320): (360, 480), (200, 1000): (267, 1333)}
    assert {size: inference.official_input_size(size, config) for size in sizes} == sizes


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
    model = ColourModel(shuffles=False)
    model.config = dataclasses.replace(model.config, nms_threshold=0.0)
    assert len(predict(video, model, lenient, progress=False)) == 3
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
    model = small_model()
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
        ({"precision": "int8"}, "precision of fp32, bf16, fp16, got 'int8'"),
    ],
)
def test_settings_refuse(values, words):
    with pytest.raises(InputError, match=words):
        PredictSettings(**values)


def test_settings_by_name():
    assert named_settings() == PredictSettings()
    assert (named_settings("s2d").window, named_settings("videocutler").top_k) == (None, 10)
    asked = named_settings("s2d", memory="1.5 GiB")
    assert (asked.window, asked.memory) == (None, 3 * 2**29)
    assert named_settings(memory="500MB").memory == 500_000_000
    assert named_settings(memory="500MB", window=5).window == 5
    assert named_settings(window=5).overlap == 2
    for bad in ("4 bananas", "much", "-1GB", ""):
        with pytest.raises(InputError, match="memory such as 4GB or 500MB, got"):
            named_settings(memory=bad)
    with pytest.raises(InputError, match="settings of the name default, videocutler, s2d, got 'official'"):
        named_settings("official")
