from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.data.davis import read_sequence
from s2d.errors import InputError
from s2d.metrics import frame_j, j_and_f, region_similarity
from s2d.ops import rle_area, rle_encode


def test_frame_j_of_two_empty_masks_is_one(make_tracks):
    a = torch.zeros(1, 3, 6, 6)
    b = torch.zeros(1, 3, 6, 6)
    b[0, 1, :3], a[0, 2, :3], b[0, 2] = 1, 1, 1
    assert frame_j(make_tracks(a), make_tracks(b)).tolist() == [[[1.0, 0.0, 0.5]]]


def test_best_track_of_a_single_object(make_tracks):
    truth = torch.zeros(1, 4, 8, 8)
    truth[:, :, :, :4] = 1
    worse, best = truth.clone(), truth.clone()
    worse[:, 0] = 0
    best[:, 3, :4] = 0
    result = region_similarity(make_tracks(torch.cat([worse, best])), make_tracks(truth))
    assert result.assigned == (1,)
    assert result.frames.tolist() == [[1.0, 1.0, 1.0, 0.5]]
    assert result.mean == 0.875
    assert result.recall == 0.75


def test_an_object_without_a_track_has_zero_everywhere(make_tracks):
    truth = torch.zeros(2, 3, 8, 8)
    truth[0, :, :4], truth[1, :, 4:] = 1, 1
    result = region_similarity(make_tracks(truth[:1]), make_tracks(truth))
    assert result.assigned == (0, None)
    assert result.mean == 0.5
    nothing = region_similarity(make_tracks(truth[:0]), make_tracks(truth))
    assert nothing.mean == 0.0


def test_truth_without_objects_is_refused(make_tracks):
    with pytest.raises(ValueError, match="at least one object"):
        region_similarity(make_tracks(torch.zeros(1, 3, 8, 8)), make_tracks(torch.zeros(0, 3, 8, 8)))


@pytest.mark.parametrize("name", ["blackswan", "car-shadow", "drift-chicane", "libby"])
def test_j_of_real_masks_is_the_official_number(make_tracks, test_data, name):
    folder = test_data / "data/eval/davis_jf"
    expected = json.loads((folder / "expected_semisupervised_osvos.json").read_text())[name]

    def load(kind):
        files = sorted((folder / kind / name).glob("*.png"))
        masks = np.stack([np.array(Image.open(file)) for file in files])
        return make_tracks(torch.from_numpy(masks != 0)[None], video=name)

    result = region_similarity(load("pred"), load("gt480"), drop_ends=True)
    assert result.frames.shape[1] == expected["n_frames"]
    assert result.frames[0, :5].tolist() == pytest.approx(expected["J_first5"], abs=1e-12)
    assert result.mean == pytest.approx(expected["J_mean"], abs=1e-12)
    assert result.recall == pytest.approx(expected["J_recall"], abs=1e-12)
    assert result.decay == pytest.approx(expected["J_decay"], abs=1e-12)


@pytest.mark.parametrize("name", ["blackswan", "car-shadow", "drift-chicane", "libby"])
def test_j_and_f_of_real_masks_are_the_official_numbers(test_data, name):
    folder = test_data / "data/eval/davis_jf"
    expected = json.loads((folder / "expected_semisupervised_osvos.json").read_text())[name]
    truth = read_sequence(folder / "gt480" / name, single=True)
    found = read_sequence(folder / "pred" / name, like=truth, single=True)
    result = j_and_f(found.tracks, truth.tracks, assign=False, drop_ends=True)
    assert result.j.shape == (1, expected["n_frames"])
    for measure in ("J", "F"):
        values = getattr(result, measure.lower())
        assert values[0, :5].tolist() == pytest.approx(expected[f"{measure}_first5"], abs=1e-9)
    for key, value in result.statistics().items():
        assert value[0] == pytest.approx(expected[f"{key[0].upper()}{key[1:]}"], abs=1e-9)


def stated_f(mask, truth, radius):
    """F of one frame, pixel by pixel."""

    def outline(mask):
        height, width = mask.shape
        lines = []
        for y in range(height):
            for x in range(width):
                right, below = x + 1 < width, y + 1 < height
                others = [mask[y, x + 1]] if right else []
                others += [mask[y + 1, x]] if below else []
                others += [mask[y + 1, x + 1]] if right and below else []
                if any(other != mask[y, x] for other in others):
                    lines.append((y, x))
        return lines

    ours, theirs = outline(mask), outline(truth)

    def near(line, others):
        return [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in line]

    precision = np.mean(near(ours, theirs)) if ours else 1.0
    recall = np.mean(near(theirs, ours)) if theirs else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(("height", "width"), [(9, 70), (20, 64), (13, 130), (1, 1), (200, 3)])
