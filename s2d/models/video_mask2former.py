"""VideoMask2Former: a clip in, class and mask logits of every query out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d.models.backbone import ResNet
from s2d.models.config import ModelConfig
from s2d.models.pixel_decoder import PixelDecoder
from s2d.models.transformer_decoder import TransformerDecoder

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
DIVISOR = 32


class _Head(nn.Module):
    def __init__(self, config: ModelConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(config, channels)
        self.predictor = TransformerDecoder(config)


class VideoMask2Former(nn.Module):
    """Mask2Former for video (arXiv 2112.10764): masks of instances over a whole clip.

    The state dict has the names of the official S2D models (``backbone.*``, ``sem_seg_head.*``).

    Args:
        config: sizes; the default is the official ResNet-50 model.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = ModelConfig() if config is None else config
        self.backbone = ResNet(self.config)
        self.sem_seg_head = _Head(self.config, self.backbone.channels)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def forward(self, clip: Tensor, frame_keep: Tensor | None = None) -> dict[str, Tensor | list[dict[str, Tensor]]]:
        """Predict instances in clips.

        Args:
            clip: RGB ``[B, T, 3, H, W]``, uint8 or floating point, in [0, 255].
            frame_keep: bool ``[B, T]``: false hides a frame from the queries (masks are predicted in it all the same).
                None: all frames are seen.

        Returns:
            ``pred_logits`` ``[B, Q, classes + 1]``, "no object" last; ``pred_masks`` ``[B, Q, T, h, w]``: logits at a
            quarter of the *padded* size (`padded_size`; the frame lies in its upper left corner); ``aux_outputs``: the
            same pair for every earlier head, first head first, in training mode; empty in evaluation mode.

        Raises:
            ValueError: the clip is not ``[B, T, 3, H, W]``.
        """
        if clip.dim() != 5 or clip.shape[2] != 3:
            raise ValueError(f"expected a clip [B, T, 3, H, W], got {list(clip.shape)}")
        mask_features, levels = self.frame_features(clip.flatten(0, 1))
        over_time = clip.shape[:2]
        heads = self.sem_seg_head.predictor(
            mask_features.unflatten(0, over_time),
            [level.unflatten(0, over_time) for level in levels],
            frame_keep,
            every_head=self.training,
        )
        return {**heads[-1], "aux_outputs": heads[:-1]}

    def frame_features(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the queries read: mask features and levels, as `PixelDecoder` gives them; each frame for itself.

        Args:
            frames: RGB ``[N, 3, H, W]`` as in `forward`.
        """
        return self.sem_seg_head.pixel_decoder(self.backbone(self._normalise(frames)))

    def _normalise(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded_height, padded_width = padded_size((height, width))
        # Subtracting the mean first makes the padding grey, not black.
        images = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return F.pad(images, (0, padded_width - width, 0, padded_height - height))


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after padding below and to the right to a multiple of 32."""
    height, width = size
    return -(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR
