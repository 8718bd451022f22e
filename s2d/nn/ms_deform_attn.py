"""Multi-scale deformable attention as a module."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from s2d.ops import ms_deform_attn


def _extents(shapes: Tensor | list[tuple[int, int]], device: torch.device) -> Tensor:
    """Width and height of each level, float32 ``[L, 1, 2]``."""
    if isinstance(shapes, Tensor):
        return shapes.to(device, torch.float32).flip(-1)[:, None]
    sizes = tuple((float(width), float(height)) for height, width in shapes)
    return torch.tensor(sizes, device=device)[:, None] if torch.compiler.is_compiling() else _held(sizes, device)


@lru_cache(maxsize=256)
def _held(sizes: tuple[tuple[float, float], ...], device: torch.device) -> Tensor:
    """Kept, since a CUDA graph cannot capture a copy from the host; made outside inference mode, for training too."""
    with torch.inference_mode(False):
        return torch.tensor(sizes, device=device)[:, None]


class MSDeformAttn(nn.Module):
    """Deformable DETR's attention module, with its arguments, its initial state and its state dict.

    Args:
        d_model: channels C; a multiple of ``n_heads``.
        n_levels: levels L of the feature pyramid.
        n_heads: heads M.
        n_points: points P that each head reads on each level.
        im2col_step: taken for the sake of existing callers; nothing is cut into steps here.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, im2col_step: int | None = None
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"expected d_model to be a multiple of n_heads = {n_heads}, got {d_model}")
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point p of a head starts p + 1 pixels from the reference, each head in its own direction."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[None, None, :, None].expand(-1, self.n_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor | list[tuple[int, int]],
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: ``[N, Lq, C]``.
            reference_points: ``[N or 1, Lq, L, 2]`` x and y, or ``[N or 1, Lq, L, 4]`` x, y, width, height; in [0, 1]
                over each level.
            input_flatten: ``[N, S, C]``, the levels one after another.
            input_spatial_shapes: ``[L, 2]``, height and width of each level.
            input_level_start_index: taken for the sake of existing callers; it follows from the shapes.
            input_padding_mask: bool ``[N, S]``, true where the input is padding and must read as 0.

        Returns:
            ``[N, Lq, C]``.
        """
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0)
        value = value.unflatten(-1, (heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points)).softmax(-1)
        reference = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            locations = reference + offsets / _extents(input_spatial_shapes, query.device)
        elif reference_points.shape[-1] == 4:
            locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
        else:
            found = list(reference_points.shape)
            raise ValueError(f"expected reference_points [N, Lq, L, 2] or [N, Lq, L, 4], got {found}")
        attended = ms_deform_attn(value, input_spatial_shapes, locations, weights.unflatten(-1, (levels, points)))
        return self.output_proj(attended)
