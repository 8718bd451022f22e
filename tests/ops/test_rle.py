from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from s2d.ops import RLE, pack_masks, rle_area, rle_bbox, rle_decode, rle_encode, rle_iou, unpack_masks
from s2d.ops.reference.rle import from_string, to_string
from s2d.testing.cases.rle import SHAPES, masks, tubes


def coco_codes(dense: torch.Tensor) -> list[dict]:
    return coco.encode(np.asfortranarray(dense.permute(1, 2, 0).numpy().astype(np.uint8)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_equals_pycocotools(shape, density, impl):
    dense, other = masks((3, *shape), density), masks((4, *shape), 0.5, seed=1)
    rle, expected = rle_encode(dense, impl=impl), coco_codes(dense)
    codes = rle.to_coco(impl=impl)
    assert [code["counts"].encode() for code in codes] == [code["counts"] for code in expected]
    assert [code["size"] for code in codes] == [list(shape)] * 3
    back = RLE.from_coco(expected, impl=impl)
    assert torch.equal(back.counts, rle.counts)
    assert torch.equal(unpack_masks(rle_decode(back, impl=impl)), dense)
    assert np.array_equal(rle_area(rle, impl=impl).numpy(), coco.area(expected))
    assert np.array_equal(rle_bbox(rle, impl=impl).numpy(), coco.toBbox(expected))
    crowd = torch.tensor([False, True, False, True])
    overlaps = coco.iou(expected, coco_codes(other), crowd.int().tolist())
    assert np.array_equal(rle_iou(rle, rle_encode(other), crowd, impl=impl).numpy(), overlaps)


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(0, 130),
    width=st.integers(0, 130),
    density=st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_size_equals_the_definition(height, width, density, seed):
    dense, other = masks((3, height, width), density, seed), masks((2, height, width), 0.5, seed + 1)
    dense[1, :, width // 2 :] = False
    rle, expected = rle_encode(dense), rle_encode(dense, impl="reference")
    assert torch.equal(rle.counts, expected.counts)
    assert torch.equal(rle.offsets, expected.offsets)
    assert torch.equal(rle_decode(rle).words, pack_masks(dense).words)
    assert torch.equal(rle_area(rle), dense.sum((1, 2)))
    assert torch.equal(rle_bbox(rle), rle_bbox(expected, impl="reference"))
    codes = rle_encode(other)
    assert torch.equal(rle_iou(rle, codes), rle_iou(rle, codes, impl="reference"))


def test_blobs_bits_and_batches():
    dense = tubes(5, 2, 60, 90).flatten(0, 1)
    rle = rle_encode(pack_masks(dense))
    assert [c["counts"].encode() for c in rle.to_coco()] == [c["counts"] for c in coco_codes(dense)]
    assert torch.equal(unpack_masks(rle_decode(rle[[7, 0]])), dense[[7, 0]])
    assert torch.equal(unpack_masks(rle_decode(rle[3])), dense[3:4])
    joined = RLE.cat([rle[:4], rle[4:]])
    assert torch.equal(joined.counts, rle.counts)
    assert torch.equal(joined.offsets, rle.offsets)
    assert len(RLE.cat([])) == 0
    assert int(rle_area(RLE.empty(3, 5, 7)).sum()) == 0


def test_real_masklets(test_data):
    data = json.loads((test_data / "data/eval/sav_rle/sav_000001_manual.json").read_text())
    codes = [code for frame in data["masklet"] for code in frame][:60]
    rle = RLE.from_coco(codes)
    assert [c["counts"] for c in rle.to_coco()] == [c["counts"] for c in codes]
    assert np.array_equal(rle_area(rle).numpy(), coco.area(codes))
    assert [c["counts"] for c in rle_encode(rle_decode(rle[:5])).to_coco()] == [c["counts"] for c in codes[:5]]


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [2, 2], "counts": "T"}, "mask 1: expected a complete last run"),
        ({"size": [2, 2], "counts": "\x20"}, "mask 1: expected characters from '0' to 'o'"),
        ({"size": [2, 2], "counts": [1, 2]}, "mask 1: expected runs that add up to 2 x 2 pixels, got 3"),
        ({"size": [2, 2], "counts": [-1, 5]}, "mask 1: expected runs of at least 0 pixels, got -1"),
        ({"size": [2, 2]}, "mask 1: missing key 'counts'"),
        ({"size": [2**16, 2**15], "counts": [2**31]}, "mask 1: .* 0 to 2\\^31 - 1 pixels, got 65536 x 32768"),
    ],
)
def test_malformed_codes_name_the_mask(code, words, impl):
    with pytest.raises(ValueError, match=words):
        RLE.from_coco([{"size": [1, 1], "counts": [1]}, code], impl=impl)


def test_strings_survive_any_runs():
    numbers = np.random.default_rng(0)
    for _ in range(200):
        counts = numbers.integers(0, 2 ** int(numbers.integers(1, 30)), size=int(numbers.integers(0, 9))).tolist()
        assert from_string(to_string(counts)) == counts


@pytest.mark.parametrize(
    ("counts", "offsets", "words"),
    [
        ([1, 2], [0, 2], "expected runs that add up to the size, got mask 0"),
        ([-1, 5], [0, 2], "expected runs of at least 0 pixels, got mask 0"),
        ([4], [0, 9], "expected offsets that ascend within counts, got mask 0"),
        ([4], [0, 1, 1], r"expected offsets int64 \[N \+ 1\], got \[3\]"),
    ],
)
def test_kernels_refuse_broken_codes(counts, offsets, words):
    broken = RLE(
        torch.tensor(counts, dtype=torch.int32), torch.tensor(offsets), torch.tensor([[2, 2]], dtype=torch.int32)
    )
    for function in (rle_decode, rle_area, rle_bbox, lambda rle: rle_iou(rle, rle)):
        with pytest.raises(RuntimeError, match=words):
            function(broken)


def test_operators_are_registered_properly():
    dense = masks((4, 5, 70))
    rle = rle_encode(dense)
    code = (rle.counts, rle.offsets, rle.sizes)
    for operator, arguments in (
        (torch.ops.s2d.rle_encode, (pack_masks(dense).words, 70)),
        (torch.ops.s2d.rle_decode, (*code, 5, 70)),
        (torch.ops.s2d.rle_area, code),
        (torch.ops.s2d.rle_bbox, code),
        (torch.ops.s2d.rle_iou, (*code, *code, torch.tensor([True, False, False, True]))),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_sizes_that_cannot_be_stacked_are_refused():
    mixed = RLE.cat([RLE.empty(1, 2, 3), RLE.empty(1, 3, 2)])
    with pytest.raises(ValueError, match="expected masks of one size"):
        rle_decode(mixed)
