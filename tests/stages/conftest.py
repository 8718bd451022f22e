"""A tiny video and quick stand-ins for the stages, so that what lies around them can be tested in seconds."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from s2d.data.types import FrameMasks, Keymasks, Tracks
from s2d.data.video import write_video
from s2d.ops import rle_encode

FRAMES, HEIGHT, WIDTH = 6, 48, 80


def boxes(size):
    """Two boxes that drift over the frames: bool [2, T, H, W]."""
    height, width = size
    masks = torch.zeros(2, FRAMES, height, width, dtype=torch.bool)
    for t in range(FRAMES):
        masks[0, t, height // 6 : height // 2, 2 + t : width // 4 + t] = True
        masks[1, t, height // 2 :, width // 2 + t : 3 * width // 4 + t] = True
    return masks


@pytest.fixture
def clip_path(tmp_path):
    """A video file of two drifting boxes."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 120, (1, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8).repeat(
        FRAMES, 1, 1, 1
    )
    for colour, mask in zip((200, 20), boxes((HEIGHT, WIDTH)), strict=True):
        frames[mask[:, None].expand(-1, 3, -1, -1)] = colour
    path = tmp_path / "clip.mp4"
    write_video(path, frames, 10)
    return path


@pytest.fixture
def stand_ins(monkeypatch):
    """Replaces the four long stages; ``calls`` counts them, and what ``interrupt`` names raises KeyboardInterrupt."""
    from s2d.stages import run as run_module

    state = SimpleNamespace(calls=[], interrupt=None, empty=False, motion=None)

    def enter(name, work=None):
        state.calls.append(name)
        if state.interrupt == name:
            if work is not None:
                (work / "half-done").write_text("half")
            raise KeyboardInterrupt
        return work is not None and (work / "half-done").exists()

    def propose(video, settings, *, work=None, progress=True):
        state.continued = enter("propose", work)
        masks = boxes(video.size)[:, :, None].transpose(0, 1).flatten(0, 2)
        if state.empty:
            masks = masks[:0]
        frames = torch.arange(FRAMES).repeat_interleave(2)[: len(masks)]
        return FrameMasks(video.name, video.size, FRAMES, rle_encode(masks), frames, torch.full((len(masks),), 0.7))

    def discover(video, masks, settings, *, motion=None, progress=True):
        enter("discover")
        state.motion = motion
        tubes = boxes(masks.size)
        annotated = torch.zeros(2, FRAMES, dtype=torch.bool)
        annotated[:, ::2] = True
        tubes &= annotated[:, :, None, None]
        return Keymasks(
            video.name,
            masks.size,
            rle_encode(tubes.flatten(0, 1)),
            annotated,
            torch.tensor([0.9, 0.8]),
            mask_scores=0.6 * annotated,
            one2x=torch.zeros(2),
            visibility_ranges=(((0, 5),), ((0, 5),)),
        )

    def distill(video, keymasks, recipe, *, work=None, progress=True):
        state.continued = enter("distill", work)
        return SimpleNamespace(seed=recipe.seed)

    def predict(video, model, settings, *, work=None, progress=True):
        state.continued = enter("predict", work)
        tubes = boxes(video.size)
        scores = torch.tensor([0.95, 0.85])
        return Tracks(video.name, video.size, rle_encode(tubes.flatten(0, 1)), tubes.flatten(2).any(2), scores)

    original_render = run_module.render

    def render(*args, **kwargs):
        enter("render")
        original_render(*args, **kwargs)

    for function in (propose, discover, distill, predict, render):
        monkeypatch.setattr(run_module, function.__name__, function)
    monkeypatch.setattr(run_module, "save_checkpoint", lambda model, path: path.write_text(str(model.seed)))
    monkeypatch.setattr(run_module, "load_checkpoint", lambda path: SimpleNamespace(seed=path.read_text()))
    return state


@pytest.fixture
def pool_here():
    """In place of a `Pool`: runs tasks in this process; ``seen`` are the names of the last run's."""
    from s2d.stages._workers import attempt

    state = SimpleNamespace(seen=[], check=lambda: None)

    def run(task, videos):
        state.seen.clear()
        for name, source in videos:
            state.seen.append(name)
            yield name, attempt(task, name, source)

    state.run = run
    return state


@pytest.fixture
def processes():
    """Programs in groups of their own, as those that are started in a terminal: a Ctrl-C reaches all of a group."""

    def start(*arguments):
        command = [sys.executable, *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        # A suite that a shell runs in the background ignores Ctrl-C, and so would its children.
        return subprocess.Popen(command, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def wait_for(condition, what, seconds=60.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"no {what} in {seconds:.0f} s"
            time.sleep(0.02)

    def are_gone(group):
        """Whether none of the group runs; one that has ended and that nobody has asked about yet does not."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, number = status.read_text().rpartition(")")[2].split()[:3]
                if int(number) == group and state != "Z":
                    return False
        return True

    return SimpleNamespace(start=start, wait_for=wait_for, are_gone=are_gone)
