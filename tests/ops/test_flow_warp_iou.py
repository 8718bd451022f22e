from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.ops import flow_compose, flow_consistency, flow_warp_counts, flow_warp_iou, mask_iou, pack_masks
from s2d.testing.cases.flow_warp_iou import SHAPES, noise, video

pytestmark = pytest.mark.usefixtures("nan_memory")

MODES = "nearest", "bilinear"


def equal(ours, reference):
    return all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_equals_reference(shape, mode, device):
    case = noise(*shape).to(device)
    for visible in (None, case.visible):
        for reverse in (None, case.reverse):
            inputs = case.source, case.target, case.flow, visible, reverse, mode
            assert equal(flow_warp_counts(*inputs), flow_warp_counts(*inputs, impl="reference"))
            assert torch.equal(flow_warp_iou(*inputs), flow_warp_iou(*inputs, impl="reference"))


@pytest.mark.parametrize("shape", SHAPES)
def test_check_and_composition_equal_reference(shape, device):
    case = noise(*shape).to(device)
    flows = case.flow, case.reverse
    assert torch.equal(flow_consistency(*flows), flow_consistency(*flows, impl="reference"))
    ours, reference = flow_compose(*flows), flow_compose(*flows, impl="reference")
    assert torch.allclose(ours, reference, rtol=0, atol=0, equal_nan=True)
    assert ours.shape == case.flow.shape


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 200),
    masks=st.integers(0, 5),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_any_size(height, width, masks, mode, seed):
    case = noise(2, masks, 3, height, width, seed)
    inputs = case.source, case.target, case.flow, case.visible, case.reverse, mode
    assert equal(flow_warp_counts(*inputs), flow_warp_counts(*inputs, impl="reference"))


def test_nearest_is_a_plain_gather(device):
    """Against a loop that knows nothing of the implementation."""
    case = noise(1, 2, 2, 7, 9, seed=3)
    warped = np.zeros((2, 7, 9), dtype=bool)
    for y in range(7):
        for x in range(9):
            px = np.float32(x) + case.flow[0, y, x, 0].numpy()
            py = np.float32(y) + case.flow[0, y, x, 1].numpy()
            if np.isfinite(px) and np.isfinite(py) and 0 <= np.rint(px) < 9 and 0 <= np.rint(py) < 7:
                warped[:, y, x] = case.source[0, :, int(np.rint(py)), int(np.rint(px))]
    target = case.target[0].numpy()
    counts = flow_warp_counts(case.source.to(device), case.target.to(device), case.flow.to(device))
    assert counts.intersection[0].tolist() == [[int((w & t).sum()) for t in target] for w in warped]
    assert counts.warped_area[0].tolist() == warped.sum((1, 2)).tolist()
    assert counts.target_area[0].tolist() == target.sum((1, 2)).tolist()


def test_bilinear_is_grid_sample(device):
    """Quarter-pixel flow never meets the threshold, so grid_sample in double decides alike."""
    case = noise(2, 3, 3, 21, 40, seed=4)
    flow = (case.flow.nan_to_num(0, 0, 0).clamp(-9, 9) * 2).floor() / 2 + 0.25
    y, x = torch.meshgrid(torch.arange(21.0), torch.arange(40.0), indexing="ij")
    grid = torch.stack([(x + flow[..., 0]) / 39, (y + flow[..., 1]) / 20], -1).double() * 2 - 1
    warped = F.grid_sample(case.source.double(), grid, align_corners=True) > 0.5
    expected = torch.stack([mask_iou(w, t) for w, t in zip(warped, case.target, strict=True)])
    assert torch.equal(flow_warp_iou(case.source, case.target, flow, mode="bilinear"), expected)


def test_no_flow_is_mask_iou(device):
    case = video(2, 5, 30, 65).to(device)
    nothing = torch.zeros_like(case.flow)
    expected = torch.stack([mask_iou(s, t) for s, t in zip(case.source, case.target, strict=True)])
    for mode in MODES:
        assert torch.equal(flow_warp_iou(case.source, case.target, nothing, mode=mode), expected)
        assert torch.equal(flow_warp_iou(case.source, case.target, nothing, None, nothing, mode), expected)


def test_a_shift_is_undone(device):
    source = torch.zeros(1, 1, 20, 90, dtype=torch.bool, device=device)
    source[0, 0, 5:12, 20:70] = True
    target = source.roll((2, 7), (2, 3))
    flow = torch.tensor([-7.0, -2.0], device=device).expand(1, 20, 90, 2)
    assert float(flow_warp_iou(source, target, flow)) == 1.0
    assert float(flow_warp_iou(target, source, -flow)) == 1.0


def test_half_pixels_round_to_even(device):
    source = torch.zeros(1, 1, 1, 4, dtype=torch.bool, device=device)
    source[..., 2] = True
    flow = torch.zeros(1, 1, 4, 2, device=device)
    flow[0, 0, :, 0] = torch.tensor([1.5, 0.5, 0.5, 0.5])  # positions 1.5, 1.5, 2.5 and 3.5: pixels 2, 2, 2 and 4
    assert flow_warp_counts(source, source, flow).warped_area.tolist() == [[3]]
    source[:] = True
    flow[0, 0, :, 0] = torch.tensor([-0.5, -1.5, 1.5, 0.5])  # -0.5 is pixel 0, -0.5 too, 3.5 is pixel 4, outside
    assert flow_warp_counts(source, source, flow).warped_area.tolist() == [[2]]


def test_what_is_not_finite_or_outside_reads_nothing(device):
    ones = torch.ones(1, 1, 3, 70, dtype=torch.bool, device=device)
    for value in (torch.nan, torch.inf, -torch.inf, 3e38, 500.0):
        flow = torch.full((1, 3, 70, 2), value, device=device)
        for mode in MODES:
            counts = flow_warp_counts(ones, ones, flow, mode=mode)
            assert (int(counts.warped_area), int(counts.target_area)) == (0, 210)
        assert not bool(flow_consistency(flow, torch.zeros_like(flow)).any())
        assert bool(flow_compose(flow, torch.zeros_like(flow)).isnan().all())
        assert not bool(flow_consistency(torch.zeros_like(flow), flow).any())


def test_pixels_that_are_not_visible_count_nowhere(device):
    case = noise(1, 3, 4, 12, 70, seed=5).to(device)
    hidden = torch.zeros_like(case.visible)
    assert not any(bool(count.any()) for count in flow_warp_counts(case.source, case.target, case.flow, hidden))
    packed = flow_warp_counts(
        pack_masks(case.source), pack_masks(case.target), case.flow, pack_masks(case.visible), case.reverse
    )
    kept = case.visible & flow_consistency(case.flow, case.reverse)
    assert equal(packed, flow_warp_counts(case.source, case.target, case.flow, kept))


def test_check_keeps_what_agrees(device):
    flow = torch.zeros(5, 8, 2, device=device)
    flow[..., 0] = 2.0
    assert flow_consistency(flow, -flow).tolist() == [[True] * 6 + [False] * 2] * 5
    # |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5: with f = 2 that is -2.786 <= b <= -1.254.
    for back, kept in ((-1.24, False), (-1.26, True), (-2.78, True), (-2.80, False)):
        reverse = torch.zeros_like(flow)
        reverse[..., 0] = back
        assert bool(flow_consistency(flow, reverse)[2, 2]) == kept


def test_composition_of_shifts(device):
    a = torch.tensor([1.5, -1.0], device=device).expand(6, 9, 2)
    b = torch.tensor([0.25, 2.0], device=device).expand(6, 9, 2)
    total = flow_compose(a, b)
    assert torch.equal(total[2, 2], torch.tensor([1.75, 1.0], device=device))
    assert bool(total[0].isnan().all())
    assert bool(total[3, 8].isnan().all())


