"""masked_attention on the GPU: against the official path, every backend of torch's attention, and FlexAttention."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.entry import Entry, Peer, compiled
from s2d.ops import BitMasks, attention_mask, attention_mask_from_features, masked_attention, pack_masks, unpack_masks
from s2d.ops.reference import masked_attention as reference
from s2d.testing.cases.masked_attention import CASES, Case, make
from s2d.testing.numeric import assert_within_budget

GOAL = Case("T=32, stride 8", 1, 32, (48, 80), 100, 8, 32, 0.12)
FULL = [
    (GOAL, torch.bfloat16),
    (GOAL, torch.float32),
    (Case("T=32, stride 16", 1, 32, (24, 40), 100, 8, 32, 0.12), torch.bfloat16),
    (Case("T=3, stride 8", 1, 3, (48, 80), 100, 8, 32, 0.12), torch.bfloat16),
    (Case("T=3, stride 32", 1, 3, (12, 20), 100, 8, 32, 0.12), torch.bfloat16),
]
TINY = [(CASES[1], torch.float32)]
SMALL = [(case, dtype) for case in CASES for dtype in (torch.float32, torch.bfloat16, torch.float16)] + [
    (Case("two blocks", 1, 2, (5, 13), 130, 1, 40), torch.bfloat16)
]

FORWARD_US, BACKWARD_US = 60.0, 150.0

# The flash backend takes no mask.
BACKENDS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}


def attended(bits: BitMasks, keep: Tensor) -> Tensor:
    """bool ``[B, Q, K]`` after frames are dropped and rows have fallen back: what a peer takes as its mask."""
    kept = keep.repeat_interleave(bits.width // keep.shape[1], 1)[:, None]
    allowed = unpack_masks(bits) & kept
    return torch.where(allowed.any(-1, keepdim=True), allowed, kept)


def official(q: Tensor, k: Tensor, v: Tensor, forbidden: Tensor) -> Tensor:
    """What `torch.nn.MultiheadAttention` computes of projected heads where weights are asked for, as by default."""
    bias = torch.zeros_like(forbidden, dtype=q.dtype).masked_fill_(forbidden, -torch.inf).flatten(0, 1)
    scores = torch.baddbmm(bias, q.flatten(0, 1) / math.sqrt(q.shape[-1]), k.flatten(0, 1).transpose(1, 2))
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)


def with_backend(backend: SDPBackend):
    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return run


@cache
def works(name: str, keys: int, channels: int, dtype: torch.dtype) -> bool:
    """Whether a backend takes a mask at this size and gives finite gradients: cuDNN's did not at K % 128 == 64."""
    if not torch.cuda.is_available():
        return name == "math"
    q, k = (torch.randn(1, 1, n, channels, device="cuda", dtype=dtype, requires_grad=True) for n in (100, keys))
    mask = torch.rand(1, 1, 100, keys, device="cuda") < 0.5
    try:
        with_backend(BACKENDS[name])(q, k, k, mask).sum().backward()
    except RuntimeError:  # no kernel of this backend takes it
        return False
    return bool(q.grad.isfinite().all() and k.grad.isfinite().all())


def with_gradients(call):
    def run(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, *mask) -> tuple[Tensor, ...]:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = call(*inputs, *mask)
        return out.detach(), *torch.autograd.grad(out, inputs, grad)

    return run


def close(ours: Tensor | tuple, peer: Tensor | tuple) -> bool:
    """As far as the dtype goes: the exact check is that against float64."""
    if isinstance(ours, Tensor):
        ours, peer = (ours,), (peer,)
    share = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}[ours[0].dtype]
    return all(bool((a - b).abs().max() <= share * b.abs().max()) for a, b in zip(ours, peer, strict=True))


def right(result: Tensor | tuple, q: Tensor, k: Tensor, v: Tensor, *others) -> bool:
    """Within a small multiple of the error that torch itself makes against float64."""
    *grad, bits, keep = others
    results = (result,) if isinstance(result, Tensor) else result
    mask = unpack_masks(bits)
    for part, ours in enumerate(results):

        def definition(q, k, v, *grad, part=part):
            if not grad:
                return reference.attend(q, k, v, mask, keep)
            return with_gradients(lambda *x: reference.attend(*x, mask, keep))(q, k, v, *grad)[part]

        assert_within_budget(ours, definition, q, k, v, *grad, multiple=4)
    return True


