from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from s2d.viz import Evidence, draw_timeline, instance_colour


def evidence(number, frames):
    seen = np.zeros((number, frames))
    seen[:, ::3] = 0.8
    return Evidence(seen, seen / 2, np.ones((number, frames)), np.full(number, 0.9), np.arange(frames))


def colour_share(path, colour):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    return float((np.abs(pixels - np.array(colour)).max(1) < 4).mean())


@pytest.mark.parametrize(("number", "frames"), [(0, 5), (1, 2), (3, 83), (2, 1500)])
def test_it_is_drawn_for_any_number(tmp_path, number, frames):
    path = tmp_path / "timeline.png"
    draw_timeline(path, evidence(number, frames), title="a clip", fps=25)
    for index in range(number):
        assert colour_share(path, instance_colour(index)) > 0.005


def test_predictions_cover_the_frames_that_have_one(tmp_path):
    whole, half = evidence(1, 40), evidence(1, 40)
    half.predictions[:, 20:] = 0
    shares = []
    for name, what in (("whole.png", whole), ("half.png", half)):
        draw_timeline(tmp_path / name, what, title="a clip", fps=25)
        shares.append(colour_share(tmp_path / name, instance_colour(0)))
    assert shares[1] == pytest.approx(shares[0] / 2, rel=0.12)


def test_pictures_stand_above_the_rows(tmp_path):
    red = torch.zeros(3, 40, 60, dtype=torch.uint8)
    red[0] = 255
    draw_timeline(tmp_path / "with.png", evidence(1, 10), title="a clip", fps=25, pictures=[(2, red), (7, red)])
    draw_timeline(tmp_path / "without.png", evidence(1, 10), title="a clip", fps=25)
    assert colour_share(tmp_path / "with.png", (255, 0, 0)) > 0.2
    with Image.open(tmp_path / "with.png") as tall, Image.open(tmp_path / "without.png") as low:
        assert tall.height > low.height
        assert tall.width == low.width


def test_many_instances_are_cut_and_counted(tmp_path):
    draw_timeline(tmp_path / "many.png", evidence(30, 20), title="a clip", fps=25, most=4)
    assert colour_share(tmp_path / "many.png", instance_colour(3)) > 0.001
    assert colour_share(tmp_path / "many.png", instance_colour(4)) == 0
