from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from s2d.ops import (
    RLE,
    pack_masks,
    rle_area,
    rle_bbox,
    rle_decode,
    rle_encode,
    rle_from_boxes,
    rle_from_labels,
    rle_from_polygons,
    rle_iou,
    rle_merge,
    rle_tube_iou,
    unpack_masks,
)
from s2d.ops.reference.rle import from_string, to_string
from s2d.testing.cases.rle import SHAPES, blobs, label_maps, masks, polygons, tubes

pytestmark = pytest.mark.usefixtures("nan_memory")

IMPLEMENTATIONS = ["native", "reference"]


def coco_codes(dense: torch.Tensor) -> list[dict]:
    return coco.encode(np.asfortranarray(dense.cpu().permute(1, 2, 0).numpy().astype(np.uint8)))


def strings(rle: RLE) -> list[bytes]:
    return [code["counts"].encode() for code in rle.to_coco()]


def equal(a: RLE, b: RLE) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip((a.counts, a.offsets, a.sizes), (b.counts, b.offsets, b.sizes), strict=True)
    )


def check_against_pycocotools(dense: torch.Tensor, other: torch.Tensor, impl: str | None = None) -> None:
    """Strings, masks, areas, boxes, overlaps and merged masks, to the last bit."""
    rle, expected = rle_encode(dense, impl=impl), coco_codes(dense)
    assert strings(rle) == [code["counts"] for code in expected]
    assert rle.sizes.tolist() == [list(dense.shape[1:])] * len(dense)
    if impl is None:
        assert equal(rle, rle_encode(pack_masks(dense)))
    back = RLE.from_coco(expected, impl=impl).to(dense.device)
    assert equal(back, rle)
    assert torch.equal(unpack_masks(rle_decode(back, impl=impl)), dense)
    assert np.array_equal(rle_area(rle, impl=impl).cpu().numpy(), coco.area(expected))
    assert np.array_equal(rle_bbox(rle, impl=impl).cpu().numpy(), coco.toBbox(expected))
    crowd = torch.arange(len(other), device=dense.device) % 2 == 1
    overlaps = coco.iou(expected, coco_codes(other), crowd.int().tolist())
    assert np.array_equal(rle_iou(rle, rle_encode(other), crowd, impl=impl).cpu().numpy(), overlaps)
    for intersect in (False, True):
        merged = coco.merge(expected, intersect)["counts"]
        assert strings(rle_merge(rle, intersect=intersect, impl=impl)) == [merged]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("impl", [None, "reference"])
