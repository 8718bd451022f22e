"""IoU of groups of masks and tubes against their pixels: few runs in a column, many, and runs over several columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s2d import _native
from s2d.metrics._matching import _descending_order
from s2d.ops import rle_encode

SIZES = ((1, 1), (1, 70), (70, 1), (37, 29), (64, 64))


def solid(random, number, frames, height, width):
    """Boxes, some as high as the frame, whose runs go on from column to column; some are empty."""
    masks = np.zeros((number, frames, height, width), dtype=bool)
    for mask in masks.reshape(-1, height, width):
        (top, bottom), (left, right) = (np.sort(random.integers(0, side + 1, 2)) for side in (height, width))
        mask[slice(None) if random.random() < 0.3 else slice(top, bottom), left:right] = True
    return masks


def holed(random, *shape):
    """The same with holes: a few runs in some columns."""
    return solid(random, *shape) & ~solid(random, *shape)


def noise(random, *shape):
    return random.random(shape) < 0.5


def group_iou(sides, threads):
    """IoU ``[D, G]`` of two sides bool ``[N, T, H, W]`` in one group."""
    parts = []
    for masks in sides:
        counts, offsets, sizes = rle_encode(torch.from_numpy(masks).flatten(0, 1)).numpy()
        there = masks.any((2, 3)).ravel()
        parts.append((counts, offsets, sizes, np.where(there, np.arange(len(there)), -1)))
    offsets = [np.array([0, len(masks)]) for masks in sides]
    crowd = np.zeros(len(sides[1]), dtype=np.uint8)
    frames = np.array([sides[0].shape[1]])
    return _native.host().metrics.mask_iou(*parts, *offsets, frames, crowd, threads).reshape(*map(len, sides))


@pytest.mark.parametrize("kinds", [(solid, solid), (holed, holed), (solid, noise), (noise, noise)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_are_counted(kinds, height, width):
    random = np.random.default_rng(height * width)
    for _ in range(10):
        dt, gt = (kind(random, number, 3, height, width) for kind, number in zip(kinds, (5, 3), strict=True))
        shared = (dt[:, None] & gt[None]).sum((2, 3, 4))
        either = (dt[:, None] | gt[None]).sum((2, 3, 4))
        expected = np.divide(shared, either, out=np.zeros(shared.shape), where=either > 0)
        np.testing.assert_array_equal(group_iou((dt, gt), 2), expected)


def test_a_mask_of_more_rows_than_a_span_can_tell():
    dt = np.zeros((1, 1, 70_000, 2), dtype=bool)
    gt = dt.copy()
    dt[..., 65_000:66_000, :], gt[..., 65_500:67_000, :] = True, True
    assert group_iou((dt, gt), 1).item() == 500 / 2000


def test_the_order_of_scores_is_that_of_a_stable_sort():
    random = np.random.default_rng(0)
    special = np.array([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, np.inf, -np.inf, 1e300, np.nextafter(1.0, 2.0)])
    for scores in (random.choice(special, 500), random.standard_normal(500).round(1), random.random(500), np.zeros(0)):
        np.testing.assert_array_equal(_descending_order(scores), np.argsort(-scores, kind="stable"))