def test_half_precision_and_strides(device):
    case = noise(2, 3, 3, 13, 70, seed=6).to(device)
    half = case.flow.half()
    expected = flow_warp_counts(case.source, case.target, half.float(), None, case.reverse)
    channels_first = half.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    strided = case.reverse.repeat_interleave(2, 2)[:, :, ::2]
    masks = case.source.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert equal(flow_warp_counts(masks, case.target, channels_first, None, strided), expected)
    assert torch.equal(flow_consistency(channels_first, strided), flow_consistency(half.float(), case.reverse))
    leading = flow_consistency(case.flow.view(1, 2, 13, 70, 2), case.reverse.view(1, 2, 13, 70, 2))
    assert torch.equal(leading[0], flow_consistency(case.flow, case.reverse))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees(isa):
    code = (
        "import torch\n"
        "from s2d.ops import *\n"
        "from s2d.testing.cases.flow_warp_iou import noise\n"
        "for width in (1, 15, 16, 63, 64, 65, 130):\n"
        "    c = noise(2, 5, 4, 9, width, seed=width)\n"
        "    for mode in ('nearest', 'bilinear'):\n"
        "        inputs = c.source, c.target, c.flow, c.visible, c.reverse, mode\n"
        "        assert torch.equal(flow_warp_iou(*inputs), flow_warp_iou(*inputs, impl='reference'))\n"
        "    ours = flow_compose(c.flow, c.reverse).nan_to_num(7)\n"
        "    assert torch.equal(ours, flow_compose(c.flow, c.reverse, impl='reference').nan_to_num(7))\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_result_does_not_depend_on_threads():
    case = video(2, 8, 120, 200)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(flow_warp_counts(case.source, case.target, case.flow, None, case.reverse))
    finally:
        torch.set_num_threads(threads)
    assert all(equal(results[0], other) for other in results)


def test_no_gradient(device):
    case = noise(1, 2, 2, 8, 9).to(device)
    flow = case.flow.nan_to_num(0, 0, 0).requires_grad_()
    assert not flow_warp_iou(case.source, case.target, flow, None, flow).requires_grad
    assert not flow_compose(flow, flow).requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": torch.zeros(1, 2, 4, 5)}, "expected source BitMasks or a bool or uint8"),
        (
            {"source": torch.ones(1, 2, 4, 6).bool()},
            r"expected source \[1, masks, 4, 5\] as flow has it",
        ),
        ({"target": torch.ones(2, 2, 4, 5).bool()}, r"expected target \[1, masks, 4, 5\]"),
        ({"target": torch.ones(4, 5).bool()}, r"expected target \[1, masks, 4, 5\] as flow has it, got \[4, 5\]"),
        ({"flow": torch.zeros(1, 4, 5, 2).double()}, "expected flow float32 or float16 .*, got torch.float64"),
        ({"flow": torch.zeros(1, 2, 4, 5)}, r"expected flow \[P, H, W, 2\], got \[1, 2, 4, 5\]"),
        ({"visible": torch.ones(1, 4, 4).bool()}, r"expected visible \[1, 4, 5\] as flow has it, got \[1, 4, 4\]"),
        ({"reverse": torch.zeros(1, 5, 4, 2)}, r"expected reverse \[1, 4, 5, 2\] as flow, got \[1, 5, 4, 2\]"),
        ({"mode": "cubic"}, "expected mode nearest or bilinear, got 'cubic'"),
    ],
)
def test_refusals_say_what_was_expected(change, words):
    masks = torch.ones(1, 2, 4, 5, dtype=torch.bool)
    inputs = {"source": masks, "target": masks, "flow": torch.zeros(1, 4, 5, 2)}
    with pytest.raises((TypeError, ValueError), match="s2d::flow_warp_iou: " + words):
        flow_warp_iou(**{**inputs, **change})


def test_compose_and_check_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"s2d::flow_compose: expected second \[4, 5, 2\] as first, got \[5, 4, 2\]"):
        flow_compose(torch.zeros(4, 5, 2), torch.zeros(5, 4, 2))
    with pytest.raises(ValueError, match=r"s2d::flow_consistency: expected reverse \[4, 5, 2\] as flow"):
        flow_consistency(torch.zeros(4, 5, 2), torch.zeros(5, 4, 2))


def test_operators_are_registered_properly(device):
    case = noise(2, 3, 4, 5, 70).to(device)
    source, target, visible = (pack_masks(m).words for m in (case.source, case.target, case.visible))
    flow, reverse = case.flow.nan_to_num(0, 0, 0), case.reverse.nan_to_num(0, 0, 0)
    for operator, arguments in (
        (torch.ops.s2d.flow_warp_counts, (source, target, 70, flow, visible, reverse, 0)),
        (torch.ops.s2d.flow_warp_counts, (source, target, 70, flow, None, None, 1)),
        (torch.ops.s2d.flow_consistency, (flow, reverse)),
        (torch.ops.s2d.flow_compose, (flow * 0, reverse)),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_compiles_without_a_graph_break(device):
    case = noise(2, 3, 4, 6, 70).to(device)

    def pipeline(source, target, flow, visible, reverse):
        kept = flow_consistency(flow, reverse) & visible
        return flow_warp_iou(source, target, flow, kept), flow_warp_iou(source, target, flow, None, reverse, "bilinear")

    inputs = case.source, case.target, case.flow, case.visible, case.reverse
    compiled = torch.compile(pipeline, fullgraph=True, backend="eager")(*inputs)
    assert equal(compiled, pipeline(*inputs))