def test_equals_pycocotools(shape, density, impl, device):
    dense, other = masks((3, *shape), density).to(device), masks((4, *shape), 0.5, seed=1).to(device)
    check_against_pycocotools(dense, other, impl)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(0, 130),
    width=st.integers(0, 130),
    density=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_any_size_equals_pycocotools(height, width, density, seed):
    dense, other = masks((3, height, width), density, seed), masks((2, height, width), 0.5, seed + 1)
    dense[1, :, width // 2 :] = False
    check_against_pycocotools(dense, other)


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(0, 70),
    width=st.integers(0, 70),
    density=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_size_equals_the_definition(height, width, density, seed, device):
    dense = masks((3, height, width), density, seed).to(device)
    rle, expected = rle_encode(dense), rle_encode(dense, impl="reference")
    assert equal(rle, expected)
    assert torch.equal(rle_decode(rle).words, pack_masks(dense).words)
    assert torch.equal(rle_area(rle), rle_area(rle, impl="reference"))
    assert torch.equal(rle_bbox(rle), rle_bbox(rle, impl="reference"))
    assert torch.equal(rle_iou(rle, rle[1:]), rle_iou(rle, rle[1:], impl="reference"))
    assert torch.equal(rle_tube_iou(rle, rle, 3), rle_tube_iou(rle, rle, 3, impl="reference"))
    groups = torch.tensor([1, 0, 1], device=device)
    for intersect in (False, True):
        merged = rle_merge(rle, groups, intersect=intersect)
        assert equal(merged, rle_merge(rle, groups, intersect=intersect, impl="reference"))


@pytest.mark.timeout(3600)
def test_masks_of_video_equal_pycocotools():
    """``S2D_LONG_TESTS=1`` checks ten thousand blobs and as much noise."""
    rounds, number = (200, 50) if os.environ.get("S2D_LONG_TESTS") == "1" else (1, 6)
    for seed in range(rounds):
        check_against_pycocotools(blobs(number, 480, 854, seed), blobs(5, 480, 854, seed + 1))
        density = float(torch.rand((), generator=torch.Generator().manual_seed(seed))) ** 4
        check_against_pycocotools(masks((number, 480, 854), density, seed), masks((2, 480, 854), 0.5, seed + 1))


def test_masks_with_few_runs_and_many_pixels():
    """Such masks are compared run by run: their bits would take too much memory."""
    dense = torch.zeros(4, 700, 3000, dtype=torch.bool)
    dense[0, :, 100:2900] = True
    dense[1, 5, 7] = dense[1, 690, 2990] = True
    dense[2] = True
    check_against_pycocotools(dense, dense[:3])


def test_any_nonzero_value_and_any_stride(device):
    dense = (torch.arange(4 * 70 * 6) * 37 % 256).view(4, 70, 6).to(torch.uint8).to(device)
    for view in (dense, dense.transpose(1, 2), dense[:, ::2], dense[1:3, 5:, 1:], dense[:1].expand(3, 70, 6)):
        assert equal(rle_encode(view), rle_encode((view != 0).contiguous()))
    strided = pack_masks(dense).words.transpose(0, 1).contiguous().transpose(0, 1)
    assert equal(rle_encode(type(pack_masks(dense))(strided, 6)), rle_encode(dense))


def test_arrays_of_numpy_and_dlpack():
    dense = blobs(4, 40, 70).numpy()
    expected = rle_encode(torch.from_numpy(dense))
    reversed_rows = np.ascontiguousarray(dense[:, ::-1])[:, ::-1]
    read_only = dense.copy()
    read_only.flags.writeable = False
    for array in (dense, reversed_rows, read_only, np.asfortranarray(dense), dense.astype(np.uint8) * 7):
        assert equal(rle_encode(array), expected)

    class Exported:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **arguments):
            return self.tensor.__dlpack__(**arguments)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    assert equal(rle_encode(Exported(torch.from_numpy(dense).byte())), expected)
    assert equal(RLE.from_arrays(*expected.numpy()), expected)
    assert equal(RLE.from_arrays(expected.counts, Exported(expected.offsets), expected.sizes.numpy()), expected)


def test_batches(device):
    dense = tubes(5, 2, 60, 90).flatten(0, 1).to(device)
    rle = rle_encode(dense)
    for index in ([7, 0], slice(2, 5), slice(8, 3), slice(None, None, 3), torch.tensor([True, False] * 5), -1, 0):
        chosen = dense[index].view(-1, 60, 90)
        assert equal(rle[index], rle_encode(chosen))
    assert equal(RLE.cat([rle[:4], rle[4:]]), rle)
    assert equal(pickle.loads(pickle.dumps(rle)), rle)
    assert equal(rle.to("cpu").to(device), rle)
    with pytest.raises(IndexError, match="expected an index below 10, got 10"):
        rle[10]
    assert len(RLE.cat([])) == 0
    assert int(rle_area(RLE.empty(3, 5, 7)).sum()) == 0


def test_empty_batches(device):
    none = rle_encode(torch.zeros(0, 4, 5, dtype=torch.bool, device=device))
    one = rle_encode(torch.ones(1, 4, 5, dtype=torch.bool, device=device))
    assert none.to_coco() == []
    assert equal(RLE.from_coco([]), RLE.cat([]))
    assert rle_decode(none).shape == (0, 0, 0)
    assert rle_area(none).tolist() == rle_bbox(none).tolist() == []
    assert rle_iou(none, one).shape == (0, 1)
    assert rle_tube_iou(one, none, 1).shape == (1, 0)
    assert len(rle_merge(none)) == 0
    assert len(rle_from_polygons([], (4, 5))) == len(rle_from_boxes(torch.zeros(0, 4), (4, 5))) == 0


