from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.ops import BitMasks, connected_components, fill_holes, pack_masks, remove_small, unpack_masks
from s2d.testing.cases.connected_components import SHAPES, TILED, blobs, checkerboard, comb, hard, noise, spiral

pytestmark = pytest.mark.usefixtures("nan_memory")

STRUCTURE = {4: scipy.ndimage.generate_binary_structure(2, 1), 8: scipy.ndimage.generate_binary_structure(2, 2)}


def check(masks: torch.Tensor, connectivity: int) -> None:
    """Labels and areas as scipy has them: it numbers the parts in the same order."""
    labels, areas = connected_components(masks, connectivity)
    assert labels.dtype == areas.dtype == torch.int32
    assert labels.shape == areas.shape == masks.shape
    for mask, label, area in zip(masks.cpu().numpy(), labels.cpu().numpy(), areas.cpu().numpy(), strict=True):
        expected, _ = scipy.ndimage.label(mask, STRUCTURE[connectivity])
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(area, np.where(mask, np.bincount(expected.reshape(-1), minlength=1)[expected], 0))


def check_all(masks: torch.Tensor, connectivity: int) -> None:
    """Every operator against its definition."""
    for call in (
        lambda impl: connected_components(masks, connectivity, impl=impl),
        lambda impl: (fill_holes(masks, connectivity=connectivity, impl=impl),),
        lambda impl: (fill_holes(masks, largest=4, connectivity=connectivity, impl=impl),),
        lambda impl: (remove_small(masks, 5, connectivity, impl=impl),),
    ):
        for ours, expected in zip(call(None), call("reference"), strict=True):
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_equals_reference(shape, connectivity, device):
    for density in (0.3, 0.6):
        masks = noise(shape, density).to(device)
        check_all(masks, connectivity)
        if masks.numel():
            check(masks, connectivity)


