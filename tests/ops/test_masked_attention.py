"""Masked attention: its formula, the fallbacks, what a key that is not attended may hold, and the masks themselves."""

from __future__ import annotations

import math
import os

import pytest
import torch
import torch.nn.functional as F

from s2d.ops import attention_mask, attention_mask_from_features, masked_attention, pack_masks, unpack_masks
from s2d.ops.reference.masked_attention import attend
from s2d.testing.cases.masked_attention import CASES, Case, make
from s2d.testing.numeric import assert_within_budget


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


# What runs where the kernels do: on the CPU, on a GPU, and the GPU's kernels emulated.

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def with_gradients(q, k, v, grad, mask, keep, call):
    inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = call(*inputs, mask, keep)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(q.dtype))]


def assert_equals_definition(q, k, v, mask, keep, device):
    """Values and all gradients within torch's own error; in float64 nothing is more exact."""
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(3)).to(q.dtype)
    there = [tensor.to(device) for tensor in (q, k, v, grad, mask)]
    found = with_gradients(*there, keep if keep is None else keep.to(device), masked_attention)
    assert all(tensor.dtype == q.dtype and tensor.device == there[0].device for tensor in found)

    def definition(*inputs):
        return with_gradients(*inputs, mask, keep, attend)

    if q.dtype == torch.float64:
        torch.testing.assert_close([tensor.cpu() for tensor in found], definition(q, k, v, grad))
        return
    for part, tensor in enumerate(found):
        assert_within_budget(tensor.cpu(), lambda *x, part=part: definition(*x)[part], q, k, v, grad, multiple=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("channels", [5, 48, 128])
def test_equals_the_definition_on_the_device(channels, dtype, device):
    """Two words of keys; a row that falls back, a clip whose first frame is dropped and one with none that is kept."""
    case = Case("small", 3, 3, (4, 7), 3, 1, channels, 0.4)
    if dtype == torch.float64:  # emulated at length
        case = Case("smaller", 2, 2, (3, 4), 2, 1, channels, 0.4)
    q, k, v, mask, keep = make(case, dtype)
    mask[:, 1], keep[1] = False, True
    if case.clips > 2:
        keep[2] = False
    assert_equals_definition(q, k, v, mask, keep, device)


def test_equals_the_definition_without_frames_in_any_strides(device):
    q, k, v, mask, _ = make(Case("strided", 2, 1, (1, 65), 2, 3, 16, 0.2))
    q, k, v = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v))
    assert_equals_definition(q, k, v, mask, None, device)


def test_equals_the_definition_of_more_queries_and_tiles_than_a_program_takes(device, monkeypatch):
    """130 queries are two blocks on a GPU, and 255 keys are four tiles, of which two are dropped."""
    q, k, v, mask, keep = make(Case("long", 1, 5, (3, 17), 130, 1, 8, 0.1), torch.float16)
    if device != "cpu" or os.environ.get("TRITON_INTERPRET") == "1":
        from s2d.kernels import masked_attention as kernels

        monkeypatch.setattr(kernels, "PROGRAMS", 4)
    keep[0] = torch.tensor([False, True, False, False, True])
    assert_equals_definition(q, k, v, mask, keep, device)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=name_of)
def test_poison_that_others_attend_to_does_not_leak(dtype, device):
    """NaN and infinity in keys that one row attends to, and that no row does, in all heads and tiles."""
    q, k, v, mask, keep = make(Case("poison", 1, 2, (5, 7), 4, 2, 8, 0.5), dtype)
    keep[:] = True
    mask[:, :, [3, 40, 66]], mask[:, 0, [3, 66]] = False, True

    def run(fills):
        inputs = [tensor.clone() for tensor in (q, k, v)]
        for tensor in inputs[1:]:
            tensor[:, :, [3, 40, 66]] = torch.tensor(fills, dtype=dtype)[:, None]
        inputs = [tensor.to(device).requires_grad_() for tensor in inputs]
        out = masked_attention(*inputs, mask.to(device), keep.to(device))
        # A sum of rows 1 to 3: what row 0 attends to has no part in it.
        gradients = torch.autograd.grad(out[:, :, 1:].float().square().sum(), inputs)
        return [tensor.cpu() for tensor in (out.detach(), *gradients)]

    (clean, *clean_gradients), (out, *gradients) = run([0.5] * 3), run([math.nan, math.inf, -math.inf])
    share = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out[:, :, 1:], clean[:, :, 1:], rtol=share, atol=share)
    assert out[:, :, 0].isnan().all()
    torch.testing.assert_close(gradients[0][:, :, 1:], clean_gradients[0][:, :, 1:], rtol=share, atol=2 * share)
    others = ~mask[0, 0]  # the shares of row 0 are NaN, by any definition
    for found, wanted in zip(gradients[1:], clean_gradients[1:], strict=True):
        torch.testing.assert_close(found[:, :, others], wanted[:, :, others], rtol=share, atol=2 * share)
        assert not found[:, :, 40].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_equals_the_definition_of_masks(dtype, device):
    """But for logits so close to the threshold that rounding decides."""
    generator = torch.Generator().manual_seed(1)
    margin = 1e-5 if dtype in (torch.float32, torch.float64) else 0.05

    def assert_same_bits(found, logits):
        sure = logits.double().abs() > margin
        assert sure.double().mean() > 0.9
        assert torch.equal(unpack_masks(found).cpu() & sure, (logits > 0) & sure)
        assert torch.equal(pack_masks(unpack_masks(found)).words, found.words)  # padding bits are 0

    logits = torch.randn(2, 3, 2, 7, 10, generator=generator).to(dtype)
    for size in ((7, 10), (3, 5), (9, 11)):
        resized = F.interpolate(logits.double().flatten(0, 1), size, mode="bilinear").view(2, 3, -1)
        assert_same_bits(attention_mask(logits.to(device), size), resized)
    for channels, height in ((24, 5), (40, 8)):
        embed = torch.randn(2, 3, channels, generator=generator).to(dtype)
        features = torch.randn(2, 3, channels, height, 9, generator=generator).to(dtype)
        product = torch.einsum("bqc,btchw->bqthw", embed.double(), features.double()).flatten(2)
        assert_same_bits(attention_mask_from_features(embed.to(device), features.to(device)), product)


def test_equals_itself_to_the_bit(device):
    q, k, v, mask, keep = (x.to(device) for x in make(Case("again", 1, 3, (5, 11), 3, 2, 8), torch.float16))
    first, again = (with_gradients(q, k, v, q, mask, keep, masked_attention) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_three_products_of_tf32_keep_the_accuracy_of_float32():
    """What the GPU makes of a product of float32, in torch: each factor is the sum of two of eleven bits."""

    def split(x):
        high = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        return high, (((x - high).view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def product(a, b):
        if a.dtype == torch.float64:
            return a @ b
        (a, a_rest), (b, b_rest) = split(a), split(b)
        return a_rest @ b + a @ b_rest + a @ b

    generator = torch.Generator().manual_seed(2)
    for rows, inner, columns in ((100, 32, 500), (100, 500, 32), (17, 128, 64)):
        a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
        assert_within_budget(product(a, b), torch.matmul, a, b)
        one = split(a)[0] @ split(b)[0]
        with pytest.raises(AssertionError, match="over the budget"):
            assert_within_budget(one, torch.matmul, a, b, multiple=4)
