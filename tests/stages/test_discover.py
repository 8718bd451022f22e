from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycocotools_mask
from scipy import sparse
from sklearn.cluster import DBSCAN

from s2d.data.synthetic import ProposalNoise, SyntheticSettings, demo_clip, generate_clip, perturb_proposals
from s2d.data.types import FrameMasks
from s2d.data.video import Video
from s2d.data.ytvis import ytvis_dict
from s2d.errors import InputError
from s2d.metrics import keymask_quality
from s2d.motion.dis import VideoFlow
from s2d.ops import mask_iou, pack_masks, rle_encode, track_coverage, unpack_masks
from s2d.stages._agreement import (
    Agreement,
    ChainedFlow,
    ambiguous_frames,
    cover_matrix,
    flow_agreement,
    joint_agreement,
    mutual_cover,
    trajectory_agreement,
)
from s2d.stages._grouping import Group, dbscan, runs_of, temporal_groups, visibility_groups
from s2d.stages._instances import (
    Instance,
    continue_instances,
    join_duplicates,
    keep_best,
    one_per_frame,
    without_outliers,
)
from s2d.stages._linkage import linkage_groups
from s2d.stages._scenes import split_scenes, without_cuts
from s2d.stages.discover import DiscoverSettings, discover
from s2d.stages.job import use_threads

SIZE = (64, 112)


@pytest.fixture(autouse=True)
def one_thread():
    """Frames are so small that threads would only wait for each other."""
    with use_threads(1):
        yield


