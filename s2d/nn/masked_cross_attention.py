"""Masked cross-attention as a module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d.ops import BitMasks, masked_attention


class MaskedCrossAttention(nn.Module):
    """Multi-head cross-attention inside the queries' masks; the state dict is that of `torch.nn.MultiheadAttention`.

    Args:
        embed_dim: channels C; a multiple of ``num_heads``.
        num_heads: number of heads.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"expected embed_dim to be a multiple of num_heads = {num_heads}, got {embed_dim}")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: BitMasks | Tensor, frame_keep: Tensor | None = None
    ) -> Tensor:
        """Attend; ``mask`` and ``frame_keep`` as in `s2d.ops.masked_attention`.

        Args:
            query: ``[B, Q, C]``.
            key: ``[B, K, C]``, frame by frame.
            value: ``[B, K, C]``.

        Returns:
            ``[B, Q, C]``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        attended = masked_attention(q, k, v, mask, frame_keep)
        return self.out_proj(attended.transpose(1, 2).flatten(2))
