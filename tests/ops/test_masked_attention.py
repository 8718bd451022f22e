"""Masked attention: its formula, the fallbacks, what a key that is not attended may hold, and the masks themselves."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from s2d.ops import attention_mask, attention_mask_from_features, masked_attention, pack_masks, unpack_masks
from s2d.testing.cases.masked_attention import CASES, Case, make, make_logits
from s2d.testing.numeric import assert_within_budget

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def smaller(case: Case, emulated: bool) -> Case:
    """What the interpreter of GPU kernels can do in a second."""
    if not emulated:
        return case
    size = (min(case.size[0], 3), min(case.size[1], 7))
    counts = {"clips": 1, "frames": min(case.frames, 4), "queries": min(case.queries, 3), "heads": min(case.heads, 2)}
    # Where a query has a single key, gradients that should be 0 are all rounding.
    return dataclasses.replace(case, size=size, density=case.density and max(case.density, 0.2), **counts)


def with_gradients(impl, mask, keep, grad=None):
    """A function of q, k, v that gives the result and their gradients."""

    def run(*tensors):
        inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        out = masked_attention(*inputs, mask, keep, impl=impl)
        given = torch.ones_like(out) if grad is None else grad.to(out)
        return [out.detach(), *torch.autograd.grad(out, inputs, given)]

    return run


def assert_equals_definition(q, k, v, mask, keep):
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(q.device)
    found = with_gradients("native", mask, keep, grad)(q, k, v)
    assert [part.dtype for part in found] == [q.dtype] * 4
    wanted = with_gradients("reference", mask, keep, grad)
    if q.dtype == torch.float64:  # nothing is more exact
        torch.testing.assert_close(found, wanted(q, k, v))
        return
    for part, result in enumerate(found):
        # Gradients begin with a logsumexp that was rounded to float32: at 8, exponents are known to a few eps, of which
        # torch, with the softmax at hand, is spared.
        multiple = 16 if part and q.dtype == torch.float32 else 4
        assert_within_budget(result, lambda *x, part=part: wanted(*x)[part], q, k, v, multiple=multiple)


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
def test_definition_is_the_formula(case):
    q, k, v, mask, keep = make(case, torch.float64)
    torch.testing.assert_close(masked_attention(q, k, v, mask, keep, impl="reference"), by_hand(q, k, v, mask, keep))
    every = torch.ones_like(keep)
    torch.testing.assert_close(masked_attention(q, k, v, mask, impl="reference"), by_hand(q, k, v, mask, every))


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_definition(case, dtype, device, emulated):
    q, k, v, mask, keep = (part.to(device) for part in make(smaller(case, emulated), dtype))
    assert_equals_definition(q, k, v, mask, keep)
    if not emulated or dtype == torch.float16:
        assert_equals_definition(q, k, v, mask, None)


@pytest.mark.parametrize("channels", [16, 24, 32, 48, 64, 96, 128])
def test_equals_the_definition_for_every_number_of_channels(channels, device, emulated):
    case = smaller(Case("channels", 1, 2, (7, 13), 9, 2, channels), emulated)
    assert_equals_definition(*(part.to(device) for part in make(case)))


def test_equals_the_definition_of_more_than_a_program_takes(device, monkeypatch):
    """On a GPU 130 queries are two blocks, and 255 keys are four tiles, which two programs share; a tile is dropped."""
    if device != "cpu" or os.environ.get("TRITON_INTERPRET") == "1":
        from s2d.kernels import masked_attention as kernels

        monkeypatch.setattr(kernels, "PROGRAMS", 4)
    q, k, v, mask, keep = (part.to(device) for part in make(Case("long", 1, 5, (3, 17), 130, 1, 8), torch.float16))
    keep[:, 3:] = False
    assert_equals_definition(q, k, v, mask, keep)


def test_heads_of_more_than_128_channels_are_left_to_the_cpu(device, emulated):
    q, k, v, mask, keep = (part.to(device) for part in make(Case("wide", 1, 1, (2, 3), 2, 1, 130)))
    if device == "cpu" and not emulated:
        assert_equals_definition(q, k, v, mask, keep)
        return
    with pytest.raises(RuntimeError, match="expected q with at most 128 channels on a GPU, got 130"):
        masked_attention(q, k, v, mask, keep)


def test_runs_are_equal_to_the_bit(device):
    q, k, v, mask, keep = (part.to(device) for part in make(CASES[1], torch.float16))
    first, again = (with_gradients("native", mask, keep)(q, k, v) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_three_products_of_tf32_keep_the_accuracy_of_float32():
    """What the GPU makes of a product of float32, in torch: each factor is the sum of two, of eleven bits each."""

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
        with pytest.raises(AssertionError, match="over the budget"):  # a single product has not
            assert_within_budget(split(a)[0] @ split(b)[0], torch.matmul, a, b, multiple=8)


def test_equals_the_definition_where_frames_are_dropped(device):
    q, k, v, mask, _ = (part.to(device) for part in make(Case("frames", 4, 5, (3, 7), 6, 2, 16, 0.1)))
    mask[:, 0] = False
    keep = torch.tensor([[False] * 5, [False, False, True, False, False], [True] * 5, [True] * 4 + [False]]).to(device)
    assert_equals_definition(q, k, v, mask, keep)


def test_equals_the_definition_under_masks_from_logits(device, emulated):
    case = smaller(Case("logits", 1, 3, (12, 20), 20, 2, 32, 0.12), emulated)
    q, k, v, _, keep = (part.to(device) for part in make(case))
    bits = attention_mask(make_logits(case).to(device), case.size)
    assert 0 < unpack_masks(bits).float().mean() < 0.3
    assert_equals_definition(q, k, v, unpack_masks(bits), keep)
    assert torch.equal(masked_attention(q, k, v, bits, keep), masked_attention(q, k, v, unpack_masks(bits), keep))


def test_scores_far_apart_stay_finite(device):
    q, k, v, mask, keep = (part.to(device) for part in make(CASES[1]))
    out = masked_attention(q * 300, k * 300, v, mask, keep)
    torch.testing.assert_close(out, masked_attention(q * 300, k * 300, v, mask, keep, impl="reference"))


def test_bits_and_bytes_are_masks_too(device):
    q, k, v, mask, keep = (part.to(device) for part in make(CASES[1]))
    wanted = masked_attention(q, k, v, mask, keep)
    for form in (pack_masks(mask), mask.to(torch.uint8) * 7):
        assert torch.equal(masked_attention(q, k, v, form, keep), wanted)


def test_fallback_is_decided_after_frames_are_dropped(device):
    q, k, v, _, _ = (part.to(device) for part in make(CASES[1], torch.float64))
    mask = torch.zeros(2, 5, 63, dtype=torch.bool, device=device)
    mask[:, :, :21] = True
    keep = torch.tensor([[False, True, True], [True, True, True]], device=device)
    out = masked_attention(q, k, v, mask, keep)
    beyond = F.scaled_dot_product_attention(q[0], k[0, :, 21:], v[0, :, 21:])
    torch.testing.assert_close(out[0], beyond)
    torch.testing.assert_close(out[1], F.scaled_dot_product_attention(q[1], k[1, :, :21], v[1, :, :21]))


def test_nothing_comes_from_a_clip_without_kept_frames(device):
    q, k, v, mask, keep = (part.to(device) for part in make(CASES[1], torch.float64))
    keep[0] = False
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = masked_attention(*inputs, mask, keep)
    out.square().sum().backward()
    assert not out[0].any()
    assert out[1].abs().min() > 0
    words = pack_masks(mask).words
    logsumexp = torch.ops.s2d.masked_attention(q, k, v, words, keep)[1]
    assert (logsumexp[0] == -math.inf).all()
    for tensor in inputs:
        assert not tensor.grad[0].any()
        assert tensor.grad[1].any()


@by_dtype
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_attended_has_no_influence(poison, dtype, device, emulated):
    case = dataclasses.replace(CASES[1], heads=1 if emulated else 3)
    q, k, v, mask, keep = (part.to(device) for part in make(case, dtype))
    keep[1] = False
    # Key 30 is attended by row 0 alone, which attends nothing else; key 40 by none; key 5 is of the dropped frame.
    mask[:, :, [30, 40]], mask[:, :, 62] = False, True
    mask[:, 0] = torch.arange(63, device=device) == 30

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
    # A GPU that meets what is not finite starts again, and rounds halves elsewhere.
    near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out, clean, **near)
    others = torch.arange(63) != 30
    torch.testing.assert_close(gradients[0], clean_gradients[0], **near)
    for found, wanted in zip(gradients[1:], clean_gradients[1:], strict=True):
        torch.testing.assert_close(found[:, :, others], wanted[:, :, others], **near)
    for gradient in gradients[1:]:
        assert not gradient[:, :, [40, 5]].any()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_gradients(impl):
    q, k, v, mask, keep = make(Case("gradients", 1, 2, (2, 3), 3, 2, 2), torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: masked_attention(*x, mask, keep, impl=impl), inputs)


def test_refuses_a_second_derivative():
    q, k, v, mask, keep = make(CASES[1])
    out = masked_attention(q.requires_grad_(), k, v, mask, keep)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="s2d::masked_attention: expected one backward pass, got a second deriv"):
        first.sum().backward()


def test_strided_inputs_give_the_same(device):
    q, k, v, mask, keep = (part.to(device) for part in make(CASES[1]))
    wanted = with_gradients("native", mask, keep)(q, k, v)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    apart[0] = torch.stack([q, q], -1)[..., 0]
    inputs = [tensor.requires_grad_() for tensor in apart]
    out = masked_attention(*inputs, mask.transpose(0, 1).contiguous().transpose(0, 1), keep)
    grads = torch.autograd.grad(out, inputs, torch.ones(1, device=device).expand(out.shape))
    for found, expected in zip([out, *grads], wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_no_tensor_is_as_large_as_the_scores(device, emulated):
    heads, size = (1, (8, 16)) if emulated else (4, (32, 64))
    case = Case("memory", 1, 4, size, 100, heads, 16, 0.2)
    q, k, v, mask, keep = (part.to(device) for part in make(case, torch.float16))
    bits, logits = pack_masks(mask), make_logits(case).to(device)
    embed, features = torch.randn(1, 100, 8, device=device), torch.randn(1, 4, 8, *case.size, device=device)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    with torch.profiler.profile(profile_memory=True) as profile:
        masked_attention(*inputs, bits, keep).sum().backward()
        attention_mask(logits, case.size)
        attention_mask_from_features(embed, features)
    memory = "self_cpu_memory_usage" if device == "cpu" else "self_device_memory_usage"
    sizes = [getattr(event, memory) for event in profile.events()]
    scores, largest_input = heads * 100 * k.shape[2], k.numel() * k.element_size()
    if emulated:  # so few keys that the partial results of a GPU take half of what scores would
        scores *= k.element_size()
    assert largest_input <= max(sizes) < scores, "even a byte a score would be more"


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    q, k, v, mask, keep = make(dataclasses.replace(CASES[-1], clips=2, queries=40, heads=3))
    embed, features = torch.randn(2, 40, 48), torch.randn(2, 3, 48, 29, 47)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            words = attention_mask_from_features(embed, features).words
            results.append([words, *with_gradients("native", mask, keep)(q, k, v)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_is_within_the_budget(isa):
    code = (
        "import torch\nfrom tests.ops.test_masked_attention import *\n"
        "for case in CASES[1:]:\n    assert_equals_definition(*make(case))\n"
        "embed, features = torch.randn(2, 13, 48), torch.randn(2, 3, 48, 5, 31)\n"
        "bits = [attention_mask_from_features(embed, features, impl=impl) for impl in ('native', 'reference')]\n"
        "assert torch.equal(bits[0].words, bits[1].words)\n"
    )
    environment = {**os.environ, "S2D_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_autocast_casts_the_attention_but_not_the_signs():
    q, k, v, mask, keep = make(CASES[1])
    embed, features = torch.randn(2, 5, 64), torch.randn(2, 3, 64, 3, 7)
    for impl in ("native", "reference"):
        bits = attention_mask_from_features(embed, features, impl=impl)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = masked_attention(q, k.bfloat16(), v, mask, keep, impl=impl)
            assert torch.equal(attention_mask_from_features(embed, features, impl=impl).words, bits.words)
            assert masked_attention(q.double(), k.double(), v.double(), mask, impl=impl).dtype == torch.float64
        assert out.dtype == torch.bfloat16
    assert torch.equal(
        masked_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, keep),
        torch.ops.s2d.masked_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), pack_masks(mask).words, keep)[0],
    )


def test_registered_as_torch_expects():
    q, k, v, mask, keep = make(CASES[1], torch.float64)
    words = pack_masks(mask).words
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    for given in (keep, None):
        torch.library.opcheck(torch.ops.s2d.masked_attention.default, (*inputs, words, given))
    torch.library.opcheck(torch.ops.s2d.attention_mask.default, (torch.randn(2, 3, 2, 4, 5), 8, 7))
    features = (torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5, 7))
    torch.library.opcheck(torch.ops.s2d.attention_mask_from_features.default, features)


def test_compiles_without_a_break():
    q, k, v, mask, keep = make(CASES[1])
    logits, embed, features = torch.randn(2, 5, 3, 6, 14), torch.randn(2, 5, 8), torch.randn(2, 3, 8, 3, 7)

    def layer(q, k, v):
        first = masked_attention(q, k, v, attention_mask(logits, (3, 7)), keep)
        second = masked_attention(q, k, v, attention_mask_from_features(embed, features))
        return first + second + masked_attention(q, k, v, mask, keep)

    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- the masks ----

EDGES = {
    torch.float32: (-float.fromhex("0x1.7ffffep-23"), False),
    torch.float64: (-float.fromhex("0x1.7ffffffffffffp-52"), False),
    torch.float16: (-(2.0**-11), True),
    torch.bfloat16: (-(2.0**-8), True),
}


@by_dtype
def test_mask_bits_follow_the_rounded_sigmoid(dtype, device):
    edge, attends = EDGES[dtype]
    edge = torch.tensor(edge, dtype=dtype)
    above, below = (torch.nextafter(edge, torch.tensor(to, dtype=dtype)) for to in (1.0, -1.0))
    values = torch.stack([edge, above, below]).tolist()
    logits = torch.tensor([*values, -1.0, -0.0, 0.0, 2.0, math.nan, math.inf, -math.inf], dtype=dtype).to(device)
    wanted = [attends, True, False, False, True, True, True, True, True, False]
    one_each = logits.view(1, 10, 1, 1, 1)
    for impl in ("native", "reference"):
        # Interpolation makes NaN of what is infinite, and NaN attends.
        found = unpack_masks(attention_mask(one_each, (1, 1), impl=impl)).flatten().tolist()
        assert found == [*wanted[:-1], True]
    # One channel of ones: the logits are the embeddings.
    features = torch.ones(1, 1, 1, 2, 3, dtype=dtype, device=device)
    bits = unpack_masks(attention_mask_from_features(logits.view(1, 10, 1), features))
    assert torch.equal(bits.cpu(), torch.tensor(wanted)[None, :, None].expand(1, 10, 6))


def differing(found, wanted, logits, size):
    """Bits that differ although the exact logit is not within rounding of the threshold."""
    exact = F.interpolate(logits.double().flatten(0, 1), size, mode="bilinear").flatten(1)
    far = (exact - EDGES[logits.dtype][0]).abs() > 8 * torch.finfo(logits.dtype).eps * logits.double().abs().max()
    return (found != wanted).flatten(0, 1) & far


@by_dtype
@pytest.mark.parametrize("size", [(4, 6), (8, 12), (3, 5), (17, 9), (1, 1)])
def test_mask_equals_the_definition(size, dtype, device):
    generator = torch.Generator().manual_seed(0)
    logits = (0.1 * torch.randn(2, 3, 2, 8, 12, generator=generator)).to(dtype).to(device)
    found, wanted = (unpack_masks(attention_mask(logits, size, impl=impl)) for impl in ("native", "reference"))
    assert found.shape == wanted.shape == (2, 3, 2 * size[0] * size[1])
    assert not differing(found, wanted, logits, size).any()
    if device == "cpu" and dtype in (torch.float32, torch.float64):
        assert torch.equal(found, wanted)
    turned = logits.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(unpack_masks(attention_mask(turned, size)), found)


def test_mask_equals_the_definition_on_real_shapes(test_data, device, emulated):
    paths = sorted((test_data / "data/eval/davis_jf/pred/libby").glob("*.png"))[: 2 if emulated else 8]
    masks = torch.stack([torch.from_numpy(np.array(Image.open(path)) > 0) for path in paths]).float()
    # What a network that knows the masks would say at a quarter of the resolution: the share of pixels that are set.
    logits = F.adaptive_avg_pool2d(masks[None], (96, 160)).clamp(1e-4, 1 - 1e-4).logit()[None].to(device)
    assert 0.005 < (logits > 0).float().mean() < 0.5
    for size in ((48, 80), (24, 40), (12, 20)):
        found, wanted = (unpack_masks(attention_mask(logits, size, impl=impl)) for impl in ("native", "reference"))
        assert torch.equal(found, wanted)


@by_dtype
@pytest.mark.parametrize(("queries", "width"), [(1, 13), (6, 16), (13, 13)])
def test_mask_from_features_equals_the_definition(queries, width, dtype, device):
    generator = torch.Generator().manual_seed(0)
    embed = torch.randn(2, queries, 40, generator=generator).to(dtype).to(device)
    features = torch.randn(2, 3, 40, 5, width, generator=generator).to(dtype).to(device)
    found, wanted = (
        unpack_masks(attention_mask_from_features(embed, features, impl=impl)) for impl in ("native", "reference")
    )
    logits = embed.double() @ features.double().transpose(1, 2).flatten(2)
    far = (logits - EDGES[dtype][0]).abs() > 8 * torch.finfo(dtype).eps * logits.abs().max()
    assert far.float().mean() > 0.7
    assert not ((found != wanted) & far).any()


def test_mask_is_resized_bilinearly_frame_by_frame(device):
    logits = torch.randn(2, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0)).to(device)
    bits = attention_mask(logits, (4, 6))
    assert bits.shape == (2, 3, 4 * 4 * 6)
    means = logits.unflatten(-1, (6, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    assert torch.equal(unpack_masks(bits), (means > 0).flatten(2))


def test_masks_from_features_are_those_of_the_product(device):
    generator = torch.Generator().manual_seed(0)
    embed = torch.randn(2, 5, 8, generator=generator).to(device)
    features = torch.randn(2, 3, 8, 16, 24, generator=generator).to(device)
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
    with pytest.raises(ValueError, match=r"expected .* a size of at least one pixel, got .* and \(0, 2\)"):
        attention_mask(torch.zeros(1, 1, 1, 2, 2), (0, 2))
    with pytest.raises(TypeError, match=r"one floating point dtype, got torch\.int32"):
        attention_mask(torch.zeros(1, 1, 1, 2, 2).int(), (2, 2))
    with pytest.raises(ValueError, match="expected embed"):
        attention_mask_from_features(torch.zeros(1, 2, 3), torch.zeros(1, 1, 4, 2, 2))
