"""DALI's clips are PyAV's: the same frames, crops, masks and order; what it cannot decode goes to PyAV by the rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.data import dali
from s2d.data.clip_loader import ClipLoader
from s2d.data.clip_plan import ClipFormat, ClipPlan, draw_plan, seeded, transform_frames
from s2d.data.clips import ClipSettings
from s2d.data.datasets import Sample, open_dataset
from s2d.data.video import Video, open_video
from s2d.errors import InputError

from .conftest import pictures
from .test_clip_loader import memory_and_files, seen
from .test_datasets import davis_2017, sav

pytestmark = pytest.mark.skipif(dali.missing() is not None, reason=f"{dali.missing()}: pip install s2d[dali]")

CPU = torch.device("cpu")
SIZE = (48, 64)
PLAIN = ClipSettings(size=SIZE, crop=(1.0, 1.0), flip=0.0, color=0.0, rotation=0.0, rotation_jitter=0.0)
VP9 = {"g": "15", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "16"}
CLOCK = Fraction(1, 1000)
TIMES = np.cumsum([0] + [20, 60] * 20)[:40].tolist()

# name: (codec, options of `encode`)
EXACT = {
    "vp9.webm": ("libvpx-vp9", {"options": VP9}),
    "vp9.mp4": ("libvpx-vp9", {"options": VP9}),
    "one_key.webm": ("libvpx-vp9", {"options": {"g": "1000", "deadline": "realtime"}}),
    "odd.webm": ("libvpx-vp9", {"options": VP9, "size": (47, 61)}),
    "444.webm": ("libvpx-vp9", {"options": VP9, "pixel_format": "yuv444p"}),
    "varying.webm": ("libvpx-vp9", {"options": VP9, "times": TIMES, "clock": CLOCK, "rate": 1000}),
    "varying.mp4": ("libvpx-vp9", {"options": VP9, "times": TIMES, "clock": CLOCK, "rate": 1000}),
    **{f"turned{degrees}.mp4": ("libvpx-vp9", {"options": VP9, "rotation": degrees}) for degrees in (90, 180, 270)},
    "vp8.webm": ("libvpx", {"options": {**VP9, "b": "60k"}}),
    "mjpeg.avi": ("mjpeg", {"pixel_format": "yuvj420p"}),
    "mjpeg.mkv": ("mjpeg", {"pixel_format": "yuvj422p"}),
}

REFUSED = {
    "h264.mp4": ("libx264", {}, "no decoder of h264 on a CPU"),
    "h265.mp4": ("libx265", {"options": {"x265-params": "log-level=none"}}, "no decoder of hevc on a CPU"),
    "edited.mp4": (
        "libvpx-vp9",
        {"options": VP9, "times": list(range(-10, 30)), "clock": Fraction(1, 25)},
        "edit list hides",
    ),
}


@pytest.fixture(scope="module")
def decoder() -> dali.DaliDecoder:
    return dali.DaliDecoder(PLAIN, ClipFormat(SIZE), CPU)


def whole_frames(size: tuple[int, int], times: list[int]) -> ClipPlan:
    return ClipPlan.whole(np.array(times), size)


def share_within(found: torch.Tensor, expected: torch.Tensor, levels: float) -> float:
    return float(((found - expected).abs() <= levels).double().mean())


@pytest.mark.parametrize("name", EXACT)
def test_every_frame_is_pyavs(encode, name):
    codec, options = EXACT[name]
    video = open_video(encode(name, codec, 40, **options))
    assert dali.refusal(video, CPU) is None
    decoder = dali.DaliDecoder(replace(PLAIN, batch=40), ClipFormat(video.size), CPU)
    starts = [0, 37, 14, 15, 1, 16, 29, 30, 36, *range(2, 13)]  # both ends, around key frames, backwards
    plans = [whole_frames(video.size, [start, start + 1, start + 2]) for start in starts]
    nothing = np.zeros((0, 3, *video.size), np.uint8)
    decoded = decoder.decode([dali.request(video, plan, nothing) for plan in plans])
    for plan, found in zip(plans, decoded, strict=True):
        expected = video.clip(int(plan.times[0]), int(plan.times[0]) + 3).float()
        assert share_within(found.frames, expected, 2) >= 0.999, plan.times
        assert (found.frames - expected).abs().max() < 1e-3  # seen here: bit for bit
        assert found.masks.shape == (0, 3, *video.size)
        assert found.exact


@pytest.mark.parametrize("matrix", ["bt709", "bt2020"])
def test_the_matrix_of_the_file_is_honoured(encode, matrix):
    number = {"bt709": 1, "bt2020": 9}[matrix]
    images = (128 + (pictures(12).astype(float) - 128) * 0.8).astype(np.uint8)
    video = open_video(encode("tagged.webm", "libvpx-vp9", images, options=VP9, colorspace=number))
    assert video.source.matrix == number
    plan = whole_frames(SIZE, [3, 4, 5])
    request = dali.request(video, plan, np.zeros((0, 3, *SIZE), np.uint8))
    (found,) = dali.DaliDecoder(PLAIN, ClipFormat(SIZE), CPU).decode([request])
    assert share_within(found.frames, video.clip(3, 6).float(), 2) >= 0.999
    raw = replace_color(request, plan.color)
    (wrong,) = dali.DaliDecoder(PLAIN, ClipFormat(SIZE), CPU).decode([raw])
    assert share_within(wrong.frames, video.clip(3, 6).float(), 2) < 0.9


def vivid(share: float) -> np.ndarray:
    """The left ``share`` of a grey picture is a green that BT.601 has no number for."""
    images = np.full((12, *SIZE, 3), 120, np.uint8)
    images[:, :, : round(share * SIZE[1])] = (0, 250, 0)
    return images


@pytest.mark.parametrize(("share", "exact"), [(0.0, True), (0.5, False)])
def test_colours_that_dali_clips_go_to_pyav(encode, tmp_path, share, exact):
    (tmp_path / "videos").mkdir()
    path = encode("vivid.webm", "libvpx-vp9", vivid(share), options={**VP9, "crf": "10", "b": "0"}, colorspace=1)
    dataset = open_dataset(Path(shutil.move(path, tmp_path / "videos" / path.name)).parent)
    by_rule, by_name, by_pyav = (
        ClipLoader(dataset, replace(PLAIN, decoder=decoder)) for decoder in ("auto", "dali", "pyav")
    )
    (expected,) = by_pyav
    (found,) = by_rule
    (clipped,) = by_name
    assert share_within(found.frames, expected.frames, 2) >= 0.999
    assert dict(by_name.decoded) == {"dali": 1}
    assert (share_within(clipped.frames, expected.frames, 2) >= 0.999) == exact
    assert dict(by_rule.decoded) == {"dali" if exact else "pyav": 1}
    assert ["clips its colours" in reason for reason in by_rule.reasons] == [True] * (not exact)


def replace_color(request: dali.Request, color: np.ndarray) -> dali.Request:
    plan = request.plan
    return replace(request, plan=replace(plan, color=color))


@pytest.mark.parametrize("name", REFUSED)
def test_what_dali_cannot_decode_exactly_goes_to_pyav_by_the_rule(encode, tmp_path, name):
    codec, options, words = REFUSED[name]
    (tmp_path / "videos").mkdir()
    path = shutil.move(encode(name, codec, 40, **options), tmp_path / "videos" / name)
    assert words in dali.refusal(open_video(path), CPU)
    dataset = open_dataset(tmp_path / "videos")
    loader = ClipLoader(dataset, replace(PLAIN, size=open_video(path).size))
    by_rule = seen(loader)
    assert (dict(loader.decoded), len(loader.reasons)) == ({"pyav": 1}, 1)
    assert words in next(iter(loader.reasons))
    assert by_rule == seen(ClipLoader(dataset, replace(PLAIN, size=open_video(path).size, decoder="pyav")))
    with pytest.raises(InputError, match=words):
        list(ClipLoader(dataset, replace(PLAIN, decoder="dali")))


def test_on_a_gpu_the_rule_lets_more_pass(encode):
    gpu = torch.device("cuda")
    assert dali.refusal(open_video(encode("h264.mp4")), gpu) is None
    assert "yuv444p exactly" in dali.refusal(open_video(encode("444.mp4", pixel_format="yuv444p")), gpu)
    assert "in memory" in dali.refusal(Video.from_frames(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), gpu)


def test_b_frames_and_open_groups_are_cut_cleanly_or_not_at_all(encode):
    """What a GPU would be given: PyAV decodes the piece into the frames that the numbers say."""
    open_gop = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3:b-pyramid=2"}
    for name, options in {"closed.mp4": {"bf": "3", "g": "12"}, "open.mp4": open_gop}.items():
        path = encode(name, options=options)
        video = open_video(path)
        whole = video.clip(0, 40)
        cut = 0
        for start in range(0, 38):
            request = dali.request(video, whole_frames(SIZE, [start, start + 1, start + 2]), np.zeros((0, 3, 1, 1)))
            if request is None:
                continue
            cut += 1
            piece = path.with_name("piece.mkv")
            request.encoded[0].tofile(piece)
            first = int(request.numbers[0])
            assert torch.equal(open_video(piece).clip(first, first + 3), whole[start : start + 3])
        assert cut == 38 if name == "closed.mp4" else cut >= 8


def dataset_of(tmp_path: Path, encode: Callable, kind: str) -> list[Sample]:
    """Videos with moving masks: VP9 files, upright or lying on their sides, or folders of JPEG."""
    if kind == "jpeg":
        davis_2017(tmp_path / "root", encode)
        return list(open_dataset(tmp_path / "root"))

    def vp9(name: str, codec: str = "libvpx-vp9", **options: object) -> Path:
        if kind == "turned":
            options |= {"size": options["size"][::-1], "rotation": 90}
        return encode(name, "libvpx-vp9", options={"deadline": "realtime"}, **options)

    sav(tmp_path / "root", vp9)
    return list(open_dataset(tmp_path / "root"))


@pytest.mark.parametrize("kind", ["vp9", "turned", "jpeg"])
@pytest.mark.parametrize(
    ("size", "more"),
    [
        ((24, 40), {"rotation": 0.0, "rotation_jitter": 0.0}),
        ((17, 29), {}),
        ((30, 44), {"rotation": 90.0, "copy_paste": 0.5}),
        ((24, 40), {"behaviour": "official"}),
    ],
)
def test_transformed_clips_and_masks_are_pyavs(tmp_path, encode, kind, size, more):
    dataset = dataset_of(tmp_path, encode, kind)
    settings = ClipSettings(size=size, frames=3, batch=3, color=0.3, **more)
    form = {"mean": (100, 110, 120), "std": (2.0, 2.0, 2.0)}
    loaders = [
        ClipLoader(dataset, replace(settings, decoder=name), seed=4, clips_per_video=6, **form)
        for name in ("pyav", "dali")
    ]
    for ours, other in zip(*loaders, strict=True):
        assert ours.names == other.names
        assert torch.equal(ours.times, other.times)
        assert ours.frames.shape == other.frames.shape == (3, 3, 3, *size)
        levels = [2 * batch.frames for batch in (other, ours)]
        assert share_within(*levels, 2) >= 0.999
        # Filters end differently at the border alone, which a rotation moves inwards.
        assert share_within(*(frames[..., 6:-6, 6:-6] for frames in levels), 0.01) >= 0.999
        for a, b in zip(ours.targets, other.targets, strict=True):
            assert torch.equal(a.keep, b.keep)
            assert (a.masks != b.masks).double().mean() < 1e-3
    # Clips that are pasted from are decoded, too.
    assert loaders[0].decoded.total() == (18 if "copy_paste" in more else 12)
    assert dict(loaders[1].decoded) == {"dali": loaders[0].decoded.total()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["h264", "vp9", "jpeg"])
def test_clips_made_on_a_gpu_are_pyavs(tmp_path, encode, kind):
    if kind == "h264":
        sav(tmp_path / "root", encode)
        dataset = list(open_dataset(tmp_path / "root"))
    else:
        dataset = dataset_of(tmp_path, encode, kind)
    settings = ClipSettings(size=(24, 40), frames=3, batch=2)
    ours = ClipLoader(dataset, replace(settings, decoder="pyav"), seed=4, clips_per_video=6)
    other = ClipLoader(dataset, replace(settings, decoder="dali"), device="cuda", seed=4, clips_per_video=6)
    for a, b in zip(ours, other, strict=True):
        assert b.frames.is_cuda
        assert torch.equal(a.times, b.times)
        assert share_within(b.frames.cpu(), a.frames, 4) >= 0.99  # other hardware rounds otherwise
        for x, y in zip(a.targets, b.targets, strict=True):
            assert (x.masks != y.masks.cpu()).double().mean() < 1e-3
    assert dict(other.decoded) == {"dali": 12}


def test_stride_and_short_videos(tmp_path, encode):
    dataset = dataset_of(tmp_path, encode, "vp9")  # of 9 frames
    for frames, stride in ((3, 3), (6, 2), (12, 1)):
        settings = ClipSettings(size=(24, 40), frames=frames, stride=stride, batch=2)
        ours, other = (next(iter(ClipLoader(dataset, replace(settings, decoder=d)))) for d in ("pyav", "dali"))
        assert torch.equal(ours.times, other.times)
        assert share_within(other.frames, ours.frames, 2) >= 0.999


def test_a_mixed_dataset_is_split_clip_by_clip(tmp_path, encode):
    (tmp_path / "videos").mkdir()
    for name, codec in {"a.webm": "libvpx-vp9", "b.mp4": "libx264", "c.webm": "libvpx-vp9"}.items():
        options = {} if codec == "libx264" else VP9
        shutil.move(encode(name, codec, options=options), tmp_path / "videos" / name)
    dataset = open_dataset(tmp_path / "videos")
    loader = ClipLoader(dataset, replace(PLAIN, batch=3), clips_per_video=2)
    mixed = seen(loader)
    assert loader.summary().splitlines() == [
        "clips decoded by dali: 4",
        "clips decoded by pyav: 2",
        "by PyAV: 2: DALI has no decoder of h264 on a CPU",
    ]
    assert [clip[:2] for clip in mixed] == [
        clip[:2] for clip in seen(ClipLoader(dataset, replace(PLAIN, batch=3, decoder="pyav"), clips_per_video=2))
    ]
    resumed = ClipLoader(dataset, replace(PLAIN, batch=3), clips_per_video=2)
    first = seen(resumed, batches=1)
    other = ClipLoader(dataset, replace(PLAIN, batch=3), clips_per_video=2)
    other.load_state_dict(resumed.state_dict())
    assert [*first, *seen(other)] == mixed


def test_a_piece_that_dali_fails_on_is_pyavs_or_skipped(tmp_path, encode, monkeypatch):
    (tmp_path / "videos").mkdir()
    for name in ("good.webm", "bad.webm"):
        shutil.move(encode(name, "libvpx-vp9", options=VP9), tmp_path / "videos" / name)
    dataset = open_dataset(tmp_path / "videos")
    real = dali.request

    def spoiled(video: Video, plan: ClipPlan, masks: np.ndarray) -> dali.Request:
        made = real(video, plan, masks)
        return replace(made, encoded=(made.encoded[0][:40],)) if video.name == "bad" else made

    monkeypatch.setattr(dali, "request", spoiled)
    loader = ClipLoader(dataset, replace(PLAIN, batch=2), clips_per_video=2)
    assert sorted(name for name, _, _ in seen(loader)) == ["bad", "bad", "good", "good"]
    assert dict(loader.decoded) == {"dali": 2, "pyav": 2}
    assert all("DALI failed" in reason for reason in loader.reasons)
    with pytest.raises(InputError, match="that DALI decodes, got bad"):
        list(ClipLoader(dataset, replace(PLAIN, batch=2, decoder="dali"), clips_per_video=2))
    loader = ClipLoader(dataset, replace(PLAIN, batch=2, decoder="dali", on_error="skip"), clips_per_video=2)
    assert {name for name, _, _ in seen(loader)} == {"good"}
    assert dict(loader.decoded) == {"dali": 4}
    assert loader.skipped.total() >= 2


def test_of_a_file_that_ends_early_the_readable_part_is_drawn_from(encode):
    path = encode("x.webm", "libvpx-vp9", options=VP9)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    length = open_video(path).num_frames
    assert 10 < length < 40
    ours, other = (
        ClipLoader([Sample("x", path)], replace(PLAIN, decoder=d), clips_per_video=16) for d in ("pyav", "dali")
    )
    found = seen(ours)
    assert found == seen(other)
    assert max(times[-1] for _, times, _ in found) == length - 1


def test_jpeg_of_any_kind_is_pils(tmp_path):
    """Grey, with another sampling of colours, and laid on its side by EXIF."""
    image = Image.fromarray(pictures(1)[0])
    image.save(tmp_path / "0.jpg", quality=90)
    image.save(tmp_path / "1.jpg", quality=90, subsampling=0)
    image.convert("L").save(tmp_path / "2.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "3.jpg", quality=90, exif=exif)
    video = open_video(tmp_path)
    assert (video.size, dali.refusal(video, CPU)) == (SIZE, None)
    settings = replace(PLAIN, frames=4)
    plan = whole_frames(SIZE, [0, 1, 2, 3])
    request = dali.request(video, plan, np.zeros((0, 4, *SIZE), np.uint8))
    (found,) = dali.DaliDecoder(settings, ClipFormat(SIZE), CPU).decode([request])
    assert share_within(found.frames, video.clip(0, 4).float(), 2) >= 0.999


def test_many_clips_leave_memory_and_files_flat(tmp_path, encode):
    (tmp_path / "videos").mkdir()
    for name in ("a.webm", "b.webm"):
        shutil.move(encode(name, "libvpx-vp9", 30, options=VP9), tmp_path / "videos" / name)
    loader = ClipLoader(open_dataset(tmp_path / "videos"), replace(PLAIN, decoder="dali"), clips_per_video=100)
    marks = [memory_and_files() for number, _ in enumerate(loader) if number in (60, 190)]
    assert marks[1][0] - marks[0][0] < 20
    assert abs(marks[1][1] - marks[0][1]) <= 8


def test_png_images_are_pyavs(tmp_path):
    for t, image in enumerate(pictures(4)):
        Image.fromarray(image).save(tmp_path / f"{t}.png")
    assert "images are .png, not JPEG" in dali.refusal(open_video(tmp_path), CPU)


def test_drawing_does_not_depend_on_the_decoder():
    frames = torch.from_numpy(pictures(3)).permute(0, 3, 1, 2)
    settings = [ClipSettings(size=SIZE, decoder=d) for d in ("pyav", "dali")]
    plans = [draw_plan(torch.arange(3), SIZE, SIZE, each, seeded(7)) for each in settings]
    assert torch.equal(*(transform_frames(frames, plan, ClipFormat(SIZE)) for plan in plans))


def test_outputs_stay_what_they_are_while_the_next_ones_are_made(encode, decoder):
    """The tensors are DALI's own memory: holding them must keep it from being written again."""
    video = open_video(encode("x.webm", "libvpx-vp9", options=VP9))
    nothing = np.zeros((0, 3, *SIZE), np.uint8)
    held, copies = [], []
    for start in range(0, 36, 3):
        (found,) = decoder.decode([dali.request(video, whole_frames(SIZE, [start, start + 1, start + 2]), nothing)])
        held.append(found.frames)
        copies.append(found.frames.clone())
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
