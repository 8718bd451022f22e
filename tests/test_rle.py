"""s2d.rle against pycocotools.mask: every row of the table in its docstring."""

from __future__ import annotations

import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from s2d import rle

# pycocotools' own, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def same(ours, theirs) -> bool:
    """Equal in type, dtype, memory order and every bit."""
    if isinstance(theirs, np.ndarray):
        return (
            type(ours) is np.ndarray
            and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            and all(ours.flags[flag] == theirs.flags[flag] for flag in ("C", "F", "W"))
            and ours.tobytes("A") == theirs.tobytes("A")
        )
    if isinstance(theirs, (list, dict)) and type(ours) is type(theirs) and len(ours) == len(theirs):
        if isinstance(theirs, dict):
            return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
        return all(map(same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


def agree(function: str, *arguments) -> None:
    ours, theirs = getattr(rle, function)(*arguments), getattr(coco, function)(*arguments)
    assert same(ours, theirs), (function, arguments, ours, theirs)


def make_masks(height: int, width: int, number: int, density: float, seed: int) -> np.ndarray:
    numbers = np.random.default_rng(seed).random((height, width, number)) < density
    return np.asfortranarray(numbers.astype(np.uint8))


PAIR = make_masks(5, 7, 3, 0.5, 0)
CODES = coco.encode(PAIR)
BOXES = [[0, 0, 3, 4], [1.5, 1, 2, 2], [0.1, 0.7, 9.3, 2.2]]
POLYGON = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]
UNCOMPRESSED = {"size": [5, 7], "counts": [3, 4, 28]}


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(0, 130),
    width=st.integers(0, 130),
    density=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    number=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_masks_of_any_size_and_density(height, width, density, number, seed):
    masks = make_masks(height, width, number, density, seed)
    masks[: height // 2, :, 0] = 1  # long runs beside the short ones
    agree("encode", masks)
    codes, others = coco.encode(masks), coco.encode(make_masks(height, width, 2, 0.5, seed + 1))
    for function in ("decode", "area", "toBbox"):
        agree(function, codes)
        agree(function, codes[0])
    for intersect in (0, 1):
        agree("merge", codes, intersect)
        agree("merge", codes + others, intersect)
    agree("iou", codes, others, [seed % 2, 1])
    agree("iou", codes, codes, np.zeros(number, np.uint8))


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(0, 130),
    width=st.integers(1, 130),
    vertices=st.integers(3, 12),
    grid=st.sampled_from([None, 1, 2, 5, 10]),
    spread=st.sampled_from([0.5, 1.0, 3.0, 50.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_polygons(height, width, vertices, grid, spread, seed):
    numbers = np.random.default_rng(seed)
    polygons = []
    for _ in range(5):
        corners = (numbers.random((vertices, 2)) - 0.5) * spread + 0.5
        corners = corners * [width, height] if grid is None else np.round(corners * [width, height] * grid) / grid
        if numbers.random() < 0.3:
            corners[1] = corners[0]
        polygons.append(corners.ravel().tolist())
    agree("frPyObjects", polygons, height, width)
    agree("frPyObjects", np.asarray(polygons)[:, :4].copy(), height, width)


def test_real_annotations(test_data):
    folder = test_data / "data/eval/coco_val2014_100"
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    codes: dict[int, list] = {image: [] for image in sizes}
    crowds: dict[int, list] = {image: [] for image in sizes}
    for annotation in data["annotations"]:
        image = annotation["image_id"]
        agree("frPyObjects", annotation["segmentation"], *sizes[image])
        code = coco.frPyObjects(annotation["segmentation"], *sizes[image])
        if isinstance(code, list):
            agree("merge", code)
            code = coco.merge(code)
        codes[image].append(code)
        crowds[image].append(annotation["iscrowd"])
    results: dict[int, list] = {image: [] for image in sizes}
    for result in json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text()):
        results[result["image_id"]].append(result["segmentation"])
    for image in sizes:
        agree("iou", results[image], codes[image], crowds[image])
        for group in (results[image], codes[image]):
            agree("area", group)
            agree("toBbox", group)
            if group:
                agree("decode", group)
                agree("encode", coco.decode(group))


def test_real_masklets(test_data):
    for path in sorted((test_data / "data/eval/sav_rle").glob("*.json")):
        for codes in json.loads(path.read_text())["masklet"][::10]:
            agree("decode", codes)
            agree("area", codes)
            agree("toBbox", codes)
            agree("merge", codes)
            agree("iou", codes, codes, [0] * len(codes))
            agree("encode", coco.decode(codes))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("encode", [PAIR[:, :, 0]]),
        ("encode", [PAIR[:, :, :0]]),
        ("encode", [PAIR[0, 0]]),
        ("encode", [PAIR[None]]),
        ("encode", [PAIR.astype(bool)]),
        ("encode", [PAIR * 255]),
        ("area", [[]]),
        ("toBbox", [[]]),
        ("toBbox", [{"size": [3, 4], "counts": b"<"}]),
        ("decode", [{"size": [0, 0], "counts": b""}]),
        ("decode", [[OrderedDict(CODES[0])]]),
        ("decode", [{"size": (5, 7), "counts": CODES[0]["counts"].decode()}]),
        ("decode", [{"size": np.array([5.0, 7.9]), "counts": CODES[0]["counts"]}]),
        ("merge", [CODES, True]),
        ("merge", [tuple(CODES)]),
        ("merge", [CODES[:1]]),
        ("merge", [[{"size": [2, 2], "counts": b"40"}]]),
        ("merge", [[]]),
        ("merge", [[CODES[0], {"size": [7, 5], "counts": b"S1"}]]),
        ("iou", [CODES, CODES[:2], [0, 1]]),
        ("iou", [CODES, CODES, [True, False, False]]),
        ("iou", [CODES, CODES, (0, 0, 255)]),
        ("iou", [CODES, CODES, [0.5, 1.5, 0]]),
        ("iou", [CODES, CODES, np.array([0, 1, 0])]),
        ("iou", [CODES, CODES, np.array([0, 1, 0], np.uint8)]),
        ("iou", [[], CODES, [0, 0, 0]]),
        ("iou", [CODES, [], []]),
        ("iou", [np.zeros((0, 4)), BOXES, [0, 0, 0]]),
        ("iou", [[{"size": [3, 4], "counts": b"0<"}], [{"size": [4, 3], "counts": b"0<"}], [0]]),
        ("iou", [[{"size": [3, 4], "counts": b"<"}], [{"size": [4, 3], "counts": b"0<"}], [0]]),
        ("iou", [BOXES, BOXES, [0, 1, 0]]),
        ("iou", [np.array(BOXES), BOXES, [0, 1, 0]]),
        ("iou", [np.array(BOXES, np.float32), [np.array(box) for box in BOXES], [0, 1, 0]]),
        ("iou", [[[0, 0, 0, 0], [0, 0, np.nan, 1], [0, 0, np.inf, 2], [0, 0, -1, -1]], BOXES, [0, 1, 0]]),
        ("frPyObjects", [[POLYGON, POLYGON[:6], []], 5, 7]),
        ("frPyObjects", [[tuple(POLYGON), POLYGON[:4]], 5.7, np.int64(7)]),
        ("frPyObjects", [[np.array(POLYGON, np.float32), np.array(POLYGON, np.int64)], 5, 7]),
        ("frPyObjects", [[[str(number) for number in POLYGON]], 5, 7]),
        ("frPyObjects", [[POLYGON], 0, 0]),
        ("frPyObjects", [np.array(BOXES), 5, 7]),
        ("frPyObjects", [np.zeros((0, 4)), 5, 7]),
        ("frPyObjects", [UNCOMPRESSED, 9, 9]),
        ("frPyObjects", [[UNCOMPRESSED, {"size": (5, 7), "counts": (0, 0, 0, 35)}], 5, 7]),
        ("frPyObjects", [{"size": [5, 7], "counts": np.array([3, 4, 28])}, 5, 7]),
        ("frPyObjects", [{"size": [5, 7], "counts": [3.7, 4.2, 28.9]}, 5, 7]),
    ],
)
def test_same(function, arguments):
    agree(function, *arguments)


def test_same_keywords():
    assert same(rle.encode(bimask=PAIR), CODES)
    assert same(rle.decode(rleObjs=CODES), coco.decode(rleObjs=CODES))
    assert same(rle.area(rleObjs=CODES), coco.area(rleObjs=CODES))
    assert same(rle.toBbox(rleObjs=CODES), coco.toBbox(rleObjs=CODES))
    assert same(rle.merge(rleObjs=CODES, intersect=1), coco.merge(rleObjs=CODES, intersect=1))
    assert same(rle.iou(dt=CODES, gt=CODES, pyiscrowd=[0, 0, 1]), coco.iou(dt=CODES, gt=CODES, pyiscrowd=[0, 0, 1]))
    assert same(rle.frPyObjects(pyobj=[POLYGON], h=5, w=7), coco.frPyObjects(pyobj=[POLYGON], h=5, w=7))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("encode", [np.ascontiguousarray(PAIR)]),
        ("encode", [np.ascontiguousarray(PAIR[:, :, 0])]),
        ("encode", [PAIR.view(np.int8)]),
        ("encode", [PAIR.astype(np.uint16)]),
        ("decode", [tuple(CODES)]),
        ("decode", [5]),
        ("decode", [{"size": [5, 7], "counts": bytearray(b"S1")}]),
        ("decode", [{"counts": b"S1"}]),
        ("decode", [{"size": [5, 7]}]),
        ("decode", [{"size": [5], "counts": b"5"}]),
        ("merge", [CODES, None]),
        ("iou", [CODES, CODES, [0, 256, 0]]),
        ("iou", [CODES, CODES, 0]),
        ("iou", [CODES, CODES, None]),
        ("iou", [CODES, CODES, np.zeros((3, 1))]),
        ("iou", [[["a", 1, 2, 3]], BOXES, [0, 0, 0]]),
        ("frPyObjects", [[], 5, 7]),
        ("frPyObjects", [[POLYGON], "5", 7]),
        ("frPyObjects", [[UNCOMPRESSED, POLYGON], 5, 7]),
    ],
)
def test_refused_with_the_same_type(function, arguments):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        getattr(coco, function)(*arguments)
    with pytest.raises(theirs.type):
        getattr(rle, function)(*arguments)


