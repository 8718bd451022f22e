"""COCOeval against pycocotools, to the last digit: real results, generated ones, and the attributes people use."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.errors import InputError
from s2d.metrics import COCO, COCOeval

official = pytest.importorskip("pycocotools.cocoeval")
official_coco = pytest.importorskip("pycocotools.coco")

SIDE = 120


def quiet(call):
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def run(evaluator, **params):
    for name, value in params.items():
        setattr(evaluator.params, name, value)

    def steps():
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return evaluator

    return quiet(steps)


def both(truth, results, kind, **params):
    """Ours on our reader and the official one on its own."""
    ours, theirs = COCO(copy.deepcopy(truth)), official_coco.COCO()
    theirs.dataset = copy.deepcopy(truth)
    quiet(theirs.createIndex)
    return (
        run(COCOeval(ours, ours.loadRes(copy.deepcopy(results)), kind), **params),
        run(official.COCOeval(theirs, quiet(lambda: theirs.loadRes(copy.deepcopy(results))), kind), **params),
    )


def assert_same(ours, theirs):
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(ours.eval[name], theirs.eval[name])
    np.testing.assert_array_equal(ours.stats, theirs.stats)


@pytest.fixture
def real(test_data):
    folder = test_data / "data/eval/coco_val2014_100"
    load = lambda name: json.loads((folder / name).read_text())  # noqa: E731
    truth = load("instances_val2014_100.json")
    return truth, lambda kind: load(f"instances_val2014_fake{kind}100_results.json"), load("expected.json")


@pytest.mark.parametrize(("kind", "ap"), [("segm", 0.3195452758576433), ("bbox", 0.5045806987249628)])
def test_real_results_have_the_official_digits(real, kind, ap):
    truth, results, expected = real
    ours, theirs = both(truth, results(kind), kind)
    assert_same(ours, theirs)
    assert ours.stats[0] == ap
    assert ours.stats.tolist() == list(expected[kind].values())


def test_class_agnostic_digits(real):
    truth, results, expected = real
    ours, theirs = both(truth, results("segm"), "segm", useCats=0)
    assert_same(ours, theirs)
    assert ours.stats.tolist() == list(expected["segm_useCats0"].values())


def test_entries_and_ious_are_the_official_ones(real):
    truth, results, _ = real
    ours, theirs = both(truth, results("bbox"), "bbox")
    assert len(ours.evalImgs) == len(theirs.evalImgs)
    for mine, wanted in zip(ours.evalImgs, theirs.evalImgs, strict=True):
        assert (mine is None) == (wanted is None)
        for name in wanted or ():
            np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(wanted[name]))
    assert ours.ious.keys() == theirs.ious.keys()
    for key, values in ours.ious.items():
        np.testing.assert_array_equal(values, theirs.ious[key])


def test_works_on_the_official_reader_and_leaves_it_alone(real):
    truth, results, _ = real
    theirs = official_coco.COCO()
    theirs.dataset = truth
    quiet(theirs.createIndex)
    found = quiet(lambda: theirs.loadRes(results("segm")))
    before = copy.deepcopy(theirs.dataset["annotations"][:20])
    assert run(COCOeval(theirs, found, "segm")).stats[0] == 0.3195452758576433
    assert theirs.dataset["annotations"][:20] == before


def test_entries_from_several_processes_can_be_joined(real):
    """What torchvision's reference does: the images are shared out, the entries gathered along the images."""
    truth, results, _ = real
    whole, _ = both(truth, results("bbox"), "bbox")
    reader = COCO(truth)
    found = reader.loadRes(results("bbox"))
    images = whole.params.imgIds
    parts = []
    for own in (images[:30], images[30:]):
        part = run(COCOeval(reader, found, "bbox"), imgIds=own)
        parts.append(np.array(part.evalImgs, dtype=object).reshape(-1, 4, len(own)))
    joined = COCOeval(reader, found, "bbox")
    joined.params.imgIds = images
    joined._paramsEval = joined.params.copy()
    joined.evalImgs = np.concatenate(parts, 2).ravel().tolist()
    quiet(lambda: (joined.accumulate(), joined.summarize()))
    assert joined.stats.tolist() == whole.stats.tolist()


def test_accumulate_of_less_than_was_evaluated(real):
    truth, results, _ = real
    ours, theirs = both(truth, results("bbox"), "bbox")
    for evaluator in (ours, theirs):
        p = copy.deepcopy(evaluator.params)
        p.areaRng, p.areaRngLbl, p.maxDets = p.areaRng[:2], p.areaRngLbl[:2], [1, 10]
        p.catIds = p.catIds[:20]
        evaluator.accumulate(p)
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])


