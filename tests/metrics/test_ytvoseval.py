"""YTVOSeval against a plain re-statement of the YouTube-VIS definitions, and against the truth itself."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d import rle
from s2d.errors import InputError
from s2d.metrics import YTVOS, YTVOSeval

SIDE = 20
RANGES = {"all": (0, 1e10), "small": (0, 128**2), "medium": (128**2, 256**2), "large": (256**2, 1e10)}


def run(truth, results, **params):
    reader = YTVOS(copy.deepcopy(truth))
    evaluator = YTVOSeval(reader, reader.loadRes(copy.deepcopy(results)))
    for name, value in params.items():
        setattr(evaluator.params, name, value)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def tube_iou(a, b):
    masks = [(None if code is None else rle.decode(code) > 0) for code in (*a, *b)]
    shared = either = 0
    empty = np.zeros((SIDE, SIDE), dtype=bool)
    for left, right in zip(masks[: len(a)], masks[len(a) :], strict=True):
        left, right = (empty if mask is None else mask for mask in (left, right))
        shared += (left & right).sum()
        either += (left | right).sum()
    return shared / either if either else 0.0


def mean_area(areas):
    present = [area for area in areas if area]
    return np.mean(present) if present else 0.0


def stated(truth, results, overlap, *, classes, area="all", most=100):
    """AP per class and threshold ``[K, T, R]`` and recall ``[K, T]``, as the definitions say; -1 without truth."""
    low, high = RANGES[area]
    thresholds, points = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)
    categories = [c["id"] for c in truth["categories"]] if classes else [None]
    precisions, recalls = np.full((len(categories), 10, 101), -1.0), np.full((len(categories), 10), -1.0)
    for k, category in enumerate(categories):
        for t, threshold in enumerate(thresholds):
            rows, wanted = [], 0
            for video in sorted(v["id"] for v in truth["videos"]):
                own = [
                    a for a in truth["annotations"] if a["video_id"] == video and category in (None, a["category_id"])
                ]
                found = [r for r in results if r["video_id"] == video and category in (None, r["category_id"])]
                if category is None:
                    own.sort(key=lambda a: a["category_id"])
                    found.sort(key=lambda r: r["category_id"])
                found = sorted(found, key=lambda r: -r["score"])[:100]
                ignored = [bool(a["iscrowd"]) or not low <= mean_area(a["areas"]) <= high for a in own]
                wanted += ignored.count(False)
                free = set(range(len(own)))
                for rank, result in enumerate(found):
                    # Truth that counts comes before truth that is ignored; of equal overlaps the last.
                    choices = [
                        (not ignored[g], overlap[id(result), id(own[g])], g)
                        for g in range(len(own))
                        if g in free or own[g]["iscrowd"]
                    ]
                    choices = [choice for choice in choices if choice[1] >= min(threshold, 1 - 1e-10)]
                    outside = (
                        not low <= mean_area([rle.area(c) if c else None for c in result["segmentations"]]) <= high
                    )
                    if choices:
                        counts, _, g = max(choices)
                        free.discard(g)
                        rows.append((result["score"], rank, counts, not counts))
                    else:
                        rows.append((result["score"], rank, False, outside))
            if not wanted:
                continue
            rows = sorted((row for row in rows if row[1] < most), key=lambda row: -row[0])
            right = np.cumsum([hit and not skip for _, _, hit, skip in rows])
            wrong = np.cumsum([not hit and not skip for _, _, hit, skip in rows])
            recalls[k, t] = right[-1] / wanted if len(rows) else 0
            precision = right / (right + wrong + np.spacing(1))
            for r, point in enumerate(points):
                reached = np.flatnonzero(right / wanted >= point)
                precisions[k, t, r] = precision[reached[0] :].max() if len(reached) else 0
    return precisions, recalls


def code(box):
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    x, y, width, height = box
    mask[y : y + height, x : x + width] = 1
    result = rle.encode(mask)
    return {**result, "counts": result["counts"].decode()}


box = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3)).map(
    lambda b: [4 * v for v in b]
)


@st.composite
def datasets(draw):
    frames = draw(st.integers(1, 3))
    videos = [{"id": v, "height": SIDE, "width": SIDE, "length": frames} for v in range(1, draw(st.integers(1, 3)) + 1)]
    tube = st.lists(st.one_of(box, box, st.none()), min_size=frames, max_size=frames)
    video, category = st.integers(1, len(videos)), st.integers(1, 2)
    areas = st.sampled_from([None, 100, 128**2, 128**2 + 1, 256**2, 256**2 + 1])
    truth = draw(st.lists(st.tuples(video, category, tube, st.booleans(), areas), max_size=8))
    found = draw(st.lists(st.tuples(video, category, tube, st.integers(0, 3)), max_size=12))
    annotations = []
    for n, (v, c, boxes, crowd, area) in enumerate(truth, 1):
        sizes = [None if b is None else area or b[2] * b[3] for b in boxes]
        annotations.append(
            {"id": n, "video_id": v, "category_id": c, "iscrowd": int(crowd), "areas": sizes}
            | {"segmentations": [b and code(b) for b in boxes]}
        )
    results = [
        {"video_id": v, "category_id": c, "score": s / 4, "segmentations": [b and code(b) for b in boxes]}
        for v, c, boxes, s in found
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


@settings(max_examples=25, deadline=None)
@given(datasets(), st.booleans())
def test_generated_results_have_the_stated_numbers(data, classes):
    truth, results = data
    evaluator = run(truth, results, useCats=int(classes))
    overlap = {
        (id(result), id(annotation)): tube_iou(result["segmentations"], annotation["segmentations"])
        for result in results
        for annotation in truth["annotations"]
    }
    for a, area in enumerate(RANGES):
        for m, most in enumerate((1, 10, 100)):
            precision, recall = stated(truth, results, overlap, classes=classes, area=area, most=most)
            ours = evaluator.eval["precision"][..., a, m].transpose(2, 0, 1)
            np.testing.assert_array_equal(ours, precision)
            np.testing.assert_array_equal(evaluator.eval["recall"][..., a, m].T, recall)


def test_the_area_ranges_are_those_of_the_api():
    p = YTVOSeval(YTVOS({"videos": [], "annotations": []})).params
    assert p.areaRng == [[0, 1e10], [0, 16384], [16384, 65536], [65536, 1e10]]
    assert p.areaRngLbl == list(RANGES)


def test_a_real_frame_scores_one(test_data):
    folder = test_data / "data/eval/mmtracking_vis"
    truth, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("ann", "results"))
    annotation = truth["annotations"][0]
    annotation |= {"segmentations": [annotation.pop("segmentation")], "areas": [annotation["area"]]}
    truth["videos"][0]["length"] = 1
    code, score = results["track_masks"][0][0][0], results["track_bboxes"][0][0][0][-1]
    evaluator = run(truth, [{"video_id": 1, "category_id": 1, "segmentations": [code], "score": score}])
    assert evaluator.stats[:2].tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize(
    "name", ["clips/ytvis_dogs-scale_koala.json", "clips/ytvis_boys-beach_camel.json", "davis16/ytvis_240p.json"]
)
def test_the_truth_itself_scores_one(test_data, name):
    truth = json.loads((test_data / "data" / name).read_text())
    results = [
        {key: annotation[key] for key in ("video_id", "category_id", "segmentations")} | {"score": 0.5}
        for annotation in truth["annotations"]
    ]
    evaluator = run(truth, results)
    # Of several instances of a video the first alone does not find all.
    found = [value for value in evaluator.stats[[0, 1, 2, 3, 4, 5, 7, 8]] if value != -1]
    assert found == pytest.approx([1.0] * len(found), abs=1e-12)


VIDEO = {"id": 5, "name": "cat", "height": SIDE, "width": SIDE, "length": 2}
TRUTH = {
    "videos": [VIDEO],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [
        {"id": 9, "video_id": 5, "category_id": 1, "iscrowd": 0, "segmentations": [code([0, 0, 8, 8]), None]}
    ],
}
RESULT = {"video_id": 5, "category_id": 1, "score": 0.5, "segmentations": [code([0, 0, 8, 8]), None]}
LARGER = {**code([0, 0, 8, 8]), "size": [SIDE, SIDE + 1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_id": 6}, "video_id of result 1 in the results to be one of the videos, got 6"),
        ({"score": float("nan")}, "got nan for result 1 of video 'cat'"),
        ({"segmentations": [None]}, "2 masks, one a frame, of video 'cat', instance 1, in the results, got 1"),
        ({"segmentations": [None, LARGER]}, r"of video 'cat', instance 1, in the results, got \[20, 21\] in frame 1"),
        (
            {"segmentations": [{"size": [SIDE, SIDE], "counts": "~"}, None]},
            "frame 0 of video 'cat', instance 1, in the results that can be",
        ),
    ],
)
def test_results_that_cannot_be_used_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        YTVOS(copy.deepcopy(TRUTH)).loadRes([{**RESULT, **change}])


def test_missing_areas_are_measured_and_polygons_are_read():
    truth = copy.deepcopy(TRUTH)
    truth["annotations"][0]["segmentations"] = [[[0, 0, 8, 0, 8, 8, 0, 8]], None]
    assert YTVOS(truth).anns[9]["areas"] == [64, None]
    assert run(truth, [RESULT]).stats[0] == pytest.approx(1)


class OtherReader:
    """What another library's reader has, without a check of its own."""

    def __init__(self, annotations):
        self.annotations, self.vids = annotations, {5: VIDEO}

    def getVidIds(self):
        return [5]

    def getCatIds(self):
        return [1]

    def getAnnIds(self):
        return list(range(len(self.annotations)))

    def loadAnns(self, ids):
        return [self.annotations[i] for i in ids]


