from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from s2d.data.types import Keymasks, Tracks
from s2d.data.ytvis import read_ytvis, write_ytvis, ytvis_dict
from s2d.errors import InputError
from s2d.ops import rle_encode, unpack_masks


def tracks(video="walk", number=3, frames=5, size=(13, 21), seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(number, frames, *size, generator=generator) > 0.6
    annotated = torch.rand(number, frames, generator=generator) > 0.3
    masks &= annotated[..., None, None]
    scores = torch.rand(number, generator=generator)
    return Tracks(video, size, rle_encode(masks.flatten(0, 1)), annotated, scores), masks


def same(a, b):
    assert (a.video, a.size, type(a)) == (b.video, b.size, type(b))
    for name in ("counts", "offsets", "sizes"):
        assert torch.equal(getattr(a.rle, name), getattr(b.rle, name)), name
    assert torch.equal(a.annotated, b.annotated)
    assert torch.equal(a.scores, b.scores)


def test_round_trip_is_exact(tmp_path):
    videos = [tracks()[0], tracks("run", 1, 2, (64, 130), seed=1)[0], tracks("empty", 0, 4)[0]]
    write_ytvis(tmp_path / "x.json", videos, fps=12.5)
    read = read_ytvis(tmp_path / "x.json")
    assert len(read) == 3
    for a, b in zip(videos, read, strict=True):
        same(a, b)


def test_dictionary():
    value, masks = tracks()
    data = ytvis_dict([value, tracks("run", 2)[0]])
    assert data["categories"] == [{"id": 1, "name": "fg"}]
    assert [video["id"] for video in data["videos"]] == [1, 2]
    first = data["videos"][0]
    assert (first["name"], first["height"], first["width"], first["length"]) == ("walk", 13, 21, 5)
    assert first["file_names"][4] == "walk/00004.jpg"
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5]
    assert [a["video_id"] for a in data["annotations"]] == [1, 1, 1, 2, 2]
    for n in range(3):
        annotation = data["annotations"][n]
        assert (annotation["category_id"], annotation["iscrowd"], annotation["length"]) == (1, 0, 5)
        for t in range(5):
            present = bool(value.annotated[n, t])
            assert (annotation["segmentations"][t] is not None) == present
            assert (annotation["bboxes"][t] is not None) == present
            assert annotation["areas"][t] == (int(masks[n, t].sum()) if present else None)
            if present:
                y, x = masks[n, t].nonzero(as_tuple=True)
                box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
                assert annotation["bboxes"][t] == [int(v) for v in box]
                assert isinstance(annotation["segmentations"][t]["counts"], str)
    json.dumps(data, allow_nan=False)


def test_pycocotools_reads_the_strings():
    mask = pytest.importorskip("pycocotools.mask")
    value, masks = tracks(size=(33, 70))
    annotation = ytvis_dict(value)["annotations"][0]
    t = int(value.annotated[0].nonzero()[0])
    assert np.array_equal(mask.decode(annotation["segmentations"][t]).astype(bool), masks[0, t].numpy())


def test_keymasks_round_trip(tmp_path):
    base, _ = tracks()
    scores = torch.rand(3, 5) * base.annotated
    value = Keymasks(
        base.video,
        base.size,
        base.rle,
        base.annotated,
        base.scores,
        mask_scores=scores,
        one2x=torch.tensor([0.0, 0.25, 1.0]),
        visibility_ranges=(((0, 4),), ((0, 1), (3, 4)), ()),
    )
    write_ytvis(tmp_path / "k.json", value)
    (read,) = read_ytvis(tmp_path / "k.json")
    same(value, read)
    assert torch.equal(read.mask_scores, scores)
    assert torch.equal(read.one2x, value.one2x)
    assert read.visibility_ranges == value.visibility_ranges
    assert json.loads((tmp_path / "k.json").read_text())["annotations"][1]["one2x"] == 0.25


def official(**changes):
    annotation = {
        "id": 7,
        "video_id": 3,
        "category_id": 5,
        "segmentations": [{"size": [2, 3], "counts": [1, 2, 3]}, None],
    }
    video = {"id": 3, "width": 3, "height": 2, "length": 2, "file_names": ["dog/0.jpg", "dog/1.jpg"]}
    return {"videos": [video], "annotations": [annotation | changes]}


def test_official_layout(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(official()))
    (read,) = read_ytvis(path)
    assert (read.video, read.size, read.num_frames, len(read)) == ("dog", (2, 3), 2, 1)
    assert read.scores.tolist() == [1.0]
    assert read.annotated.tolist() == [[True, False]]
    bits = unpack_masks(read.bits())[0]
    assert bits[0].T.flatten().tolist() == [False, True, True, False, False, False]
    assert not bits[1].any()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "another kind of json"),
        ({"images": []}, "another kind of json"),
        (official(segmentations=[None]), "annotation 7: expected 2 segmentations, got 1"),
        (official(segmentations=[[[0, 0, 1, 1, 2, 0]], None]), "annotation 7: .*polygons"),
        (official(segmentations=[{"size": [2, 2], "counts": [4]}, None]), r"annotation 7: expected masks of 3 x 2"),
        (official(segmentations=[{"size": [2, 3], "counts": [4]}, None]), "annotation 7: .*add up to"),
        (official(segmentations=[{"counts": [6]}, None]), "without the key 'size'"),
        (official(segmentations=7), "cannot be used"),
        ({"videos": [{"id": 1}]}, "without the key 'height'"),
        ({"videos": [3]}, "cannot be used"),
    ],
)
def test_bad_files(tmp_path, data, words):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=words) as caught:
        read_ytvis(path)
    assert str(path) in str(caught.value)


def test_shared_ground_truth(test_data):
    read = read_ytvis(test_data / "data" / "davis16" / "ytvis_240p.json")
    assert [(t.video, t.num_frames, len(t)) for t in read] == [
        ("blackswan", 50, 1),
        ("car-shadow", 40, 1),
        ("drift-chicane", 52, 1),
        ("libby", 49, 1),
    ]
    data = json.loads((test_data / "data" / "davis16" / "ytvis_240p.json").read_text())
    written = ytvis_dict(read)
    for theirs, ours in zip(data["annotations"], written["annotations"], strict=True):
        assert ours["segmentations"] == theirs["segmentations"]
        assert ours["areas"] == theirs["areas"]
        assert ours["bboxes"] == theirs["bboxes"]
