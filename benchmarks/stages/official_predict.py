"""What the official code computes to predict a clip, in its order, on our weights: the yardstick of `bench_predict`.

The whole clip passes every part at once. Each of the ten heads multiplies out the masks of all queries at a quarter of
the frame, and all are kept. The attention masks are resized from those, copied for every head, and read by torch's
multi-head attention, which also averages its weights. All masks are enlarged to the padded size before the best queries
are chosen. Duplicates are found, and run-length codes made, on dense masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import s2d
from benchmarks.harness import peer_module
from s2d.models import VideoMask2Former
from s2d.models.inference import best_queries
from s2d.models.position import sine_3d
from s2d.models.transformer_decoder import TransformerDecoder
from s2d.models.video_mask2former import padded_size

coco = peer_module("pycocotools.mask")


@dataclass(frozen=True)
class Found:
    """Scores of the tracks, best first, and COCO's codes of each of their frames."""

    scores: Tensor
    codes: list[list[dict]]


@torch.no_grad()
def official_predict(
    model: VideoMask2Former, frames: Tensor, top_k: int, nms: float, part: Callable[[str, Callable], object]
) -> Found:
    """Frames uint8 ``[T, 3, H, W]`` to tracks; ``part(name, call)`` calls and measures."""
    with s2d.use_impl("reference"):
        head = model.sem_seg_head
        features = part("backbone", lambda: model.backbone(model._normalise(frames)))
        mask_features, levels = part("pixel decoder", lambda: head.pixel_decoder(features))
        logits, masks = part("decoder", lambda: _decode(head.predictor, mask_features[None], [x[None] for x in levels]))
        return part("masks", lambda: _tracks(logits[0], masks[0], tuple(frames.shape[-2:]), top_k, nms))


def _decode(decoder: TransformerDecoder, mask_features: Tensor, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    tokens = []
    for index, level in enumerate(levels):
        _, frames, channels, height, width = level.shape
        value = level.permute(0, 1, 3, 4, 2) + decoder.level_embed.weight[index]
        key = value + sine_3d(frames, height, width, channels)
        tokens.append((key.flatten(1, 3).transpose(0, 1), value.flatten(1, 3).transpose(0, 1)))
    queries, place = decoder.query_feat.weight[:, None], decoder.query_embed.weight[:, None]
    heads = decoder.transformer_cross_attention_layers[0].multihead_attn.num_heads
    logits, masks, forbidden = _predict(decoder, queries, mask_features, levels[0].shape[-2:], heads)
    every_mask = [masks]
    for index in range(len(decoder.transformer_ffn_layers)):
        forbidden[forbidden.all(-1)] = False
        cross = decoder.transformer_cross_attention_layers[index]
        key, value = tokens[index % len(levels)]
        attended = _attend(cross.multihead_attn, queries + place, key, value, forbidden)
        queries = cross.norm(queries + attended)
        own = decoder.transformer_self_attention_layers[index]
        attended = _attend(own.self_attn, queries + place, queries + place, queries, None)
        queries = decoder.transformer_ffn_layers[index](own.norm(queries + attended))
        size = levels[(index + 1) % len(levels)].shape[-2:]
        logits, masks, forbidden = _predict(decoder, queries, mask_features, size, heads)
        every_mask.append(masks)
    return logits, every_mask[-1]


def _predict(
    decoder: TransformerDecoder, queries: Tensor, mask_features: Tensor, size: tuple[int, int], heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits, masks, and which keys of the next level are forbidden, for every head."""
    state = decoder.decoder_norm(queries).transpose(0, 1)
    masks = torch.einsum("bqc,btchw->bqthw", decoder.mask_embed(state), mask_features)
    clips, number, frames = masks.shape[:3]
    resized = F.interpolate(masks.flatten(0, 1), size=tuple(size), mode="bilinear", align_corners=False)
    chance = resized.view(clips, number, frames, *size).sigmoid().flatten(2)
    forbidden = chance[:, None].repeat(1, heads, 1, 1).flatten(0, 1) < 0.5
    return decoder.class_embed(state), masks, forbidden


def _attend(layer: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, forbidden: Tensor | None) -> Tensor:
    return F.multi_head_attention_forward(
        query, key, value, query.shape[-1], layer.num_heads, layer.in_proj_weight, layer.in_proj_bias, None, None,
        False, 0.0, layer.out_proj.weight, layer.out_proj.bias, training=False, attn_mask=forbidden,
    )[0]  # fmt: skip


def _tracks(logits: Tensor, masks: Tensor, size: tuple[int, int], top_k: int, nms: float) -> Found:
    height, width = size
    masks = F.interpolate(masks, size=padded_size(size), mode="bilinear", align_corners=False)
    scores, queries = best_queries(logits, top_k)
    masks = masks[queries][:, :, :height, :width]
    masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False) > 0
    kept: list[int] = []
    for index in range(len(masks)):
        if all(_tube_iou(masks[index], masks[better]) <= nms for better in kept):
            kept.append(index)
    codes = [
        [coco.encode(np.asfortranarray(frame.numpy().astype(np.uint8))) for frame in masks[index]] for index in kept
    ]
    return Found(scores[kept], codes)


def _tube_iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
