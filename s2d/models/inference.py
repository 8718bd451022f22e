"""A model read without gradients: what its queries say about a clip, and their masks at the size people see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d.errors import InputError
from s2d.models.config import ModelConfig
from s2d.models.video_mask2former import VideoMask2Former, padded_size
from s2d.ops import BitMasks, pack_masks

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Pixels that pass the backbone and the pixel decoder together. On a CPU more only take memory; a GPU must be filled.
_PIXELS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 21}
# Bytes of enlarged logits that are held at a time: what a processor's own caches hold.
_STRIP_BYTES = 1 << 22


@dataclass(frozen=True)
class ClipQueries:
    """What the queries say about a clip.

    Attributes:
        logits: ``[Q, classes + 1]``, "no object" last.
        embeds: ``[Q, C]``.
        mask_features: ``[T, C, h, w]``.
    """

    logits: Tensor
    embeds: Tensor
    mask_features: Tensor

    def mask_logits(self, queries: Tensor, frame: int) -> Tensor:
        """Mask logits of some queries in one frame, at a quarter of the padded size: float32 ``[K, h, w]``."""
        features = self.mask_features[frame]
        return (self.embeds[queries] @ features.flatten(1)).unflatten(1, features.shape[1:])


@torch.inference_mode()
def read_clip(
    model: VideoMask2Former,
    clip: Tensor,
    hidden: int = 0,
    precision: str = "fp32",
    advance: Callable[[int], object] = lambda frames: None,
) -> ClipQueries:
    """The last head of a model in evaluation mode; frames pass its frame-wise parts a few at a time.

    Args:
        model: in evaluation mode.
        clip: RGB ``[T, 3, H, W]``, uint8 or floating point, in [0, 255].
        hidden: frames after the last that count in time but are not looked at.
        precision: of the backbone and the transformer decoder: ``"fp32"``, ``"bf16"`` or ``"fp16"``; the pixel decoder
            and the masks are float32 always.
        advance: called with the number of frames that have passed.

    Raises:
        InputError: the device does not compute in that precision.
    """
    device, frames = model.pixel_mean.device, len(clip)
    check_precision(precision, device)
    at_once = frames_at_once(tuple(clip.shape[-2:]), device.type)
    with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        maps: list[Tensor] = []
        for start in range(0, frames, at_once):
            mask_features, levels = model.frame_features(clip[start : start + at_once].to(device))
            parts = [mask_features, *levels]
            if not maps:
                # Hidden frames are zero: no query reads them.
                maps = [part.new_zeros(frames + hidden, *part.shape[1:]) for part in parts]
            for whole, part in zip(maps, parts, strict=True):
                whole[start : start + len(part)] = part
            advance(len(parts[0]))
            del mask_features, levels, parts, part
        keep = (torch.arange(frames + hidden, device=device) < frames)[None] if hidden else None
        predictor = model.sem_seg_head.predictor
        state, embeds = predictor.decode(maps[0][None], [level[None] for level in maps[1:]], keep)[-1]
        return ClipQueries(predictor.class_embed(state)[0].float(), embeds[0].float(), maps[0][:frames])


def frames_at_once(size: tuple[int, int], device: str) -> int:
    """How many frames of a size pass the frame-wise parts together."""
    return max(1, _PIXELS_AT_ONCE.get(device, 1 << 17) // (size[0] * size[1]))


def compile_frame_parts(model: VideoMask2Former) -> None:
    """Have `torch.compile` make the backbone and the pixel decoder, when frames first pass them; in place."""
    model.backbone.compile()
    model.sem_seg_head.pixel_decoder.compile()


def check_precision(precision: str, device: torch.device) -> None:
    """InputError unless the device computes in the precision."""
    if precision not in PRECISIONS:
        raise InputError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    able = ("fp32", "bf16") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("fp32",)
    if device.type == "cpu" and precision not in able:
        raise InputError(f"expected a precision that this CPU computes in ({' or '.join(able)}), got {precision}")


def input_size(size: tuple[int, int], config: ModelConfig) -> tuple[int, int]:
    """Height and width that frames of ``size`` are resized to before they enter a model; never larger than they are."""
    short, long = min(size), max(size)
    scale = min(1.0, config.input_short_side / short, config.input_long_side / long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def official_input_size(size: tuple[int, int], config: ModelConfig) -> tuple[int, int]:
    """The same as detectron2's ``ResizeShortestEdge`` has it: small frames are enlarged, halves rounded up."""
    short, long = min(size), max(size)
    short, long = config.input_short_side, config.input_short_side / short * long
    if long > config.input_long_side:
        short, long = short * (config.input_long_side / long), config.input_long_side
    sides = int(short + 0.5), int(long + 0.5)
    return sides if size[0] <= size[1] else sides[::-1]


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
    """`upsample_masks`, set where the logit is above 0: bits ``[K, T, height, width]``, made a few masks at a time."""
    flat = mask_logits.flatten(0, 1)
    pixels = max(size[0] * size[1] for size in (padded_size(inner), outer))
    strips = flat.split(max(1, _STRIP_BYTES // (4 * pixels)))
    words = [pack_masks(upsample_masks(strip[:, None], inner, outer)[:, 0] > 0).words for strip in strips]
    return BitMasks(torch.cat(words).unflatten(0, mask_logits.shape[:2]), outer[1])
