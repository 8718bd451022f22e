"""Masked attention: its formula, the fallbacks, what a key that is not attended may hold, and the masks themselves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from s2d.ops import attention_mask, attention_mask_from_features, masked_attention, pack_masks, unpack_masks
from s2d.testing.cases.masked_attention import CASES, Case, make


def attended_keys(mask, keep, keys):
    """Which keys a query attends to, by the rule in words."""
    frames = len(keep)
    kept = [k for k in range(keys) if keep[k // (keys // frames)]]
    inside = [k for k in kept if mask[k]]
    return inside or kept


def by_hand(q, k, v, mask, keep):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for row in range(q.shape[2]):
            keys = attended_keys(mask[b, row], keep[b], k.shape[2])
            for h in range(q.shape[1]):
                if keys:
                    scores = [float(q[b, h, row] @ k[b, h, key]) / math.sqrt(q.shape[-1]) for key in keys]
                    shares = [math.exp(score - max(scores)) for score in scores]
                    out[b, h, row] = sum(s * v[b, h, key] for s, key in zip(shares, keys, strict=True)) / sum(shares)
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_formula(case):
    q, k, v, mask, keep = make(case, torch.float64)
    torch.testing.assert_close(masked_attention(q, k, v, mask, keep), by_hand(q, k, v, mask, keep))
    every = torch.ones_like(keep)
    torch.testing.assert_close(masked_attention(q, k, v, mask), by_hand(q, k, v, mask, every))
    assert torch.equal(masked_attention(q, k, v, mask, every), masked_attention(q, k, v, mask))


def test_bits_and_bytes_are_masks_too():
    q, k, v, mask, keep = make(CASES[1])
    wanted = masked_attention(q, k, v, mask, keep)
    for form in (pack_masks(mask), mask.to(torch.uint8) * 7):
        assert torch.equal(masked_attention(q, k, v, form, keep), wanted)


def test_fallback_is_decided_after_frames_are_dropped():
    q, k, v, _, _ = make(CASES[1], torch.float64)
    mask = torch.zeros(2, 5, 63, dtype=torch.bool)
    mask[:, :, :21] = True
    keep = torch.tensor([[False, True, True], [True, True, True]])
    out = masked_attention(q, k, v, mask, keep)
    beyond = F.scaled_dot_product_attention(q[0], k[0, :, 21:], v[0, :, 21:])
    torch.testing.assert_close(out[0], beyond)
    torch.testing.assert_close(out[1], F.scaled_dot_product_attention(q[1], k[1, :, :21], v[1, :, :21]))


def test_nothing_comes_from_a_clip_without_kept_frames():
    q, k, v, mask, keep = make(CASES[1], torch.float64)
    keep[0] = False
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = masked_attention(*inputs, mask, keep)
    out.square().sum().backward()
    assert not out[0].any()
    assert out[1].abs().min() > 0
    for tensor in inputs:
        assert not tensor.grad[0].any()
        assert tensor.grad[1].any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_attended_has_no_influence(poison):
    q, k, v, mask, keep = make(CASES[1], torch.float64)
    keep[1] = False
    # Key 30 is attended by row 0 alone, which attends nothing else; key 40 by none; key 5 is of the dropped frame.
    mask[:, :, [30, 40]], mask[:, :, 62] = False, True
    mask[:, 0] = torch.arange(63) == 30

    def run(fill):
        inputs = [tensor.clone() for tensor in (q, k, v)]
        for tensor in inputs[1:]:
            tensor[0, :, [30, 40, 5]] = fill
        inputs = [tensor.requires_grad_() for tensor in inputs]
        out = masked_attention(*inputs, mask, keep)
        out[:, :, 1:].sum().backward()
        return out[:, :, 1:], [inputs[0].grad[:, :, 1:], inputs[1].grad, inputs[2].grad]

    clean, clean_gradients = run(0.5)
    out, gradients = run(poison)
    torch.testing.assert_close(out, clean)
    others = torch.arange(63) != 30
    torch.testing.assert_close(gradients[0], clean_gradients[0])
    for found, wanted in zip(gradients[1:], clean_gradients[1:], strict=True):
        torch.testing.assert_close(found[:, :, others], wanted[:, :, others])
    for gradient in gradients[1:]:
        assert not gradient[:, :, [40, 5]].any()


def test_gradients():
    q, k, v, mask, keep = make(Case("gradients", 1, 2, (2, 3), 3, 2, 2), torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: masked_attention(*x, mask, keep), inputs)


def test_mask_bits_follow_the_rounded_sigmoid():
    edge = -float.fromhex("0x1.7ffffep-23")
    above = torch.nextafter(torch.tensor(edge), torch.tensor(0.0)).item()
    logits = torch.tensor([edge, edge * 1.001, -1.0, above, -1e-8, 0.0, 2.0, math.nan]).view(1, 1, 1, 1, 8)
    bits = unpack_masks(attention_mask(logits, (1, 8))).flatten().tolist()
    assert bits == [False] * 3 + [True] * 5
    for dtype, lowest in ((torch.float16, -(2.0**-11)), (torch.bfloat16, -(2.0**-8))):
        below = torch.nextafter(torch.tensor(lowest, dtype=dtype), torch.tensor(-1.0, dtype=dtype))
        pair = torch.stack([torch.tensor(lowest, dtype=dtype), below]).view(1, 1, 1, 1, 2)
        assert unpack_masks(attention_mask(pair, (1, 2))).flatten().tolist() == [True, False]


def test_mask_is_resized_bilinearly_frame_by_frame():
    logits = torch.randn(2, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    bits = attention_mask(logits, (4, 6))
    assert bits.shape == (2, 3, 4 * 4 * 6)
    means = logits.unflatten(-1, (6, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    assert torch.equal(unpack_masks(bits), (means > 0).flatten(2))


def test_masks_from_features_are_those_of_the_product():
    generator = torch.Generator().manual_seed(0)
    embed = torch.randn(2, 5, 8, generator=generator)
    features = torch.randn(2, 3, 8, 16, 24, generator=generator)
    at_level = F.interpolate(features.flatten(0, 1), (4, 6), mode="bilinear").unflatten(0, (2, 3))
    logits = torch.einsum("bqc,btchw->bqthw", embed, features)
    resized = F.interpolate(logits.flatten(0, 1), (4, 6), mode="bilinear")
    assert resized.abs().min() > 1e-4
    found, wanted = attention_mask_from_features(embed, at_level), attention_mask(logits, (4, 6))
    assert torch.equal(found.words, wanted.words)
    assert found.width == wanted.width == 72


def test_refuses():
    q, k, v, mask, keep = make(CASES[1])
    with pytest.raises(TypeError, match=r"one floating point dtype, got torch.float32, torch.float64, torch.float32"):
        masked_attention(q, k.double(), v, mask)
    with pytest.raises(ValueError, match=r"expected q \[B, heads, Q, D\], k and v"):
        masked_attention(q, k, v[:, :, 1:], mask)
    with pytest.raises(ValueError, match=r"expected mask \[B, Q, K\] = \[2, 5, 63\], got \[2, 5, 62\]"):
        masked_attention(q, k, v, mask[..., 1:])
    with pytest.raises(TypeError, match="expected mask BitMasks or a bool or uint8 tensor"):
        masked_attention(q, k, v, mask.float())
    with pytest.raises(TypeError, match="expected frame_keep bool"):
        masked_attention(q, k, v, mask, keep.int())
    with pytest.raises(ValueError, match=r"T that divides K = 63, got \[2, 4\]"):
        masked_attention(q, k, v, mask, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected mask_logits \[B, Q, T, h, w\], got \[5, 7\]"):
        attention_mask(torch.zeros(5, 7), (2, 2))
    with pytest.raises(ValueError, match="expected embed"):
        attention_mask_from_features(torch.zeros(1, 2, 3), torch.zeros(1, 1, 4, 2, 2))
