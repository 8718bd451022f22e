"""From the outputs of a model to masks at the size people see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d.models.config import ModelConfig
from s2d.models.video_mask2former import padded_size
from s2d.ops import BitMasks, pack_masks


def input_size(size: tuple[int, int], config: ModelConfig) -> tuple[int, int]:
    """Height and width that frames of ``size`` are resized to before they enter a model; never larger than they are."""
    short, long = min(size), max(size)
    scale = min(1.0, config.input_short_side / short, config.input_long_side / long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def best_queries(pred_logits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The queries that are most surely an instance.

    Args:
        pred_logits: ``[Q, classes + 1]`` of one clip.
        most: how many to return at most.

    Returns:
        scores ``[K]``, descending: the probability of the likeliest class; int64 ``[K]``: the queries (ties: the lower
        one first).
    """
    scores = pred_logits.softmax(-1)[:, :-1].amax(-1)
    ranked, queries = scores.sort(descending=True, stable=True)
    return ranked[:most], queries[:most]


def upsample_masks(mask_logits: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> Tensor:
    """Mask logits of frames to a size of one's own: bilinear to the padded input, cropped to the frame, bilinear again.

    Args:
        mask_logits: ``[K, T, h, w]``, as `VideoMask2Former` gives them.
        inner: height and width of the frames that entered the model.
        outer: height and width wanted.

    Returns:
        ``[K, T, height, width]``.
    """
    height, width = inner
    logits = F.interpolate(mask_logits, size=padded_size(inner), mode="bilinear", align_corners=False)
    logits = logits[..., :height, :width]
    return logits if inner == outer else F.interpolate(logits, size=outer, mode="bilinear", align_corners=False)


def binary_masks(mask_logits: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> BitMasks:
    """`upsample_masks`, set where the logit is above 0: bits ``[K, T, height, width]``, made frame by frame."""
    words = [
        pack_masks(upsample_masks(mask_logits[:, t : t + 1], inner, outer) > 0).words
        for t in range(mask_logits.shape[1])
    ]
    return BitMasks(torch.cat(words, dim=1), outer[1])
