from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from s2d.ops import TrackCoverage, coverage_of_tracks, pack_masks, track_coverage, track_points
from s2d.ops.reference.point_tracks import grid_points
from s2d.testing.cases.point_tracks import SHAPES, given, scene, translation

pytestmark = pytest.mark.usefixtures("nan_memory")


def equal(ours, reference):
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(ours, reference, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_reference(shape, dtype, device):
    case = scene(*shape).to(device)
    flows = case.forward.to(dtype), case.backward.to(dtype)
    points = case.points, case.point_frames, *flows
    assert equal(track_points(*points), track_points(*points, impl="reference"))
    masks = case.masks, case.mask_frames, *flows
    for options in ({}, {"grid": 7, "cover_grid": (3, 9), "area_per_line": 20, "least_points": 1, "threshold": 0.0}):
        assert equal(track_coverage(*masks, **options), track_coverage(*masks, **options, impl="reference"))


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_of_tracks_equals_reference(shape, device):
    case = given(*shape).to(device)
    inputs = case.masks, case.mask_frames, case.tracks, case.visible
    for threshold in (0.25, 0.0):
        ours = coverage_of_tracks(*inputs, threshold=threshold)
        assert equal(ours, coverage_of_tracks(*inputs, threshold=threshold, impl="reference"))


def dense(coverage: TrackCoverage) -> torch.Tensor:
    number = len(coverage.visibility)
    result = torch.zeros(number, number)
    for i in range(number):
        part = slice(int(coverage.offsets[i]), int(coverage.offsets[i + 1]))
        result[i, coverage.columns[part].cpu()] = coverage.values[part].cpu()
        assert bool((coverage.columns[part].diff() > 0).all())
    return result


def test_points_follow_a_translation(device):
    forward, backward = (flow.to(device) for flow in translation(5, 20, 60, 3.0, -0.5))
    points = torch.tensor([[10.0, 10.0], [50.25, 1.0], [-0.5, 5.0], [-0.75, 5.0]], device=device)
    result = track_points(points, torch.tensor([2, 2, 0, 0], device=device), forward, backward)
    steps = torch.arange(5.0) - 2
    assert torch.equal(result.tracks[0], torch.stack([10 + 3 * steps, 10 - 0.5 * steps], -1))
    assert result.visible.tolist() == [
        [True] * 5,
        # y is 0, then -0.5, whose nearest pixel is 0, going up; x passes 59.5 only after the last frame.
        [True] * 5,
        [True] * 5,
        [False] * 5,
    ]
    assert torch.equal(result.tracks[3], points[3].expand(5, 2))


def test_a_point_that_leaves_stays_where_it_was_last_seen(device):
    forward, backward = (flow.to(device) for flow in translation(4, 6, 10, 4.0, 0.0))
    result = track_points(
        torch.tensor([[5.0, 2.0]], device=device), torch.tensor([1], device=device), forward, backward
    )
    assert result.visible.tolist() == [[True, True, True, False]]
    assert result.tracks[0, :, 0].tolist() == [1.0, 5.0, 9.0, 9.0]


def test_occlusion_lasts(device):
    forward, backward = translation(5, 8, 8, 0.0, 0.0)
    backward[1] = 2.0  # the way back from frame 2 to 1 disagrees
    forward, backward = forward.to(device), backward.to(device)
    place = torch.tensor([[3.0, 3.0]], device=device)
    for frame, seen in ((0, [True, True, False, False, False]), (4, [False, False, True, True, True])):
        result = track_points(place, torch.tensor([frame], device=device), forward, backward)
        assert result.visible.tolist() == [seen]


def test_coverage_of_masks_that_move(device):
    """Squares that move with the flow cover each other; one that stands still does so less and less."""
    length, height, width = 6, 60, 120
    forward, backward = (flow.to(device) for flow in translation(length, height, width, 5.0, 0.0))
    masks = torch.zeros(2 * length, height, width, dtype=torch.bool, device=device)
    for t in range(length):
        masks[2 * t, 20:40, 10 + 5 * t : 30 + 5 * t] = True
        masks[2 * t + 1, 20:40, 10:30] = True
    frames = torch.arange(2 * length, device=device) // 2
    result = track_coverage(masks, frames, forward, backward, threshold=0.0)
    covers = dense(result)
    assert bool((covers[::2, ::2] == 1).all())
    assert bool((result.visibility[::2] == 1).all())
    # The one that stands still, carried k frames on, has moved 5 k of its 20 pixels.
    assert covers[1, 1::2] == pytest.approx(torch.tensor([1, 0.75, 0.5, 0.25, 0, 0]), abs=0.15)


def test_points_count_once_per_pixel(device):
    """All flow leads into one pixel: the grid's points land there together."""
    forward = torch.zeros(1, 9, 9, 2)
    for y in range(9):
        for x in range(9):
            forward[0, y, x] = torch.tensor([4.0 - x, 4.0 - y]) * 0.05
    backward = -forward
    masks = torch.zeros(3, 9, 9, dtype=torch.bool)
    masks[0, 3:6, 3:6] = True
    masks[1, 4, 4] = True
    masks[2, 3:6, 3:6] = True
    result = track_coverage(
        masks.to(device), torch.tensor([0, 1, 1]).to(device), forward.to(device), backward.to(device), threshold=0.0
    )
    part = slice(int(result.offsets[0]), int(result.offsets[1]))
    assert result.columns[part].tolist() == [0, 1, 2]
    assert result.values[part].tolist() == pytest.approx([1, 1 / 9, 1])


def test_given_tracks_count_where_they_are_taken_to_be(device):
    """A point that hides is not visible, but still covers; one outside or of unknown place does neither."""
    length, height, width = 4, 8, 30
    masks = torch.zeros(length, height, width, dtype=torch.bool, device=device)
    for t in range(length):
        masks[t, 2:6, 5 * t : 5 * t + 10] = True
    x = torch.tensor([1.0, 4.0, 7.0, 12.0])
    tracks = torch.stack([x[:, None] + 5 * torch.arange(length), torch.full((4, length), 3.0)], -1).to(device)
    visible = torch.ones(4, length, dtype=torch.bool, device=device)
    visible[1, 2] = False
    tracks[2, 3] = torch.nan
    tracks[0, 1, 1] = -2.0
    result = coverage_of_tracks(masks, torch.arange(length, device=device), tracks, visible, threshold=0.0)
    third = torch.tensor(1 / 3)
    # Points 0, 1 and 2 are in mask 0; 1 and 2 in mask 1; 0 and 2 in mask 2, where 1 hides; 0 and 1 in mask 3.
    assert torch.equal(
        result.visibility.cpu(),
        torch.stack(
            [
                torch.stack([3 * third, 2 * third, 2 * third, 2 * third]),
                torch.tensor([1.0, 1.0, 0.5, 0.5]),
                torch.tensor([1.0, 0.5, 1.0, 0.5]),
                torch.tensor([1.0, 0.5, 0.5, 1.0]),
            ]
        ),
    )
    assert bool((dense(result) == 1).all())
    # Mask 1 with less of the points of frame 1 in it.
    masks[1, :, 10:] = False
    result = coverage_of_tracks(masks, torch.arange(length, device=device), tracks, visible, threshold=0.0)
    assert dense(result)[0].tolist() == pytest.approx([1, 0.5, 1, 1])


def test_coverage_of_given_tracks_is_that_along_flow(device):
    """Of the same points, all of them visible: one at each pixel, which flow carries."""
    length, height, width = 4, 12, 40
    forward, backward = (flow.to(device) for flow in translation(length, height, width, 1.0, 0.0))
    masks = torch.zeros(length, height, width, dtype=torch.bool, device=device)
    for t in range(length):
        masks[t, 3:9, 8 + 2 * t : 20 + t] = True
    frames = torch.arange(length, device=device)
    options = {"grid": 40, "cover_grid": (40, 40), "least_points": 1, "threshold": 0.0}
    expected = track_coverage(masks, frames, forward, backward, **options)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(40.0), indexing="ij")
    points = torch.stack([x, y], -1).view(-1, 2).to(device)
    place = points[:, None] + torch.tensor([1.0, 0.0], device=device) * torch.arange(length, device=device)[:, None]
    shown = torch.ones(place.shape[:2], dtype=torch.bool, device=device)
    assert equal(coverage_of_tracks(masks, frames, place, shown, threshold=0.0), expected)


