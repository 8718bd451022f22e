"""Inputs under which the official model was measured: weights, clips, targets and random points, all from seeds.

Every tensor of the model is drawn from a generator that its name seeds, and scaled so that the hundred queries of the
random model differ. The numbers that the official code gave for them are in ``tests/models/official_numbers.json``.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from s2d.ops import BitMasks
from s2d.training import criterion

# Scales of the predictor's matrices, on top of one over the square root of the fan-in.
_PREDICTOR = {"in_proj_weight": 2.0, "out_proj.weight": 0.4, "linear2.weight": 0.4, "class_embed.weight": 3.0}


def weights(template: Mapping[str, Tensor], *, teacher: bool = False) -> dict[str, Tensor]:
    """Values for every name of the state dict of a plain model; ``teacher``: those of the distillation's teacher."""
    return {name: _weight(name, tensor.shape, "teacher/" if teacher else "") for name, tensor in template.items()}


def random_like(name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, of a generator that ``name`` seeds."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def _weight(name: str, shape: torch.Size, salt: str) -> Tensor:
    drawn = random_like(salt + name, shape)
    if name.endswith("running_var"):
        return 1 + 0.2 * drawn.abs()
    if len(shape) == 1:
        if name.endswith("weight"):
            return 1 + 0.1 * drawn
        return (1.5 if name.endswith("sampling_offsets.bias") else 0.1) * drawn
    if "query_feat" in name or "query_embed" in name or "level_embed" in name:
        return drawn
    if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
        return 0.1 * drawn
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if ".predictor." in name:
        scale *= next((factor for ending, factor in _PREDICTOR.items() if name.endswith(ending)), 1.0)
    if "mask_embed.layers." in name or name.endswith("mask_features.weight"):
        drawn = drawn - drawn.mean(1, keepdim=True)
    return scale * drawn


def clip(seed: int = 56, frames: int = 3, height: int = 96, width: int = 128) -> Tensor:
    """Six moving waves a colour and noise: float32 ``[T, 3, H, W]`` of whole numbers in [0, 255].

    With seed 56, no logit from which an attention mask is cut lies within 1e-4 of the threshold.
    """
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(3, 6, generator=generator) * 6.2831853
    frequency = 0.02 + 0.13 * torch.rand(3, 6, 2, generator=generator)
    y, x = torch.arange(height, dtype=torch.float32)[:, None], torch.arange(width, dtype=torch.float32)
    images = []
    for t in range(frames):
        image = torch.zeros(3, height, width)
        for wave in range(6):
            along_y, along_x = frequency[:, wave, :, None, None].unbind(1)
            image += torch.sin(along_y * (y + 2 * t) + along_x * (x - 3 * t) + phase[:, wave, None, None])
        noise = torch.randint(-20, 21, (3, height, width), generator=generator).float()
        images.append((127.5 + 35 * image + noise).clamp(0, 255).round())
    return torch.stack(images)


def targets(visible: Sequence[Sequence[int]], seed: int, frames: int = 3, height: int = 96, width: int = 128) -> Tensor:
    """Drifting ellipses: bool ``[G, T, H, W]``, instance i set on the frames ``visible[i]`` alone."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    masks = torch.zeros(len(visible), frames, height, width, dtype=torch.bool)
    for tube, seen in zip(masks, visible, strict=True):
        a, b, c, d = torch.rand(4, generator=generator)
        centre_y, centre_x, radius_y, radius_x = 0.2 + 0.6 * a, 0.2 + 0.6 * b, 0.08 + 0.17 * c, 0.08 + 0.17 * d
        for t in seen:
            inside = ((y - centre_y - 0.02 * t) / radius_y) ** 2 + ((x - centre_x + 0.03 * t) / radius_x) ** 2
            tube[t] = inside <= 1
    return masks


@contextlib.contextmanager
def seeded_points(seed: int, rows: Sequence[Sequence[int]]) -> Iterator[None]:
    """Inside, the criterion's points are the official ones: call i of `torch.rand` has the seed ``seed + i``.

    Officially a head draws for the matching of each clip and then, twice, for the rows that its loss keeps, those of
    all clips at once, and the next head follows; ours matches all heads first.

    Args:
        rows: by head, the final one first, and clip: how many rows are kept.
    """
    first, matching, losing = [seed], [], []
    for head, kept in enumerate(rows):
        matching += [first[head] + clip for clip in range(len(kept))]
        losing += [(first[head] + len(kept), sum(kept[:clip]), sum(kept)) for clip in range(len(kept))]
        first.append(first[head] + len(kept) + (2 if sum(kept) else 0))
    matching, losing = iter(matching), iter(losing)
    original_rand, original_loss = torch.rand, criterion.temporal_drop_loss

    def draw(call: int, *shape: int) -> Tensor:
        return original_rand(*shape, generator=torch.Generator().manual_seed(call))

    def loss(logits: Tensor, target: BitMasks, keep: Tensor, number: int, *shares: float, **_: object) -> Tensor:
        call, before, every = next(losing)
        points = []
        for offset, count in enumerate((int(shares[0] * number), number - int(shares[1] * number))):
            points.append(torch.zeros(keep.numel(), count, 2))
            drawn = draw(call + offset, every, count, 2) if every else torch.zeros(0, count, 2)
            points[-1][keep.flatten()] = drawn[before : before + int(keep.sum())]
        return original_loss(logits, target, keep, number, *shares, points=tuple(points))

    torch.rand = lambda *shape, **_: draw(next(matching), *shape)
    criterion.temporal_drop_loss = loss
    try:
        yield
    finally:
        torch.rand, criterion.temporal_drop_loss = original_rand, original_loss