def test_masks_of_different_sizes(device):
    parts = [rle_encode(masks((2, height, width), 0.3).to(device)) for height, width in ((3, 70), (70, 3), (1, 1))]
    mixed = RLE.cat(parts)
    assert mixed.sizes.tolist() == [[3, 70]] * 2 + [[70, 3]] * 2 + [[1, 1]] * 2
    for function in (rle_area, rle_bbox):
        assert torch.equal(function(mixed), torch.cat([function(part) for part in parts]))
    merged = rle_merge(mixed, torch.tensor([2, 2, 0, 0, 1, 1], device=device))
    assert equal(merged, RLE.cat([rle_merge(parts[i]) for i in (1, 2, 0)]))
    assert equal(RLE.from_coco(mixed.to_coco()).to(device), mixed)
    for function in (rle_decode, rle_merge, lambda rle: rle_iou(rle, rle), lambda rle: rle_tube_iou(rle, rle, 6)):
        with pytest.raises(ValueError, match=r"expected masks of one size, got \[\[1, 1\], \[3, 70\], \[70, 3\]\]"):
            function(mixed)
    with pytest.raises(ValueError, match="expected masks of one size in a group"):
        rle_merge(mixed, torch.tensor([0, 0, 0, 1, 1, 1], device=device))


# ---- label maps ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 5, 1), (2, 1, 7), (2, 9, 130), (1, 0, 4), (0, 3, 3)])
def test_label_maps_equal_the_definition(dtype, shape, device):
    labels = label_maps(*shape, 30, cell=3).to(dtype).to(device)
    for background in (0, None, 7):
        rle, which = rle_from_labels(labels, background)
        expected, expected_which = rle_from_labels(labels, background, impl="reference")
        assert equal(rle, expected)
        assert torch.equal(which, expected_which)
    assert equal(rle_from_labels(labels.transpose(1, 2))[0], rle_from_labels(labels.transpose(1, 2).contiguous())[0])


def test_label_maps_of_many_and_of_strange_labels(device, emulated):
    side = 12 if emulated else 256  # 65536 labels
    labels = torch.arange(side * side).view(1, side, side).to(device)
    rle, which = rle_from_labels(labels, None)
    assert len(rle) == side * side
    assert torch.equal(which[:, 1], torch.arange(side * side, device=device))
    assert bool((rle_area(rle) == 1).all())
    boxes = rle_bbox(rle)
    assert torch.equal(boxes[:, 1] * side + boxes[:, 0], which[:, 1])
    signed = torch.tensor([[[-5, 2**62], [-(2**63), -5]]], device=device)
    rle, which = rle_from_labels(signed)
    assert which.tolist() == [[0, -(2**63)], [0, -5], [0, 2**62]]
    assert [code["counts"] for code in rle.to_coco(compressed=False)] == [[1, 1, 2], [0, 1, 2, 1], [2, 1, 1]]


# ---- tubes ----


def official_tube_iou(a: list[list[dict | None]], b: list[list[dict | None]]) -> np.ndarray:
    """The measure as YouTube-VIS defines it: sums over frames, a frame without a mask counts the other's."""
    result = np.zeros((len(a), len(b)))
    for n, first in enumerate(a):
        for m, second in enumerate(b):
            shared = either = 0.0
            for x, y in zip(first, second, strict=True):
                if x and y:
                    shared += coco.area(coco.merge([x, y], True))
                    either += coco.area(coco.merge([x, y], False))
                elif x or y:
                    either += coco.area(x or y)
            result[n, m] = shared / either if either else 0.0
    return result


def test_tubes_equal_the_official_measure(device):
    a, b = tubes(4, 5, 40, 90, seed=1), tubes(3, 5, 40, 90, seed=2)
    a[0, 2] = a[1] = b[0, :3] = False
    ours = rle_tube_iou(rle_encode(a.flatten(0, 1).to(device)), rle_encode(b.flatten(0, 1).to(device)), 5)
    codes = [
        [[code if tube[t].any() else None for t, code in enumerate(coco_codes(tube))] for tube in x] for x in (a, b)
    ]
    assert np.array_equal(ours.cpu().numpy(), official_tube_iou(*codes))