def test_other_readers_have_the_same_numbers():
    rows = [{**RESULT, "id": 1, "areas": [64, None]}, {**RESULT, "id": 2, "score": 0.9, "areas": [64, None]}]
    truth = {**TRUTH["annotations"][0], "areas": [64, None], "segmentations": [[[0, 0, 8, 0, 8, 8, 0, 8]], None]}
    evaluator = YTVOSeval(OtherReader([truth]), OtherReader(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert evaluator.stats.tolist() == run(TRUTH, [RESULT, {**RESULT, "score": 0.9}]).stats.tolist()
    assert [entry["dtIds"] for entry in evaluator.evalVids] == [[2, 1]] * 4


def test_tubes_that_differ_are_refused_whoever_reads_them():
    truth = {**TRUTH["annotations"][0], "areas": [64, None]}
    found = {**RESULT, "id": 1, "areas": [64, None]}
    evaluator = YTVOSeval(OtherReader([truth]), OtherReader([found]))
    found["segmentations"] = [LARGER | {"counts": [420]}, None]
    with pytest.raises(ValueError, match=r"got \[20, 20\] in frame 0 of annotation 9 of video 5"):
        evaluator.evaluate()
    found["segmentations"] = [None]
    with pytest.raises(ValueError, match="expected 1 masks, one a frame, got 2 for annotation 9 of video 5"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="expected iouType segm, got 'bbox'"):
        YTVOSeval(OtherReader([truth]), OtherReader([found]), "bbox")
