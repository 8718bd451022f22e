"""Clips for training: what is drawn, in which order, on how many processes, and what happens to what cannot be read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.data.clip_loader import ClipLoader
from s2d.data.clip_plan import HALF, draw_plan, seeded
from s2d.data.clips import ClipSettings
from s2d.data.datasets import Sample, open_dataset
from s2d.data.types import Keymasks, Tracks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.ops import rle_encode

from .conftest import pictures
from .test_datasets import SIZE, davis_2017, masks_of, sav, write_images

PLAIN = ClipSettings(size=SIZE, crop=(1.0, 1.0), flip=0.0, color=0.0, rotation=0.0, rotation_jitter=0.0, decoder="pyav")


def in_memory(name: str, frames: int = 20, size: tuple[int, int] = SIZE, tracks: Tracks | None = None) -> Sample:
    class Memory(Sample):
        def video(self) -> Video:
            return Video.from_frames(torch.from_numpy(pictures(frames, size)).permute(0, 3, 1, 2), name=name)

    return Memory(name, (), _tracks=None if tracks is None else lambda: tracks)


def many(number: int = 7) -> list[Sample]:
    return [in_memory(f"v{n}", 20 + n) for n in range(number)]


def seen(loader: ClipLoader, batches: int | None = None) -> list[tuple[str, tuple[int, ...], float]]:
    """(video, times, sum of the pixels) of each clip that an epoch, or its first batches, hands out."""
    found = []
    for number, batch in enumerate(loader, 1):
        for name, times, clip in zip(batch.names, batch.times.tolist(), batch.frames, strict=True):
            found.append((name, tuple(times), float(clip.double().sum())))
        if number == batches:
            break
    return found


def test_a_plain_clip_is_the_video(tmp_path, encode):
    davis_2017(tmp_path / "root", encode)
    dataset = open_dataset(tmp_path / "root")
    for batch in ClipLoader(dataset, replace(PLAIN, frames=4, stride=2, batch=2)):
        assert (batch.frames.shape, batch.frames.dtype) == ((2, 4, 3, *SIZE), torch.float32)
        for name, times, clip, target in zip(batch.names, batch.times, batch.frames, batch.targets, strict=True):
            assert torch.equal(times.diff(), torch.full((3,), 2))
            (sample,) = (sample for sample in dataset if sample.name == name)
            video = sample.video()
            expected = torch.stack([video.frame(int(t)) for t in times]).float()
            assert (clip - expected).abs().max() < 1e-3
            assert target.masks.numpy().tolist() == masks_of(name)[:, times][: len(target)].tolist()
            assert target.keep.all()
            assert target.keep.shape == (2, 4)


def test_masks_move_with_the_frames():
    """A white square on black: wherever it ends up, the mask is on it."""
    masks = torch.zeros(1, 6, 40, 60, dtype=torch.bool)
    masks[:, :, 8:24, 20:44] = True
    frames = masks[0, :, None].expand(6, 3, 40, 60).to(torch.uint8) * 255
    tracks = Tracks("s", (40, 60), rle_encode(masks[0]), torch.ones(1, 6, dtype=torch.bool), torch.ones(1))

    class Square(Sample):
        def video(self) -> Video:
            return Video.from_frames(frames.contiguous())

    sample = Square("s", (), _tracks=lambda: tracks)
    settings = ClipSettings(size=(30, 30), frames=2, batch=4, crop=(0.5, 0.9), color=0.0, decoder="pyav")
    flipped = set()
    for batch in ClipLoader([sample], settings, clips_per_video=16):
        for clip, target in zip(batch.frames, batch.targets, strict=True):
            bright = clip.mean(1) >= 255 * HALF
            assert len(target) == bright.any()
            if len(target):
                assert torch.equal(target.masks[0], bright)
                columns = bright[0].any(0).nonzero()
                flipped.add(bool(columns.float().mean() > 15))
    assert len(flipped) == 2


def test_a_clip_shows_an_annotated_frame():
    tracks = Tracks(
        "s", SIZE, rle_encode(torch.zeros(50, *SIZE, dtype=torch.bool)), torch.arange(50)[None] == 31, torch.ones(1)
    )
    sample = in_memory("s", 50, tracks=tracks)
    starts = set()
    for batch in ClipLoader([sample], replace(PLAIN, frames=3, stride=4), clips_per_video=24):
        assert 31 in batch.times[0]
        starts.add(int(batch.times[0, 0]))
    assert starts == {23, 27, 31}


def test_keymasks_are_drawn_by_their_scores():
    scores = torch.zeros(1, 9)
    scores[0, 1], scores[0, 7] = 0.9, 0.1
    nothing = rle_encode(torch.zeros(9, *SIZE, dtype=torch.bool))
    keymasks = Keymasks("s", SIZE, nothing, scores > 0, torch.ones(1), mask_scores=scores)
    loader = ClipLoader([in_memory("s", 9, tracks=keymasks)], replace(PLAIN, frames=1), clips_per_video=100)
    times = [int(batch.times) for batch in loader]
    assert set(times) == {1, 7}
    assert 80 <= times.count(1) <= 98


def test_colours_and_normalisation_are_within_bounds():
    settings, mean, std = replace(PLAIN, color=0.5), (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    low, high = ((torch.full((3,), end) - torch.tensor(mean)) / torch.tensor(std) for end in (0.0, 255.0))
    colours = set()
    for batch in ClipLoader(many(), settings, mean=mean, std=std):
        clip = batch.frames[0].transpose(0, 1).flatten(1)
        assert (clip >= low[:, None] - 1e-5).all()
        assert (clip <= high[:, None] + 1e-5).all()
        colours.add(float(clip.mean()))
    assert len(colours) == 7
    plan = draw_plan(torch.arange(3), SIZE, SIZE, PLAIN, seeded(0))
    assert np.array_equal(plan.color, np.tile(np.eye(3, 4, dtype=np.float32), (3, 1, 1)))


@pytest.mark.parametrize("workers", [1, 4])
def test_two_processes_see_what_one_sees(workers):
    settings = ClipSettings(size=(16, 24), frames=3, batch=4, decoder="pyav")
    for epoch in range(2):
        one = ClipLoader(many(), settings, seed=5)
        more = replace(settings, workers=workers)
        two = [ClipLoader(many(), more, seed=5, rank=r, world=2) for r in (0, 1)]
        for loader in (one, *two):
            loader.epoch = epoch
        whole, parts = seen(one), [seen(loader) for loader in two]
        assert len(whole) == 8
        assert [clip for pair in zip(*parts, strict=True) for clip in pair] == whole
    assert {name for name, _, _ in whole} == {f"v{n}" for n in range(7)}


def test_two_real_processes_see_what_one_sees(tmp_path, encode):
    davis_2017(tmp_path / "root", encode)
    program = (
        "import sys\n"
        "from s2d.data.clip_loader import ClipLoader\n"
        "from s2d.data.clips import ClipSettings\n"
        "from s2d.data.datasets import open_dataset\n"
        "rank, world = int(sys.argv[2]), int(sys.argv[3])\n"
        "settings = ClipSettings(size=(16, 24), frames=2, batch=4, decoder='pyav')\n"
        "loader = ClipLoader(open_dataset(sys.argv[1]), settings, seed=3, rank=rank, world=world, clips_per_video=4)\n"
        "for batch in loader:\n"
        "    for name, times, clip in zip(batch.names, batch.times.tolist(), batch.frames):\n"
        "        print(name, times, clip.double().sum().item())\n"
    )

    def run(rank: int, world: int) -> subprocess.Popen:
        arguments = [sys.executable, "-c", program, str(tmp_path / "root"), str(rank), str(world)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    programs = [run(0, 2), run(1, 2)]
    settings = ClipSettings(size=(16, 24), frames=2, batch=4, decoder="pyav")
    whole = seen(ClipLoader(open_dataset(tmp_path / "root"), settings, seed=3, clips_per_video=4))
    parts = [program.communicate(timeout=100)[0].splitlines() for program in programs]
    assert len(whole) == 8
    lines = [line for pair in zip(*parts, strict=True) for line in pair]
    assert lines == [f"{name} {list(times)} {total}" for name, times, total in whole]


def test_resume_goes_on_with_the_next_batch():
    settings = ClipSettings(size=(16, 24), frames=3, batch=2, decoder="pyav")
    loader = ClipLoader(many(), settings, seed=1)
    whole = [*seen(loader), *seen(loader)]
    assert loader.epoch == 1
    first = ClipLoader(many(), settings, seed=1)
    begun = [*seen(first), *seen(first, batches=2)]
    state = first.state_dict()
    again = ClipLoader(many(), settings, seed=1)
    again.load_state_dict(state)
    assert [*begun, *seen(again)] == whole
    halves = [ClipLoader(many(), settings, seed=1, rank=r, world=2) for r in (0, 1)]
    for half in halves:
        half.load_state_dict(state)
    parts = [seen(half) for half in halves]
    assert [*begun, *(clip for pair in zip(*parts, strict=True) for clip in pair)] == whole
    with pytest.raises(InputError, match="state of a loader"):
        ClipLoader(many(), settings, seed=2).load_state_dict(state)
    assert seen(again) != whole[:8]  # the third epoch is in another order


def test_a_run_goes_on_from_any_step_over_all_epochs(tmp_path, encode):
    davis_2017(tmp_path / "root", encode)
    dataset = open_dataset(tmp_path / "root")
    settings = ClipSettings(size=(16, 24), frames=2, batch=2, copy_paste=0.5, consecutive=0.5, decoder="pyav")

    def run(first: int, last: int, rank: int = 0, world: int = 1) -> list[tuple]:
        loader = ClipLoader(dataset, settings, seed=6, rank=rank, world=world, clips_per_video=3)
        return [
            (batch.names, batch.times.tolist(), clip.sum().item(), target.masks.sum().item(), target.keep.tolist())
            for batch in islice(loader.batches(first), last - first)
            for clip, target in zip(batch.frames, batch.targets, strict=True)
        ]

    whole = run(0, 8)  # epochs of three steps
    assert run(5, 8) == whole[10:]
    parts = [[clip[2:] for clip in run(2, 8, rank, 2)] for rank in (0, 1)]
    assert [clip for pair in zip(*parts, strict=True) for clip in pair] == [clip[2:] for clip in whole[4:]]
    with pytest.raises(InputError, match="a batch that 3 processes can share equally, got 2 clips"):
        ClipLoader(dataset, settings, world=3)


def test_pasted_instances_come_from_another_clip():
    """White squares on black are pasted onto an unannotated grey video, and are what its masks say."""
    masks = torch.zeros(1, 6, 40, 60, dtype=torch.bool)
    masks[:, :, 8:24, 20:44] = True
    frames = masks[0, :, None].expand(6, 3, 40, 60).to(torch.uint8) * 255
    tracks = Tracks("square", (40, 60), rle_encode(masks[0]), torch.ones(1, 6, dtype=torch.bool), torch.ones(1))

    class Memory(Sample):
        def video(self) -> Video:
            return Video.from_frames((frames if self.annotated else torch.full_like(frames, 100)).contiguous())

    dataset = [Memory("grey", ()), Memory("square", (), _tracks=lambda: tracks)]
    settings = ClipSettings(size=(40, 60), frames=2, batch=2, color=0.0, copy_paste=1.0, decoder="pyav")
    pasted = 0
    for batch in ClipLoader(dataset, settings, clips_per_video=10):
        for name, clip, target in zip(batch.names, batch.frames, batch.targets, strict=True):
            if name == "grey" and len(target):
                assert torch.equal(target.masks[0], clip.mean(1) > 110)
                pasted += 1
    assert 2 <= pasted <= 8


def test_a_video_shorter_than_a_clip():
    dataset = [in_memory("short", 4)]
    (batch,) = ClipLoader(dataset, replace(PLAIN, frames=4, stride=2))
    assert batch.times.tolist() == [[0, 2, 3, 3]]
    assert torch.equal(batch.frames[0, 2], batch.frames[0, 3])
    with pytest.raises(InputError, match="at least 7 frames, got 4"):
        list(ClipLoader(dataset, replace(PLAIN, frames=4, stride=2, short="error")))
    loader = ClipLoader(
        [*dataset, in_memory("long", 9)], replace(PLAIN, frames=4, stride=2, short="error", on_error="skip")
    )
    assert [name for name, _, _ in seen(loader)] == ["long", "long"]
    assert sum(loader.skipped.values()) >= 1
    assert all("at least 7 frames" in message for message in loader.skipped)


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def broken_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(3000))


HARM = {
    "empty video": (sav, "bear.mp4", empty_file),
    "half a video": (sav, "bear.mp4", broken_off),
    "noise": (sav, "bear.mp4", noise),
    "masks missing": (sav, "bear_manual.json", Path.unlink),
    "masks cut": (sav, "bear_auto.json", broken_off),
    "frame missing": (davis_2017, "JPEGImages/480p/bear/{:05d}.jpg", Path.unlink),
    "frame cut": (davis_2017, "JPEGImages/480p/bear/{:05d}.jpg", broken_off),
    "label map missing": (davis_2017, "Annotations/480p/bear/00004.png", Path.unlink),
    "label map empty": (davis_2017, "Annotations/480p/bear/00004.png", empty_file),
}


@pytest.mark.parametrize("fault", HARM)
@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_what_cannot_be_read_is_refused_or_skipped_and_counted(tmp_path, encode, fault, decoder):
    write, place, harm = HARM[fault]
    write(tmp_path / "root", encode)
    dataset = open_dataset(tmp_path / "root")
    for number in range(9) if "{" in place else (0,):
        harm(tmp_path / "root" / place.format(number))
    settings = replace(PLAIN, frames=2, decoder=decoder)
    with pytest.raises(InputError, match="bear") as caught:
        list(ClipLoader(dataset, settings))
    assert "\n" not in str(caught.value)
    loader = ClipLoader(dataset, replace(settings, on_error="skip"), clips_per_video=3)
    assert {name for name, _, _ in seen(loader)} == {"camel"}
    assert sum(loader.skipped.values()) >= 3
    assert all("bear" in message for message in loader.skipped)


def cut_off(content: bytes) -> bytes:
    return content[: len(content) * 6 // 10]


def flipped(content: bytes) -> bytes:
    return content[:6000] + bytes(255 - byte for byte in content[6000:6400]) + content[6400:]


@pytest.mark.parametrize(
    ("harm", "words"), [(cut_off, "the file ends early"), (flipped, "the others are damaged|the file ends early")]
)
def test_of_a_damaged_file_the_readable_part_is_drawn_from_and_counted(encode, harm, words):
    path = encode("x.mkv", options={"g": "10", "crf": "10"})
    path.write_bytes(harm(path.read_bytes()))
    loader = ClipLoader([Sample("x", path)], PLAIN, clips_per_video=16)
    assert 0 < max(times[-1] for _, times, _ in seen(loader)) < 40
    ((note, count),) = loader.partial.items()
    assert re.fullmatch(rf"x: read .*: ({words})", note)
    assert count == 16
    assert loader.summary().endswith(f"of a part: 16: {note}")


def test_a_dataset_without_a_readable_video_ends(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    dataset = open_dataset(tmp_path, format="videos")
    with pytest.raises(InputError, match=r"20 in a row that cannot; the last: .*empty file"):
        list(ClipLoader(dataset, replace(PLAIN, on_error="skip")))


def test_what_hangs_is_an_error_with_its_name():
    class Stuck(Sample):
        def video(self) -> Video:
            time.sleep(1000)

    began = time.perf_counter()
    with pytest.raises(InputError, match=r"within 0\.3 seconds, got none: still at work on stuck"):
        list(ClipLoader([Stuck("stuck", ())], replace(PLAIN, timeout=0.3)))
    assert time.perf_counter() - began < 10


def test_a_program_with_a_hanging_decoder_ends():
    program = (
        "import time\n"
        "from s2d.data.clip_loader import ClipLoader\n"
        "from s2d.data.clips import ClipSettings\n"
        "from s2d.data.datasets import Sample\n"
        "class Stuck(Sample):\n"
        "    def video(self): time.sleep(1000)\n"
        "list(ClipLoader([Stuck('stuck', ())], ClipSettings(size=(8, 8), timeout=0.2)))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "still at work on stuck" in result.stderr


def test_settings_are_checked():
    for change, words in {
        "decoder": ("nvdec", "decoder to be one of auto, pyav, dali, got 'nvdec'"),
        "short": ("pad", "short to be one of"),
        "on_error": ("ignore", "on_error to be one of"),
        "crop": ((0.9, 0.2), "two shares"),
        "frames": (0, "frames of at least 1, got 0"),
        "size": ((4, 0), "size of at least 1"),
        "copy_paste": (1.5, r"copy_paste in \[0, 1\], got 1.5"),
        "behaviour": ("theirs", "behaviour to be one of"),
    }.items():
        value, message = words
        with pytest.raises(InputError, match=message):
            replace(PLAIN, **{change: value})
    with pytest.raises(InputError, match="at least one video"):
        ClipLoader([], PLAIN)
    with pytest.raises(InputError, match="expected a size of the clips"):
        ClipLoader(many(), replace(PLAIN, size=None))
    with pytest.raises(ValueError, match="rank < world"):
        ClipLoader(many(), PLAIN, rank=2, world=2)


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_images_of_two_sizes_are_refused(tmp_path, decoder):
    write_images(tmp_path / "videos" / "a")
    Image.fromarray(pictures(1, (12, 20))[0]).save(tmp_path / "videos" / "a" / "00004.jpg")
    dataset = [Sample("a", tuple(sorted((tmp_path / "videos" / "a").iterdir())))]
    with pytest.raises(InputError, match=r"40 x 24 in .*00004\.jpg.*got 20 x 12"):
        list(ClipLoader(dataset, replace(PLAIN, frames=9, decoder=decoder)))


def memory_and_files() -> tuple[float, int]:
    """Resident MB and open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def test_many_clips_leave_memory_and_files_flat(tmp_path, encode):
    (tmp_path / "videos").mkdir()
    for name in "abc":
        shutil.move(encode(f"{name}.mp4", frames=30, options={"g": "10"}), tmp_path / "videos" / f"{name}.mp4")
    loader = ClipLoader(open_dataset(tmp_path / "videos"), replace(PLAIN, size=(24, 32)), clips_per_video=60)
    marks = [memory_and_files() for number, _ in enumerate(loader) if number in (60, 170)]
    assert marks[1][0] - marks[0][0] < 20
    assert abs(marks[1][1] - marks[0][1]) <= 8
