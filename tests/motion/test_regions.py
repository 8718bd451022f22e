from __future__ import annotations

import numpy as np
import pytest

from s2d.motion.moving import moving_clip
from s2d.motion.objectness import Objectness
from s2d.motion.refine import refine_mask
from s2d.motion.regions import cut_regions, level_regions, without_twins
from s2d.motion.superpixels import affinity, connected_parts, cut_vectors, superpixels
from s2d.testing.scenes import moving_disc

T = 4


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="module")
def scene():
    frames, masks = moving_disc()
    frames = frames.permute(0, 2, 3, 1).numpy()
    return frames[T], masks[T].numpy(), moving_clip(frames)


def test_superpixels_cover_the_frame_and_hold_their_means(scene):
    frame, disc, moving = scene
    graph = superpixels(frame, moving.residual[T], 150)
    assert graph.labels.shape == disc.shape
    assert len(graph) == graph.labels.max() + 1 <= 1000
    assert graph.area.sum() == disc.size
    inside = np.bincount(graph.labels[disc], minlength=len(graph)) / graph.area > 0.9
    assert np.linalg.norm(graph.motion[inside].mean(0) - (2.5, 1.5)) < 0.6
    np.testing.assert_array_equal(graph.touching, graph.touching.T)
    assert not graph.touching.diagonal().any()
    assert len(connected_parts(graph, np.ones(len(graph), bool))) == 1
    assert connected_parts(graph, np.zeros(len(graph), bool)) == []


def test_the_cut_minimises_the_normalised_cut(scene):
    """Against the dense generalised eigenproblem."""
    scipy_linalg = pytest.importorskip("scipy.linalg")
    frame, _, moving = scene
    graph = superpixels(frame, moving.residual[T], 80)
    weights = affinity(graph, motion_scale=0.7, colour_scale=25)
    assert abs(weights - weights.T).max() < 1e-12
    dense = weights.toarray()
    degree = np.diag(dense.sum(1))
    _, expected = scipy_linalg.eigh(degree - dense, degree, subset_by_index=[1, 3])
    found = cut_vectors(weights, 3)
    for k in range(3):
        a, b = found[:, k], expected[:, k]
        assert abs(a @ degree @ b) / np.sqrt((a @ degree @ a) * (b @ degree @ b)) > 0.999


def test_the_cut_finds_the_disc(scene):
    frame, disc, moving = scene
    graph = superpixels(frame, moving.residual[T], 200)
    regions = cut_regions(graph, motion_scale=0.7, colour_scale=25, vectors=5)
    assert regions.dtype == bool
    assert max(iou(region, disc) for region in regions) > 0.7


def test_level_sets_find_the_disc(scene):
    _, disc, moving = scene
    regions = level_regions(moving.saliency[T], smallest=20)
    assert (regions.sum((1, 2)) >= 20).all()
    assert max(iou(region, disc) for region in regions) > 0.6
    assert level_regions(np.zeros((8, 9), np.float32), 1).shape == (0, 8, 9)


def test_the_disc_scores_above_what_is_not_an_object(scene):
    frame, disc, moving = scene
    judge = Objectness(frame, moving.residual[T], moving.saliency[T])
    shifted = np.roll(disc, 12, 1)
    corner = np.zeros_like(disc)
    corner[:30, :30] = True
    half = disc & (np.arange(disc.shape[1]) < np.flatnonzero(disc.any(0)).mean())
    scores = judge.scores(np.stack([disc, shifted, half, corner, np.zeros_like(disc), np.ones_like(disc)]))
    assert scores.argmax() == 0
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[4] == scores[5] == 0


def test_refinement_moves_the_outline_to_the_object(scene):
    frame, disc, _ = scene
    y, x = np.nonzero(disc)
    box = np.zeros_like(disc)
    box[y.min() - 2 : y.max() + 3, x.min() - 2 : x.max() + 3] = True
    refined = refine_mask(frame, box)
    assert iou(refined, disc) > 0.9 > iou(box, disc)
    np.testing.assert_array_equal(refined, refine_mask(frame, box))
    for mask in (np.zeros_like(disc), np.ones_like(disc)):
        np.testing.assert_array_equal(refine_mask(frame, mask), mask)


def test_twins_leave_the_first():
    masks = np.zeros((4, 40, 40), bool)
    masks[0, :20, :20] = masks[1, :20, :20] = masks[2, 20:, 20:] = masks[3, :8, :8] = True
    kept = without_twins(masks, 0.85)
    np.testing.assert_array_equal(kept, masks[[0, 2, 3]])
