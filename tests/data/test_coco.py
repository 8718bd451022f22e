from __future__ import annotations

import json

import pytest
import torch

from s2d.data.coco import read_proposals, write_proposals
from s2d.data.types import FrameMasks
from s2d.errors import InputError
from s2d.ops import rle_encode


def frame_masks(number=7, frames=4, size=(12, 17)):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(number, *size, generator=generator) > 0.7
    at = torch.randint(frames, (number,), generator=generator).sort().values
    return FrameMasks("walk", size, frames, rle_encode(masks), at, torch.rand(number, generator=generator))


@pytest.mark.parametrize("number", [0, 1, 7])
def test_round_trip_is_exact(tmp_path, number):
    value = frame_masks(number)
    write_proposals(tmp_path / "x.json", value)
    read = read_proposals(tmp_path / "x.json")
    assert (read.video, read.size, read.num_frames, len(read)) == ("walk", (12, 17), 4, number)
    for name in ("counts", "offsets", "sizes"):
        assert torch.equal(getattr(read.rle, name), getattr(value.rle, name))
    assert torch.equal(read.frames, value.frames)
    assert torch.equal(read.scores, value.scores)


def test_official_tools_load_it(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    value = frame_masks()
    write_proposals(tmp_path / "x.json", value)
    loaded = coco.COCO(str(tmp_path / "x.json"))
    assert len(loaded.getImgIds()) == 4
    for annotation, area in zip(loaded.loadAnns(loaded.getAnnIds()), value.bits().words, strict=True):
        assert loaded.annToMask(annotation).sum() == annotation["area"]
        assert area.any()


def other_tools(**changes):
    images = [{"id": 10 * n, "file_name": f"{n}.jpg", "width": 3, "height": 2} for n in (10, 9, 2)]
    annotation = {"id": 5, "image_id": 90, "category_id": 18, "segmentation": {"size": [2, 3], "counts": [0, 6]}}
    return {"images": images, "annotations": [annotation | changes]}


def test_frames_by_natural_order_of_names(tmp_path):
    path = tmp_path / "dog.json"
    path.write_text(json.dumps(other_tools()))
    read = read_proposals(path)
    assert (read.video, read.frames.tolist(), read.scores.tolist(), read.num_frames) == ("dog", [1], [1.0], 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"videos": []}, "another kind of json"),
        (other_tools(segmentation=[[0, 0, 1, 1, 2, 0]]), "annotation 5: .*polygons"),
        (other_tools(image_id=3), "without the key 3"),
        (other_tools(segmentation={"size": [3, 3], "counts": [9]}), "annotation 5: expected masks of 3 x 2"),
        (other_tools() | {"images": [{"id": 90, "file_name": "a", "width": 3}]}, "without the key 'height'"),
    ],
)
def test_bad_files(tmp_path, data, words):
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=words):
        read_proposals(tmp_path / "x.json")


def test_shared_images_of_many_sizes_are_refused(test_data):
    with pytest.raises(InputError, match="images of one size"):
        read_proposals(test_data / "data" / "eval" / "coco_val2014_100" / "instances_val2014_100.json")