@pytest.mark.parametrize("shape", TILED)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_masks_of_many_tiles(shape, connectivity, device):
    check(noise(shape, 0.6).to(device), connectivity)
    masks = noise(shape, 0.6, seed=1)
    for mask, filled in zip(masks, fill_holes(masks.to(device), connectivity=connectivity).cpu(), strict=True):
        assert np.array_equal(filled, scipy.ndimage.binary_fill_holes(mask, STRUCTURE[12 - connectivity]))
    expected = masks & (connected_components(masks.to(device), connectivity)[1].cpu() >= 3)
    assert torch.equal(remove_small(masks.to(device), 3, connectivity).cpu(), expected)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 140),
    density=st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.95, 1.0]),
    seed=st.integers(0, 99),
    connectivity=st.sampled_from([4, 8]),
)
def test_any_mask(height, width, density, seed, connectivity, device):
    masks = noise((2, height, width), density, seed).to(device)
    check(masks, connectivity)
    check_all(masks, connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", list(hard()))
def test_shapes_that_are_hard_to_join(name, connectivity, device):
    mask = hard()[name]
    for one in (mask, ~mask):
        check(one[None].to(device), connectivity)
        filled = scipy.ndimage.binary_fill_holes(one.numpy(), STRUCTURE[12 - connectivity])
        assert np.array_equal(fill_holes(one.to(device), connectivity=connectivity).cpu(), filled)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_parts_that_wind_through_many_tiles_are_one(connectivity, device):
    # 300 rows of two words are three tiles, which a tooth or a winding crosses again and again.
    winding = torch.zeros(300, 128, dtype=torch.bool)
    winding[::2] = True
    winding[1::4, -1] = winding[3::4, 0] = True
    for mask in (comb(300, 128), comb(300, 128).flip(0), winding, blobs((1, 300, 128))[0]):
        check(mask[None].to(device), connectivity)
    assert int(connected_components(winding.to(device), connectivity)[0].max()) == 1


def test_as_many_parts_as_there_can_be(device):
    board = checkerboard(70, 70).to(device)
    labels, areas = connected_components(board, 4)
    assert torch.equal(labels[board].cpu(), torch.arange(1, 70 * 35 + 1, dtype=torch.int32))
    assert torch.equal(areas, board.int())
    assert int(connected_components(board, 8)[1].max()) == 70 * 35


def test_more_labels_than_sixteen_bits_hold():
    board = checkerboard(2, 150_000)
    assert int(connected_components(board, 4)[0].max()) == 150_000
    check(noise((1, 700, 700), 0.2), 4)


def test_diagonal_pixels_touch_at_a_corner(device):
    mask = torch.eye(3, dtype=torch.bool, device=device)
    assert connected_components(mask, 8)[0].diagonal().tolist() == [1, 1, 1]
    assert connected_components(mask, 4)[0].diagonal().tolist() == [1, 2, 3]
    assert connected_components(mask, 8)[1].diagonal().tolist() == [3, 3, 3]


@pytest.mark.parametrize("edge", [63, 64])
def test_corners_across_words(edge, device):
    """A pixel and the one below it, to the left or right, where one word ends and the next begins."""
    for step in (-1, 1):
        mask = torch.zeros(2, 130, dtype=torch.bool, device=device)
        mask[0, edge] = mask[1, edge + step] = True
        assert int(connected_components(mask, 8)[0].max()) == 1
        assert int(connected_components(mask, 4)[0].max()) == 2


def test_takes_bits_bytes_and_any_strides(device):
    masks = noise((3, 20, 30)).to(device)
    expected = connected_components(masks)
    for other in (pack_masks(masks), masks.to(torch.uint8) * 200, masks.mT.contiguous().mT):
        for a, b in zip(connected_components(other), expected, strict=True):
            assert torch.equal(a, b)
        for function in (fill_holes, lambda m: remove_small(m, 3)):
            result = function(other)
            assert isinstance(result, BitMasks) == isinstance(other, BitMasks)
            dense = unpack_masks(result) if isinstance(result, BitMasks) else result
            assert torch.equal(dense, function(masks))
    strided = BitMasks(pack_masks(masks).words.transpose(0, 1).contiguous().transpose(0, 1), 30)
    for a, b in zip(connected_components(strided), expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(unpack_masks(fill_holes(strided)), fill_holes(masks))
    for a, b in zip(connected_components(masks.view(1, 3, 20, 30)), expected, strict=True):
        assert torch.equal(a[0], b)
    single = connected_components(masks[1])
    assert torch.equal(single[0], expected[0][1])


def test_bits_past_the_width_do_not_count(device):
    masks = noise((2, 9, 30)).to(device)
    bits = pack_masks(masks)
    dirty = BitMasks(bits.words | ~((1 << 30) - 1), 30)
    for a, b in zip(connected_components(dirty), connected_components(masks), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(unpack_masks(fill_holes(dirty)), fill_holes(masks))


@pytest.mark.parametrize("masks", [noise((4, 24, 40), 0.7), blobs((4, 50, 60), 3)])
def test_fill_holes_equals_scipy(masks, device):
    for connectivity, holes in ((8, 4), (4, 8)):
        filled = fill_holes(masks.to(device), connectivity=connectivity).cpu()
        for mask, result in zip(masks.numpy(), filled.numpy(), strict=True):
            np.testing.assert_array_equal(result, scipy.ndimage.binary_fill_holes(mask, STRUCTURE[holes]))


def test_a_limit_spares_large_holes(device):
    mask = torch.ones(9, 9, dtype=torch.bool, device=device)
    mask[1, 1] = mask[4:6, 4:6] = mask[8, 8] = False
    filled = fill_holes(mask, largest=3)
    assert bool(filled[1, 1])
    assert not bool(filled[4:6, 4:6].any())
    assert not bool(filled[8, 8])
    assert bool(fill_holes(mask, largest=4)[4:6, 4:6].all())
    assert bool(fill_holes(mask)[4:6, 4:6].all())


def test_remove_small_keeps_parts_of_the_size_and_more(device):
    mask = torch.zeros(6, 20, dtype=torch.bool, device=device)
    mask[0, 0] = mask[2, 2:4] = mask[4, 6:9] = True
    assert unpack_masks(remove_small(pack_masks(mask), 2)).sum(1).tolist() == [0, 0, 2, 0, 3, 0]
    assert remove_small(mask, 4).sum() == 0
    assert torch.equal(remove_small(mask, 0), mask)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees(isa):
    code = (
        "import torch\n"
        "from s2d.ops import *\n"
        "from s2d.testing.cases.connected_components import blobs, hard, noise\n"
        "masks = [noise((3, 9, width), d, width) for width in (1, 15, 16, 17, 63, 64, 65, 200) for d in (0.2, 0.7)]\n"
        "for m in masks + [blobs((2, 60, 150))] + [m[None] for m in hard(30, 70).values()]:\n"
        "    for c in (4, 8):\n"
        "        for a, b in zip(connected_components(m, c), connected_components(m, c, impl='reference')):\n"
        "            assert torch.equal(a, b)\n"
        "        assert torch.equal(fill_holes(m, 5, c), fill_holes(m, 5, c, impl='reference'))\n"
        "        assert torch.equal(remove_small(m, 5, c), remove_small(m, 5, c, impl='reference'))\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_result_does_not_depend_on_threads():
    masks = blobs((9, 200, 300), seed=5) ^ noise((9, 200, 300), 0.01)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append((*connected_components(masks), fill_holes(masks), remove_small(masks, 9)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_refused():
    masks = noise((1, 4, 4))
    huge = BitMasks(torch.zeros(1, 1, 1, dtype=torch.int64).expand(1, 2**20, 2**4), 2**10)
    for name, function in (
        ("connected_components", connected_components),
        ("fill_holes", fill_holes),
        ("remove_small", lambda m, **k: remove_small(m, 2, **k)),
    ):
        with pytest.raises(ValueError, match=f"s2d::{name}: expected connectivity 4 or 8, got 6"):
            function(masks, connectivity=6)
        with pytest.raises(TypeError, match=f"s2d::{name}: expected masks BitMasks or a bool or uint8 tensor"):
            function(masks.float())
        with pytest.raises(ValueError, match=f"s2d::{name}: expected masks of fewer than 2\\^30 pixels, got 1048576 x"):
            function(huge)


def test_operators_refuse_in_the_same_words(device):
    words = pack_masks(noise((1, 4, 70)).to(device)).words
    for operator, rest in (
        (torch.ops.s2d.connected_components, ()),
        (torch.ops.s2d.fill_holes, (1,)),
        (torch.ops.s2d.remove_small, (1,)),
    ):
        with pytest.raises(RuntimeError, match="expected connectivity 4 or 8, got 6"):
            operator(words, 70, *rest, 6)
        with pytest.raises(RuntimeError, match="expected a width that its words hold, got 64"):
            operator(words, 64, *rest, 8)
        with pytest.raises(RuntimeError, match="expected words int64"):
            operator(words.int(), 70, *rest, 8)


def test_operators_are_registered_properly(device):
    words = pack_masks(noise((2, 5, 70)).to(device)).words
    torch.library.opcheck(torch.ops.s2d.connected_components.default, (words, 70, 8))
    torch.library.opcheck(torch.ops.s2d.fill_holes.default, (words, 70, 5, 8))
    torch.library.opcheck(torch.ops.s2d.remove_small.default, (words, 70, 5, 4))


def test_compiles_without_a_graph_break(device):
    masks = noise((2, 9, 70)).to(device)

    def pipeline(x):
        return *connected_components(x, 4), fill_holes(x, 7), remove_small(x, 3), fill_holes(pack_masks(x)).words

    compiled = torch.compile(pipeline, fullgraph=True, backend="eager")(masks)
    for ours, expected in zip(compiled, pipeline(masks), strict=True):
        assert torch.equal(ours, expected)


def test_a_spiral_is_one_part(device):
    assert int(connected_components(spiral(41).to(device), 4)[0].max()) == 1
