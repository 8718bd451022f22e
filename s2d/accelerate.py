"""Other people's Mask2Former on the fused operators: their modules keep their weights, names and hooks."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from s2d.nn import MaskedCrossAttention, MSDeformAttn


class _MaskedAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` where it is called with a bool mask that all heads share."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        masked = attn_mask is not None and attn_mask.dtype == torch.bool and key_padding_mask is None
        if not masked or query.dim() != 3 or (self.training and self.dropout):
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, **others)
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))[:, 0]
        allowed = ~attn_mask.expand(query.shape[1], -1, -1)
        query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
        return MaskedCrossAttention.forward(self, query, key, value, allowed).transpose(0, 1), None


class _HuggingFaceDeformable(nn.Module):
    """``Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention`` of transformers."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
        level_start_index: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        query = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        attended = MSDeformAttn.forward(
            self, query, reference_points, encoder_hidden_states, spatial_shapes_list, level_start_index, attention_mask
        )
        if not output_attentions:
            return attended, None
        weights = self.attention_weights(query).unflatten(-1, (self.n_heads, -1)).softmax(-1)
        return attended, weights.unflatten(-1, (self.n_levels, self.n_points))


class _OfficialDeformable(nn.Module):
    """``MSDeformAttn`` of Deformable DETR and of Mask2Former."""

    forward = MSDeformAttn.forward


_DEFORMABLE = {
    "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": _HuggingFaceDeformable,
    "MSDeformAttn": _OfficialDeformable,
}
# Layers that repeat one mask over the heads, and the name of their cross-attention.
_CROSS_ATTENTION = {"Mask2FormerMaskedAttentionDecoderLayer": "cross_attn", "CrossAttentionLayer": "multihead_attn"}


@dataclass(frozen=True)
class AccelerateReport:
    """What `accelerate` changed; printed, a few lines.

    Attributes:
        replaced: names in the model of the modules that run on our operators now, with the class each had.
        left: names of those that were left alone, with the reason.
        milliseconds: medians of a call before and after; None: nothing was timed.
        speedup: median over neighbouring calls of time before / time after; None: nothing was timed.
    """

    replaced: dict[str, str]
    left: dict[str, str]
    milliseconds: tuple[float, float] | None = None
    speedup: float | None = None
    _changes: list[tuple[nn.Module, type, type]] = field(default_factory=list, repr=False)

    def restore(self) -> None:
        """Give every replaced module its own code back."""
        for module, before, _ in self._changes:
            module.__class__ = before

    def _apply(self) -> None:
        for module, _, after in self._changes:
            module.__class__ = after

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {kind}" for kind, number in Counter(self.replaced.values()).items())
        lines = [f"replaced {counts or 'nothing'}", *(f"left {name}: {reason}" for name, reason in self.left.items())]
        if self.milliseconds:
            before, after = self.milliseconds
            lines.append(f"{before:.4g} ms before, {after:.4g} ms after: {self.speedup:.2f} times as fast")
        return "\n".join(lines)


def accelerate(model: nn.Module, example: Mapping[str, Any] | None = None, *, runs: int = 5) -> AccelerateReport:
    """Run the attention of a Mask2Former on our operators, in place.

    Replaced wherever they are in the model:

    - multi-scale deformable attention: that of transformers' Mask2Former, and ``MSDeformAttn`` of Deformable DETR and
      of the official Mask2Former;
    - masked cross-attention: the `nn.MultiheadAttention` in transformers' ``Mask2FormerMaskedAttentionDecoderLayer``
      and in ``CrossAttentionLayer`` of the official Mask2Former and what was built on it.

    Only the code of these modules changes: parameters, names, state dict, hooks and everything around them stay, and
    outputs and gradients are equal within rounding. The weights of the cross-attention are not made, so that None is
    returned for them; a query whose mask forbids every key attends to all, as Mask2Former means it, where
    `nn.MultiheadAttention` gives NaN. With dropout inside the attention (in training) or a mask that is not bool, a
    module runs its original code.

    Args:
        model: any tree of modules.
        example: keyword arguments of a call; if given, the model is timed on it before and after, in turn, without
            gradients.
        runs: pairs of timed calls, at least 1.

    Returns:
        `AccelerateReport`, which says what was replaced and how much faster the example runs; its method ``restore``
        undoes the change.
    """
    replaced, left, changes = {}, {}, []
    for name, module in model.named_modules():
        kind = type(module).__name__
        child = getattr(module, _CROSS_ATTENTION.get(kind, ""), None)
        if isinstance(child, nn.MultiheadAttention) and not isinstance(child, _MaskedAttention):
            inner = f"{name}.{_CROSS_ATTENTION[kind]}".lstrip(".")
            if reason := _unfit(child):
                left[inner] = reason
            else:
                replaced[inner] = type(child).__name__
                changes.append((child, type(child), _MaskedAttention))
        elif kind in _DEFORMABLE and not isinstance(module, MSDeformAttn):
            replaced[name] = kind
            changes.append((module, type(module), _DEFORMABLE[kind]))
    report = AccelerateReport(replaced, left, _changes=changes)
    report._apply()
    return report if example is None else _timed(report, model, example, runs)


def _unfit(attention: nn.MultiheadAttention) -> str | None:
    if attention.batch_first:
        return "it takes the batch first, where these layers give the queries first"
    if not attention._qkv_same_embed_dim or attention.in_proj_bias is None:
        return "its projections are separate or have no bias"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds keys of its own"
    return None


@torch.no_grad()
def _timed(report: AccelerateReport, model: nn.Module, example: Mapping[str, Any], runs: int) -> AccelerateReport:
    def seconds() -> float:
        start = time.perf_counter()
        model(**example)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    before, after = [], []
    seconds()
    for _ in range(runs):
        after.append(seconds())
        report.restore()
        before.append(seconds())
        report._apply()
    speedup = statistics.median(b / a for b, a in zip(before, after, strict=True))
    middle = (statistics.median(before) * 1e3, statistics.median(after) * 1e3)
    return AccelerateReport(report.replaced, report.left, middle, speedup, report._changes)
