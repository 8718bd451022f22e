"""`COCO` and `YTVOS`: the parts of pycocotools' and the YouTube-VIS API's readers that an evaluation needs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from s2d.data.files import read_json
from s2d.data.types import Tracks
from s2d.data.ytvis import video_name
from s2d.errors import InputError
from s2d.ops import RLE, rle_area


class _Dataset:
    """Annotations by id; ``unit`` is their key of an image or a video, ``units`` that of the list of these."""

    unit: str
    units: str

    def __init__(self, annotation_file: str | os.PathLike | dict | None = None) -> None:
        self.dataset: dict[str, Any] = {}
        self.anns: dict[Any, dict] = {}
        self.cats: dict[Any, dict] = {}
        self._units: dict[Any, dict] = {}
        self._source = "the ground truth"
        if annotation_file is None:
            return
        if not isinstance(annotation_file, dict):
            self._source = str(annotation_file)
            annotation_file = read_json(annotation_file)
        if not isinstance(annotation_file, dict) or not isinstance(annotation_file.get(self.units), list):
            raise InputError(f"expected a json with a list of {self.units} in {self._source}, got another kind of json")
        self.dataset = annotation_file
        self.createIndex()

    def createIndex(self) -> None:
        """Index ``dataset`` by ids. InputError names an id that is there twice, or unknown."""
        where = f"in {self._source}"
        self._units = _by_id(self.dataset[self.units], self.units, where)
        annotations = self.dataset.get("annotations") or []
        # A file of one class may do without a list of them.
        known = self.dataset.get("categories") or [{"id": c} for c in {a.get("category_id") for a in annotations}]
        self.cats = _by_id(known, "categories", where)
        self.anns = _by_id(annotations, "annotations", where)
        for annotation in self.anns.values():
            self._check_unit(annotation, f"annotation {annotation['id']}", where)

    def getAnnIds(self) -> list:
        return list(self.anns)

    def getCatIds(self) -> list:
        return list(self.cats)

    def loadAnns(self, ids: Sequence) -> list[dict]:
        return [self.anns[i] for i in ids]

    def loadRes(self, results: str | os.PathLike | list[dict]) -> Any:
        """Results of this ground truth as a dataset; the list is not changed.

        Raises:
            InputError: no list, a result of an unknown image or video, without a score or with one that is not a
                number, with masks that cannot be read; names it.
        """
        source = "the results"
        if not isinstance(results, list):
            source, results = str(results), read_json(results)
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise InputError(f"expected a list of results in {source}, got another kind of json")
        where = f"in {source}"
        annotations = []
        for number, result in enumerate(results, 1):
            name = f"result {number}"
            self._check_unit(result, name, where)
            score = result.get("score")
            if not isinstance(score, int | float | np.number) or math.isnan(score):
                what = f"{name} of {self._named(result[self.unit])}"
                raise InputError(f"expected scores that are numbers {where}, got {score!r} for {what}")
            annotations.append({**result, "id": number, "iscrowd": 0})
            annotations[-1].pop("areas", None)
        loaded = type(self)()
        loaded._source = source
        loaded.dataset = {**self.dataset, "annotations": annotations}
        loaded.createIndex()
        loaded._measure(annotations)
        return loaded

    def _check_unit(self, annotation: dict, name: str, where: str) -> None:
        unit = annotation.get(self.unit)
        if unit not in self._units and unit is not None:
            raise InputError(f"expected {self.unit} of {name} {where} to be one of the {self.units}, got {unit!r}")
        for key in (self.unit, "category_id"):
            if key not in annotation:
                raise InputError(f"expected {name} {where} to have the key {key!r}, got {sorted(annotation)}")

    def name(self, unit: Any) -> str:
        """What an image or video is called."""
        raise NotImplementedError

    def _named(self, unit: Any) -> str:
        return f"{self.unit.removesuffix('_id')} {self.name(unit)!r}"

    def _measure(self, annotations: list[dict]) -> None:
        """Add areas to results."""
        raise NotImplementedError


class COCO(_Dataset):
    """Images and their annotations, as ``pycocotools.coco.COCO`` has them.

    Attributes:
        dataset: the json. imgs, anns, cats: its parts by id. Masks are read from it once.
        boxes_only: whether these are results without masks; the boxes then stand for them.

    Args:
        annotation_file: a COCO json, or what is in one.

    Raises:
        InputError: not such a file, or ids that are there twice or unknown.
    """

    unit, units = "image_id", "images"
    boxes_only = False

    @cached_property
    def masks(self) -> RLE:
        """The masks of all annotations in the order of ``anns``, read once; ValueError for one that is none."""
        sizes = [[self.imgs[a["image_id"]].get(side, 0) for side in ("height", "width")] for a in self.anns.values()]
        codes = [annotation.get("segmentation") for annotation in self.anns.values()]
        return RLE.from_coco(codes, sizes) if codes else RLE.empty(0, 0, 0)

    @property
    def imgs(self) -> dict:
        return self._units

    def getImgIds(self) -> list:
        return list(self._units)

    def name(self, unit: Any) -> str:
        return str(self._units[unit].get("file_name", unit))

    def _measure(self, annotations: list[dict]) -> None:
        self.boxes_only = not all("segmentation" in annotation for annotation in annotations)
        # As in pycocotools the first result says whether all are boxes or masks.
        if annotations and annotations[0].get("bbox"):
            for annotation in annotations:
                x, y, width, height = annotation["bbox"]
                corners = [x, y, x, y + height, x + width, y + height, x + width, y]
                annotation.setdefault("segmentation", [corners])
                annotation["area"] = width * height
            return
        for annotation in annotations:
            if "segmentation" not in annotation:
                what = f"result {annotation['id']} of {self._named(annotation['image_id'])} in {self._source}"
                raise InputError(f"expected {what} to have a segmentation, got none")
        try:
            areas = rle_area(self.masks).tolist()
        except ValueError as error:
            raise InputError(f"expected masks in {self._source} that can be read, got: {error}") from None
        for annotation, area in zip(annotations, areas, strict=True):
            annotation["area"] = area


class YTVOS(_Dataset):
    """Videos and their annotations, as the YouTube-VIS API's ``YTVOS`` has them.

    An annotation has ``segmentations``, one code a frame or None, and ``areas``; areas that are missing are measured.

    Attributes:
        dataset: the json. vids, anns, cats: its parts by id.

    Args:
        annotation_file: a YouTube-VIS json, or what is in one.

    Raises:
        InputError: not such a file, ids that are there twice or unknown, another number of masks than of frames, masks
            of another size than the video's; names the video, the instance and the frame.
    """

    unit, units = "video_id", "videos"

    @property
    def vids(self) -> dict:
        return self._units

    def getVidIds(self) -> list:
        return list(self._units)

    def createIndex(self) -> None:
        super().createIndex()
        self._check_masks()
        self._measure([annotation for annotation in self.anns.values() if not annotation.get("areas")])

    def name(self, unit: Any) -> str:
        return video_name(self._units[unit], str(unit))

    def tracks(self, unit: Any) -> Tracks:
        """The instances of a video, by descending score."""
        own = [annotation for annotation in self.anns.values() if annotation["video_id"] == unit]
        own.sort(key=lambda annotation: -annotation.get("score", 1.0))
        video = self._units[unit]
        size = video["height"], video["width"]
        codes = [code or None for annotation in own for code in annotation["segmentations"]]
        rle = RLE.from_coco(codes, size) if codes else RLE.empty(0, *size)
        length = len(own[0]["segmentations"]) if own else int(video.get("length", 0))
        annotated = torch.tensor([code is not None for code in codes], dtype=torch.bool).reshape(len(own), length)
        scores = torch.tensor([annotation.get("score", 1.0) for annotation in own], dtype=torch.float32)
        return Tracks(self.name(unit), size, rle, annotated, scores)

    def _check_masks(self) -> None:
        for annotation in self.anns.values():
            video = self._units[annotation["video_id"]]
            who = f"{self._named(video['id'])}, instance {annotation['id']}, in {self._source}"
            codes = annotation.get("segmentations")
            if not isinstance(codes, list):
                raise InputError(f"expected segmentations, one a frame, of {who}, got {type(codes).__name__}")
            length = video.get("length") or len(video.get("file_names") or codes)
            if len(codes) != length:
                raise InputError(f"expected {length} masks, one a frame, of {who}, got {len(codes)}")
            size = [video.get("height"), video.get("width")]
            for frame, code in enumerate(codes):
                if isinstance(code, dict) and None not in size and list(code.get("size", [])) != size:
                    found = f"{code.get('size')} in frame {frame}"
                    raise InputError(f"expected masks of height and width {size} of {who}, got {found}")

    @cached_property
    def masks(self) -> tuple[RLE, list[np.ndarray]]:
        """All masks, read once, and where those of each of ``anns`` are: int64 ``[T]``, -1 in frames without one.

        InputError names the instance whose masks cannot be read.
        """
        codes, sizes, places = [], [], []
        for annotation in self.anns.values():
            video = self._units[annotation["video_id"]]
            there = np.array([bool(code) for code in annotation["segmentations"]], dtype=bool)
            places.append(np.where(there, len(codes) + np.cumsum(there) - 1, -1))
            codes += [code for code in annotation["segmentations"] if code]
            sizes += [(video.get("height", 0), video.get("width", 0))] * int(there.sum())
        try:
            return RLE.from_coco(codes, sizes) if codes else RLE.empty(0, 0, 0), places
        except ValueError as error:
            raise InputError(
                f"expected masks of {self._broken(codes, sizes, places)} that can be read, got: {error}"
            ) from None

    def _broken(self, codes: list, sizes: list, places: list[np.ndarray]) -> str:
        """Whose masks cannot be read."""
        for annotation, own in zip(self.anns.values(), places, strict=True):
            for place in own[own >= 0].tolist():
                try:
                    RLE.from_coco(codes[place : place + 1], sizes[place : place + 1])
                except ValueError:
                    frame = own.tolist().index(place)
                    who = f"{self._named(annotation['video_id'])}, instance {annotation['id']}"
                    return f"frame {frame} of {who}, in {self._source}"
        return self._source

    def _measure(self, annotations: list[dict]) -> None:
        if not annotations:
            return
        rle, places = self.masks
        areas = rle_area(rle).tolist()
        for annotation, own in zip(self.anns.values(), places, strict=True):
            if not annotation.get("areas"):
                annotation["areas"] = [areas[place] if place >= 0 else None for place in own.tolist()]


def _by_id(items: list[dict], what: str, where: str) -> dict:
    result = {}
    for item in items:
        if not isinstance(item, dict) or "id" not in item:
            raise InputError(f"expected {what} with an id {where}, got one without")
        if item["id"] in result:
            raise InputError(f"expected {what} with different ids {where}, got two with id {item['id']!r}")
        result[item["id"]] = item
    return result
