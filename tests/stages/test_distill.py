"""Distill: from sparse keymasks to a model that sees every frame, resumable, with plain words where it cannot."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from s2d.data.clips import AnnotatedFrames
from s2d.data.types import Keymasks
from s2d.data.video import Video
from s2d.errors import InputError
from s2d.ops import mask_iou, rle_encode
from s2d.stages import distill as stage
from s2d.stages.distill import distill
from s2d.stages.predict import PredictSettings, predict
from s2d.training.recipe import Recipe, load_recipe
from s2d.training.settings import RoundSettings
from s2d.training.trainer import Trainer

FRAMES, HEIGHT, WIDTH = 10, 64, 96


def scene() -> tuple[Video, torch.Tensor]:
    """A red box that drifts over grey noise: the video and its masks ``[T, H, W]``."""
    frames = torch.randint(60, 120, (FRAMES, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    for t in range(FRAMES):
        masks[t, 16:44, 6 + 5 * t : 38 + 5 * t] = True
        frames[t, 0, masks[t]] = 220
    return Video.from_frames(frames.to(torch.uint8), name="box"), masks


def keymasks_of(masks: torch.Tensor, frames: list[int]) -> Keymasks:
    annotated = torch.zeros(1, len(masks), dtype=torch.bool)
    annotated[0, frames] = True
    rle = rle_encode(masks & annotated[0, :, None, None])
    return Keymasks("box", tuple(masks.shape[1:]), rle, annotated, torch.ones(1), mask_scores=annotated.float())


def small(*rounds: RoundSettings) -> Recipe:
    """The recipe of the package with still smaller numbers."""
    recipe = load_recipe("cpu-small")
    model = dataclasses.replace(
        recipe.model,
        width=8,
        hidden_dim=32,
        nheads=2,
        mask_dim=32,
        num_queries=4,
        decoder_layers=2,
        input_short_side=64,
    )
    loss = dataclasses.replace(recipe.loss, num_points=256)
    return dataclasses.replace(recipe, model=model, loss=loss, rounds=rounds, checkpoint_every=5)


BRIEF = small(RoundSettings("sparse", "keymasks", 8, distill_from=4), RoundSettings("dense", "predictions", 6))


def noted(monkeypatch) -> list[AnnotatedFrames]:
    """What the rounds would be trained on; none is."""
    seen: list[AnnotatedFrames] = []

    def skip(self, feed, **options):
        self.round += 1

    monkeypatch.setattr(stage, "MemoryLoader", lambda videos, *arguments, **options: seen.extend(videos))
    monkeypatch.setattr(Trainer, "train", skip)
    return seen


def test_keymasks_on_some_frames_become_tracks_on_all():
    video, masks = scene()
    recipe = small(RoundSettings("sparse", "keymasks", 120), RoundSettings("dense", "predictions", 30))
    model = distill(video, keymasks_of(masks, [1, 2, 5, 8]), recipe, progress=False)
    assert not model.training
    tracks = predict(video, model, PredictSettings(window=10, overlap=2), progress=False)
    iou = mask_iou(tracks.bits(), masks[None])
    assert iou.max() > 0.75
    assert iou[0] > 0.7, "the best score is that of the object"


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_interrupted_and_resumed_gives_the_same_model(tmp_path, monkeypatch, stop):
    video, masks = scene()
    keymasks = keymasks_of(masks, [1, 2, 5, 8])
    whole = distill(video, keymasks, BRIEF, progress=False)
    taken, steps = Trainer._one_step, 0

    def stopping(self, *arguments):
        nonlocal steps
        steps += 1
        if steps > stop:
            raise OSError("the machine went down")
        return taken(self, *arguments)

    monkeypatch.setattr(Trainer, "_one_step", stopping)
    with pytest.raises(OSError, match="went down"):
        distill(video, keymasks, BRIEF, work=tmp_path, progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "model.pt").exists()
    resumed = distill(video, keymasks, BRIEF, work=tmp_path, progress=False)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))

    monkeypatch.setattr(Trainer, "_one_step", lambda *a: 1 / 0)
    again = distill(video, keymasks, BRIEF, work=tmp_path, progress=False)
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


def test_the_dense_round_learns_from_predictions_on_every_frame(monkeypatch):
    video, masks = scene()
    seen = noted(monkeypatch)
    everything = keymasks_of(masks, list(range(FRAMES)))
    monkeypatch.setattr(stage, "predict", lambda *a, **k: dataclasses.replace(everything, scores=torch.ones(1)))
    distill(video, keymasks_of(masks, [2, 3]), BRIEF, progress=False)
    sparse, dense = seen
    assert sparse.keep.sum() == 2
    assert dense.keep.all()
    assert (dense.weights == 1).all()
    assert torch.equal(sparse.frames, dense.frames)


def test_without_confident_predictions_it_goes_on_with_the_keymasks(monkeypatch):
    video, masks = scene()
    seen = noted(monkeypatch)
    none = keymasks_of(masks, [])
    none = dataclasses.replace(none, rle=none.rle[[]], annotated=none.annotated[:0], scores=none.scores[:0])
    monkeypatch.setattr(stage, "predict", lambda *a, **k: none)
    distill(video, keymasks_of(masks, [2, 3]), BRIEF, progress=False)
    assert torch.equal(seen[0].keep, seen[1].keep)


def test_frames_in_memory_are_capped_to_those_near_keymasks(monkeypatch):
    video, masks = scene()
    seen = noted(monkeypatch)
    recipe = small(RoundSettings("sparse", "keymasks", 3))
    recipe = dataclasses.replace(recipe, clips=dataclasses.replace(recipe.clips, max_frames=4))
    distill(video, keymasks_of(masks, [7]), recipe, progress=False)
    assert seen[0].times.tolist() in ([5, 6, 7, 8], [6, 7, 8, 9])
    assert seen[0].keep.tolist() == [[t == 7 for t in seen[0].times.tolist()]]


def test_what_is_refused():
    video, masks = scene()
    with pytest.raises(ValueError, match="at least one keymask"):
        distill(video, keymasks_of(masks, []), BRIEF, progress=False)
    with pytest.raises(InputError, match="keymasks of the 10 frames of box, got 7 frames"):
        distill(video, keymasks_of(masks[:7], [1]), BRIEF, progress=False)
    with pytest.raises(InputError, match="expected a recipe"):
        distill(video, keymasks_of(masks, [1]), "cpu-tiny", progress=False)


def test_work_of_other_keymasks_is_refused(tmp_path):
    video, masks = scene()
    distill(video, keymasks_of(masks, [1, 2]), BRIEF, work=tmp_path, progress=False)
    with pytest.raises(InputError, match="same recipe on the same keymasks"):
        distill(video, keymasks_of(masks, [1, 3]), BRIEF, work=tmp_path, progress=False)
