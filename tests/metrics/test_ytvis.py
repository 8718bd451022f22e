from __future__ import annotations

import contextlib
import io

import pytest
import torch

from s2d.metrics import average_precision


def test_perfect_tracks_score_one(make_tracks, blobs):
    truth = blobs(torch.Generator().manual_seed(0), 3, 6)
    result = average_precision([(make_tracks(truth), make_tracks(truth))])
    assert (result.ap, result.ap50, result.ap75, result.ar10) == (1.0, 1.0, 1.0, 1.0)
    assert result.ar1 == pytest.approx(1 / 3)


def test_no_tracks_score_zero_and_no_truth_is_not_a_number(make_tracks, blobs):
    truth = blobs(torch.Generator().manual_seed(0), 2, 6)
    nothing = make_tracks(truth[:0])
    assert average_precision([(nothing, make_tracks(truth))]).ap == 0.0
    unknown = average_precision([(make_tracks(truth), nothing)])
    assert unknown.ap != unknown.ap


def test_a_false_track_with_a_higher_score_costs_precision(make_tracks):
    truth = torch.zeros(1, 4, 8, 8)
    truth[:, :, :4] = 1
    tracks = torch.cat([1 - truth, truth])
    assert average_precision([(make_tracks(tracks, [0.9, 0.5]), make_tracks(truth))]).ap == pytest.approx(0.5)
    assert average_precision([(make_tracks(tracks, [0.5, 0.9]), make_tracks(truth))]).ap == pytest.approx(1.0)


def test_a_second_track_of_one_instance_is_false(make_tracks):
    truth = torch.zeros(2, 4, 8, 8)
    truth[0, :, :4], truth[1, :, 4:] = 1, 1
    tracks = torch.stack([truth[0], truth[0], truth[1]])
    result = average_precision([(make_tracks(tracks, [0.9, 0.8, 0.7]), make_tracks(truth))])
    # Half of the recall points at precision 1, the rest at 2/3: 51 and 50 of 101.
    assert result.ap == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("seed", range(4))
def test_single_frames_agree_with_pycocotools(make_tracks, blobs, seed):
    """With one frame per video a tube is a mask, and COCO's own evaluator must give the same numbers."""
    coco_api = pytest.importorskip("pycocotools.coco")
    coco_eval = pytest.importorskip("pycocotools.cocoeval")
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(6):
        truth = blobs(generator, int(torch.randint(0, 5, (1,), generator=generator)), 1)
        truth = truth[truth.flatten(1).any(1)]
        noise = blobs(generator, 12, 1)
        copies = truth.repeat(3, 1, 1, 1)
        shifts = torch.randint(-2, 3, (len(copies),), generator=generator).tolist()
        copies = torch.stack([m.roll(s, -1) for m, s in zip(copies, shifts, strict=True)]) if shifts else copies
        tracks = torch.cat([noise, copies])
        # Coarse scores, so that there are ties.
        scores = torch.randint(0, 20, (len(tracks),), generator=generator) / 20
        pairs.append((make_tracks(tracks, scores), make_tracks(truth)))

    images = [{"id": i, "height": 20, "width": 70} for i in range(1, 7)]
    truths, results = [], []
    for image, (tracks, truth) in zip(images, pairs, strict=True):
        for code in truth.rle.to_coco():
            truths.append(
                {"id": len(truths) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": 0, "area": 1}
                | {"segmentation": code, "bbox": [0, 0, 1, 1]}
            )
        for code, score in zip(tracks.rle.to_coco(), tracks.scores.tolist(), strict=True):
            results.append({"image_id": image["id"], "category_id": 1, "segmentation": code, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = coco_api.COCO()
        dataset.dataset = {"info": {}, "images": images, "annotations": truths, "categories": [{"id": 1, "name": "fg"}]}
        dataset.createIndex()
        evaluator = coco_eval.COCOeval(dataset, dataset.loadRes(results), "segm")
        evaluator.params.useCats = 0
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    ap, ap50, ap75, _, _, _, ar1, ar10, *_ = evaluator.stats.tolist()
    ours = average_precision(pairs)
    assert (ours.ap, ours.ap50, ours.ap75, ours.ar1, ours.ar10) == pytest.approx((ap, ap50, ap75, ar1, ar10), abs=1e-12)
