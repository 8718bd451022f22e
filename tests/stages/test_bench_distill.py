"""The measurement of distillation: its keymasks, the clips of pasted masks, its statistics, and the whole command."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are not installed

from benchmarks.stages import bench_distill as bench
from benchmarks.stages import distill_cases as cases
from s2d.data.clips import ClipTargets
from s2d.metrics import Scores
from s2d.ops import mask_area, unpack_masks


@pytest.fixture(scope="module")
def clip() -> cases.Clip:
    return cases.load(2000)


def test_keymasks_are_sparse_noisy_and_reproducible(clip):
    keymasks, truth = clip.keymasks, clip.truth
    again = cases.sparse_keymasks(truth, 2000)
    assert torch.equal(again.rle.counts, keymasks.rle.counts)
    assert torch.equal(again.annotated, keymasks.annotated)
    assert len(clip.unseen) >= truth.num_frames // 2
    assert bool(keymasks.annotated.any(1).all())
    assert not bool((mask_area(keymasks.bits()) > 0)[~keymasks.annotated].any())
    masks, true = unpack_masks(keymasks.bits()), unpack_masks(truth.bits())
    overlap = [
        max(float((mask & other).sum() / (mask | other).sum()) for other in true[:, t])
        for tube, kept in zip(masks, keymasks.annotated, strict=True)
        for t, mask in enumerate(tube)
        if kept[t]
    ]
    assert 0.6 < np.mean(overlap) < 0.95


def test_three_rows_in_ten_at_least_are_dropped(clip):
    share = cases.dropped_share([clip], cases.recipe(cases.VARIANTS["b"], 1, 30), 100)
    assert 0.3 < share < 0.8


def test_some_frames_of_tracks_lose_what_is_not_in_them(clip):
    whole = cases.on_frames(clip.truth, torch.arange(clip.truth.num_frames))
    assert torch.equal(whole.rle.counts, clip.truth.rle.counts)
    hidden = (mask_area(clip.truth.bits()) == 0).nonzero()
    assert len(hidden), "expected a clip in which an animal leaves the picture"
    n, t = hidden[0].tolist()
    one = cases.on_frames(clip.truth, torch.tensor([t]))
    seen = mask_area(clip.truth.bits())[:, t] > 0
    assert not bool(seen[n])
    assert len(one) == int(seen.sum())
    assert one.num_frames == 1


def test_pasted_masks_lie_where_the_pixels_are():
    still, source = torch.zeros(3, 40, 60, dtype=torch.uint8), torch.full((3, 40, 60), 200, dtype=torch.uint8)
    below, above = torch.zeros(2, 1, 40, 60, dtype=torch.bool).unbind(0)
    below[0, :, :] = True
    above[0, 10:24, 20:40] = True
    frames, tubes = cases.paste(still, below, source, above, 5, torch.Generator().manual_seed(3))
    assert frames.shape == (5, 3, 40, 60)
    assert tubes.shape == (2, 5, 40, 60)
    assert torch.equal(tubes[0], ~tubes[1]), "what is pasted hides what is below"
    assert torch.equal(frames[:, 0] > 100, tubes[1])
    assert len({tuple(mask.nonzero().float().mean(0).tolist()) for mask in tubes[1]}) == 5, "it moves"


def test_clips_of_pasted_masks_depend_on_their_number_alone(clip):
    recipe = cases.recipe(cases.VARIANTS["e"], 4, 30)
    feed = cases.keymask_feed([clip], cases.VARIANTS["e"], recipe)
    batches = feed.batches(0)
    next(batches)
    second, again = next(batches), next(feed.batches(1))
    assert torch.equal(second.frames, again.frames)
    assert all(bool(target.keep.all()) and len(target) for target in second.targets)
    assert not torch.equal(second.frames, next(batches).frames)


def test_truth_lies_beside_the_clips_that_others_see(clip):
    recipe = cases.recipe(cases.ALL["j"], 4, 30)
    informed = cases.keymask_feed([clip], cases.ALL["j"], recipe)
    plain = cases.keymask_feed([clip], cases.VARIANTS["b"], recipe)
    for batch, other, _ in zip(informed.batches(2), plain.batches(2), range(5), strict=False):
        assert torch.equal(batch.frames, other.frames)
        assert torch.equal(batch.targets[0].masks, other.targets[0].masks)
        (truth,) = informed.truth
        assert bool(truth.keep.all())
        assert len(truth) >= len(batch.targets[0])


def test_targets_of_the_teacher_are_counted_and_put_right():
    truth = torch.zeros(3, 2, 8, 8, dtype=torch.bool)
    truth[0, :, :4, :4] = truth[1, :, 4:, 4:] = truth[2, :, :3, 5:] = True
    seen = torch.stack([truth[0], truth[1], truth[0], torch.zeros_like(truth[0])])
    seen[0, :, 0] = seen[2, :, :, 0] = False  # three quarters of the first instance, twice
    seen[3, :, 5:, :2] = True  # nothing
    whole = torch.ones(4, 2, dtype=torch.bool)
    feed, teacher = SimpleNamespace(truth=[ClipTargets(truth, whole[:3])]), SimpleNamespace()
    teacher.targets = lambda *_: [ClipTargets(seen, whole)]
    for name, expected in (("h", seen), ("i", truth[:2]), ("j", truth)):
        examined = cases.Examined(teacher, feed, cases.ALL[name])
        assert torch.equal(examined()[0].masks, expected)
        found = examined.summary()
        assert [found[key] for key in ("targets", "right", "again", "instances")] == [4, 2, 1, 3]
        assert found["iou"] == pytest.approx((0.75 + 1) / 2)


def test_differences_are_paired():
    random = np.random.default_rng(0)
    base = {seed: random.random(50) for seed in (1, 2, 3)}

    def scores(shift: float) -> dict:
        return {
            seed: {"unseen": Scores("ap", {"ap": float(values.mean()) + shift}, {}, [], {"ap": values + shift})}
            for seed, values in base.items()
        }

    found = bench.difference(scores(0.1), scores(0.0), "ap")
    assert found["seeds"] == pytest.approx([0.1] * 3)
    assert [found[key] for key in ("mean", "low", "high")] == pytest.approx([0.1] * 3)
    uneven = scores(0.0)
    uneven[2]["unseen"].samples["ap"] += 0.3
    found = bench.difference(uneven, scores(0.0), "ap")
    assert found["low"] == pytest.approx(0.0)
    assert found["high"] > 0.19


def test_the_whole_command_and_that_it_continues(tmp_path, capsys):
    arguments = ["--quick", "--variants", "b", "c", "--jobs", "1", "--work", str(tmp_path)]
    assert bench.main(arguments) == 0
    said = capsys.readouterr().out
    assert "have no keymask" in said
    assert "(d) c + dense round" in said
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    assert bench.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before
    assert capsys.readouterr().out == said


def test_without_real_clips_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("S2D_TEST_DATA", raising=False)
    assert bench.main(["--real"]) == 0
    assert "skipped" in capsys.readouterr().out