def test_more_points_and_pairs_than_there_was_room_for(device):
    """Masks that all cover each other, more than are counted at once; then a grid finer than expected."""
    masks = torch.ones(260, 2, 3, dtype=torch.bool, device=device)
    forward = torch.zeros(0, 2, 3, 2, device=device)
    frames = torch.zeros(260, dtype=torch.int64, device=device)
    result = track_coverage(masks, frames, forward, forward, grid=1, least_points=1)
    assert result.offsets.tolist() == list(range(0, 260 * 261, 260))
    assert torch.equal(result.columns.cpu(), torch.arange(260).repeat(260))
    assert bool((result.values == 1).all())
    case = scene(2, 37, 70, 2).to(device)
    inputs = case.masks | True, case.mask_frames, case.forward, case.backward
    fine = {"grid": 70, "cover_grid": (30, 30)}
    assert equal(track_coverage(*inputs, **fine), track_coverage(*inputs, **fine, impl="reference"))


def test_points_all_over_a_large_frame(device):
    """Pixels of more than one window of the GPU's bitmap, and several points in one pixel of each."""
    height, width = 400, 401
    masks = torch.zeros(2, height, width, dtype=torch.bool, device=device)
    masks[:, 0, :2] = masks[:, -1, -2:] = masks[:, height // 2, 7] = True
    frames = torch.tensor([0, 0], device=device)
    places = torch.tensor([[0, 0], [0.3, 0], [1, 0.2], [399, 399], [399.4, 399], [400, 399], [7, 200], [7, 200.0]])
    tracks, visible = places[:, None].to(device), torch.ones(8, 1, dtype=torch.bool, device=device)
    masks[1, -1] = False
    result = coverage_of_tracks(masks, frames, tracks, visible, threshold=0.0)
    assert dense(result).tolist() == [pytest.approx([1, 3 / 5]), [1, 1]]


def test_grids(device):
    mask = torch.ones(48, 86, dtype=torch.bool)
    points = grid_points(mask, 4, 1)
    assert len(points) == 16
    assert points[:4].tolist() == [[10.25, 5.5], [31.75, 5.5], [53.25, 5.5], [74.75, 5.5]]
    mask[:] = False
    mask[7, 9] = True
    assert grid_points(mask, 4, 1).tolist() == [[9.0, 7.0]]
    mask[7, 9:40] = True
    # Doubled until there are enough; where there are not, every pixel of the mask is a point.
    assert len(grid_points(mask, 4, 4)) >= 4
    assert grid_points(mask, 4, 32).tolist() == [[float(x), 7.0] for x in range(9, 40)]
    assert len(grid_points(mask & ~mask, 4, 1)) == 0


def test_nothing_in_nothing_out(device):
    forward, backward = (flow.to(device) for flow in translation(3, 8, 8, 1.0, 0.0))
    result = track_points(torch.zeros(0, 2, device=device), torch.zeros(0, dtype=torch.int64), forward, backward)
    assert (result.tracks.shape, result.visible.shape) == ((0, 3, 2), (0, 3))
    empty = track_coverage(torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), forward, backward)
    assert [list(part.shape) for part in empty] == [[0, 3], [1], [0], [0]]
    tracks, visible = torch.zeros(4, 3, 2, device=device), torch.ones(4, 3, dtype=torch.bool, device=device)
    empty = coverage_of_tracks(
        torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), tracks, visible
    )
    assert [list(part.shape) for part in empty] == [[0, 3], [1], [0], [0]]
    ones, frames = torch.ones(2, 8, 8, dtype=torch.bool, device=device), torch.tensor([0, 1], device=device)
    bare = coverage_of_tracks(ones, frames, tracks[:0], visible[:0])
    assert not bool(bare.visibility.any())
    assert bare.offsets.tolist() == [0, 0, 0]
    blank = track_coverage(torch.zeros(2, 8, 8, dtype=torch.bool), torch.tensor([0, 1]), forward, backward)
    assert not bool(blank.visibility.any())
    assert blank.offsets.tolist() == [0, 0, 0]


def test_more_masks_in_a_frame_than_a_word_has_bits(device):
    forward, backward = translation(2, 4, 140, 0.0, 0.0)
    masks = torch.zeros(140, 4, 140, dtype=torch.bool)
    masks[torch.arange(140), :, torch.arange(140)] = True
    result = track_coverage(masks, torch.ones(140, dtype=torch.int64), forward, backward, least_points=4)
    assert result.columns.tolist() == list(range(140))
    assert bool((result.values == 1).all())


def test_packed_and_strided_inputs(device):
    case = scene(5, 37, 70, 12).to(device)
    expected = track_coverage(case.masks, case.mask_frames, case.forward, case.backward)
    strided = [flow.repeat_interleave(2, 0)[::2] for flow in (case.forward, case.backward)]
    channels_first = [flow.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for flow in strided]
    frames = case.mask_frames.repeat_interleave(3)[::3]
    assert equal(track_coverage(pack_masks(case.masks), frames, *channels_first), expected)
    given_ = given(5, 37, 70, 12).to(device)
    inputs = given_.masks, given_.mask_frames, given_.tracks, given_.visible
    point_major = coverage_of_tracks(*inputs)
    frame_major = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in inputs[2:]]
    assert equal(coverage_of_tracks(pack_masks(given_.masks), given_.mask_frames, *frame_major), point_major)
    turned = case.points.T.contiguous().T
    assert equal(
        track_points(turned, case.point_frames, *channels_first),
        track_points(case.points, case.point_frames, case.forward, case.backward),
    )


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees(isa):
    code = (
        "import torch\n"
        "from s2d.ops import *\n"
        "from s2d.testing.cases.point_tracks import scene\n"
        "for width, points in ((1, 3), (31, 1), (130, 900)):\n"
        "    c = scene(4, 11, width, 9, points=points, seed=width)\n"
        "    for dtype in (torch.float32, torch.float16):\n"
        "        flows = c.forward.to(dtype), c.backward.to(dtype)\n"
        "        for call in (lambda **k: track_points(c.points, c.point_frames, *flows, **k),\n"
        "                     lambda **k: track_coverage(c.masks, c.mask_frames, *flows, **k)):\n"
        "            for a, b in zip(call(), call(impl='reference')):\n"
        "                assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_result_does_not_depend_on_threads():
    case = scene(6, 60, 90, 40, points=3000)
    threads = torch.get_num_threads()
    try:
        results = []
        tracks = given(6, 60, 90, 40, points=3000)
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            flows = case.forward, case.backward
            results.append(
                (
                    *track_points(case.points, case.point_frames, *flows),
                    *track_coverage(case.masks, case.mask_frames, *flows),
                    *coverage_of_tracks(tracks.masks, tracks.mask_frames, tracks.tracks, tracks.visible),
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert all(equal(results[0], other) for other in results)


def test_no_gradient(device):
    case = scene(3, 8, 9, 2, points=4).to(device)
    forward = case.forward.nan_to_num(0, 0, 0).requires_grad_()
    points = case.points.nan_to_num(0).requires_grad_()
    assert not track_points(points, case.point_frames, forward, forward).tracks.requires_grad


FLOW = torch.zeros(3, 4, 5, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": torch.zeros(2, 2).double()}, "expected points float32 and frame int64"),
        ({"points": torch.zeros(2, 3)}, r"expected points \[G, 2\]"),
        ({"frame": torch.tensor([0, 4])}, r"expected frame in \[0, 4\), got 4"),
        ({"frame": torch.tensor([0, -1])}, r"expected frame in \[0, 4\), got -1"),
        ({"backward": FLOW[:2]}, r"expected backward torch.float32 \[3, 4, 5, 2\] as forward"),
        ({"forward": FLOW.double()}, "expected forward float32 or float16"),
    ],
)
def test_track_points_says_what_was_expected(change, words):
    inputs = {"points": torch.zeros(2, 2), "frame": torch.tensor([0, 1]), "forward": FLOW, "backward": FLOW}
    with pytest.raises((TypeError, ValueError), match="s2d::track_points: " + words):
        track_points(**{**inputs, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masks": torch.zeros(2, 4, 5)}, "expected masks BitMasks or a bool or uint8"),
        ({"masks": torch.ones(2, 5, 4).bool()}, r"expected masks \[N, H, W\] and frames \[N\] with forward"),
        ({"frames": torch.tensor([0])}, r"expected masks \[N, H, W\] and frames \[N\]"),
        ({"frames": torch.tensor([0, 1]).int()}, r"expected frames int64 \[N\], got torch.int32"),
        ({"frames": torch.tensor([1, 0])}, r"expected frames ascending, got \[1, 0\]"),
        ({"frames": torch.tensor([0, 9])}, r"expected frames in \[0, 4\), got 9"),
        ({"grid": 0}, "expected grids and counts of at least 1, got 0"),
        ({"forward": FLOW[..., 0]}, r"expected forward \[T - 1, H, W, 2\]"),
    ],
)
def test_track_coverage_says_what_was_expected(change, words):
    inputs = {"masks": torch.ones(2, 4, 5).bool(), "frames": torch.tensor([0, 1]), "forward": FLOW, "backward": FLOW}
    with pytest.raises((TypeError, ValueError), match="s2d::track_coverage: " + words):
        track_coverage(**{**inputs, **change})


GIVEN = {
    "masks": torch.ones(2, 4, 5).bool(),
    "frames": torch.tensor([0, 1]),
    "tracks": torch.zeros(7, 3, 2),
    "visible": torch.ones(7, 3).bool(),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masks": torch.zeros(2, 4, 5)}, "expected masks BitMasks or a bool or uint8"),
        ({"frames": torch.tensor([0])}, r"expected masks \[N, H, W\] and frames \[N\], got \[2, 4, 5\] and \[1\]"),
        ({"frames": torch.tensor([1, 0])}, r"expected frames ascending, got \[1, 0\]"),
        ({"frames": torch.tensor([0, 3])}, r"expected frames in \[0, 3\), got 3"),
        ({"tracks": torch.zeros(7, 3, 2).half()}, "expected frames int64, tracks float32 and visible bool"),
        ({"visible": torch.ones(7, 3)}, "expected frames int64, tracks float32 and visible bool"),
        ({"visible": torch.ones(3, 7).bool()}, r"expected tracks \[G, T, 2\] and visible \[G, T\], got \[7, 3, 2\]"),
    ],
)
def test_coverage_of_tracks_says_what_was_expected(change, words):
    with pytest.raises((TypeError, ValueError), match="s2d::coverage_of_tracks: " + words):
        coverage_of_tracks(**{**GIVEN, **change})


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([1, 0], "expected frames ascending, got 0"),
        ([0, 4], r"expected frames in \[0, 4\), got 4"),
        ([-1, 0], r"expected frames in \[0, 4\), got -1"),
    ],
)
def test_the_kernel_itself_looks_at_frames(frames, words, device):
    masks, flow = pack_masks(torch.ones(2, 4, 5).bool().to(device)).words, FLOW.to(device)
    inputs = masks, 5, torch.tensor(frames, device=device), flow, flow, 5, 5, 5, 8, 1, 0.25
    with pytest.raises(RuntimeError, match="s2d::track_coverage: " + words):
        torch.ops.s2d.track_coverage(*inputs)


