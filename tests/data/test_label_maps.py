from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.data.label_maps import label_colours, read_label_maps, write_label_maps
from s2d.data.types import Tracks
from s2d.errors import InputError
from s2d.ops import rle_encode, unpack_masks


def test_written_maps_show_the_highest_score(tmp_path):
    masks = torch.zeros(3, 2, 6, 8, dtype=torch.bool)
    masks[0, :, 0:4, 0:4] = True
    masks[1, 0, 2:6, 2:6] = True
    masks[2, :, 3:4, 3:8] = True
    scores = torch.tensor([0.5, 0.9, 0.5])
    tracks = Tracks("x", (6, 8), rle_encode(masks.flatten(0, 1)), masks.flatten(2).any(2), scores)
    write_label_maps(tmp_path / "masks", tracks)
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["00000.png", "00001.png"]
    image = Image.open(tmp_path / "masks" / "00000.png")
    labels = np.asarray(image)
    assert image.mode == "P"
    assert (labels[0, 0], labels[3, 3], labels[3, 6], labels[5, 0]) == (1, 2, 3, 0)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert np.array_equal(palette[1:4], label_colours(3))
    assert not palette[0].any()
    assert np.asarray(Image.open(tmp_path / "masks" / "00001.png"))[3, 3] == 1  # equal scores: the lower index
    read = read_label_maps(tmp_path / "masks")
    assert (read.video, read.size, read.num_frames) == ("masks", (6, 8), 2)
    assert read.frames.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(unpack_masks(read.bits())[1], masks[1, 0])
    assert read.scores.tolist() == [1.0] * 5


def test_colours_are_stable_and_different():
    colours = label_colours(21)
    assert np.array_equal(colours[:5], label_colours(5))
    distance = np.abs(colours[:, None].astype(int) - colours[None]).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert distance[:7, :7].min() >= 80
    assert distance.min() >= 20
    assert colours.sum(1).min() > 100  # none is taken for the black background


def test_reads_colours_grey_levels_and_wide_labels(tmp_path):
    labels = np.array([[0, 1, 2], [0, 2, 2]])
    rgb = np.array([[0, 0, 0], [128, 0, 0], [0, 0, 200]], dtype=np.uint8)[labels]
    Image.fromarray(rgb).save(tmp_path / "frame2.png")
    Image.fromarray((labels * 40).astype(np.uint8)).save(tmp_path / "frame10.png")
    Image.fromarray((labels * 3000).astype(np.uint16)).save(tmp_path / "frame9.png")
    Image.fromarray(labels.astype(bool)).save(tmp_path / "frame11.png")
    read = read_label_maps(tmp_path)
    assert read.frames.tolist() == [0, 0, 1, 1, 2, 2, 3]
    masks = unpack_masks(read.bits()).numpy()
    assert np.array_equal(masks[0], labels == 2)  # by colour: blue 0x0000c8 before red 0x800000
    assert np.array_equal(masks[1], labels == 1)
    assert np.array_equal(masks[2], labels == 1)
    assert np.array_equal(masks[6], labels > 0)


def test_frames_without_objects_count(tmp_path):
    for t in range(3):
        Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).save(tmp_path / f"{t}.png")
    read = read_label_maps(tmp_path)
    assert (len(read), read.num_frames, read.size) == (0, 3, (4, 5))


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="got no folder"):
        read_label_maps(tmp_path / "missing")
    with pytest.raises(InputError, match="got none"):
        read_label_maps(tmp_path)
    Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"5 x 4, got 6 x 4 for 1\.png"):
        read_label_maps(tmp_path)
    (tmp_path / "1.png").write_text("not an image")
    with pytest.raises(InputError, match=r"1\.png"):
        read_label_maps(tmp_path)


def test_too_many_instances_are_refused(tmp_path):
    number = 256
    tracks = Tracks(
        "x", (2, 2), rle_encode(torch.ones(number, 2, 2).bool()), torch.ones(number, 1).bool(), torch.ones(number)
    )
    with pytest.raises(ValueError, match="at most 255"):
        write_label_maps(tmp_path, tracks)


def test_shared_label_maps(test_data):
    read = read_label_maps(test_data / "data" / "davis16" / "masks" / "libby")
    assert (read.num_frames, read.size, len(read)) == (49, (240, 427), 49)
