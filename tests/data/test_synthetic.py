"""What a generated clip says about itself is true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2d.data.synthetic import LEVELS, ProposalNoise, SyntheticSettings, demo_clip, generate_clip, perturb_proposals
from s2d.ops import mask_iou, unpack_masks

SMALL = SyntheticSettings(frames=16, size=(96, 160))


@pytest.fixture(scope="module")
def clip():
    return generate_clip(replace(SMALL, frames=40), seed=3)


@pytest.fixture(scope="module")
def demo():
    return demo_clip()


def carried(values, flow):
    """Values ``[T - 1, H, W]`` of the other frame at the pixel nearest to where the flow leads, and what is inside."""
    _, height, width = values.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (columns + flow[..., 0]).round().long(), (rows + flow[..., 1]).round().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = torch.arange(len(values))[:, None, None]
    return values[index, y.clamp(0, height - 1), x.clamp(0, width - 1)], inside


@pytest.mark.parametrize("name", ["clip", "demo"])
def test_flow_leads_to_the_same_surface_where_visible(request, name):
    value = request.getfixturevalue(name)
    for here, there, flow, visible in (
        (slice(None, -1), slice(1, None), value.forward, value.visible),
        (slice(1, None), slice(None, -1), value.backward, value.backward_visible),
    ):
        for ids in (value.owners, value.layers):
            found, inside = carried(ids[there], flow)
            assert inside[visible].all()
            assert torch.equal(found[visible], ids[here][visible])
        found, inside = carried(value.layers[there], flow)
        assert torch.equal(visible, inside & (found == value.layers[here]))
        assert 0.85 < visible.float().mean() < 1


@pytest.mark.parametrize("name", ["clip", "demo"])
def test_flow_carries_the_pixels(request, name):
    value = request.getfixturevalue(name)
    frames = value.video.clip(0, value.video.num_frames).float().mean(1)
    found, _ = carried(frames[1:], value.forward)
    error = (found - frames[:-1]).abs()
    still = (frames[1:] - frames[:-1]).abs()
    objects = value.owners[:-1] > 0
    for where in (value.visible, value.visible & objects):
        assert error[where].mean() < 0.65 * still[where].mean()
    assert error[value.visible].median() < 8


def test_exact_tracks_follow_the_flow_and_come_back_from_behind(clip):
    """One step is the flow; a point that something hides is carried on, and visible again where its surface is."""
    length, height, width = clip.layers.shape
    y, x = torch.meshgrid(torch.arange(0, height, 7), torch.arange(0, width, 7), indexing="ij")
    x, y = x.flatten(), y.flatten()
    points = torch.stack([x, y], 1).float()
    for t in (0, length // 2):
        tracks, visible = clip.track(points, torch.full((len(points),), t))
        assert torch.allclose(tracks[:, t], points, atol=1e-3)
        assert visible[:, t].all()
        assert torch.allclose(tracks[:, t + 1], points + clip.forward[t, y, x], atol=1e-2)
        assert (visible[:, t + 1] == clip.visible[t, y, x]).float().mean() > 0.99
    gone = (~visible[:, :-1] & visible[:, 1:]).any(1)
    assert gone.any()


def test_forward_and_backward_flow_are_inverse(clip):
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(160), indexing="ij")
    back_x, inside = carried(clip.backward[..., 0], clip.forward)
    back_y, _ = carried(clip.backward[..., 1], clip.forward)
    where = clip.visible & inside
    gap = torch.stack([clip.forward[..., 0] + back_x, clip.forward[..., 1] + back_y], -1)[where].norm(dim=-1)
    assert rows.shape == columns.shape == clip.visible.shape[1:]
    # Looked up at the nearest pixel: exact up to half a pixel times the flow's gradient.
    assert gap.median() < 0.05
    assert gap.quantile(0.99) < 1.0


def test_masks_are_the_owners(clip):
    bits = unpack_masks(clip.tracks.bits())
    owners = torch.stack([clip.owners == n + 1 for n in range(len(clip.tracks))])
    assert torch.equal(bits, owners)
    assert torch.equal(clip.tracks.annotated, owners.flatten(2).any(2))
    assert (bits.sum(0) <= 1).all()
    assert clip.tracks.size == clip.video.size == (96, 160)
    assert clip.tracks.num_frames == clip.video.num_frames == 40


def test_contents_of_the_default_clip(clip):
    """A static object, an occlusion, an object that leaves and comes back, a camera that moves."""
    areas = unpack_masks(clip.tracks.bits()).sum((2, 3))
    assert len(areas) == 4
    background = clip.owners[:-1] == 0
    assert clip.forward[background].norm(dim=-1).mean() > 0.2
    static = clip.owners[:-1] == 1
    residual = [
        (clip.forward[t][static[t]].mean(0) - clip.forward[t][background[t]].mean(0)).norm() for t in range(0, 39, 5)
    ]
    moving = [
        (clip.forward[t][clip.owners[t] == 2].mean(0) - clip.forward[t][background[t]].mean(0)).norm()
        for t in range(0, 39, 5)
    ]
    assert max(residual) < 0.5 * float(np.median(moving))
    away = ~clip.tracks.annotated[3]
    assert away.any()
    assert clip.tracks.annotated[3, 0]
    assert clip.tracks.annotated[3, -1]
    assert areas[1].min() < 0.5 * areas[1].float().median()  # the one below is covered by the one above


def test_articulation_moves_parts_differently():
    settings = replace(SMALL, objects=1, static_objects=0, occlusion=False, reentry=False, camera=0.0)
    residuals = []
    for articulation in (0.0, 1.0):
        value = generate_clip(replace(settings, articulation=articulation, perspective=0), seed=1)
        residuals.append(max(affine_residual(value.forward[t], value.owners[t] == 1) for t in range(0, 14, 3)))
    assert residuals[0] < 1e-3  # a rigid object that turns and grows moves by an affine map
    assert residuals[1] > 0.1


def affine_residual(flow, mask):
    """Root mean square of what is left of the flow in a mask after the best affine fit, pixels."""
    y, x = mask.nonzero(as_tuple=True)
    basis = torch.stack([x, y, torch.ones_like(x)], 1).double()
    inside = flow[mask].double()
    return float((inside - basis @ torch.linalg.lstsq(basis, inside).solution).square().mean().sqrt())


def test_a_fixed_camera_leaves_the_background_alone():
    value = generate_clip(replace(SMALL, camera=0.0, noise=0.0, shadow=0.0), seed=2)
    background = (value.owners[:-1] == 0) & (value.owners[1:] == 0)
    assert value.forward[value.owners[:-1] == 0].abs().max() < 1e-4
    frames = value.video.clip(0, 16).int()
    difference = (frames[1:] - frames[:-1]).abs().amax(1)
    assert (difference[background] > 3).float().mean() < 0.04  # the antialiased rim of objects alone


def test_same_seed_same_clip():
    a, b, c = (generate_clip(replace(SMALL, frames=4), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(a.video.clip(0, 4), b.video.clip(0, 4))
    assert torch.equal(a.forward, b.forward)
    assert torch.equal(a.tracks.rle.counts, b.tracks.rle.counts)
    assert not torch.equal(a.video.clip(0, 4), c.video.clip(0, 4))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "changes", [{}, {"frames": 1}, {"frames": 2, "objects": 1}, {"objects": 0}, {"size": (16, 33)}]
)
def test_settings_that_stretch_it(seed, changes):
    value = generate_clip(replace(SMALL, **({"frames": 5} | changes)), seed=seed)
    frames = value.video.num_frames
    assert value.forward.shape == (frames - 1, *value.video.size, 2)
    assert value.forward.isfinite().all()
    assert value.backward.isfinite().all()


@pytest.mark.parametrize("changes", [{"frames": 0}, {"size": (8, 100)}, {"objects": -1}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match="expected at least 1 frame"):
        replace(SMALL, **changes)


def test_demo(demo):
    assert demo.video.num_frames == 48
    assert demo.video.size == (240, 416)
    assert demo.video.fps == 25
    assert len(demo.tracks) == 3
    areas = unpack_masks(demo.tracks.bits()).sum((2, 3)).float()
    assert (areas.median(1).values > 1000).all()
    assert (areas.amin(1) < 300).any()  # one disappears below another
    assert torch.equal(demo.video.frame(7), demo_clip().video.frame(7))


def test_perturbed_proposals(clip):
    counts, quality = [], []
    visible = int((unpack_masks(clip.tracks.bits()).sum((2, 3)) >= 24).sum())
    for level in range(1, 6):
        masks = perturb_proposals(clip.tracks, level, seed=0)
        assert torch.equal(masks.frames, masks.frames.sort().values)
        assert (masks.video, masks.size, masks.num_frames) == ("synthetic-3", (96, 160), 40)
        assert masks.scores.min() >= 0.01
        assert masks.scores.max() <= 1
        bits = unpack_masks(masks.bits())
        assert (bits.sum((1, 2)) >= LEVELS[level - 1].min_area).all()
        best = []
        for t in range(40):
            truth = unpack_masks(clip.tracks.bits(slice(t, t + 1)))[:, 0]
            found = bits[masks.frames == t]
            if len(found):
                best.append(mask_iou(truth[truth.flatten(1).any(1)], found).amax(1).mean())
            else:
                best.append(torch.tensor(0.0))
        counts.append(len(masks) / visible)
        quality.append(float(torch.stack(best).mean()))
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > 0.6
    assert 0.02 < quality[4] < 0.3
    assert all(0.4 < count < 2.5 for count in counts)


def test_perturbation_is_seeded_and_scores_tell_quality(clip):
    a, b, c = (perturb_proposals(clip.tracks, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.rle.counts, b.rle.counts)
    assert torch.equal(a.scores, b.scores)
    assert not torch.equal(a.rle.counts, c.rle.counts)
    bits = unpack_masks(a.bits())
    truth = unpack_masks(clip.tracks.bits())
    overlap = torch.stack([mask_iou(bits[n : n + 1], truth[:, t])[0].max() for n, t in enumerate(a.frames.tolist())])
    assert np.corrcoef(overlap.numpy(), a.scores.numpy())[0, 1] > 0.3


@pytest.mark.parametrize(
    ("noise", "check"),
    [
        (ProposalNoise(0, 1, 0, 0, 0, 0, 0, 0, 0), lambda number, whole: number == whole),
        (ProposalNoise(1, 1, 0, 0, 0, 0, 0, 0, 0), lambda number, whole: number == 0),
        (ProposalNoise(0, 1, 1, 0, 0, 0, 0, 0, 0), lambda number, whole: 1.8 * whole < number <= 2 * whole),
        (ProposalNoise(0, 1, 0, 0, 0, 0, 0, 2.0, 0), lambda number, whole: number > whole + 40),
        (ProposalNoise(0.5, 3, 0, 0, 0, 0, 0, 0, 0), lambda number, whole: 0.2 * whole < number < 0.8 * whole),
    ],
)
def test_each_kind_of_noise(clip, noise, check):
    visible = unpack_masks(clip.tracks.bits()).sum((2, 3)) >= noise.min_area
    masks = perturb_proposals(clip.tracks, noise, seed=0)
    assert check(len(masks), int(visible.sum())), len(masks)


def test_no_noise_gives_the_truth(clip):
    masks = perturb_proposals(clip.tracks, ProposalNoise(0, 1, 0, 0, 0, 0, 0, 0, 0), seed=0)
    truth = unpack_masks(clip.tracks.bits()).transpose(0, 1).flatten(0, 1)
    truth = truth[truth.sum((1, 2)) >= 24]
    assert torch.equal(unpack_masks(masks.bits()), truth)
    assert torch.allclose(masks.scores, torch.tensor(0.9))


def test_merged_masks_cover_two_objects(clip):
    masks = perturb_proposals(clip.tracks, ProposalNoise(0, 1, 0, 1, 0, 0, 0, 0, 0), seed=0)
    truth = unpack_masks(clip.tracks.bits())
    for n in range(0, len(masks), 11):
        mask = unpack_masks(masks.bits(torch.tensor([n])))[0]
        covered = (truth[:, masks.frames[n]] & mask).flatten(1).any(1).sum()
        assert covered == 2, n


@pytest.mark.parametrize("level", [0, 6])
def test_unknown_levels_are_refused(clip, level):
    with pytest.raises(ValueError, match="a level from 1 to 5"):
        perturb_proposals(clip.tracks, level)
    with pytest.raises(ValueError, match="chances in"):
        ProposalNoise(miss=1.5)
