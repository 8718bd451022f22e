"""Evaluation against the official ways.

COCO: 36,781 detections for as many objects on 5,000 images, sizes and numbers as in COCO's val2017, against pycocotools
and the libraries that replace it; all sides begin with loaded ground truth and results and end with the twelve numbers.
YouTube-VIS: 421 videos of 30 frames with ten predictions each, against the method of its API (every pair of masks is
merged twice, frame by frame). DAVIS: label maps of 854x480, against the method of its code (numpy and OpenCV on whole
frames).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from skimage.morphology import disk

from benchmarks.harness import Comparison, peer_module
from s2d.data.types import Tracks
from s2d.metrics import COCO, YTVOS, COCOeval, YTVOSeval, j_and_f
from s2d.ops import RLE, rle_area, rle_bbox, rle_decode, rle_from_labels, rle_from_polygons, unpack_masks

HEIGHT, WIDTH = 480, 640

# The reader and the evaluator.
PEERS = {
    "hotcoco": ("hotcoco.COCO", "hotcoco.COCOeval"),
    "faster-coco-eval": ("faster_coco_eval.COCO", "faster_coco_eval.COCOeval_faster"),
    "pycocotools": ("pycocotools.coco.COCO", "pycocotools.cocoeval.COCOeval"),
}


def quiet(call: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def stats(evaluator: Any) -> np.ndarray:
    def steps() -> None:
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()

    quiet(steps)
    return np.asarray(evaluator.stats)


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal but for the order in which a peer adds up its means: tests hold the very digits of pycocotools."""
    return np.allclose(ours, theirs, rtol=1e-12, atol=0)


def outlines(random: np.random.Generator, boxes: np.ndarray, height: int, width: int) -> RLE:
    """Blobs with a ragged edge around centres and radii ``[N, 4]``."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ragged = 1 + 0.15 * random.standard_normal((len(boxes), len(angles)))
    x = (boxes[:, :1] + boxes[:, 2:3] * ragged * np.cos(angles)).clip(0, width - 1)
    y = (boxes[:, 1:2] + boxes[:, 3:] * ragged * np.sin(angles)).clip(0, height - 1)
    return rle_from_polygons([[row.tolist()] for row in np.stack([x, y], 2).reshape(len(boxes), -1)], (height, width))


@cache
def coco(number: int, images: int, categories: int = 80) -> tuple[dict, list[dict]]:
    """Ground truth and as many detections, most of them near an object."""
    random = np.random.default_rng(0)
    centres = random.uniform(0, [WIDTH, HEIGHT], (number, 2))
    boxes = np.concatenate([centres, np.exp(random.uniform(np.log(6), np.log(180), (number, 2)))], 1)
    moved = boxes.copy()
    moved[:, :2] += 0.15 * boxes[:, 2:] * random.standard_normal((number, 2))
    lost = random.random(number) < 0.2
    moved[lost, :2] = random.uniform(0, [WIDTH, HEIGHT], (int(lost.sum()), 2))
    image = random.integers(1, images + 1, number)
    category = np.minimum(random.exponential(12, number).astype(int), categories - 1) + 1
    scores = random.random(number).round(3)
    sides = []
    for side in (boxes, moved):
        codes = outlines(random, side, HEIGHT, WIDTH)
        columns = zip(codes.to_coco(), rle_area(codes).tolist(), rle_bbox(codes).double().tolist(), strict=True)
        sides.append(
            [
                {"image_id": int(image[n]), "category_id": int(category[n]), "segmentation": c, "area": a, "bbox": b}
                for n, (c, a, b) in enumerate(columns)
            ]
        )
    annotations = [{"id": n, "iscrowd": int(random.random() < 0.01), **row} for n, row in enumerate(sides[0], 1)]
    results = [{**row, "score": float(score)} for row, score in zip(sides[1], scores, strict=True)]
    truth = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": str(n)} for n in range(1, categories + 1)],
        "annotations": annotations,
    }
    return truth, results


@cache
def loaded(peer: str, number: int, images: int, kind: str) -> tuple[Any, tuple]:
    """A peer's evaluator, and what it is to evaluate as the peer has it."""
    reader, evaluator = map(peer_module, PEERS[peer])
    truth, results = coco(number, images)
    return evaluator, load(reader, truth, of_kind(results, kind))


def of_kind(results: list[dict], kind: str) -> list[dict]:
    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    return [{name: row[name] for name in ("image_id", "category_id", "score", key)} for row in results]


def peer_stats(peer: str, number: int, images: int, kind: str) -> np.ndarray:
    evaluator, theirs = loaded(peer, number, images, kind)
    return stats(evaluator(*theirs, kind))


def coco_pairs(quick: bool, threads: int) -> Iterator[Comparison]:
    """Boxes and masks against the libraries; the slow ones take tens of seconds on all of the detections."""
    # hotcoco keeps the number of threads that it began with: a process of its own for each.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        # The others know one thread.
        for peer in PEERS if threads == 1 else ("hotcoco",):
            whole = peer == "hotcoco"
            number, images = (500, 80) if quick else (36781, 5000) if whole else (7356, 1000)
            truth, results = coco(number, images)
            ours = COCO(truth)
            for kind in ("bbox", "segm"):
                found, task = ours.loadRes(of_kind(results, kind)), (peer, number, images, kind)

                def elsewhere(task: tuple = task) -> np.ndarray:
                    return process.submit(peer_stats, *task).result()

                yield Comparison(
                    f"COCOeval, {kind}",
                    lambda ours=ours, found=found, kind=kind: stats(COCOeval(ours, found, kind)),
                    elsewhere if whole else lambda task=task: peer_stats(*task),
                    peer=peer,
                    agree=same,
                    case=f"{number:,} detections on {images:,} images",
                    goal=2 if whole else None,
                    seconds=4 if whole else 0,
                    minimum_runs=7 if whole else 2,
                )


def load(reader: Any, truth: dict, rows: list[dict]) -> tuple[Any, Any]:
    """Ground truth and results as a peer has them."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.json" for name in ("truth", "results")]
        for file, content in zip(files, (truth, rows), strict=True):
            file.write_text(json.dumps(content))
        dataset = quiet(lambda: reader(str(files[0])))
        return dataset, quiet(lambda: dataset.loadRes(str(files[1])))


@cache
def ytvis(videos: int, frames: int, predictions: int, categories: int = 40) -> tuple[dict, list[dict]]:
    """Videos with one to four instances and ten predictions each, of sizes as in YouTube-VIS."""
    random = np.random.default_rng(0)
    annotations: list[dict] = []
    results: list[dict] = []
    height, width = 720, 1280
    for video in range(1, videos + 1):
        own = int(random.integers(1, 5))
        starts = np.stack([random.uniform(0, width, own), random.uniform(0, height, own)], 1)
        radii, speeds = random.uniform(40, 250, (own, 2)), random.normal(0, 6, (own, 2))
        category = random.integers(1, categories + 1, own)
        of = np.concatenate([np.arange(own), random.integers(0, own, predictions)])
        noise = np.concatenate([np.zeros((own, 2)), random.normal(0, 0.15, (predictions, 2)) * radii[of[own:]]])
        places = starts[of, None] + speeds[of, None] * np.arange(frames)[None, :, None] + noise[:, None]
        boxes = np.concatenate([places, np.broadcast_to(radii[of, None], places.shape)], 2).reshape(-1, 4)
        codes = outlines(random, boxes, height, width)
        areas, strings = rle_area(codes).tolist(), codes.to_coco()
        for n in range(own + predictions):
            span = slice(n * frames, (n + 1) * frames)
            tube: list[Any] = strings[span]
            # A tenth of the frames without a mask, as where an object is hidden.
            tube = [
                code if random.random() > 0.1 and area else None for code, area in zip(tube, areas[span], strict=True)
            ]
            row = {"video_id": video, "category_id": int(category[of[n]]), "segmentations": tube}
            row["areas"] = [area if code else None for area, code in zip(areas[span], tube, strict=True)]
            if n < own:
                annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **row})
            else:
                results.append({**row, "score": float(random.random())})
    truth = {
        "videos": [{"id": v, "height": height, "width": width, "length": frames} for v in range(1, videos + 1)],
        "categories": [{"id": n, "name": str(n)} for n in range(1, categories + 1)],
        "annotations": annotations,
    }
    return truth, results


def official_ytvis(truth: dict, results: list[dict], classes: bool) -> np.ndarray:
    """The twelve numbers by pycocotools' evaluator, with the API's IoU of tubes and its areas."""
    mask, Base = peer_module("pycocotools.mask"), peer_module("pycocotools.cocoeval").COCOeval

    class Official(Base):
        def _prepare(self) -> None:
            for side, store in ((truth["annotations"], self._gts), (self.found, self._dts)):
                for annotation in side:
                    present = [area for area in annotation["areas"] if area]
                    row = {**annotation, "ignore": annotation["iscrowd"], "area": np.mean(present) if present else 0}
                    store[annotation["video_id"], annotation["category_id"]].append(row)

        def computeIoU(self, video: int, category: int) -> Any:
            categories = [category] if classes else self.params.catIds
            own, wanted = ([row for c in categories for row in side[video, c]] for side in (self._dts, self._gts))
            order = np.argsort([-row["score"] for row in own], kind="mergesort")[: self.params.maxDets[-1]]
            ious = np.zeros((len(order), len(wanted)))
            for i, j in np.ndindex(ious.shape):
                shared = either = 0.0
                for a, b in zip(own[order[i]]["segmentations"], wanted[j]["segmentations"], strict=True):
                    if a and b:
                        shared += mask.area(mask.merge([a, b], True))
                        either += mask.area(mask.merge([a, b], False))
                    elif a or b:
                        either += mask.area(a or b)
                ious[i, j] = shared / either if either else 0.0
            return ious

    evaluator = Official()
    evaluator.found = [{"id": n, "iscrowd": 0, **row} for n, row in enumerate(results, 1)]
    evaluator.params.imgIds = [video["id"] for video in truth["videos"]]
    evaluator.params.catIds = [category["id"] for category in truth["categories"]]
    evaluator.params.useCats = int(classes)
    evaluator.params.areaRng = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
    return stats(evaluator)


def ytvis_pairs(quick: bool) -> list[Comparison]:
    videos, frames = (20, 10) if quick else (421, 30)
    truth, results = ytvis(videos, frames, 10)
    reader = YTVOS(truth)
    found = reader.loadRes(results)

    def ours(classes: bool) -> np.ndarray:
        evaluator = YTVOSeval(reader, found)
        evaluator.params.useCats = int(classes)
        return stats(evaluator)

    return [
        Comparison(
            f"YTVOSeval, {'40 classes' if classes else 'class-agnostic'}",
            lambda classes=classes: ours(classes),
            lambda classes=classes: official_ytvis(truth, results, classes),
            peer="the API's method on pycocotools",
            agree=np.array_equal,
            case=f"{videos} videos of {frames} frames, 10 predictions each",
            goal=20,
            seconds=0,
            minimum_runs=2,
        )
        for classes in (False, True)
    ]


def official_f(mask: np.ndarray, truth: np.ndarray, radius: int) -> float:
    """F of one frame by whole-frame shifts and OpenCV's dilation."""

    def outline(mask: np.ndarray) -> np.ndarray:
        right, below, diagonal = (np.zeros_like(mask) for _ in range(3))
        right[:, :-1], below[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
        line = mask ^ right | mask ^ below | mask ^ diagonal
        line[-1], line[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
        line[-1, -1] = False
        return line

    lines = [outline(mask), outline(truth)]
    near = [cv2.dilate(line.astype(np.uint8), disk(radius).astype(np.uint8)) for line in lines]
    totals = [line.sum() for line in lines]
    if 0 in totals:
        return float(totals[0] == totals[1])
    precision, recall = (lines[0] * near[1]).sum() / totals[0], (lines[1] * near[0]).sum() / totals[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def official_davis(labels: np.ndarray, truth: np.ndarray, objects: int, radius: int) -> np.ndarray:
    """Mean J and F ``[2, N, M]`` of every proposal with every object."""
    values = np.zeros((2, objects, objects))
    for n, m in np.ndindex(objects, objects):
        own, wanted = labels == n + 1, truth == m + 1
        shared, either = (own & wanted).sum((1, 2)), (own | wanted).sum((1, 2))
        values[0, n, m] = np.where(either == 0, 1, shared / np.maximum(either, 1)).mean()
        values[1, n, m] = np.mean([official_f(a, b, radius) for a, b in zip(own, wanted, strict=True)])
    return values


def davis_pairs(quick: bool) -> list[Comparison]:
    frames, height, width, objects = (4, 120, 214, 2) if quick else (20, 480, 854, 3)
    random = np.random.default_rng(0)
    maps = np.zeros((2, frames, height, width), dtype=np.uint8)
    for n in range(objects):
        centre = random.uniform(0.2, 0.8, 2) * (width, height)
        places = centre + random.normal(0, 4, (2, frames, 2))
        radii = np.full((2 * frames, 2), height / 6)
        codes = outlines(random, np.concatenate([places.reshape(-1, 2), radii], 1), height, width)
        maps[unpack_masks(rle_decode(codes)).numpy().reshape(maps.shape)] = n + 1
    radius = int(np.ceil(0.008 * np.linalg.norm((height, width))))

    def tracks(labels: np.ndarray) -> Tracks:
        codes, which = rle_from_labels(labels)
        place = torch.full((objects * frames,), len(codes))
        place[(which[:, 1] - 1) * frames + which[:, 0]] = torch.arange(len(codes))
        rle = RLE.cat([codes, RLE.empty(1, height, width)])[place]
        annotated = (place < len(codes)).view(objects, frames)
        return Tracks("clip", (height, width), rle, annotated, torch.ones(objects))

    def ours() -> Any:
        return j_and_f(tracks(maps[0]), tracks(maps[1]))

    def agree(a: Any, b: np.ndarray) -> bool:
        rows, columns = linear_sum_assignment(b.sum(0), maximize=True)
        return np.allclose(a.j.mean(1), b[0, rows, columns], 1e-12) and np.allclose(
            a.f.mean(1), b[1, rows, columns], 1e-12
        )

    return [
        Comparison(
            "j_and_f, from label maps",
            ours,
            lambda: official_davis(maps[0], maps[1], objects, radius),
            peer="the official code's method",
            agree=agree,
            case=f"{frames} frames of {height}x{width}, {objects} objects",
            goal=10,
            minimum_runs=3,
        )
    ]


def measure(quick: bool) -> Iterator[Comparison]:
    yield from coco_pairs(quick, torch.get_num_threads())
    yield from ytvis_pairs(quick)
    yield from davis_pairs(quick)