# ---- polygons and boxes ----


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    corners=st.lists(st.lists(st.tuples(st.floats(-30, 90), st.floats(-30, 90)), min_size=3, max_size=8), max_size=3),
)
def test_polygons_equal_pycocotools(height, width, corners):
    flat = [np.array(polygon).flatten().tolist() for polygon in corners]
    rle = rle_from_polygons([flat, flat[:1], []], (height, width))
    assert equal(rle, rle_from_polygons([flat, flat[:1], []], (height, width), impl="reference"))
    assert equal(rle, RLE.from_coco([flat, flat[:1], None], (height, width)))
    expected = [coco.merge(coco.frPyObjects(part, height, width)) for part in (flat, flat[:1]) if part]
    assert strings(rle)[: len(expected)] == [code["counts"] for code in expected]


def test_boxes_equal_pycocotools():
    boxes = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 60 - 5
    expected = [code["counts"] for code in coco.frPyObjects(boxes.numpy(), 40, 50)]
    assert strings(rle_from_boxes(boxes, (40, 50))) == expected
    assert strings(rle_from_boxes(boxes, (40, 50), impl="reference")) == expected
    assert strings(RLE.from_coco(boxes.tolist(), (40, 50))) == expected
    sizes = torch.tensor([[9, 9], [40, 50]])
    assert equal(rle_from_boxes(boxes[:2], sizes)[1], rle_from_boxes(boxes[1:2], (40, 50)))


def test_polygons_of_many_corners():
    rings = polygons(20, 480, 640)
    expected = [code["counts"] for code in coco.frPyObjects([ring for mask in rings for ring in mask], 480, 640)]
    assert strings(rle_from_polygons(rings, (480, 640))) == expected


# ---- COCO's files ----


def test_real_masklets(test_data, device, emulated):
    if emulated:
        pytest.skip("masks of video size would take minutes in the emulator")
    for kind in ("manual", "auto"):
        data = json.loads((test_data / f"data/eval/sav_rle/sav_000001_{kind}.json").read_text())
        codes = [code for frame in data["masklet"] for code in frame]
        rle = RLE.from_coco(codes).to(device)
        assert [c["counts"] for c in rle.to_coco()] == [c["counts"] for c in codes]
        assert rle_area(rle).tolist() == [int(coco.area(code)) for code in codes]
        assert np.array_equal(rle_bbox(rle).cpu().numpy(), coco.toBbox(codes))
        for start in range(0, len(codes), 50):
            part = slice(start, start + 50)
            dense = unpack_masks(rle_decode(rle[part]))
            assert np.array_equal(dense.cpu().permute(1, 2, 0).numpy(), coco.decode(codes[part]))
            assert equal(rle_encode(dense), rle[part])
        overlaps = coco.iou(codes[:40], codes[:40], [0] * 40)
        assert np.array_equal(rle_iou(rle[:40], rle[:40]).cpu().numpy(), overlaps)


def test_real_annotations(test_data):
    folder = test_data / "data/eval/coco_val2014_100"
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    truths, images = data["annotations"], {image["id"]: image for image in data["images"]}
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    items = truths + results
    objects = [item["segmentation"] for item in items]
    sizes = [(images[item["image_id"]]["height"], images[item["image_id"]]["width"]) for item in items]
    expected = []
    for shape, size in zip(objects, sizes, strict=True):
        if isinstance(shape, list):
            expected.append(coco.merge(coco.frPyObjects(shape, *size)))
        elif isinstance(shape["counts"], list):
            expected.append(coco.frPyObjects(shape, *size))
        else:
            expected.append({**shape, "counts": shape["counts"].encode()})
    rle = RLE.from_coco(objects, sizes)
    assert strings(rle) == [code["counts"] for code in expected]
    assert rle_area(rle).tolist() == [int(coco.area(code)) for code in expected]
    assert np.array_equal(rle_bbox(rle).numpy(), coco.toBbox(expected))
    drawn = [n for n, shape in enumerate(objects) if isinstance(shape, list)]
    assert equal(rle_from_polygons([objects[n] for n in drawn], torch.tensor([sizes[n] for n in drawn])), rle[drawn])
    for image in images:
        of_image = [n for n, item in enumerate(items) if item["image_id"] == image]
        found, there = [n for n in of_image if n >= len(truths)], [n for n in of_image if n < len(truths)]
        if found and there:
            crowd = [truths[n]["iscrowd"] for n in there]
            overlaps = coco.iou([expected[n] for n in found], [expected[n] for n in there], crowd)
            assert np.array_equal(rle_iou(rle[found], rle[there], torch.tensor(crowd)).numpy(), overlaps)