def test_better_values():
    values = np.asfortranarray(np.array([[0, 1, 2], [2, 2, 255]], np.uint8))
    assert same(rle.decode(rle.encode(values)), np.asfortranarray((values != 0).astype(np.uint8)))
    assert rle.decode([]).shape == (0, 0, 0)
    assert same(rle.area(CODES * 100), np.tile(coco.area(CODES), 100))
    empty_runs = {"size": [4, 4], "counts": [5, 0, 4, 2, 5, 0]}
    assert rle.toBbox(empty_runs).tolist() == [2, 1, 1, 2]
    doubled = [{"size": [2, 2], "counts": b"40"}, {"size": [2, 2], "counts": b"1012"}]
    assert rle.merge(doubled)["counts"] == b"22"
    assert same(rle.decode(rle.merge(doubled)), rle.decode(doubled[1]))
    assert rle.frPyObjects([POLYGON], 5, 0) == [{"size": [5, 0], "counts": b"0"}]
    for function in ("decode", "area", "toBbox"):
        assert np.array_equal(
            getattr(rle, function)(UNCOMPRESSED), getattr(coco, function)(coco.frPyObjects(UNCOMPRESSED, 5, 7))
        )


def test_better_boxes():
    boxes, expected = np.array(BOXES), coco.frPyObjects(np.array(BOXES), 5, 7)
    for form in (BOXES, np.asfortranarray(boxes), np.repeat(boxes, 2, 0)[::2]):
        assert same(rle.frPyObjects(form, 5, 7), expected)
        assert same(rle.iou(form, boxes, [0, 0, 1]), coco.iou(boxes, boxes, [0, 0, 1]))
    assert same(rle.frPyObjects([1, 1, 3, 2], 5, 7), coco.frPyObjects(np.array([[1.0, 1, 3, 2]]), 5, 7)[0])
    assert same(rle.frPyObjects(np.array([[1, 1, 3, 2]]), 5, 7), coco.frPyObjects(np.array([[1.0, 1, 3, 2]]), 5, 7))
    assert same(rle.frPyObjects(POLYGON, 5, 7), coco.frPyObjects([POLYGON], 5, 7)[0])
    assert same(rle.frPyObjects(CODES, 5, 7), CODES)