def texture(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    """A picture flow can hold on to: uint8 ``[H, W, 3]``."""
    import cv2

    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype(np.uint8)


def moving_squares(length: int, seed: int = 0) -> tuple[Video, np.ndarray]:
    """Two textured squares that cross a textured ground: the video and masks bool ``[2, T, H, W]``."""
    ground = texture(seed)
    squares = texture(seed + 1), texture(seed + 2)
    frames, masks = [], np.zeros((2, length, *SIZE), dtype=bool)
    for t in range(length):
        frame = ground.copy()
        for n, (y, x) in enumerate(((6, 4 + 2 * t), (38, 84 - 2 * t))):
            frame[y : y + 20, x : x + 20] = squares[n][:20, :20]
            masks[n, t, y : y + 20, x : x + 20] = True
        frames.append(frame)
    stack = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return Video.from_frames(stack), masks


def proposals(masks: list[tuple[int, np.ndarray]], length: int, size: tuple[int, int] = SIZE) -> FrameMasks:
    """Masks given as (frame, mask) in order of frames."""
    dense = np.stack([mask for _, mask in masks]) if masks else np.zeros((0, *size), dtype=bool)
    return FrameMasks(
        "video",
        size,
        length,
        rle_encode(torch.from_numpy(dense)),
        torch.tensor([t for t, _ in masks], dtype=torch.int64),
        torch.ones(len(masks)),
    )


def blob(y: int, x: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


# ---- the whole stage ----


def test_two_objects_among_false_masks():
    length = 16
    video, truth = moving_squares(length)
    rng = np.random.default_rng(0)
    masks = []
    for t in range(length):
        for n in range(2):
            if rng.random() < 0.7:
                masks.append((t, truth[n, t]))
        masks.append((t, blob(*rng.integers(0, 40, 2), *rng.integers(5, 30, 2))))
    found = discover(video, proposals(masks, length), progress=False)
    assert len(found) == 2
    tubes = unpack_masks(found.bits()).numpy()
    owners = []
    for row in range(2):
        frames = np.flatnonzero(found.annotated[row].numpy())
        assert len(frames) >= 8
        exact = [(tubes[row, frames] == truth[n, frames]).all() for n in range(2)]
        owners.append(exact.index(True))
        assert not tubes[row, ~found.annotated[row].numpy()].any()
        assert found.visibility_ranges[row][0][0] <= frames[0]
        assert found.visibility_ranges[row][-1][1] >= frames[-1]
    assert sorted(owners) == [0, 1]
    # Frames without a mask of the object count as disagreement, so true masks stay well under 1.
    assert bool((found.mask_scores[found.annotated] > 0.2).all())
    assert not bool(found.mask_scores[~found.annotated].any())
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.one2x.shape == (2,)


def test_one_instance_explains_an_object():
    """Whole squares, halves of them and slightly larger ones: two instances remain, and they are whole."""
    length = 14
    video, truth = moving_squares(length)
    masks = []
    for t in range(length):
        for n in range(2):
            y, x = (int(i.min()) for i in np.nonzero(truth[n, t]))
            masks += [(t, truth[n, t]), (t, blob(y, x, 20, 9)), (t, blob(y - 1, x - 1, 22, 22))]
    found = discover(video, proposals(masks, length), progress=False)
    assert len(found) == 2
    overlap = mask_iou(found.bits(), pack_masks(torch.from_numpy(truth)))
    assert bool((overlap.amax(0) > 0.8).all())


def test_instances_with_few_masks_are_found():
    """Three masks are enough for linkage, where the paper's clustering asks for five."""
    length = 12
    video, truth = moving_squares(length)
    masks = [(t, truth[0, t]) for t in (2, 3, 5)]
    found = discover(video, proposals(masks, length), progress=False)
    assert found.annotated.nonzero()[:, 1].tolist() == [2, 3, 5]
    assert len(discover(video, proposals(masks, length), DiscoverSettings(least_masks=4), progress=False)) == 0
    assert len(discover(video, proposals(masks, length), DiscoverSettings(grouping="paper"), progress=False)) == 0


def test_the_paper_finds_what_is_often_seen():
    length = 16
    video, truth = moving_squares(length)
    masks = [(t, truth[n, t]) for t in range(length) for n in range(2)]
    found = discover(video, proposals(masks, length), DiscoverSettings(grouping="paper"), progress=False)
    overlap = mask_iou(found.bits(), pack_masks(torch.from_numpy(truth)))
    assert len(found) == 2
    assert bool((overlap.amax(0) > 0.9).all())


@pytest.mark.parametrize("scoring", ["trajectory", "flow", "both"])
def test_every_scoring_prefers_the_true_mask(scoring):
    length = 12
    video, truth = moving_squares(length)
    masks = []
    for t in range(length):
        y, x = (int(i.min()) for i in np.nonzero(truth[0, t]))
        # A mask of about the right place, that wanders.
        masks += [(t, truth[0, t]), (t, blob(y + 4 * (t % 2), x + 3 * (t % 3), 20, 20))]
    found = discover(video, proposals(masks, length), DiscoverSettings(scoring=scoring), progress=False)
    tube = unpack_masks(found.bits())[0].numpy()
    assert (tube == truth[0]).all((1, 2)).mean() >= 0.7


def test_no_proposals_no_instances():
    video, _ = moving_squares(3)
    found = discover(video, proposals([], 3), progress=False)
    assert len(found) == 0
    assert (found.annotated.shape, found.mask_scores.shape, found.one2x.shape) == ((0, 3), (0, 3), (0,))
    assert found.bits().shape == (0, 3, *SIZE)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_videos(length):
    video, truth = moving_squares(length)
    found = discover(video, proposals([(t, truth[0, t]) for t in range(length)], length), progress=False)
    # One frame has no other to agree with it.
    assert len(found) == (length > 1)


def test_empty_and_tiny_masks_do_no_harm():
    length = 6
    video, truth = moving_squares(length)
    masks = []
    for t in range(length):
        masks += [(t, truth[0, t]), (t, blob(0, 0, 0, 0)), (t, blob(50, 3 + t, 1, 1))]
    found = discover(video, proposals(masks, length), progress=False)
    assert torch.equal(unpack_masks(found.bits())[0], torch.from_numpy(truth[0]))


def test_point_tracks_take_the_place_of_flow():
    length = 12
    clip = generate_clip(SyntheticSettings(frames=length, size=SIZE, objects=2, camera=0.0, noise=0.0), seed=3)
    x, y = np.meshgrid(np.arange(0, SIZE[1], 2), np.arange(0, SIZE[0], 2))
    grid = torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2)).float()
    motion = GivenMotion(clip.track(grid.repeat(length, 1), torch.arange(length).repeat_interleave(len(grid))))
    masks = perturb_proposals(clip.tracks, 1, seed=0)
    for chosen in (DiscoverSettings(), DiscoverSettings(scoring="trajectory"), DiscoverSettings.paper()):
        found = discover(clip.video, masks, chosen, motion=motion, progress=False)
        quality = keymask_quality(found, masks, clip.tracks)
        assert quality.purity > 0.9
        assert quality.recall > 0.6
    with pytest.raises(InputError, match="optical flow for the scoring flow, got point tracks"):
        discover(clip.video, masks, DiscoverSettings(scoring="flow"), motion=motion, progress=False)


