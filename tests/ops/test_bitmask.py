from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.ops import BitMasks, mask_area, mask_bbox, mask_iou, mask_nms, pack_masks, unpack_masks
from s2d.testing.cases.bitmask import SHAPES, masks, tubes

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_equals_reference(shape, dtype, device):
    dense = masks(shape).to(device)
    if dtype == torch.uint8:
        dense = dense.to(dtype) * 200
    bits = pack_masks(dense)
    assert torch.equal(bits.words, pack_masks(dense, impl="reference").words)
    assert torch.equal(unpack_masks(bits), dense != 0)
    for function in (mask_area, mask_bbox):
        assert torch.equal(function(bits), function(bits, impl="reference"))
        assert torch.equal(function(dense), function(bits))
    assert torch.equal(mask_iou(bits, bits[:2]), mask_iou(bits, bits[:2], impl="reference"))


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(0, 9),
    width=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_size(height, width, density, seed, device):
    dense = masks((5, height, width), density, seed).to(device)
    bits = pack_masks(dense)
    assert torch.equal(unpack_masks(bits), dense)
    assert torch.equal(mask_area(bits), dense.sum((1, 2)))
    assert torch.equal(mask_bbox(bits), mask_bbox(bits, impl="reference"))
    assert torch.equal(mask_iou(bits, bits[1:]), mask_iou(bits, bits[1:], impl="reference"))


def test_padding_bits_are_zero(device):
    assert int(pack_masks(torch.ones(1, 65, dtype=torch.bool, device=device)).words[0, 1]) == 1


def test_any_nonzero_value_and_any_stride(device):
    dense = torch.randint(0, 256, (4, 70, 3), dtype=torch.uint8).to(device)
    for view in (dense, dense.transpose(1, 2), dense[:, ::2], dense[1:3, 5:, 1:], dense[:1].expand(3, 70, 3)):
        assert torch.equal(unpack_masks(pack_masks(view)), view != 0)
        strided = pack_masks(view.transpose(0, 1)).words.transpose(0, 1)
        assert torch.equal(mask_area(BitMasks(strided, view.shape[-1])), (view != 0).sum((1, 2)))


def test_tube_iou_counts_voxels(device):
    a, b = tubes(4, 5, 30, 70, seed=1).to(device), tubes(3, 5, 30, 70, seed=2).to(device)
    shared = (a[:, None] & b[None]).flatten(2).sum(2).double()
    either = (a[:, None] | b[None]).flatten(2).sum(2).double()
    assert torch.equal(mask_iou(a, b), (shared / either).float())


def test_iou_of_empty_masks_is_zero(device):
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool, device=device)
    assert torch.equal(mask_iou(nothing, nothing), torch.zeros(2, 2, device=device))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
def test_nms_equals_reference(threshold, device):
    dense = tubes(30, 3, 40, 65, seed=3).to(device)
    scores = torch.randint(0, 8, (30,), generator=torch.Generator().manual_seed(0)).float().to(device)
    kept = mask_nms(dense, scores, threshold)
    assert torch.equal(kept, mask_nms(dense, scores, threshold, impl="reference"))
    assert bool((scores[kept].diff() <= 0).all())


def test_nms_keeps_all_or_one(device):
    dense = masks((5, 6, 9)).to(device)
    scores = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.0], device=device)
    assert mask_nms(dense, scores, 1.0).tolist() == [3, 1, 2, 0, 4]
    assert mask_nms(dense[:1].expand(5, 6, 9), scores, 0.99).tolist() == [3]
    assert mask_nms(dense[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees(isa):
    code = (
        "import torch\n"
        "from s2d.ops import *\n"
        "from s2d.testing.cases.bitmask import masks\n"
        "for width in (1, 63, 64, 65, 130, 854):\n"
        "    dense = masks((7, 5, width), seed=width)\n"
        "    bits = pack_masks(dense.to(torch.uint8) * 200)\n"
        "    assert torch.equal(unpack_masks(bits), dense)\n"
        "    assert torch.equal(mask_area(bits), dense.sum((1, 2)))\n"
        "    assert torch.equal(mask_iou(bits, bits[:6]), mask_iou(bits, bits[:6], impl='reference'))\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_result_does_not_depend_on_threads():
    a = tubes(20, 4, 100, 150, seed=4)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(mask_iou(a, a))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pack_masks(torch.zeros(4, 4)), "s2d::pack_masks: expected masks bool or uint8"),
        (lambda: pack_masks(torch.zeros(4, dtype=torch.bool)), r"\[..., H, W\], got torch.bool \[4\]"),
        (lambda: mask_area(torch.zeros(4, 4, dtype=torch.int64)), "expected masks BitMasks or a bool or uint8"),
        (lambda: BitMasks(torch.zeros(4, 2, dtype=torch.int64), 64), "expected 1 words for width 64, got 2"),
        (lambda: mask_iou(torch.ones(2, 3, 4).bool(), torch.ones(2, 4, 3).bool()), r"equal sizes, got \[2, 3, 4\]"),
        (lambda: mask_nms(torch.ones(2, 3, 4).bool(), torch.ones(3), 0.5), r"scores \[N\], got \[2, 3, 4\] and \[3\]"),
        (lambda: mask_area(torch.ones(2, 3).bool(), impl="fast"), "native, reference, got 'fast'"),
    ],
)
def test_refusals_say_what_was_expected(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_operators_are_registered_properly(device):
    dense = masks((4, 5, 70)).to(device)
    words = pack_masks(dense).words
    order = torch.arange(4, device=device)
    for operator, arguments in (
        (torch.ops.s2d.pack_masks, (dense.view(torch.uint8),)),
        (torch.ops.s2d.unpack_masks, (words, 70)),
        (torch.ops.s2d.mask_area, (words,)),
        (torch.ops.s2d.mask_bbox, (words,)),
        (torch.ops.s2d.mask_iou, (words, words)),
        (torch.ops.s2d.mask_nms, (words, order, 0.5)),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_compiles_without_a_graph_break(device):
    dense = masks((3, 6, 70)).to(device)

    def pipeline(x):
        bits = pack_masks(x)
        return mask_iou(bits, bits), mask_area(bits), mask_bbox(bits), unpack_masks(bits)

    compiled = torch.compile(pipeline, fullgraph=True, backend="eager")(dense)
    for ours, expected in zip(compiled, pipeline(dense), strict=True):
        assert torch.equal(ours, expected)
