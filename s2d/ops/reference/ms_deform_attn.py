"""Definition of the ``ms_deform_attn`` room in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    value: Tensor, spatial_shapes: list[list[int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The sum, in float32 or float64 whatever autocast says, rounded once where value is in half precision."""
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    inputs = [tensor.to(wide) for tensor in (value, sampling_locations, attention_weights)]
    with torch.autocast(value.device.type, enabled=False):
        return _attend(inputs[0], spatial_shapes, *inputs[1:]).to(value.dtype)


def _attend(
    value: Tensor, spatial_shapes: list[list[int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """One bilinear look-up per level for all heads and points, then one weighted sum."""
    number, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], *sampling_locations.shape[3:5]
    # grid_sample's -1 .. 1 runs between the outer edges of the map, as 0 .. 1 does here.
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    sampled = []
    for level, tokens in enumerate(value.split([h * w for h, w in spatial_shapes], dim=1)):
        height, width = spatial_shapes[level]
        image = tokens.flatten(2).transpose(1, 2).reshape(number * heads, channels, height, width)
        sampled.append(F.grid_sample(image, grids[:, :, level], padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(number * heads, queries, levels * points)
    summed = torch.einsum("ncqp,nqp->ncq", torch.cat(sampled, dim=-1), weights)
    return summed.reshape(number, heads * channels, queries).transpose(1, 2)