def entries(case: Case, dtype: torch.dtype) -> list[Entry]:
    frames, (height, width), queries, heads = case.frames, case.size, case.queries, case.heads
    keys, rows = frames * height * width, case.clips * heads * queries
    name = str(dtype).removeprefix("torch.")
    text = f"{name}, B={case.clips}, h={heads}, Q={queries}, T={frames}, {height}x{width}, D={case.channels}"

    def start(device: str, seed: int) -> tuple:
        q, k, v, mask, keep = make(case, dtype, seed)
        keep[:, 0] = True  # a dropped frame would be less to do
        return q.to(device), k.to(device), v.to(device), pack_masks(mask.to(device)), keep.to(device)

    def start_with_grad(device: str, seed: int) -> tuple:
        q, k, v, bits, keep = start(device, seed)
        return q, k, v, torch.randn(q.shape, generator=torch.Generator().manual_seed(seed)).to(q), bits, keep

    def saved(device: str, seed: int) -> tuple:
        q, k, v, grad, bits, keep = start_with_grad(device, seed)
        return grad, q, k, v, bits, keep, *torch.ops.s2d.masked_attention(q, k, v, bits.words, keep)

    def backward(grad, q, k, v, bits, keep, out, logsumexp):
        return torch.ops.s2d.masked_attention_backward(grad, q, k, v, bits.words, keep, out, logsumexp)

    def backward_right(result, grad, q, k, v, bits, keep, out, logsumexp) -> bool:
        return right((out, *result), q, k, v, grad, bits, keep)

    def dense(*inputs) -> tuple:
        *tensors, bits, keep = inputs
        return *tensors, attended(bits, keep)[:, None]

    def forbidden(*inputs) -> tuple:
        *tensors, mask = dense(*inputs)
        return *tensors, ~mask.expand(-1, heads, -1, -1)

    def blocks(*inputs) -> tuple:
        *tensors, mask = dense(*inputs)
        made = create_block_mask(
            lambda b, h, q, k: mask[b, 0, q, k], case.clips, None, queries, keys, device=mask.device.type
        )
        return *tensors, made

    def flex(q, k, v, made):
        return flex_attention(q, k, v, block_mask=made)

    def peers(wrap) -> dict[str, Peer]:
        listed = {"official MultiheadAttention": Peer(wrap(official), close, forbidden)}
        if min(queries, keys) > 0:
            for backend, kind in BACKENDS.items():
                if works(backend, keys, case.channels, dtype):
                    listed[f"SDPA {backend}"] = Peer(wrap(with_backend(kind)), close, dense)
            if torch.cuda.is_available():  # without a GPU it is compiled at each call
                listed["FlexAttention"] = Peer(wrap(compiled(flex)), close, blocks)
        return listed

    element, words = torch.finfo(dtype).bits // 8, 8 * case.clips * queries * ((keys + 63) // 64)
    rows_bytes, keys_bytes = element * rows * case.channels, element * case.clips * heads * keys * case.channels
    flops = 4 * rows * keys * case.channels
    goal = case is GOAL and dtype == torch.bfloat16
    with_grad = with_gradients(masked_attention)
    listed = [
        Entry(
            "masked_attention",
            text,
            start,
            masked_attention,
            right,
            bytes=2 * rows_bytes + 2 * keys_bytes + words,
            operations=flops,
            unit="flop",
            peers=peers(lambda call: call),
            goal_us=FORWARD_US if goal else None,
        ),
        Entry(
            "masked_attention, backward",
            text,
            saved,
            backward,
            backward_right,
            bytes=4 * rows_bytes + 4 * keys_bytes + words,
            operations=5 * flops // 2,
            unit="flop",
            goal_us=BACKWARD_US if goal else None,
        ),
        Entry(
            "masked_attention, forward and backward",
            text,
            start_with_grad,
            with_grad,
            right,
            bytes=6 * rows_bytes + 6 * keys_bytes + 2 * words,
            operations=7 * flops // 2,
            unit="flop",
            peers=peers(with_gradients),
            goal_us=FORWARD_US + BACKWARD_US if goal else None,
        ),
    ]
    return listed + mask_entries(case, dtype, text) if queries else listed


def mask_entries(case: Case, dtype: torch.dtype, text: str) -> list[Entry]:
    """The masks: from logits of twice the size of the level, and from 256 channels at the level."""
    frames, (height, width), queries, channels = case.frames, case.size, case.queries, 256
    keys = frames * height * width
    element, words = torch.finfo(dtype).bits // 8, 8 * case.clips * queries * ((keys + 63) // 64)

    def normal(device: str, seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)

    def logits(device: str, seed: int) -> tuple:
        return (normal(device, seed, case.clips, queries, frames, 2 * height, 2 * width),)

    def factors(device: str, seed: int) -> tuple:
        embed = normal(device, seed, case.clips, queries, channels)
        return embed, normal(device, seed + 1, case.clips, frames, channels, height, width)

    def resize(x: Tensor) -> Tensor:
        """The official mask: true is forbidden, repeated for each head."""
        resized = F.interpolate(x.flatten(0, 1), case.size, mode="bilinear", align_corners=False)
        resized = resized.unflatten(0, x.shape[:2]).flatten(2)
        return (resized.sigmoid() < 0.5)[:, None].expand(-1, case.heads, -1, -1).flatten(0, 1).contiguous()

    def product(embed: Tensor, features: Tensor) -> Tensor:
        return (embed @ features.transpose(1, 2).flatten(2)).sigmoid() < 0.5

    def agree(ours: BitMasks, forbidden: Tensor) -> bool:
        """But for logits that rounding carries over the threshold."""
        share = 1e-5 if dtype == torch.float32 else 1e-2
        other = forbidden.unflatten(0, (case.clips, -1))[:, 0] if forbidden.shape[0] != case.clips else forbidden
        return bool((unpack_masks(ours) == other).double().mean() <= share)

    return [
        Entry(
            "attention_mask",
            text,
            logits,
            lambda x: attention_mask(x, case.size),
            lambda result, x: agree(result, resize(x)),
            bytes=element * 4 * case.clips * queries * keys + words,
            peers={
                "official": Peer(resize, agree),
                "torch.compile of it": Peer(compiled(resize), agree),
            },
        ),
        Entry(
            "attention_mask_from_features",
            text,
            factors,
            attention_mask_from_features,
            lambda result, *x: agree(result, product(*x)),
            bytes=element * channels * case.clips * (keys + queries) + words,
            operations=2 * case.clips * queries * keys * channels,
            unit="flop",
            peers={
                "product and threshold": Peer(product, agree),
                "torch.compile of it": Peer(compiled(product), agree),
            },
        ),
    ]