def test_every_form_of_a_code():
    dense = blobs(3, 20, 30)
    rle, codes = rle_encode(dense), coco_codes(dense)
    assert equal(RLE.from_coco(codes), rle)
    assert equal(RLE.from_coco([{**c, "counts": c["counts"].decode()} for c in codes]), rle)
    for impl in IMPLEMENTATIONS:
        assert equal(RLE.from_coco(rle.to_coco(compressed=False, impl=impl), impl=impl), rle)
        assert equal(RLE.from_coco([codes[0], None, codes[2]], (20, 30), impl=impl)[[0, 2]], rle[[0, 2]])
        assert equal(RLE.from_coco([None], (20, 30), impl=impl), RLE.empty(1, 20, 30))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [2, 2], "counts": "T"}, "mask 1: expected a complete last run"),
        ({"size": [2, 2], "counts": "\x20"}, "mask 1: expected characters from '0' to 'o'"),
        ({"size": [2, 2], "counts": [1, 2]}, "mask 1: expected runs that add up to 2 x 2 pixels, got 3"),
        ({"size": [2, 2], "counts": [-1, 5]}, "mask 1: expected runs of at least 0 pixels, got -1"),
        ({"size": [2, 2]}, "mask 1: missing key 'counts'"),
        ({"size": [2**16, 2**15], "counts": [2**31]}, "mask 1: .* 0 to 2\\^31 - 1 pixels, got 65536 x 32768"),
        ({"size": [2, 2], "counts": None}, "mask 1: "),
        (None, "mask 1: expected a size for what brings none"),
        ([[1.0, 2.0]], "mask 1: expected a size for what brings none"),
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


# ---- what is refused ----


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
    functions = (rle_decode, rle_area, rle_bbox, rle_merge, lambda rle: rle_iou(rle, rle))
    for function in functions:
        with pytest.raises(RuntimeError, match=words):
            function(broken)


