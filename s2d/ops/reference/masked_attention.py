"""Definition of the ``masked_attention`` room in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_mask(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """bool ``[B, Q, T * h * w]``: the resized logits that are not forbidden."""
    resized = F.interpolate(mask_logits.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    # Sigmoid in the logits' own dtype: its rounding decides which small negative logits still count as 0.5.
    return ~(resized.sigmoid() < 0.5).view(*mask_logits.shape[:2], -1)


def attention_mask_from_features(embed: Tensor, features: Tensor) -> Tensor:
    """bool ``[B, Q, T * h * w]``: the product's signs, by the same rule."""
    logits = embed @ features.transpose(1, 2).flatten(2)
    return ~(logits.sigmoid() < 0.5)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, frame_keep: Tensor | None) -> Tensor:
    allowed = mask
    kept = torch.ones_like(mask[:, :1])
    if frame_keep is not None:
        kept = frame_keep.repeat_interleave(k.shape[2] // frame_keep.shape[1], dim=1)[:, None]
        allowed = mask & kept
    # A row without a key falls back to all keys of the kept frames; where none is kept it stays empty.
    allowed = torch.where(allowed.any(-1, keepdim=True), allowed, kept)[:, None]
    empty = None if frame_keep is None else ~frame_keep.any(1)[:, None, None, None]
    q = q * q.shape[-1] ** -0.5
    if torch.isfinite(k.detach().sum(dtype=torch.float32) + v.detach().sum(dtype=torch.float32)):
        return _softmax(q @ k.transpose(-2, -1), allowed, empty) @ v
    # 0 * NaN is NaN: what a row does not attend to must be selected away before any product, row by row.
    rows = []
    for row in range(q.shape[2]):
        chosen = allowed[:, :, row, :, None]
        scores = (torch.where(chosen, k, 0) * q[:, :, row, None]).sum(-1)
        probabilities = _softmax(scores[:, :, None], allowed[:, :, row, None], empty)[:, :, 0, :, None]
        rows.append((torch.where(chosen, v, 0) * probabilities).sum(-2))
    return torch.stack(rows, dim=2)


def _softmax(scores: Tensor, allowed: Tensor, empty: Tensor | None) -> Tensor:
    """Softmax over the allowed keys; zeros, without a gradient, in clips that have none."""
    scores = scores.masked_fill(~allowed, -torch.inf)
    if empty is None:
        return scores.softmax(-1)
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
