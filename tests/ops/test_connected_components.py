from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.ops import connected_components, fill_holes, pack_masks, remove_small, unpack_masks
from s2d.testing.cases.connected_components import SHAPES, blobs, noise, spiral

STRUCTURE = {4: scipy.ndimage.generate_binary_structure(2, 1), 8: scipy.ndimage.generate_binary_structure(2, 2)}


def check(masks: torch.Tensor, connectivity: int) -> None:
    """scipy numbers the parts in the same order."""
    labels, areas = connected_components(masks, connectivity)
    assert labels.dtype == areas.dtype == torch.int32
    assert labels.shape == areas.shape == masks.shape
    for mask, label, area in zip(masks.numpy(), labels.numpy(), areas.numpy(), strict=True):
        expected, _ = scipy.ndimage.label(mask, STRUCTURE[connectivity])
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(area, np.where(mask, np.bincount(expected.reshape(-1), minlength=1)[expected], 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_shapes(shape, connectivity):
    if 0 in shape:
        labels, areas = connected_components(noise(shape), connectivity)
        assert labels.shape == areas.shape == shape
    else:
        check(noise(shape), connectivity)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.1, 0.4, 0.6, 1.0]),
    seed=st.integers(0, 99),
    connectivity=st.sampled_from([4, 8]),
)
def test_any_mask(height, width, density, seed, connectivity):
    check(noise((2, height, width), density, seed), connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_blobs_and_a_spiral(connectivity):
    check(blobs((3, 90, 130)), connectivity)
    check(spiral(41)[None], connectivity)
    assert int(connected_components(spiral(41), connectivity)[0].max()) == 1


def test_diagonal_pixels_touch_at_a_corner():
    mask = torch.eye(3, dtype=torch.bool)
    assert connected_components(mask, 8)[0].diagonal().tolist() == [1, 1, 1]
    assert connected_components(mask, 4)[0].diagonal().tolist() == [1, 2, 3]
    assert connected_components(mask, 8)[1].diagonal().tolist() == [3, 3, 3]


def test_takes_bits_bytes_and_any_strides():
    masks = noise((3, 20, 30))
    expected = connected_components(masks)
    for other in (pack_masks(masks), masks.to(torch.uint8) * 200, masks.mT.contiguous().mT):
        for a, b in zip(connected_components(other), expected, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(connected_components(masks.view(1, 3, 20, 30)), expected, strict=True):
        assert torch.equal(a[0], b)


@pytest.mark.parametrize("masks", [noise((4, 24, 40), 0.7), blobs((4, 50, 60), 3)])
def test_fill_holes_equals_scipy(masks):
    for connectivity, holes in ((8, 4), (4, 8)):
        filled = fill_holes(masks, connectivity=connectivity)
        for mask, result in zip(masks.numpy(), filled.numpy(), strict=True):
            np.testing.assert_array_equal(result, scipy.ndimage.binary_fill_holes(mask, STRUCTURE[holes]))


def test_a_limit_spares_large_holes():
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[1, 1] = mask[4:6, 4:6] = mask[8, 8] = False
    filled = fill_holes(mask, largest=3)
    assert bool(filled[1, 1])
    assert not bool(filled[4:6, 4:6].any())
    assert not bool(filled[8, 8])
    assert bool(fill_holes(mask)[4:6, 4:6].all())


def test_remove_small_keeps_parts_of_the_size_and_more():
    mask = torch.zeros(6, 20, dtype=torch.bool)
    mask[0, 0] = mask[2, 2:4] = mask[4, 6:9] = True
    assert unpack_masks(remove_small(pack_masks(mask), 2)).sum(1).tolist() == [0, 0, 2, 0, 3, 0]
    assert remove_small(mask, 4).sum() == 0
    assert torch.equal(remove_small(mask, 0), mask)


def test_what_is_refused():
    masks = noise((1, 4, 4))
    for function in (connected_components, fill_holes, lambda m, **k: remove_small(m, 2, **k)):
        with pytest.raises(ValueError, match="expected connectivity 4 or 8, got 6"):
            function(masks, connectivity=6)
        with pytest.raises(TypeError, match="expected masks"):
            function(masks.float())
    with pytest.raises(RuntimeError, match="reference-only"):
        connected_components(masks, impl="native")
