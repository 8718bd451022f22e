from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.metrics import frame_j, region_similarity


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