def test_nothing_is_matched_across_a_cut():
    """The same masks before and after: two instances, and one where cuts are ignored and nothing moves."""
    length = 12
    video, truth = moving_squares(length)
    other = Video.from_frames(255 - torch.stack(list(video)))
    joined = Video.from_frames(torch.cat([torch.stack(list(video))[:6], torch.stack(list(other))[6:]]))
    masks = proposals([(t, truth[0, t]) for t in range(length)], length)
    still = torch.zeros(length - 1, *SIZE, 2)
    shifted = still + torch.tensor([2.0, 0.0])

    class EachScene(GivenMotion):
        def scene(self, frames, start, video):
            pairs = slice(start, start + len(frames) - 1)
            return VideoFlow(shifted[pairs], -shifted[pairs])

    found = discover(joined, masks, motion=EachScene(None), progress=False)
    assert found.annotated.tolist() == [[True] * 6 + [False] * 6, [False] * 6 + [True] * 6]
    found = discover(joined, masks, DiscoverSettings(cut=1.0, cut_flow=0.0), motion=EachScene(None), progress=False)
    assert found.annotated.tolist() == [[True] * length]


def test_a_cut_between_frames_of_the_same_colours_is_seen_by_the_flow():
    length = 12
    frames = torch.from_numpy(texture(0)).permute(2, 0, 1).expand(length, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    forward, backward = (torch.zeros(length - 1, *SIZE, 2) for _ in range(2))
    forward[5], backward[5] = (10 * torch.randn(*SIZE, 2, generator=generator) for _ in range(2))
    flow = VideoFlow(forward, backward)
    known = without_cuts(flow, 0.3)
    for before, after in ((forward, known.forward), (backward, known.backward)):
        assert before.isfinite().all()
        assert after[5].isnan().all()
        assert torch.equal(after[[0, 4, 6, 10]], before[[0, 4, 6, 10]])
    assert without_cuts(flow, 0.0) is flow
    masks = proposals([(t, blob(10, 20, 20, 30)) for t in range(length)], length)
    found = discover(Video.from_frames(frames), masks, motion=GivenMotion(flow), progress=False)
    assert found.annotated.tolist() == [[True] * 6 + [False] * 6, [False] * 6 + [True] * 6]


def test_flow_that_is_known_at_few_pixels_is_no_cut():
    flow = torch.full((1, *SIZE, 2), torch.nan)
    flow[:, ::4, ::4] = 0.0
    given = VideoFlow(flow, torch.zeros_like(flow))
    assert without_cuts(given, 0.3) is given
    unknown = VideoFlow(torch.full_like(flow, torch.nan), torch.full_like(flow, torch.nan))
    assert without_cuts(unknown, 0.3) is unknown


def test_settings_and_inputs_that_cannot_be_used():
    video, truth = moving_squares(4)
    with pytest.raises(InputError, match="expected masks of the 4 frames of video, got masks of 5 frames"):
        discover(video, proposals([(0, truth[0, 0])], 5), progress=False)
    for change, words in (
        ({"scoring": "guess"}, "scoring to be one of trajectory, flow, both, got 'guess'"),
        ({"grouping": "guess"}, "grouping to be one of linkage, paper, got 'guess'"),
        ({"choice": "first"}, "choice to be one of score, last, got 'first'"),
        ({"overlap": 256}, r"overlap of 0 to 255 frames \(max_span - 1\), got 256"),
    ):
        with pytest.raises(InputError, match=words):
            DiscoverSettings(**change)


def test_masks_of_another_size_than_the_flow():
    """Motion is followed in smaller frames; the masks that come out are the ones that went in."""
    length = 10
    video, truth = moving_squares(length)
    masks = proposals([(t, truth[0, t]) for t in range(length)], length)
    found = discover(video, masks, DiscoverSettings(short_side=40), progress=False)
    assert torch.equal(unpack_masks(found.bits())[0], torch.from_numpy(truth[0]))
    enlarged = np.repeat(np.repeat(truth, 2, 2), 2, 3)
    masks = proposals([(t, enlarged[0, t]) for t in range(length)], length, (128, 224))
    found = discover(video, masks, progress=False)
    assert torch.equal(unpack_masks(found.bits())[0], torch.from_numpy(enlarged[0]))


def test_same_input_same_output():
    length = 12
    video, truth = moving_squares(length)
    masks = proposals([(t, truth[n, t]) for t in range(length) for n in range(2)], length)
    first, second = (discover(video, masks, progress=False) for _ in range(2))
    assert torch.equal(first.rle.counts, second.rle.counts)
    assert torch.equal(first.scores, second.scores)


def test_demo_clip_with_noisy_proposals():
    clip = demo_clip()
    found = discover(clip.video, perturb_proposals(clip.tracks, 2, seed=0), progress=False)
    truth, tubes = unpack_masks(clip.tracks.bits()), unpack_masks(found.bits())
    claimed = []
    for row in range(len(found)):
        frames = found.annotated[row]
        overlap = torch.stack([mask_iou(tubes[row, frames][None], each[None, frames])[0, 0] for each in truth])
        claimed.append(int(overlap.argmax()) if overlap.max() > 0.5 else -1)
    assert len(found) <= 6
    assert sorted(claimed[:3]) == [0, 1, 2]
    assert claimed.count(-1) <= 1


# ---- long videos and cuts ----


def test_cuts_and_long_scenes_are_split():
    first, truth = moving_squares(8, seed=0)
    second, _ = moving_squares(7, seed=10)
    dark = torch.stack(list(second)) // 3
    video = Video.from_frames(torch.cat([torch.stack(list(first)), dark]))
    scenes = list(split_scenes(video, 256, 4, 0.4))
    assert [(scene.start, len(scene.frames), scene.continues) for scene in scenes] == [(0, 8, False), (8, 7, False)]
    scenes = list(split_scenes(video, 6, 2, 0.4))
    assert [(s.start, len(s.frames), s.continues) for s in scenes] == [
        (0, 6, False),
        (4, 4, True),
        (8, 6, False),
        (12, 3, True),
    ]
    assert torch.equal(torch.cat([scenes[0].frames, scenes[1].frames[2:]]), torch.stack(list(first)))
    both = [(t, truth[0, t]) for t in range(8)] + [(8 + t, truth[0, t]) for t in range(7)]
    found = discover(video, proposals(both, 15), progress=False)
    assert sorted(found.annotated.sum(1).tolist()) == [7, 8]


def test_an_instance_goes_on_across_the_parts_of_a_scene():
    length = 24
    video, truth = moving_squares(length)
    masks = proposals([(t, truth[n, t]) for t in range(length) for n in range(2)], length)
    split = DiscoverSettings(max_span=10, overlap=4)
    found = discover(video, masks, split, progress=False)
    assert found.annotated.sum(1).tolist() == [length, length]
    assert found.visibility_ranges == (((0, length - 1),), ((0, length - 1),))
    apart = discover(video, masks, DiscoverSettings(max_span=12, overlap=0), progress=False)
    assert apart.annotated.sum(1).tolist() == [12] * 4


def test_parts_join_by_the_masks_they_share():
    frames = np.repeat(np.arange(10), 2)
    even, odd = np.arange(0, 12, 2), np.arange(1, 12, 2)
    before = [Instance(even, ((0, 5),), 0.8), Instance(odd, ((0, 5),), 0.6)]
    after = [Instance(np.arange(9, 20, 2), ((4, 9),), 0.2), Instance(np.array([9, 12, 14]), ((4, 7),), 0.1)]
    joined = continue_instances(before, after, frames)
    assert [instance.masks.tolist() for instance in joined] == [even.tolist(), list(range(1, 20, 2)), [9, 12, 14]]
    assert joined[1].ranges == ((0, 9),)
    assert joined[1].score == pytest.approx(0.6 * 0.6 + 0.4 * 0.2)


# ---- evidence ----


def still_scene(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(length - 1, *SIZE, 2), torch.zeros(length - 1, *SIZE, 2)


def test_agreement_of_masks_that_stand_still_is_their_iou():
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 30, (12, 2), generator=generator).tolist()
    dense = torch.from_numpy(np.stack([blob(y, x, 24, 30) for y, x in places]))
    frames = torch.arange(12) // 2
    flows = still_scene(6)
    truth = mask_iou(dense, dense).double().numpy()
    coverage = track_coverage(dense, frames, *flows, least_points=2000, threshold=0.0)
    visible = (coverage.visibility > 0.3).numpy()
    assert visible.all()
    points = trajectory_agreement(cover_matrix(coverage), visible, frames.numpy())
    everything = np.arange(12)
    assert np.allclose(points.iou.toarray(), truth, atol=1e-6)
    assert points.comparable(everything, everything).all()
    pixels = flow_agreement(pack_masks(dense), frames.numpy(), *flows, (1, 2, 5), 0.1)
    apart = (frames[:, None] - frames[None, :]).abs().numpy()
    near = np.isin(apart, (1, 2, 5))
    assert np.array_equal(pixels.comparable(everything, everything), near)
    assert np.allclose(pixels.iou.toarray(), np.where(near, truth, 0), atol=1e-6)
    for i in range(12):
        offsets = [t for t in range(6) if abs(t - int(frames[i])) in (1, 2, 5)]
        best = [truth[i][frames.numpy() == t].max() for t in offsets]
        assert pixels.scores[i] == pytest.approx(np.mean(best))
        others = [truth[i][frames.numpy() == t].max() for t in range(6) if t != int(frames[i])]
        assert points.scores[i] == pytest.approx(np.mean(others))


def test_mutual_cover_is_symmetric_and_needs_both_sides():
    covers = sparse.csr_array(np.array([[1, 0.5, 0.9], [0.8, 1, 0], [0, 0, 1]]))
    mutual = mutual_cover(covers).toarray()
    assert mutual[0, 1] == mutual[1, 0] == pytest.approx(1 / (1 / 0.5 + 1 / 0.8 - 1))
    assert mutual[0, 2] == mutual[2, 0] == 0
    assert np.diag(mutual).tolist() == [1, 1, 1]


def test_chained_flow_of_shifts():
    steps = torch.arange(1, 6).float()
    forward = steps.view(5, 1, 1, 1) * torch.tensor([1.0, 0.0]).expand(5, 8, 64, 2)
    chain = ChainedFlow(forward, -forward)
    for t, step in ((0, 1), (0, 5), (0, 2), (1, 2), (1, 4), (3, 2)):
        ahead, back = chain.between(t, step)
        total = float(steps[t : t + step].sum())
        assert torch.equal(ahead[3, 2], torch.tensor([total, 0.0]))
        assert torch.equal(back[3, 60], torch.tensor([-total, 0.0]))


def test_ambiguous_frames():
    covers = sparse.csr_array(np.array([[1, 0.3, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0.4], [0.9, 0, 0, 1]]))
    flags = ambiguous_frames(covers, np.array([0, 1, 1, 2]), 3)
    assert flags.tolist() == [[False, True, False], [False] * 3, [False] * 3, [False] * 3]


# ---- the paper's steps, restated ----


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, 40),
    length=st.integers(1, 12),
    kinds=st.integers(1, 6),
    eps=st.sampled_from([0.05, 0.1, 0.2, 0.35]),
    min_samples=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_dbscan_equals_sklearn_row_by_row(number, length, kinds, eps, min_samples, seed):
    rng = np.random.default_rng(seed)
    prototypes = rng.random((kinds, length)) < 0.5
    rows = prototypes[rng.integers(0, kinds, number)] ^ (rng.random((number, length)) < 0.1)
    labels = dbscan(sparse.csr_array(rows), eps, min_samples)
    if number == 0:
        assert labels.shape == (0,)
        return
    plain = DBSCAN(eps=eps, min_samples=min_samples, metric="hamming", algorithm="brute").fit(rows).labels_
    assert np.array_equal(labels, plain)


