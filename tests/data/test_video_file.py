"""Files: what is indexed is what is decoded, from any frame on, whatever the codec and the container do."""

from __future__ import annotations

import gc
import os
import re
import shutil
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
import torch

from s2d.data.video import open_video
from s2d.data.video_file import to_rgb
from s2d.errors import InputError

from .conftest import pictures

ENCODINGS = {
    "b_frames.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "open_gop.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3:b-pyramid=2"}),
    "intra_refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "single_key.mkv": ("libx264", {"g": "1000"}),
    "short_gop.mkv": ("libx264", {"g": "7"}),
    "h264.ts": ("libx264", {"g": "12"}),
    "h264.avi": ("libx264", {"g": "12", "bf": "2"}),
    "h265.mp4": ("libx265", {"x265-params": "open-gop=1:keyint=12:min-keyint=12:log-level=none"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "9"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2", "g": "9"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2", "g": "9"}),
    "vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "60k", "g": "15", "deadline": "realtime"}),
    "vp9.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "15", "deadline": "realtime"}),
    "av1.mkv": ("libsvtav1", {"g": "15", "preset": "12"}),
    "mjpeg.avi": ("mjpeg", {}),
}


def decoded_by_hand(path, stream=None):
    """All frames in the order in which FFmpeg gives them, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        video = container.streams.video[0] if stream is None else container.streams[stream]
        return np.stack([to_rgb(frame) for frame in container.decode(video)])


def assert_same_everywhere(video, step=1):
    """Iteration, clips and single frames are the same, and there are as many as promised."""
    frames = list(video)
    assert len(frames) == video.num_frames == len(video.timestamps)
    whole = torch.stack(frames)
    assert whole.dtype == torch.uint8
    assert tuple(whole.shape[1:]) == (3, *video.size)
    for start in range(0, len(frames), step):
        stop = min(start + 5, len(frames))
        assert torch.equal(video.clip(start, stop), whole[start:stop]), start
    assert torch.equal(video.frame(len(frames) - 1), whole[-1])
    return whole


def skip_without(codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no encoder {codec}")


@pytest.mark.parametrize("name", ENCODINGS)
def test_random_access_equals_iteration(encode, name):
    codec, options = ENCODINGS[name]
    skip_without(codec)
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(name, codec, 40, options=options, pixel_format=pixel_format)
    video = open_video(path)
    assert (video.num_frames, video.size, video.fps, video.notes) == (40, (48, 64), 25, ())
    whole = assert_same_everywhere(video)
    assert np.array_equal(whole.permute(0, 2, 3, 1).numpy(), decoded_by_hand(path))
    assert np.allclose(video.timestamps, np.arange(40) / 25, atol=2e-3)
    # Lossy, but each frame must be nearer to its own picture than to its neighbours'.
    truth = torch.from_numpy(pictures(40)).permute(0, 3, 1, 2).float()
    difference = (whole[:, None].float() - truth[None]).abs().mean((2, 3, 4))
    assert torch.equal(difference.argmin(1), torch.arange(40))


def test_frames_hidden_by_an_edit_list_are_not_counted(encode):
    clock = Fraction(1, 25)
    video = open_video(encode("edit.mp4", frames=40, times=list(range(-10, 30)), clock=clock))
    assert (video.num_frames, video.notes) == (30, ())
    assert_same_everywhere(video)


def test_one_frame(encode):
    video = open_video(encode("one.mp4", frames=1))
    assert (video.num_frames, video.fps, video.timestamps.tolist()) == (1, 25, [0.0])
    assert_same_everywhere(video)


def test_odd_size_and_fractional_rate(encode):
    rate = Fraction(30000, 1001)
    video = open_video(encode("odd.mkv", "ffv1", 12, size=(47, 61), rate=rate, pixel_format="bgr0"))
    assert (video.size, video.num_frames) == ((47, 61), 12)
    assert abs(video.fps - rate) < Fraction(1, 100)
    assert np.array_equal(assert_same_everywhere(video).permute(0, 2, 3, 1).numpy(), pictures(12, (47, 61)))
    assert open_video(encode("rate.mp4", frames=12, rate=rate)).fps == rate


def test_variable_frame_rate(encode):
    clock = Fraction(1, 1000)
    times = np.cumsum([0] + [20, 60] * 15)[:30].tolist()
    for name in ("vfr.mp4", "vfr.mkv"):
        video = open_video(encode(name, frames=30, times=times, clock=clock, rate=1000))
        assert np.allclose(video.timestamps, np.array(times) / 1000, atol=1e-3)
        assert float(video.fps) == pytest.approx(29 / (times[-1] / 1000), rel=1e-3)
        (note,) = video.notes
        assert "20 to 60 ms" in note
        assert_same_everywhere(video, step=4)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_metadata(encode, degrees):
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[:16, :16] = 255  # a corner that shows which way it was turned
    path = encode("turned.mp4", frames=np.stack([image] * 3), rotation=degrees)
    video = open_video(path)
    expected = np.rot90(image, degrees // 90)
    assert video.size == expected.shape[:2]
    found = video.frame(1).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).mean() < 4
    assert_same_everywhere(video)


def test_resize_shrinks_and_does_not_enlarge(encode):
    path = encode("x.mp4", frames=8)
    small = open_video(path, short_side=24)
    assert (small.size, small.source_size) == ((24, 32), (48, 64))
    assert open_video(path, short_side=100).size == (48, 64)
    assert open_video(path, size=(30, 90)).size == (30, 90)
    assert small.resized().size == (48, 64)
    blocks = open_video(path).frame(3).float().unflatten(1, (24, 2)).unflatten(3, (32, 2)).mean((2, 4))
    assert (small.frame(3).float() - blocks).abs().max() <= 1  # area averaging, rounded
    for video in (small, open_video(path, size=(30, 90))):
        assert_same_everywhere(video)


def test_streams_are_chosen_and_refused(tmp_path):
    path = tmp_path / "two.mp4"
    sizes = [(32, 32), (48, 64)]
    with av.open(str(path), "w") as container:
        streams = []
        for size in sizes:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            streams.append((stream, size))
        for t in range(10):
            for stream, size in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures(10, size)[t], "rgb24")))
        for stream, _ in streams:
            container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
    assert open_video(path).size == sizes[best]
    for stream in (0, 1):
        video = open_video(path, stream=stream)
        assert video.size == sizes[stream]
        assert_same_everywhere(video)
    with pytest.raises(InputError, match=r"\(0, 1\), got 5"):
        open_video(path, stream=5)


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        stream.layout = "mono"
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def zero_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()


BAD = {
    "missing.mp4": (lambda path: None, "no such file"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 50), "not one"),
    "notes.txt": (lambda path: path.write_text("not a video\n" * 50), "text file"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "empty file"),
    "noise.mkv": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not one"),
    "audio.mp4": (write_audio, "got audio only"),
    "zero.mkv": (zero_frames, "without a single frame"),
    "zero.mp4": (zero_frames, "without a single frame|no stream that can be played$"),
    "device.mp4": (lambda path: os.mkfifo(path), "something else"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(tmp_path, name):
    make, words = BAD[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        open_video(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("expected ")


def test_decoders(encode):
    path = encode("x.mp4", frames=3)
    assert open_video(path, decoder="pyav").decoder == open_video(path).decoder == "pyav"
    with pytest.raises(InputError, match=r"pyav.*got .dali."):
        open_video(path, decoder="dali")
    with pytest.raises(InputError, match="one of auto, pyav, dali, got 'ffmpeg'"):
        open_video(path, decoder="ffmpeg")


def cut(path, share):
    data = path.read_bytes()
    shorter = path.with_name("cut_" + path.name)
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("front.mp4", {"movflags": "+faststart"}, r"read \d+ of 40 frames: the file ends early"),
        ("fragments.mp4", {"movflags": "+frag_keyframe+empty_moov"}, ""),
        ("x.mkv", {}, r"read [\d.]+ of 1.6 seconds: the file ends early"),
        ("x.avi", {}, r"read \d+ of 40 frames: the file ends early"),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated_files_give_their_readable_part(encode, name, options, note, share):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    whole = encode(name, codec, noise, container_options=options, options={"g": "8"})
    video = open_video(cut(whole, share))
    assert 40 * share * 0.3 < video.num_frames < 40
    if name != "fragments.mp4":  # a cut between two fragments looks like a file that is complete
        (said,) = video.notes
        assert re.fullmatch(note, said)
    frames = assert_same_everywhere(video)
    complete = {frame.numpy().tobytes() for frame in open_video(whole)}
    assert all(frame.numpy().tobytes() in complete for frame in frames)  # nothing that a decoder made up


def test_truncated_before_anything_decodes(encode):
    whole = encode("front.mp4", frames=40, container_options={"movflags": "+faststart"})
    data = whole.read_bytes()
    start = whole.with_name("start.mp4")
    start.write_bytes(data[: data.index(b"mdat") + 8])
    with pytest.raises(InputError, match="without a single frame"):
        open_video(start)
    index_lost = cut(encode("back.mp4", frames=40), 0.7)
    with pytest.raises(InputError, match="its end, where the index is, may be missing"):
        open_video(index_lost)


def test_damage_in_the_middle_keeps_the_promise(encode):
    path = encode("x.mkv", frames=40, options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    video = open_video(path)
    assert 5 <= video.num_frames < 40
    assert len(list(video)) == len(video.clip(0, video.num_frames)) == video.num_frames
    assert len(video.clip(video.num_frames - 1, video.num_frames)) == 1


def test_files_are_closed_when_iteration_is_abandoned(encode):
    path = encode("x.mp4", frames=40)

    def open_files():
        gc.collect()
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the system does not list open files in /proc")
    video = open_video(path)
    frames = iter(video)
    next(frames)
    assert open_files() == 1
    frames.close()
    assert open_files() == 0
    list(islice(video, 3))
    video.clip(5, 9)
    assert open_files() == 0


def test_a_file_that_changes_is_indexed_anew(encode):
    path = encode("x.mp4", frames=10)
    assert open_video(path).num_frames == 10
    shutil.copy(encode("y.mp4", frames=7), path)
    os.utime(path, ns=(1, 1))
    assert open_video(path).num_frames == 7


def test_shared_codec_files(test_data):
    expected = {
        "av1_video.mkv": (125, (360, 640), 25),
        "h265_video.mp4": (10, (128, 128), 10),
        "nasa_13013.mp4": (390, (270, 480), Fraction(30000, 1001)),
        "nasa_13013_rotated.mp4": (17, (480, 270), Fraction(30000, 1001)),
    }
    for name, (number, size, fps) in expected.items():
        video = open_video(test_data / "data" / "codecs" / name)
        assert (video.num_frames, video.size, video.fps, video.notes) == (number, size, fps, ()), name
        assert_same_everywhere(video.resized(short_side=90), step=1 if number < 50 else 17)
    video = open_video(test_data / "data" / "codecs" / "nasa_13013.mp4", stream=0)
    assert (video.num_frames, video.size, video.fps) == (325, (180, 320), 25)
    with pytest.raises(InputError, match=r"\(0, 3\), got 1"):
        open_video(test_data / "data" / "codecs" / "nasa_13013.mp4", stream=1)


def test_shared_rotated_file_is_the_other_turned(test_data):
    folder = test_data / "data" / "codecs"
    turned, straight = (open_video(folder / name) for name in ("nasa_13013_rotated.mp4", "nasa_13013.mp4"))
    a, b = turned.frame(0).float(), torch.rot90(straight.frame(0), 1, (1, 2)).float()
    assert (a - b).abs().mean() < 3


def test_shared_truncated_file(test_data, tmp_path):
    path = test_data / "data" / "clips" / "dogs-scale" / "video.mp4"
    front = tmp_path / "front.mp4"
    with av.open(str(path)) as source, av.open(str(front), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    video = open_video(cut(front, 0.6), short_side=60)
    assert video.notes == (f"read {video.num_frames} of 83 frames: the file ends early",)
    assert 40 < video.num_frames < 60
    assert_same_everywhere(video, step=9)
