"""The pixel decoder: deformable attention over the coarse levels, then one fine map of mask features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d.models.backbone import NormedConv2d, group_norm
from s2d.models.config import ModelConfig
from s2d.models.position import sine_2d
from s2d.nn import MSDeformAttn


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.hidden_dim
        self.self_attn = MSDeformAttn(channels, config.num_feature_levels, config.nheads, config.n_points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, config.encoder_ffn)
        self.linear2 = nn.Linear(config.encoder_ffn, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(config.encoder_dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        attended = self.self_attn(tokens + position, reference, tokens, shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        # Dropout commutes with ReLU; in this order the backward pass keeps two wide tensors instead of three.
        inner = F.relu_(self.dropout(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(inner)))


class _Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))


class _Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(config.num_feature_levels, config.hidden_dim))
        self.encoder = _Encoder(config)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        shapes = [tuple(level.shape[-2:]) for level in levels]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        position = torch.cat(
            [
                sine_2d(*shape, tokens.shape[-1], tokens.device).flatten(0, 1) + embed
                for shape, embed in zip(shapes, self.level_embed, strict=True)
            ]
        ).to(tokens.dtype)
        reference = torch.cat([_pixel_centres(*shape, tokens.device) for shape in shapes])[None, :, None]
        reference = reference.to(tokens.dtype).expand(-1, -1, len(levels), -1)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, reference, shapes)
        parts = tokens.split([height * width for height, width in shapes], dim=1)
        return [part.transpose(1, 2).unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


class PixelDecoder(nn.Module):
    """Backbone features to mask features and to the levels that the queries attend to.

    Args:
        config: sizes.
        channels: of res2, res3, res4, res5.
    """

    def __init__(self, config: ModelConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        hidden, fine = config.hidden_dim, len(channels) - config.num_feature_levels
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, hidden, 1), group_norm(hidden)) for inputs in reversed(channels[fine:])
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = _Transformer(config)
        self.num_fine = fine
        for index, inputs in enumerate(channels[:fine], start=1):
            self.add_module(f"adapter_{index}", NormedConv2d(inputs, hidden, 1, group_norm(hidden)))
            self.add_module(f"layer_{index}", NormedConv2d(hidden, hidden, 3, group_norm(hidden)))
        self.mask_features = nn.Conv2d(hidden, config.mask_dim, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: res2, res3, res4, res5 of N frames.

        Returns:
            mask features ``[N, mask_dim, H / 4, W / 4]``, and the attended levels ``[N, hidden_dim, h, w]`` from stride
            32 upwards. In the dtype of the weights, under autocast too: sampling positions do not bear half precision.
        """
        with torch.autocast(features[0].device.type, enabled=False):
            features = [feature.to(self.mask_features.weight.dtype) for feature in features]
            coarse = reversed(features[self.num_fine :])
            levels = self.transformer([proj(feature) for proj, feature in zip(self.input_proj, coarse, strict=True)])
            fine = levels[-1]
            for index in range(self.num_fine, 0, -1):
                lateral = getattr(self, f"adapter_{index}")(features[index - 1])
                enlarged = F.interpolate(fine, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
                fine = F.relu_(getattr(self, f"layer_{index}")(lateral + enlarged))
            return self.mask_features(fine), levels


def _pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """x and y of every pixel of a level, as shares of its size: ``[height * width, 2]``."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)