def paper_restated(gamma, cover, frames):
    """Steps 2 to 4 in their own words: lists, loops and scikit-learn's Hamming metric."""
    seen = gamma > 0.3
    clusters = DBSCAN(eps=0.2, min_samples=5, metric="hamming").fit(seen).labels_
    found = []
    for cluster in range(clusters.max() + 1):
        members = [i for i in range(len(frames)) if clusters[i] == cluster]
        majority = [sum(seen[i, t] for i in members) > len(members) / 2 for t in range(seen.shape[1])]
        runs, start = [], None
        for t, flag in enumerate([*majority, False]):
            if flag and start is None:
                start = t
            if not flag and start is not None:
                runs.append((start, t - 1))
                start = None
        candidates = [
            i for i in members if any(a <= frames[i] <= b and seen[i, a : b + 1].mean() > 0.3 for a, b in runs)
        ]
        if not candidates:
            continue
        table = np.zeros((len(frames), len(frames)), dtype=bool)
        for i in candidates:
            for j in range(len(frames)):
                table[i, j] = cover[i, j] > 0.5 and runs[0][0] <= frames[j] <= runs[-1][1]
        if not table.any():
            continue
        rows, columns = np.flatnonzero(table.any(1)), np.flatnonzero(table.any(0))
        box = table[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        width = box.shape[1]
        eps, least = (0.05, 5) if width > 50 else (0.1, 3) if width < 10 else (0.1, 5)
        labels = DBSCAN(eps=eps, min_samples=least, metric="hamming").fit(box).labels_
        for label in range(labels.max() + 1):
            masks = [int(k + rows[0]) for k in np.flatnonzero(labels == label) if box[k].any()]
            if masks:
                found.append((masks, tuple(runs)))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_paper_grouping_equals_its_restatement(seed):
    """Objects that come and go, masks that match those of their object, and noise."""
    rng = np.random.default_rng(seed)
    length, objects = int(rng.integers(8, 25)), int(rng.integers(1, 4))
    frames = np.sort(rng.integers(0, length, int(rng.integers(10, 70))))
    owner = rng.integers(0, objects + 1, len(frames))
    shown = rng.random((objects + 1, length)) < 0.8
    gamma = np.where(shown[owner], 0.8, 0.1) + 0.2 * rng.standard_normal((len(frames), length))
    same = owner[:, None] == owner[None, :]
    cover = np.where(same, 0.8, 0.2) + 0.2 * rng.standard_normal((len(frames), len(frames)))
    cover = np.where(cover > 0.25, cover, 0.0)
    covers = sparse.csr_array(cover)
    groups = []
    for group in visibility_groups(gamma > 0.3, frames, 0.2, 5, 0.3):
        groups += temporal_groups(group, covers, frames, 0.5, DiscoverSettings().match_density)
    assert [(group.masks.tolist(), group.ranges) for group in groups] == paper_restated(gamma, cover, frames)


class GivenMotion:
    """A prior that gives what it was given."""

    name, pure = "given", False

    def __init__(self, motion):
        self.motion = motion

    def fingerprint(self):
        return {"prior": self.name}

    def scene(self, frames, start, video):
        return self.motion


def one2x_restated(masks, ranges, cover, frames):
    """Share of masks that cover two masks or more, each by over a quarter, in five frames of the cluster's span."""
    flagged = 0
    for i in masks:
        double = 0
        for t in range(ranges[0][0], ranges[-1][1] + 1):
            double += sum(cover[i, j] > 0.25 for j in range(len(frames)) if frames[j] == t) >= 2
        flagged += double >= 5
    return round(flagged / len(masks), 2)


def restated_to_the_file(seed: int) -> list[float]:
    """Check what is written for a generated clip against a restatement; returns every one2x."""
    clip = generate_clip(SyntheticSettings(frames=14, size=(48, 84), objects=2, static_objects=1), seed=seed)
    noise = ProposalNoise(miss=0.1, merge=0.3, split=0.1, false_masks=0.5, min_area=8)
    masks = perturb_proposals(clip.tracks, noise, seed=seed)
    flow = VideoFlow(clip.forward, clip.backward)
    found = discover(clip.video, masks, DiscoverSettings.paper(), motion=GivenMotion(flow), progress=False)
    dense, frames = unpack_masks(masks.bits()).numpy(), masks.frames.tolist()
    carried = track_coverage(
        masks.bits(), masks.frames, *vars(flow).values(), grid=50, cover_grid=(25, 50), area_per_line=800,
        least_points=1, threshold=0.25, impl="reference",
    )  # fmt: skip
    cover = np.zeros((len(frames), len(frames)))
    for i in range(len(frames)):
        own = slice(int(carried.offsets[i]), int(carried.offsets[i + 1]))
        cover[i, carried.columns[own].numpy()] = carried.values[own].numpy()
    expected = []
    for members, ranges in paper_restated(carried.visibility.numpy(), cover, frames):
        # Of two masks of a frame the later one overwrites the other.
        chosen = {frames[i]: i for i in members}
        row = {"visibility_ranges": [list(r) for r in ranges], "areas": [None] * 14, "bboxes": [None] * 14}
        for t, i in chosen.items():
            y, x = np.nonzero(dense[i])
            row["areas"][t] = len(y)
            row["bboxes"][t] = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        row["one2x"] = one2x_restated(list(chosen.values()), ranges, cover, frames)
        expected.append(row)
    written = ytvis_dict(found)["annotations"]
    assert len(written) == len(expected) > 0
    for annotation in written:
        assert annotation["category_id"] == 1
        decoded = [None if code is None else pycocotools_mask.decode(code) for code in annotation["segmentations"]]
        assert [None if mask is None else int(mask.sum()) for mask in decoded] == annotation["areas"]
        assert {key: annotation[key] for key in expected[0]} in expected
    return [row["one2x"] for row in expected]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools and numpy 2
def test_the_papers_procedure_is_restated_down_to_the_file():
    flagged = restated_to_the_file(0) + restated_to_the_file(2)
    assert max(flagged) > 0
    assert min(flagged) < 1


def test_runs():
    assert runs_of(np.array([True, True, False, True])) == ((0, 1), (3, 3))
    assert runs_of(np.zeros(3, dtype=bool)) == ()


# ---- linkage and instances ----


def agreement_of(owner: np.ndarray, frames: np.ndarray, reach: int, inside: float = 0.8) -> Agreement:
    """Masks of one object agree by ``inside``, and are comparable up to ``reach`` frames apart."""
    same = owner[:, None] == owner[None, :]
    sees = np.abs(frames[:, None] - np.arange(frames.max() + 1)) <= reach
    iou = np.where(same & sees[:, frames], inside, 0.0)
    return Agreement(sparse.csr_array(iou), (sees,), frames, np.linspace(0.5, 0.6, len(owner)))


def test_linkage_hands_agreement_on():
    """No mask sees more than two frames ahead, yet each object is one group; strangers stay apart."""
    frames = np.repeat(np.arange(15), 3)
    owner = np.tile([0, 1, 2], 15)
    owner[owner == 2] = 100 + np.flatnonzero(owner == 2)
    visible = np.abs(frames[:, None] - np.arange(15)[None, :]) <= 2
    groups = linkage_groups(agreement_of(owner, frames, 2), visible, 0.4)
    assert [group.masks.tolist() for group in groups] == [np.flatnonzero(owner == n).tolist() for n in (0, 1)]
    assert all(group.ranges == ((0, 14),) for group in groups)


def test_linkage_keeps_apart_what_disagrees_where_it_is_comparable():
    """A bridge that agrees with two objects does not make them one: on average they do not agree."""
    frames = np.arange(12)
    owner = np.array([0, 1] * 6)
    agreement = agreement_of(owner, frames, 12)
    iou = agreement.iou.toarray()
    iou[4, :] = iou[:, 4] = 0.5
    agreement = dataclasses.replace(agreement, iou=sparse.csr_array(iou))
    groups = linkage_groups(agreement, np.ones((12, 12), dtype=bool), 0.4)
    assert sorted(len(group.masks) for group in groups) == [6, 6]
    assert all(len(set(owner[group.masks])) == 1 for group in groups)


def linked_restated(agreement: Agreement, threshold: float) -> list[list[int]]:
    """The two groups with the greatest mean IoU over comparable pairs are joined, again and again."""
    number = len(agreement.frames)
    iou, known = agreement.iou.toarray(), agreement.comparable(np.arange(number), np.arange(number))
    groups = [[i] for i in range(number)]
    while True:
        best = (threshold, None)
        for a in range(len(groups)):
            for b in range(a):
                part = np.ix_(groups[a], groups[b])
                if known[part].any():
                    best = max(best, (iou[part][known[part]].mean(), (a, b)), key=lambda item: item[0])
        if best[1] is None:
            return sorted(sorted(group) for group in groups if len(group) > 1)
        a, b = best[1]
        groups[b] += groups.pop(a)


@pytest.mark.parametrize("seed", range(6))
def test_linkage_equals_its_restatement(seed):
    rng = np.random.default_rng(seed)
    number, length = int(rng.integers(5, 40)), 9
    frames, owner = np.sort(rng.integers(0, length, number)), rng.integers(0, 4, number)
    kinds = tuple(rng.random((number, length)) < 0.7 for _ in range(2))
    both = np.logical_or.reduce([sees[:, frames] & sees[:, frames].T for sees in kinds])
    iou = np.where(owner[:, None] == owner, rng.random((number, number)), 0.4 * rng.random((number, number)))
    iou = np.triu(iou * (rng.random((number, number)) < 0.8), 1)
    agreement = Agreement(sparse.csr_array((iou + iou.T) * both), kinds, frames, np.ones(number))
    groups = linkage_groups(agreement, np.ones((number, length), dtype=bool), 0.3)
    assert [group.masks.tolist() for group in groups] == linked_restated(agreement, 0.3)


def test_both_kinds_of_evidence_together():
    """Pixels decide where they were compared, points elsewhere."""
    frames = np.arange(3)
    everywhere, near = np.ones((3, 3), dtype=bool), np.abs(frames[:, None] - frames) == 1
    points = Agreement(sparse.csr_array(np.full((3, 3), 0.2)), (everywhere,), frames, np.full(3, 0.4))
    pixels = Agreement(sparse.csr_array(np.where(near, 0.6, 0) * [[0], [1], [1]]), (near,), frames, np.full(3, 0.8))
    joint = joint_agreement(points, pixels)
    assert np.allclose(joint.iou.toarray(), [[0.2, 0, 0.2], [0.6, 0.2, 0.6], [0.2, 0.6, 0.2]])
    assert joint.comparable(frames, frames).all()
    assert np.allclose(joint.scores, 0.6)
    assert joint_agreement(points, None) is points


def test_outliers_leave_an_instance():
    frames = np.arange(5)
    iou = np.full((5, 5), 0.8)
    iou[2] = iou[:, 2] = 0.3
    everywhere, near = np.ones((5, 5), dtype=bool), np.abs(frames[:, None] - frames) == 1
    agreement = Agreement(sparse.csr_array(iou), (everywhere,), frames, np.ones(5))
    # The others agree by 0.675: this is the median.
    assert without_outliers(frames, agreement, 0.25).tolist() == [0, 1, 2, 3, 4]
    assert without_outliers(frames, agreement, 0.26).tolist() == [0, 1, 3, 4]
    # Warped masks are the finer evidence: 1 and 3 disagree with one of two neighbours, 0 and 4 with none.
    agreement = dataclasses.replace(agreement, sees=(everywhere, near))
    assert without_outliers(frames, agreement, 0.55).tolist() == [0, 4]
    groups = [Group(frames, ((0, 4),))]
    for outlier, masks in ((0.0, [[0, 1, 2, 3, 4]]), (0.55, [[0, 4]]), (0.9, [])):
        found = join_duplicates(groups, agreement, 5, 1.0, outlier, np.ones(5))
        assert [instance.masks.tolist() for instance in found] == masks


def test_agreement_with_the_others():
    frames = np.array([0, 0, 1, 3])
    iou = np.array([[0.0, 0.0, 0.6, 0.2], [0.0, 0.0, 0.0, 0.4], [0.6, 0.0, 0.0, 0.0], [0.2, 0.4, 0.0, 0.0]])
    coarse, near = np.ones((4, 4), dtype=bool), np.abs(frames[:, None] - np.arange(4)) == 1
    both = Agreement(sparse.csr_array(iou), (coarse, near), frames, np.ones(4))
    # Mask 3 is warped onto no other, the carried points of all three speak for it.
    assert np.allclose(both.with_others(np.arange(4)), [0.6, 0.0, 0.3, 0.2])
    assert np.allclose(both.with_others(np.array([1, 3])), 0.4)
    assert both.with_others(np.array([2])).tolist() == [0.0]


def test_linkage_of_nothing():
    for number in (0, 3):
        sees = np.ones((number, 4), dtype=bool)
        alone = Agreement(sparse.csr_array(np.eye(number)), (sees,), np.arange(number), np.zeros(number))
        assert linkage_groups(alone, sees, 0.4) == []


def test_one_mask_a_frame():
    frames, scores = np.array([0, 0, 1, 2, 2]), np.array([0.2, 0.9, 0.1, 0.5, 0.5])
    assert one_per_frame(np.arange(5), frames, scores).tolist() == [1, 2, 3]
    assert one_per_frame(np.array([0, 4]), frames, scores).tolist() == [0, 4]


def test_duplicates_become_one_instance():
    frames = np.repeat(np.arange(6), 2)
    agreement = agreement_of(np.zeros(12, dtype=int), frames, 6)
    groups = [Group(np.arange(0, 12, 2), ((0, 2),)), Group(np.arange(1, 12, 2), ((3, 5),))]
    assert len(join_duplicates(groups, agreement, 6, 0.9, 0.0, agreement.scores)) == 2
    (instance,) = join_duplicates(groups, agreement, 6, 0.5, 0.0, agreement.scores)
    assert instance.masks.tolist() == list(range(1, 12, 2))
    assert instance.ranges == ((0, 5),)
    assert instance.score == pytest.approx(agreement.scores[1::2].mean())


def test_parts_and_weak_instances_are_left_out():
    frames, visible = np.repeat(np.arange(4), 3), np.ones((12, 4), dtype=bool)
    whole, part, other = (np.arange(k, 12, 3) for k in range(3))
    covers = np.zeros((12, 12))
    covers[np.ix_(part, whole)] = 0.95
    covers[np.ix_(whole, part)] = 0.3
    instances = [Instance(part, ((0, 3),), 0.6), Instance(whole, ((0, 3),), 0.8), Instance(other, ((0, 3),), 0.3)]
    limits = {"least_masks": 3, "least_share": 0.0, "inside": 0.7, "weakest": 0.25, "most": 10}

    def kept(**change):
        chosen = keep_best(instances, frames, sparse.csr_array(covers), visible, **{**limits, **change})
        return [instance.score for instance in chosen]

    assert kept() == [0.8, 0.3]
    assert kept(inside=1.0) == [0.8, 0.6, 0.3]
    assert kept(weakest=0.5) == [0.8]
    assert kept(inside=1.0, most=2) == [0.8, 0.6]
    assert kept(least_masks=5) == []
    assert kept(least_share=1.0) == [0.8, 0.3]
    visible = np.ones((12, 9), dtype=bool)
    assert kept(least_share=0.5) == []
    assert kept(least_share=3 / 8) == [0.8, 0.3]
