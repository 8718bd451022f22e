"""The modules: state dicts of the originals, and their results."""

from __future__ import annotations

import pytest
import torch
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
