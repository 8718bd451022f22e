"""masked_attention against torch and the official model's way.

Clips of 384 x 640 in the official model: 100 queries, 8 heads of 32 channels, masks predicted at stride 4. Masks are
soft shapes with ragged borders. The official way: the logits are resized, their sigmoids compared and repeated over the
heads for `torch.nn.MultiheadAttention`. torch's attention gets the mask ready made, with rows that attend to nothing
opened, unless the pair says that it is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.harness import Comparison, may_refuse
from s2d.nn import MaskedCrossAttention
from s2d.ops import attention_mask, attention_mask_from_features, masked_attention, unpack_masks
from s2d.ops.reference import masked_attention as reference
from s2d.testing.cases.masked_attention import OFFICIAL, Case, make, make_logits

FRAMES, STRIDES, DENSITIES = (3, 8, 32), (32, 16, 8), (0.01, 0.03, 0.12, 0.3, 1.0)
CORE, BACKWARD, BOTH = "core, forward", "core, backward", "mask and core, forward"
SDPA, OFFICIAL_WAY = "SDPA", "official mask, SDPA"
GOALS = {CORE: {8: 2.5, 16: 1.3, 32: 1.0}, BACKWARD: {8: 1.5, 16: 1.5, 32: 1.5}, BOTH: {8: 6.0, 16: 6.0, 32: 6.0}}


def case_of(frames: int, stride: int, density: float = OFFICIAL.density) -> Case:
    name = f"T={frames}, stride {stride}, {density:.0%}"
    return dataclasses.replace(OFFICIAL, name=name, frames=frames, size=(384 // stride, 640 // stride), density=density)


@torch.no_grad()
def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max())) for x, y in zip(a, b, strict=True))


def official_mask(logits: Tensor, size: tuple[int, int], heads: int) -> Tensor:
    """Forbidden keys, bool ``[B * heads, Q, K]``: a row that forbids all of them forbids none."""
    resized = F.interpolate(logits.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    resized = resized.view(*logits.shape[:3], *size)
    forbidden = (resized.sigmoid().flatten(2)[:, None].repeat(1, heads, 1, 1).flatten(0, 1) < 0.5).bool()
    forbidden[torch.where(forbidden.sum(-1) == forbidden.shape[-1])] = False
    return forbidden


class Problem:
    """One case: its tensors as the model has them (heads side by side), masks at stride 4."""

    def __init__(self, case: Case, stride: int) -> None:
        self.case, self.stride = case, stride
        inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in make(case)[:3]]
        self.q, self.k, self.v = (x.requires_grad_() for x in inputs)
        self.logits = make_logits(case, stride // 4)
        self.bits = attention_mask(self.logits, case.size)
        self.allowed = ~official_mask(self.logits, case.size, 1)[:, None]
        self.grad = torch.randn(self.q.shape)

    def pair(
        self,
        op: str,
        ours: Callable[[], list[Tensor]],
        other: Callable[[], list[Tensor]],
        peer: str,
        seconds: float,
        agree: Callable[[list[Tensor], list[Tensor]], bool] = close,
    ) -> Comparison:
        goal = GOALS.get(op, {}).get(self.stride) if peer in (SDPA, OFFICIAL_WAY) else None
        goal = goal if self.case.density == OFFICIAL.density else None
        case = self.case
        at = {"frames": case.frames, "stride": self.stride, "density": case.density}
        moved, flops = {CORE: (1, 1), BACKWARD: (2, 2.5)}.get(op, (None, None))
        # What the masks leave out is neither needed nor counted.
        share = 4 * case.channels * case.heads * float(self.allowed.sum())
        return Comparison(
            op,
            ours,
            other,
            peer,
            agree,
            case.name,
            goal,
            at=at,
            bytes=moved and moved * 2 * (self.q.nbytes + self.k.nbytes) + self.bits.words.nbytes,
            flops=flops and int(flops * share),
            seconds=seconds,
            minimum_runs=5,
        )

    @torch.no_grad()
    def forward(self) -> list[Tensor]:
        return [masked_attention(self.q, self.k, self.v, self.bits)]

    @torch.no_grad()
    def sdpa(self) -> list[Tensor]:
        return [F.scaled_dot_product_attention(self.q, self.k, self.v, self.allowed)]

    def core(self, seconds: float) -> list[Comparison]:
        inputs = (self.q, self.k, self.v)
        mine = masked_attention(*inputs, self.bits)
        theirs = F.scaled_dot_product_attention(*inputs, self.allowed)

        def gradients(out: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad(out, inputs, self.grad, retain_graph=True))

        return [
            self.pair(CORE, self.forward, self.sdpa, SDPA, seconds),
            self.pair(BACKWARD, lambda: gradients(mine), lambda: gradients(theirs), SDPA, seconds),
        ]

    @torch.no_grad()
    def with_masks(self, seconds: float) -> list[Comparison]:
        case = self.case

        def mine() -> list[Tensor]:
            return [masked_attention(self.q, self.k, self.v, attention_mask(self.logits, case.size))]

        def theirs() -> list[Tensor]:
            allowed = ~official_mask(self.logits, case.size, case.heads).unflatten(0, (-1, case.heads))
            return [F.scaled_dot_product_attention(self.q, self.k, self.v, allowed)]

        return [self.pair(BOTH, mine, theirs, OFFICIAL_WAY, seconds)]

    def layer(self, seconds: float) -> list[Comparison]:
        """Projections included, with masks from logits."""
        case, channels = self.case, self.case.heads * self.case.channels
        theirs = nn.MultiheadAttention(channels, case.heads, batch_first=True)
        ours = MaskedCrossAttention(channels, case.heads)
        ours.load_state_dict(theirs.state_dict())
        tokens = [x.detach().transpose(1, 2).flatten(2).requires_grad_() for x in (self.q, self.k, self.v)]

        def mine() -> Tensor:
            return ours(*tokens, attention_mask(self.logits, case.size))

        def official() -> Tensor:
            forbidden = official_mask(self.logits, case.size, case.heads)
            return theirs(*tokens, attn_mask=forbidden, need_weights=False)[0]

        def once(call: Callable[[], Tensor]) -> list[Tensor]:
            with torch.no_grad():
                return [call()]

        def twice(call: Callable[[], Tensor]) -> list[Tensor]:
            out = call()
            return [out, *torch.autograd.grad(out.sum(), tokens)]

        peer = "official: MultiheadAttention"
        return [
            self.pair("mask and layer, forward", lambda: once(mine), lambda: once(official), peer, seconds),
            self.pair("mask and layer, both ways", lambda: twice(mine), lambda: twice(official), peer, seconds),
        ]

    @torch.no_grad()
    def masks(self, seconds: float) -> list[Comparison]:
        """Bits alone: from logits, and from the factors of logits, which the official way multiplies at stride 4."""
        case, channels = self.case, 256
        embed = torch.randn(case.clips, case.queries, channels)
        features = torch.randn(case.clips, case.frames, channels, 96, 160)
        level = F.interpolate(features.flatten(0, 1), case.size, mode="bilinear").unflatten(0, features.shape[:2])

        def products() -> list[Tensor]:
            logits = torch.einsum("bqc,btchw->bqthw", embed, features)
            return [official_mask(logits, case.size, case.heads)]

        def from_logits() -> list[Tensor]:
            return [attention_mask(self.logits, case.size).words]

        def from_features() -> list[Tensor]:
            return [attention_mask_from_features(embed, level).words]

        def agree(a: list[Tensor], b: list[Tensor]) -> bool:
            bits = unpack_masks(dataclasses.replace(self.bits, words=a[0]))
            opened = bits | ~bits.any(-1, keepdim=True)
            return float((opened.repeat_interleave(case.heads, 0) == b[0]).float().mean()) < 1e-5

        official = "official"
        return [
            self.pair(
                "mask from logits",
                from_logits,
                lambda: [official_mask(self.logits, case.size, case.heads)],
                official,
                seconds,
                agree,
            ),
            self.pair("mask from features", from_features, products, official, seconds, agree),
        ]

    def other_peers(self, seconds: float) -> list[Comparison]:
        allowed = self.allowed[:, 0]
        inputs = [x.detach() for x in (self.q, self.k, self.v)]
        peers: dict[str, Callable[[], Tensor]] = {}
        for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

            def call(backend: SDPBackend = backend) -> Tensor:
                with sdpa_kernel(backend):
                    return self.sdpa()[0]

            peers[f"SDPA, {backend.name.lower().removesuffix('_attention')}"] = call

        def attends(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return allowed[b, query, key]

        blocks = create_block_mask(attends, len(allowed), None, *allowed.shape[1:], device="cpu")
        flex, compiled = torch.compile(flex_attention), torch.compile(reference.attend)
        peers["FlexAttention, block mask ready"] = lambda: flex(*inputs, block_mask=blocks)
        peers["torch.compile of the definition"] = lambda: compiled(*inputs, allowed, None)
        pairs = [
            self.pair(CORE, self.forward, may_refuse(lambda peer=peer: [peer()]), name, seconds)
            for name, peer in peers.items()
        ]

        def flex_backward() -> list[Tensor]:
            inputs = (self.q, self.k, self.v)
            return list(torch.autograd.grad(flex(*inputs, block_mask=blocks), inputs, self.grad))

        def backward() -> list[Tensor]:
            inputs = (self.q, self.k, self.v)
            return list(torch.autograd.grad(masked_attention(*inputs, self.bits), inputs, self.grad))

        return [
            *pairs,
            self.pair("core, both ways", backward, may_refuse(flex_backward), "FlexAttention", seconds),
        ]


def measure(quick: bool) -> Iterator[Comparison]:
    torch.manual_seed(0)
    if quick:
        problem = Problem(case_of(3, 32), 32)
        yield from [*problem.core(0.2), *problem.with_masks(0.2), *problem.layer(0.2), *problem.masks(0.2)]
        return
    one_thread = torch.get_num_threads() == 1
    for frames in FRAMES if one_thread else FRAMES[:1]:
        for stride in STRIDES:
            problem = Problem(case_of(frames, stride), stride)
            yield from problem.core(0.6)
            yield from problem.with_masks(0.6)
            if frames == 3:
                yield from problem.layer(0.6)
                yield from problem.masks(0.6)
            if (frames, stride) == (3, 8) and one_thread:
                yield from problem.other_peers(0.6)
    if one_thread:
        for density in DENSITIES:
            if density != OFFICIAL.density:
                yield from Problem(case_of(3, 8, density), 8).core(0.6)