def broken(size, counts):
    return {"size": size, "counts": counts}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (broken([2, 2], b"T"), "expected a complete last run, got a string that ends within it"),
        (broken([2, 2], b"4\x00"), "expected characters from '0' to 'o', got character code 0"),
        (broken([2, 2], "4\u00e9"), "expected characters from '0' to 'o', got character code 195"),
        (broken([2, 2], b"14N00"), "expected runs of at least 0 pixels, got -2"),
        (broken([2, 2], [-1, 5]), "expected runs of at least 0 pixels, got -1"),
        (broken([2, 2], [2**31, 5]), "expected runs of at most 2\\^31 - 1 pixels, got a longer one"),
        (broken([2, 2], b"PPPPPP2"), "expected runs of at most 2\\^31 - 1 pixels, got a longer one"),
        (broken([2, 2], b"PPPPPPPPPPPPPPPPPPPP2"), "expected runs of at most 2\\^31 - 1 pixels, got a longer one"),
        (broken([2, 2], b"44"), "expected runs that add up to 2 x 2 pixels, got 8"),
        (broken([2, 2], b"3"), "expected runs that add up to 2 x 2 pixels, got 3"),
        (broken([2, 2], b""), "expected runs that add up to 2 x 2 pixels, got 0"),
        (broken([0, 4], b"333"), "expected runs that add up to 0 x 4 pixels, got 9"),
        (broken([-2, 2], b"4"), "expected a mask of 0 to 2\\^31 - 1 pixels, got -2 x 2"),
        (broken([2**16, 2**15], b"4"), "expected a mask of 0 to 2\\^31 - 1 pixels, got 65536 x 32768"),
        (broken([2**70, 2], b"4"), "expected a mask of 0 to 2\\^31 - 1 pixels, got"),
    ],
)
def test_broken_codes_name_the_mask(code, words):
    fine = broken([2, 2], b"4")
    for function in ("decode", "area", "toBbox", "merge"):
        with pytest.raises(ValueError, match=f"s2d::rle.{function}: mask 1: {words}"):
            getattr(rle, function)([fine, code])
        if function != "merge":
            with pytest.raises(ValueError, match=f"s2d::rle.{function}: mask 0: {words}"):
                getattr(rle, function)(code)
    with pytest.raises(ValueError, match=f"s2d::rle.iou: dt: mask 1: {words}"):
        rle.iou([fine, code], [fine], [0])
    with pytest.raises(ValueError, match=f"s2d::rle.iou: gt: mask 1: {words}"):
        rle.iou([fine], [fine, code], [0, 0])
    if isinstance(code["counts"], list):
        with pytest.raises(ValueError, match=f"s2d::rle.frPyObjects: mask 1: {words}"):
            rle.frPyObjects([fine, code], 2, 2)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (
            "decode",
            [[CODES[0], broken([3, 3], b"9")]],
            ValueError,
            "mask 1: expected masks of one size, got 3 x 3 after 5 x 7",
        ),
        ("iou", [CODES, CODES, [0, 1]], ValueError, "expected pyiscrowd of the same length as gt, got 2 for 3"),
        ("iou", [CODES, BOXES, [0, 0, 0]], TypeError, "expected dt and gt of one kind: codes or boxes, got both"),
        ("iou", [CODES[0], CODES, [0, 0, 0]], TypeError, "expected dt a list of codes or boxes .*, got dict"),
        ("iou", [[tuple(BOXES[0])], BOXES, [0, 0, 0]], ValueError, "expected dt of one kind: .*, got neither"),
        ("iou", [BOXES, [CODES[0], BOXES[0]], [0, 0]], ValueError, "expected gt of one kind: .*, got neither"),
        ("iou", [np.zeros((2, 3)), BOXES, [0, 0, 0]], ValueError, r"expected dt boxes \[N, 4\]: .*, got \(2, 3\)"),
        ("frPyObjects", [[POLYGON, POLYGON[:7]], 5, 7], ValueError, "polygon 1: expected an even number of .*, got 7"),
        (
            "frPyObjects",
            [[POLYGON, [*POLYGON, np.nan, 1]], 5, 7],
            ValueError,
            "polygon 1: expected coordinates between .*, got nan",
        ),
        (
            "frPyObjects",
            [[[*POLYGON, np.inf, 1]], 5, 7],
            ValueError,
            "polygon 0: expected coordinates between .*, got inf",
        ),
        (
            "frPyObjects",
            [[[*POLYGON, 1, -4e8]], 5, 7],
            ValueError,
            "polygon 0: expected coordinates between .*, got -400000000",
        ),
        (
            "frPyObjects",
            [[BOXES[0], POLYGON], 5, 7],
            ValueError,
            "box 1: expected x, y, width and height, got 8 numbers",
        ),
        (
            "frPyObjects",
            [[BOXES[0], [1, 1, np.nan, 1]], 5, 7],
            ValueError,
            "box 1: expected coordinates between .*, got nan",
        ),
        ("frPyObjects", [np.zeros((2, 5)), 5, 7], ValueError, r"expected an array of boxes \[N, 4\], got \(2, 5\)"),
        ("frPyObjects", [[POLYGON], -5, 7], ValueError, "expected a mask of 0 to 2\\^31 - 1 pixels, got -5 x 7"),
        ("frPyObjects", [[np.zeros((6, 2))], 5, 7], ValueError, "expected a polygon .*, got 2 dimensions"),
        ("frPyObjects", [[[1, 2, 3]], 5, 7], TypeError, "expected polygons, .*: input type is not supported, got list"),
        ("frPyObjects", ["abc", 5, 7], TypeError, "expected polygons, .*: input type is not supported, got str"),
        ("encode", [[[1]]], TypeError, "expected bimask a numpy array, got list"),
    ],
)
def test_refused(function, arguments, error, words):
    with pytest.raises(error, match=f"s2d::rle.{function}: {words}"):
        getattr(rle, function)(*arguments)


def test_lists_that_shrink_while_they_are_read():
    codes, counts = [], []

    class Shrinks(dict):
        def __getitem__(self, key):
            codes.clear()
            return super().__getitem__(key)

    class Cuts:
        def __int__(self):
            counts.clear()
            return 35

    codes.extend([Shrinks(CODES[0]), *CODES])
    assert rle.area(codes).tolist() == [coco.area(CODES[0])]
    counts.extend([Cuts(), 1, 2, 3])
    assert rle.area({"size": [5, 7], "counts": counts}) == 0


def test_threads_do_not_meet():
    masks = make_masks(300, 400, 4, 0.3, 0)
    codes, flags = coco.encode(masks), [0] * 4
    overlaps = coco.iou(codes, codes, flags)

    def work(_: int) -> bool:
        return (
            np.array_equal(rle.decode(codes), masks)
            and rle.encode(masks) == codes
            and np.array_equal(rle.iou(codes, codes, flags), overlaps)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))
