"""Videos in memory and in folders, and writing them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.data.video import Video, open_video, write_video
from s2d.errors import InputError

from .conftest import pictures


def memory_video(number=6, size=(48, 64)):
    return Video.from_frames(torch.from_numpy(pictures(number, size)).permute(0, 3, 1, 2), fps=10, name="six")


def test_from_frames_has_the_same_face():
    frames = torch.from_numpy(pictures(6)).permute(0, 3, 1, 2)
    video = memory_video()
    assert (video.name, video.size, video.source_size, video.fps) == ("six", (48, 64), (48, 64), 10)
    assert (video.num_frames, len(video), video.decoder, video.notes) == (6, 6, "memory", ())
    assert video.timestamps.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(torch.stack(list(video)), frames)
    assert torch.equal(video.clip(2, 5), frames[2:5])
    assert video.clip(6, 6).shape == (0, 3, 48, 64)
    assert torch.equal(video.frame(5), frames[5])
    video.frame(0).zero_()
    assert torch.equal(video.frame(0), frames[0])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_clips_outside_are_refused(start, stop):
    with pytest.raises(ValueError, match="expected 0 <= start <= stop <= 6"):
        memory_video().clip(start, stop)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 1, 4, 4), (3, 4, 4), (2, 3, 0, 4)])
def test_from_frames_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected frames uint8 \[T, 3, H, W\]"):
        Video.from_frames(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        Video.from_frames(torch.zeros(2, 3, 4, 4))


def test_sizes():
    video = memory_video(size=(40, 100))
    assert video.resized(short_side=20).size == (20, 50)
    assert video.resized(short_side=400).size == (40, 100)
    assert video.resized(size=(80, 10)).size == (80, 10)
    assert video.resized(short_side=20).resized(short_side=30).size == (30, 75)
    assert video.resized(short_side=20).clip(0, 2).shape == (2, 3, 20, 50)
    with pytest.raises(ValueError, match="got both"):
        video.resized(short_side=20, size=(3, 3))
    with pytest.raises(ValueError, match="at least one pixel"):
        video.resized(short_side=0)


def test_write_video_round_trip(tmp_path):
    frames = torch.from_numpy(pictures(30)).permute(0, 3, 1, 2)
    rate = Fraction(30000, 1001)
    assert write_video(tmp_path / "a" / "x.mp4", iter(frames), rate) == 30
    video = open_video(tmp_path / "a" / "x.mp4")
    assert (video.num_frames, video.fps, video.size, video.notes) == (30, rate, (48, 64), ())
    assert np.allclose(video.timestamps, np.arange(30) * 1001 / 30000, atol=1e-4)
    assert (video.clip(0, 30).float() - frames.float()).abs().mean() < 6
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.mp4"]


def test_write_video_is_deterministic(tmp_path):
    frames = memory_video(20)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_write_video_keeps_given_times(tmp_path):
    times = [3.0, 3.1, 3.15, 3.4, 3.5, 3.52]
    write_video(tmp_path / "x.mp4", memory_video(), 10, timestamps=times)
    assert np.allclose(open_video(tmp_path / "x.mp4").timestamps, np.array(times) - 3, atol=1e-3)


def test_write_video_pads_odd_sizes(tmp_path):
    write_video(tmp_path / "x.mp4", memory_video(4, (33, 51)), 25)
    video = open_video(tmp_path / "x.mp4")
    assert video.size == (34, 52)
    first = video.frame(0).float()
    assert (first[:, 33] - first[:, 32]).abs().mean() < 6
    write_video(tmp_path / "y.mp4", memory_video(1, (1, 1)), 25)
    assert open_video(tmp_path / "y.mp4").size == (2, 2)


def test_write_video_refuses(tmp_path):
    path = tmp_path / "x.mp4"
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(path, [], 25)
    frame = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="of one size"):
        write_video(path, [frame, frame[:, :8]], 25)
    with pytest.raises(ValueError, match="float32"):
        write_video(path, [frame.float()], 25)
    assert list(tmp_path.iterdir()) == []


def save(folder, names, size=(24, 32), **options):
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(pictures(len(names), size)[index]).save(folder / name, **options)
    return folder


def test_folder_in_natural_order(tmp_path):
    names = ["f10.png", "f9.png", "f100.png", "f1.png"]
    folder = save(tmp_path / "walk", names)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._f1.png").write_text("what some systems leave behind")
    video = open_video(folder)
    assert (video.name, video.decoder, video.num_frames, video.size, video.fps) == ("walk", "images", 4, (24, 32), 25)
    expected = torch.from_numpy(pictures(4, (24, 32)))[[3, 1, 0, 2]].permute(0, 3, 1, 2)
    assert torch.equal(torch.stack(list(video)), expected)
    assert torch.equal(video.clip(1, 3), expected[1:3])
    assert open_video(folder, short_side=12).frame(2).shape == (3, 12, 16)


def test_folder_honours_exif_and_grey_levels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    folder = save(tmp_path / "turned", ["a.jpg", "b.jpg"], exif=exif, quality=95)
    video = open_video(folder)
    assert video.size == (32, 24)
    expected = np.rot90(pictures(2, (24, 32))[1], -1)
    assert np.abs(video.frame(1).permute(1, 2, 0).numpy().astype(int) - expected).mean() < 6
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(grey / "0.png")
    Image.fromarray(np.full((8, 8, 4), (10, 20, 30, 128), dtype=np.uint8)).save(grey / "1.png")
    video = open_video(grey)
    assert video.frame(0).unique().tolist() == [40_000 >> 8]
    assert video.frame(1)[:, 0, 0].tolist() == [10, 20, 30]


def test_bad_folders(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"expected images .* got none"):
        open_video(empty)
    mixed = save(save(tmp_path / "mixed", ["0.png", "1.png"]), ["2.png"], size=(24, 40))
    with pytest.raises(InputError, match=r"0\.png of 32 x 24 and 2\.png of 40 x 24"):
        open_video(mixed)
    broken = save(tmp_path / "broken", ["0.png"])
    (broken / "1.png").write_text("not an image")
    with pytest.raises(InputError, match=r"1\.png"):
        open_video(broken)
    short = save(tmp_path / "short", ["0.png", "1.png"])
    (short / "1.png").write_bytes((short / "1.png").read_bytes()[:200])
    with pytest.raises(InputError, match=r"1\.png, got a file that cannot be read"):
        list(open_video(short))
    with pytest.raises(InputError, match="stream 0"):
        open_video(save(tmp_path / "fine", ["0.png"]), stream=0)


def test_shared_image_folder(test_data):
    video = open_video(test_data / "data" / "davis16" / "frames" / "libby")
    assert (video.name, video.num_frames, video.size) == ("libby", 49, (240, 427))
    assert torch.equal(torch.stack(list(video))[20:23], video.clip(20, 23))
