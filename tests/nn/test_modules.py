"""The modules: state dicts of the originals, and their results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2d.nn import MaskedCrossAttention, MSDeformAttn


def attention_modules(dtype=torch.float32):
    """torch's module with biases that are not zero, ours with its state, and their inputs."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True, dtype=dtype)
    for bias in (theirs.in_proj_bias, theirs.out_proj.bias):
        nn.init.normal_(bias)
    ours = MaskedCrossAttention(24, 3).to(dtype)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    tokens = [torch.randn(2, count, 24, dtype=dtype) for count in (5, 77, 77)]
    mask = torch.rand(2, 5, 77) < 0.3
    mask[..., 0] = True
    return theirs, ours, tokens, mask


def test_masked_cross_attention_is_multihead_attention_with_a_mask():
    theirs, ours, tokens, mask = attention_modules(torch.float64)
    results = []
    for module, forbidden in ((theirs, ~mask.repeat_interleave(3, 0)), (ours, None)):
        inputs = [x.clone().requires_grad_() for x in tokens]
        if forbidden is None:
            out = module(*inputs, mask)
        else:
            out, _ = module(*inputs, attn_mask=forbidden, need_weights=False)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in inputs), *(x.grad for x in dict(module.named_parameters()).values())])
    torch.testing.assert_close(*results)


def test_masked_cross_attention_runs_under_autocast():
    theirs, ours, tokens, mask = attention_modules()
    wanted, _ = theirs(*tokens, attn_mask=~mask.repeat_interleave(3, 0), need_weights=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(*tokens, mask)
        out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert ours.in_proj_weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), wanted, rtol=0.05, atol=0.05)


def test_masked_cross_attention_drops_frames():
    torch.manual_seed(0)
    module = MaskedCrossAttention(8, 2)
    query, key = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    mask = torch.ones(1, 3, 6, dtype=torch.bool)
    keep = torch.tensor([[True, False, True]])
    kept = torch.tensor([0, 1, 4, 5])
    wanted = module(query, key[:, kept], key[:, kept], mask[..., kept])
    torch.testing.assert_close(module(query, key, key, mask, keep), wanted)


def test_deformable_attention_starts_on_rays():
    module = MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3)
    assert set(module.state_dict()) == {
        f"{part}.{kind}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for kind in ("weight", "bias")
    }
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        torch.testing.assert_close(
            offsets[:, :, point], directions[:, None].expand(-1, 2, -1) * (point + 1), atol=1e-6, rtol=0
        )


def test_deformable_attention_reads_where_it_points():
    torch.manual_seed(0)
    module = MSDeformAttn(4, n_levels=1, n_heads=1, n_points=1)
    nn.init.eye_(module.value_proj.weight)
    nn.init.eye_(module.output_proj.weight)
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(torch.tensor([2.0, 1.0]))
    tokens = torch.randn(1, 20, 4)
    centre = torch.tensor([1.5 / 5, 0.5 / 4]).view(1, 1, 1, 2)
    # From pixel (x 1, y 0) two to the right and one down.
    torch.testing.assert_close(module(torch.zeros(1, 1, 4), centre, tokens, [(4, 5)])[0, 0], tokens[0, 1 * 5 + 3])
    box = torch.tensor([1.5 / 5, 0.5 / 4, 2 / 5, 2 / 4]).view(1, 1, 1, 4)
    torch.testing.assert_close(module(torch.zeros(1, 1, 4), box, tokens, [(4, 5)])[0, 0], tokens[0, 1 * 5 + 3])