def test_operators_are_registered_properly(device):
    case = scene(4, 9, 70, 6, points=20).to(device)
    forward, backward = (flow.nan_to_num(0, 0, 0) for flow in (case.forward, case.backward))
    points = case.points.nan_to_num(0)
    torch.library.opcheck(torch.ops.s2d.track_points.default, (points, case.point_frames, forward, backward))
    words = pack_masks(case.masks).words
    torch.library.opcheck(
        torch.ops.s2d.track_coverage.default,
        (words, 70, case.mask_frames, forward, backward, 9, 5, 9, 80, 1, 0.25),
    )
    tracks, visible = track_points(points, case.point_frames, forward, backward)
    torch.library.opcheck(
        torch.ops.s2d.coverage_of_tracks.default,
        (words, 70, case.mask_frames, tracks.transpose(0, 1), visible.T.view(torch.uint8), 0.25),
    )


def test_compiles_without_a_graph_break(device):
    case = scene(4, 9, 70, 6, points=20).to(device)
    inputs = case.points.nan_to_num(0), case.point_frames, case.forward, case.backward
    compiled = torch.compile(track_points, fullgraph=True, backend="eager")(*inputs)
    assert equal(compiled, track_points(*inputs))
    masks = case.masks, case.mask_frames, case.forward, case.backward
    compiled = torch.compile(track_coverage, fullgraph=True, backend="eager")(*masks)
    assert equal(compiled, track_coverage(*masks))
    case = given(4, 9, 70, 6, points=20).to(device)
    inputs = case.masks, case.mask_frames, case.tracks, case.visible
    compiled = torch.compile(coverage_of_tracks, fullgraph=True, backend="eager")(*inputs)
    assert equal(compiled, coverage_of_tracks(*inputs))
