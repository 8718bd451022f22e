"""The transformer decoder: queries that attend to a clip inside the masks they predict."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d.models.config import ModelConfig
from s2d.models.position import sine_3d
from s2d.nn import MaskedCrossAttention
from s2d.ops import BitMasks, attention_mask_from_features


class CrossAttentionLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.multihead_attn = MaskedCrossAttention(config.hidden_dim, config.nheads)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.xavier_uniform_(self.multihead_attn.out_proj.weight)

    def forward(
        self, queries: Tensor, place: Tensor, keys: Tensor, values: Tensor, mask: BitMasks, frame_keep: Tensor | None
    ) -> Tensor:
        attended = self.multihead_attn(queries + place, keys, values, mask, frame_keep)
        return self.norm(queries + self.dropout(attended))


class SelfAttentionLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(config.hidden_dim, config.nheads, config.dropout, batch_first=True)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(self, queries: Tensor, place: Tensor) -> Tensor:
        placed = queries + place
        attended, _ = self.self_attn(placed, placed, queries, need_weights=False)
        return self.norm(queries + self.dropout(attended))


class FeedForwardLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_dim, config.decoder_ffn)
        self.linear2 = nn.Linear(config.decoder_ffn, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, queries: Tensor) -> Tensor:
        inner = self.dropout(F.relu(self.linear1(queries)))
        return self.norm(queries + self.dropout(self.linear2(inner)))


class _MLP(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, inputs), nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class TransformerDecoder(nn.Module):
    """Queries to class logits and mask logits, once before the first layer and once after each.

    Layer i attends to level i modulo the number of levels, inside the masks predicted just before it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers, channels = range(config.decoder_layers), config.hidden_dim
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(config) for _ in layers)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(config) for _ in layers)
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(config) for _ in layers)
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(config.num_queries, channels)
        self.query_embed = nn.Embedding(config.num_queries, channels)
        self.level_embed = nn.Embedding(config.num_feature_levels, channels)
        self.class_embed = nn.Linear(channels, config.num_classes + 1)
        self.mask_embed = _MLP(channels, config.mask_dim)

    def forward(
        self, mask_features: Tensor, levels: list[Tensor], frame_keep: Tensor | None, *, every_head: bool
    ) -> list[dict[str, Tensor]]:
        """Predict.

        Args:
            mask_features: ``[B, T, C, H, W]``.
            levels: ``[B, T, hidden_dim, h, w]`` each, from stride 32 upwards.
            frame_keep: bool ``[B, T]``: frames whose keys may be attended to; None: all.
            every_head: whether all heads are asked for, or only the last.

        Returns:
            ``pred_logits`` ``[B, Q, classes + 1]`` and ``pred_masks`` ``[B, Q, T, H, W]`` of each head, in their order.
        """
        heads = self.decode(mask_features, levels, frame_keep)
        if not every_head:
            heads = heads[-1:]
        clips, frames = mask_features.shape[:2]
        # One product serves the masks of all heads, forwards and backwards.
        embeds = torch.cat([embed for _, embed in heads], dim=1)
        masks = embeds @ mask_features.transpose(1, 2).flatten(2)
        masks = masks.view(clips, len(heads), -1, frames, *mask_features.shape[-2:])
        return [
            {"pred_logits": self.class_embed(state), "pred_masks": masks[:, index]}
            for index, (state, _) in enumerate(heads)
        ]

    def decode(
        self, mask_features: Tensor, levels: list[Tensor], frame_keep: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """States ``[B, Q, hidden_dim]`` and mask embeddings ``[B, Q, C]`` at every head; arguments as for `forward`.

        The products of the embeddings with the mask features are the mask logits.
        """
        layers = len(self.transformer_ffn_layers)
        used = range(min(layers, len(levels)))
        features_at = [_resize(mask_features.detach(), levels[index].shape[-2:]) for index in used]
        values, keys = zip(*(self._tokens(levels[index], index) for index in used), strict=True) if layers else ((), ())
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        place = self.query_embed.weight
        heads = [self._embed(queries)]
        for index in range(layers):
            level = index % len(levels)
            # Mask features are float32 under autocast too: so are the products that masks are cut from.
            mask = attention_mask_from_features(heads[-1][1].to(mask_features.dtype), features_at[level])
            cross = self.transformer_cross_attention_layers[index]
            queries = cross(queries, place, keys[level], values[level], mask, frame_keep)
            queries = self.transformer_self_attention_layers[index](queries, place)
            queries = self.transformer_ffn_layers[index](queries)
            heads.append(self._embed(queries))
        return heads

    def _embed(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decoder_norm(queries)
        return state, self.mask_embed(state)

    def _tokens(self, level: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Values and keys ``[B, T * h * w, C]`` of a level: the keys say where and when."""
        _, frames, channels, height, width = level.shape
        values = level.permute(0, 1, 3, 4, 2) + self.level_embed.weight[index]
        keys = values + sine_3d(frames, height, width, channels, level.device).to(values.dtype)
        return values.flatten(1, 3), keys.flatten(1, 3)


def _resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(features.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    return resized.unflatten(0, features.shape[:2])