boxes = st.tuples(
    st.integers(0, 8).map(lambda v: 10 * v),
    st.integers(0, 8).map(lambda v: 10 * v),
    st.integers(1, 4).map(lambda v: 10 * v),
    st.integers(1, 4).map(lambda v: 10 * v),
).map(list)


@st.composite
def datasets(draw):
    """Few images and coarse numbers, so that ties, crowds, empty sides and areas at the very limits are common."""
    images = [{"id": i, "height": SIDE, "width": SIDE} for i in range(1, draw(st.integers(1, 4)) + 1)]
    image = st.integers(1, len(images))
    category = st.integers(1, 2)
    truth = draw(st.lists(st.tuples(image, category, boxes, st.booleans(), st.sampled_from([None, 32**2, 96**2]))))
    found = draw(st.lists(st.tuples(image, category, boxes, st.integers(0, 4)), min_size=1, max_size=30))
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "iscrowd": int(crowd), "area": area or b[2] * b[3]}
        | {"segmentation": [[b[0], b[1], b[0] + b[2], b[1], b[0] + b[2], b[1] + b[3], b[0], b[1] + b[3]]]}
        for n, (i, c, b, crowd, area) in enumerate(truth, 1)
    ]
    results = [{"image_id": i, "category_id": c, "bbox": b, "score": s / 4} for i, c, b, s in found]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "never"}]
    return {"images": images, "categories": categories, "annotations": annotations}, results


@settings(max_examples=60, deadline=None)
@given(
    datasets(), st.sampled_from(["segm", "bbox"]), st.sampled_from([0, 1]), st.sampled_from([[1, 10, 100], [1, 2, 3]])
)
def test_generated_results_have_the_official_digits(data, kind, use_categories, most):
    ours, theirs = both(*data, kind, useCats=use_categories, maxDets=most)
    assert_same(ours, theirs)


def test_of_more_than_100_detections_the_best_count():
    random = np.random.default_rng(0)
    truth = {
        "images": [{"id": 1, "height": SIDE, "width": SIDE}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": [n, n, 9, 9], "iscrowd": 0, "area": 81}
            for n in range(1, 9)
        ],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [int(n) % 10, int(n) % 10, 9, 9], "score": float(s)}
        for n, s in zip(range(130), random.integers(0, 9, 130) / 9, strict=True)
    ]
    ours, theirs = both(truth, results, "bbox")
    assert_same(ours, theirs)
    assert len(ours.evalImgs[0]["dtIds"]) == 100


TRUTH = {
    "images": [{"id": 1, "height": 8, "width": 8, "file_name": "one.jpg"}],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}],
}
RESULT = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 1.0}


def test_an_annotation_with_id_0_can_be_found():
    reader = COCO(TRUTH)
    assert run(COCOeval(reader, reader.loadRes([RESULT]), "bbox")).stats[0] == pytest.approx(1)


def test_nothing_found_and_nothing_to_find():
    reader = COCO(TRUTH)
    assert run(COCOeval(reader, reader.loadRes([]), "bbox")).stats[0] == 0
    reader = COCO({**TRUTH, "annotations": []})
    assert run(COCOeval(reader, reader.loadRes([RESULT]), "bbox")).stats.tolist() == [-1] * 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 7}, "image_id of result 1 in the results to be one of the images, got 7"),
        ({"score": float("nan")}, "numbers in the results, got nan for result 1 of image 'one.jpg'"),
        ({"score": None}, "got None for result 1 of image 'one.jpg'"),
        ({"bbox": None}, "result 1 of image 'one.jpg' in the results to have a segmentation"),
    ],
)
def test_results_that_cannot_be_used_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        COCO(TRUTH).loadRes([{**RESULT, **change}])


def test_files_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match="two with id 0"):
        COCO({**TRUTH, "annotations": TRUTH["annotations"] * 2})
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="list of images"):
        COCO(tmp_path / "list.json")
    reader = COCO({**TRUTH, "annotations": [{"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]})
    with pytest.raises(ValueError, match="annotation 0: missing key 'area'"):
        COCOeval(reader, reader.loadRes([RESULT]), "bbox").evaluate()
    with pytest.raises(ValueError, match="segm or bbox, got 'keypoints'"):
        COCOeval(reader, reader, "keypoints")
    with pytest.raises(RuntimeError, match="evaluate"):
        COCOeval(reader, reader).accumulate()