def test_f_is_what_its_definition_says(make_tracks, height, width):
    generator = torch.Generator().manual_seed(height)
    noise = torch.rand(4, 3, height // 4 + 1, width // 4 + 1, generator=generator) > 0.6
    masks = noise.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width]
    masks[0, 0], masks[2, 1] = False, True
    result = j_and_f(make_tracks(masks[:2]), make_tracks(masks[2:]), assign=False)
    radius = int(np.ceil(0.008 * np.hypot(height, width)))
    for n in range(2):
        for t in range(3):
            expected = stated_f(masks[n, t].numpy(), masks[n + 2, t].numpy(), radius)
            assert result.f[n, t] == pytest.approx(expected, abs=1e-12)


def test_tracks_are_assigned_by_j_and_f_together(make_tracks):
    truth = torch.zeros(2, 3, 40, 40)
    truth[0, :, :20], truth[1, :, 20:] = 1, 1
    result = j_and_f(make_tracks(truth.flip(0)), make_tracks(truth))
    assert result.assigned == (1, 0)
    assert result.j.tolist() == [[1, 1, 1]] * 2
    missed = j_and_f(make_tracks(truth[:1]), make_tracks(truth))
    assert missed.assigned == (0, None)
    assert missed.j[1].tolist() == [0, 0, 0]


def test_an_object_that_is_gone_and_not_found_is_right(make_tracks):
    truth = torch.zeros(1, 2, 8, 8)
    truth[0, 0, :4] = 1
    result = j_and_f(make_tracks(truth[:0]), make_tracks(truth))
    assert (result.j.tolist(), result.f.tolist()) == ([[0, 1]], [[0, 1]])


def test_void_pixels_do_not_count(make_tracks):
    truth, found, void = torch.zeros(3, 1, 2, 30, 30)
    truth[:, :, :10], found[:, :, :10], found[:, :, 20:], void[:, :, 15:] = 1, 1, 1, 1
    tracks = make_tracks(found)
    assert j_and_f(tracks, make_tracks(truth)).j.max() < 1
    result = j_and_f(tracks, make_tracks(truth), void=rle_encode(void[0].bool()))
    assert (result.j.tolist(), result.f.tolist()) == ([[1, 1]], [[1, 1]])


def test_what_cannot_be_measured_is_refused(make_tracks):
    masks = make_tracks(torch.ones(2, 2, 8, 8))
    with pytest.raises(ValueError, match="a frame that counts in 'clip', got 2, 0"):
        j_and_f(masks, masks, drop_ends=True)
    with pytest.raises(ValueError, match="at most 1 tracks of 'clip', got 2"):
        j_and_f(masks, make_tracks(torch.ones(1, 2, 8, 8)), assign=False)


def write_maps(folder, maps, mode="L"):
    folder.mkdir(parents=True)
    for name, labels in maps.items():
        image = Image.fromarray(np.asarray(labels, dtype=np.uint8))
        if mode == "P":
            image.putpalette(list(range(256)) * 3)
        image.save(folder / f"{name}.png")


@pytest.mark.parametrize("mode", ["L", "P"])
def test_sequences_are_read_by_label(tmp_path, mode):
    first = np.zeros((4, 6))
    first[0, 0], first[1, 1], first[2, 2] = 1, 3, 255
    write_maps(tmp_path / "cat", {"00000": first, "00001": np.full((4, 6), 3)}, mode)
    sequence = read_sequence(tmp_path / "cat")
    assert sequence.tracks.annotated.tolist() == [[True, False], [False, False], [True, True]]
    assert sequence.frames == ("00000", "00001")
    assert rle_area(sequence.tracks.rle).tolist() == [1, 0, 0, 0, 1, 24]
    assert rle_area(sequence.void).tolist() == [1, 0]
    assert rle_area(read_sequence(tmp_path / "cat", single=True).tracks.rle).tolist() == [3, 24]


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ({"a": np.zeros((4, 4))}, "expected frame 'b' of sequence 'cat'"),
        ({"a": np.zeros((4, 4)), "b": np.zeros((4, 4)), "c": np.zeros((4, 4))}, "the 2 frames .* got 3: 'c' is new"),
        ({"a": np.zeros((4, 4)), "b": np.zeros((4, 5))}, "frame 'b' of sequence 'cat' .* to be 4 x 4, got 5 x 4"),
        ({"a": np.zeros((4, 4)), "b": np.full((4, 4), 3)}, "at most 2 in frame 'b' of sequence 'cat' .* got 3"),
        ({"a": np.zeros((4, 4, 3)), "b": np.full((4, 4, 3), 9)}, "at most 2 in frame 'b' .* got 592137"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(tmp_path, maps, words):
    write_maps(tmp_path / "truth/cat", {"a": np.ones((4, 4)), "b": np.ones((4, 4))})
    write_maps(tmp_path / "found/cat", maps)
    truth = read_sequence(tmp_path / "truth/cat")
    with pytest.raises(InputError, match=words):
        read_sequence(tmp_path / "found/cat", like=truth, most=2)
    with pytest.raises(InputError, match="sequence 'dog'"):
        read_sequence(tmp_path / "dog")