def official_attention(module, query, reference, tokens, shapes, starts, padding):
    """What Deformable-DETR's module computes, in its own words: from its equations, on its core in torch."""
    number, queries, _ = query.shape
    heads, levels, points = module.n_heads, module.n_levels, module.n_points
    value = module.value_proj(tokens)
    if padding is not None:
        value = value.masked_fill(padding[..., None], 0.0)
    value = value.view(number, tokens.shape[1], heads, -1)
    offsets = module.sampling_offsets(query).view(number, queries, heads, levels, points, 2)
    weights = module.attention_weights(query).view(number, queries, heads, levels * points).softmax(-1)
    weights = weights.view(number, queries, heads, levels, points)
    if reference.shape[-1] == 2:
        normalizer = torch.stack([shapes[:, 1], shapes[:, 0]], -1)
        locations = reference[:, :, None, :, None, :] + offsets / normalizer[None, None, None, :, None, :]
    else:
        locations = reference[:, :, None, :, None, :2] + offsets / points * reference[:, :, None, :, None, 2:] * 0.5
    parts = []
    for level, (height, width) in enumerate(shapes.tolist()):
        start = int(starts[level])
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(number * heads, -1, height, width)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        parts.append(F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
    stacked = torch.stack(parts, -2)  # [N M, D, Lq, L, P]
    stacked = stacked * weights.transpose(1, 2).flatten(0, 1)[:, None]
    return module.output_proj(stacked.sum((-2, -1)).view(number, -1, queries).transpose(1, 2))


@pytest.mark.parametrize("numbers", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_deformable_attention_is_the_official_one(numbers, padded):
    """With the official arguments, in the official order, values and gradients of the parameters."""
    torch.manual_seed(0)
    module = MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3, im2col_step=64)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    shapes, starts = torch.tensor([[3, 4], [2, 2]]), torch.tensor([0, 12])
    query, tokens, reference = torch.randn(2, 5, 16), torch.randn(2, 16, 16), torch.rand(2, 5, 2, numbers)
    padding = torch.rand(2, 16) < 0.3 if padded else None
    inputs = query, reference, tokens, shapes, starts, padding

    def values_and_gradients(attention):
        module.zero_grad()
        out = attention(*inputs)
        out.square().sum().backward()
        return [out, *(parameter.grad.clone() for parameter in module.parameters())]

    wanted = values_and_gradients(lambda *given: official_attention(module, *given))
    for ours, theirs in zip(values_and_gradients(module), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_deformable_attention_in_half_precision_keeps_its_places():
    """Locations are made in float32, whatever the parameters are in."""
    torch.manual_seed(0)
    module, query, tokens = MSDeformAttn(16, 1, 2, 2), torch.randn(1, 6, 16), torch.randn(1, 400, 16)
    reference = torch.rand(1, 6, 1, 2)
    wanted = module(query, reference, tokens, [(1, 400)])
    halves = module.bfloat16()(query.bfloat16(), reference, tokens.bfloat16(), [(1, 400)])
    with torch.autocast("cpu", torch.bfloat16):
        cast = module.float()(query, reference, tokens, [(1, 400)])
    for found in (halves, cast):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)


def test_sizes_seen_in_inference_serve_training():
    module, query = MSDeformAttn(8, 1, 2, 2), torch.randn(1, 3, 8)
    arguments = torch.full((1, 3, 1, 2), 0.5), torch.randn(1, 30, 8), [(5, 6)]
    with torch.inference_mode():
        module(query, *arguments)
    module(query, *arguments).sum().backward()
    assert module.sampling_offsets.bias.grad is not None


@pytest.mark.parametrize("shapes", [[(5, 6)], torch.tensor([[5, 6]])], ids=["list", "tensor"])
def test_deformable_attention_compiles_without_a_break(shapes):
    torch.manual_seed(0)
    module = MSDeformAttn(8, 1, 2, 2)
    inputs = torch.randn(1, 3, 8), torch.full((1, 3, 1, 2), 0.5), torch.randn(1, 30, 8), shapes
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


def test_padding_reads_as_nothing():
    torch.manual_seed(0)
    module = MSDeformAttn(8, n_levels=2, n_heads=2, n_points=2)
    tokens, reference = torch.randn(1, 10, 8), torch.full((1, 3, 2, 2), 0.5)
    shapes, starts = torch.tensor([[2, 3], [2, 2]]), torch.tensor([0, 6])
    padding = torch.ones(1, 10, dtype=torch.bool)
    out = module(torch.randn(1, 3, 8), reference, tokens, shapes, starts, padding)
    torch.testing.assert_close(out, module.output_proj.bias.expand(1, 3, 8))


def test_refuses():
    with pytest.raises(ValueError, match="multiple of num_heads = 3, got 8"):
        MaskedCrossAttention(8, 3)
    with pytest.raises(ValueError, match="multiple of n_heads = 8, got 20"):
        MSDeformAttn(20)
    with pytest.raises(
        ValueError, match=r"expected reference_points \[N, Lq, L, 2\] or \[N, Lq, L, 4\], got \[1, 1, 1, 3\]"
    ):
        MSDeformAttn(4, 1, 1, 1)(torch.zeros(1, 1, 4), torch.zeros(1, 1, 1, 3), torch.zeros(1, 4, 4), [(2, 2)])