SQUARE = RLE.empty(2, 3, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rle_encode(torch.zeros(1, 4, 4)), "expected masks BitMasks or a bool or uint8 tensor"),
        (lambda: rle_encode(torch.zeros(4, 4).bool()), r"s2d::rle_encode: expected masks \[N, H, W\], got \[4, 4\]"),
        (
            lambda: rle_encode(torch.zeros(1, 1, 1).bool().expand(1, 2**16, 2**15)),
            "2\\^31 - 1 pixels, got 65536 x 32768",
        ),
        (lambda: rle_from_labels(torch.zeros(1, 4, 4)), "expected labels of integers .* got torch.float32"),
        (lambda: rle_from_labels(torch.zeros(4, 4).int()), r"expected labels \[T, H, W\], got \[4, 4\]"),
        (lambda: rle_iou(SQUARE, SQUARE, torch.zeros(1).bool()), r"expected crowd bool \[2\], got \[1\]"),
        (lambda: rle_tube_iou(SQUARE, SQUARE, 3), "expected frames that divide the numbers of masks, 2 and 2, got 3"),
        (lambda: rle_merge(SQUARE, torch.tensor([0])), r"expected groups int64 \[2\], got torch.int64 \[1\]"),
        (lambda: rle_merge(SQUARE, torch.tensor([0, 2])), r"expected a mask in every group, got \[1, 0, 1\] masks"),
        (lambda: rle_from_polygons([[], [[1.0, 2.0, 3.0]]], (4, 4)), "mask 1: expected as many x as y, got 3"),
        (lambda: rle_from_polygons([[[1.0, float("nan")]]], (4, 4)), "mask 0: expected finite coordinates"),
        (lambda: rle_from_boxes(torch.zeros(4), (4, 4)), r"expected boxes \[N, 4\], got \[4\]"),
        (lambda: rle_from_boxes(torch.full((1, 4), 1e9), (4, 4)), "expected finite coordinates"),
        (lambda: rle_from_boxes(torch.zeros(1, 4), torch.zeros(2, 2)), r"a tensor \[1, 2\], got \[2, 2\]"),
        (lambda: RLE.from_coco([[1, 2, 3, 1e9]], (4, 4)), "mask 0: expected coordinates between"),
        (lambda: RLE.from_coco([[[1, 2, 3]]], (4, 4)), "mask 0: expected an even number of coordinates, got 3"),
        (lambda: RLE.from_coco([3], (4, 4)), "mask 0: expected a code, polygons, a box or None, got int"),
        (lambda: RLE.from_coco([None, None], [(4, 4)] * 3), "expected one size or one a mask, got 3 for 2 masks"),
        (lambda: RLE(SQUARE.counts, SQUARE.offsets + 1, SQUARE.sizes).to_coco(), "that ascend within counts"),
    ],
)
def test_refusals_say_what_was_expected(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


# ---- kernels ----


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees(isa):
    code = (
        "import torch\n"
        "from s2d.ops import *\n"
        "from s2d.testing.cases.rle import blobs, masks, label_maps\n"
        "for dense in (blobs(7, 130, 200), masks((5, 65, 130)), masks((3, 4200, 3))):\n"
        "    rle = rle_encode(dense)\n"
        "    same = rle_encode(dense, impl='reference')\n"
        "    assert torch.equal(rle.counts, same.counts)\n"
        "    assert torch.equal(rle_encode(pack_masks(dense)).counts, same.counts)\n"
        "    assert torch.equal(unpack_masks(rle_decode(rle)), dense)\n"
        "    assert torch.equal(rle_iou(rle, rle), rle_iou(rle, rle, impl='reference'))\n"
        "    assert torch.equal(rle_merge(rle).counts, rle_merge(rle, impl='reference').counts)\n"
        "labels = label_maps(2, 70, 130, 9, cell=5)\n"
        "assert torch.equal(rle_from_labels(labels)[0].counts, rle_from_labels(labels, impl='reference')[0].counts)\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_result_does_not_depend_on_threads():
    dense = tubes(6, 4, 200, 300, seed=4).flatten(0, 1)
    labels = label_maps(5, 100, 150, 9, cell=7)
    groups = torch.arange(24) % 5
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            rle = rle_encode(dense)
            merged, listed = rle_merge(rle, groups), rle_from_labels(labels)[0]
            results.append([rle.counts, rle.offsets, rle_decode(rle).words, rle_area(rle), rle_bbox(rle)])
            results[-1] += [rle_iou(rle, rle), rle_tube_iou(rle, rle, 4)]
            results[-1] += [merged.counts, merged.offsets, listed.counts, listed.offsets]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_operators_are_registered_properly(device):
    dense = masks((4, 5, 70)).to(device)
    rle = rle_encode(dense)
    code = (rle.counts, rle.offsets, rle.sizes)
    crowd = torch.tensor([True, False, False, True], device=device)
    for operator, arguments in (
        (torch.ops.s2d.rle_encode, (pack_masks(dense).words, 70)),
        (torch.ops.s2d.rle_encode, (dense.view(torch.uint8), 70)),
        (torch.ops.s2d.rle_decode, (*code, 5, 70)),
        (torch.ops.s2d.rle_area, code),
        (torch.ops.s2d.rle_bbox, code),
        (torch.ops.s2d.rle_iou, (*code, *code, crowd)),
        (torch.ops.s2d.rle_tube_iou, (*code, *code, 2)),
        (torch.ops.s2d.rle_merge, (*code, torch.tensor([0, 1, 1, 0], device=device), 2, False)),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_operators_of_shapes_are_registered_properly():
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
    bounds, sizes = torch.tensor([0, 3]), torch.tensor([[5, 6]], dtype=torch.int32)
    torch.library.opcheck(torch.ops.s2d.rle_from_polygons.default, (corners, bounds, torch.tensor([0, 1]), sizes))
    torch.library.opcheck(torch.ops.s2d.rle_from_labels.default, (label_maps(2, 5, 6, 4), 0))


def test_compiles_without_a_graph_break(device):
    dense = masks((3, 6, 70)).to(device)

    def pipeline(x):
        rle = rle_encode(x)
        return rle.counts, rle.offsets, rle_area(rle), rle_bbox(rle)

    compiled = torch.compile(pipeline, fullgraph=True, backend="eager")(dense)
    for ours, expected in zip(compiled, pipeline(dense), strict=True):
        assert torch.equal(ours, expected)
