"""Temporal DropLoss: the point-sampled mask losses of matched masks, on the frames that say something."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, unpack_masks
from s2d.ops.reference import temporal_drop_loss as reference

ROOM = Room("temporal_drop_loss")


def temporal_drop_loss(
    logits: Tensor,
    target: BitMasks | Tensor,
    keep: Tensor | None,
    num_points: int,
    oversample: float = 3.0,
    importance: float = 0.75,
    points: Tensor | tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the binary cross-entropy and the dice loss over the kept (mask, frame) rows, at sampled points.

    ``bce = sum_r mean_p(softplus(x) - x t)`` and ``dice = sum_r 1 - (2 sum_p s t + 1) / (sum_p s + sum_p t + 1)`` with
    ``s = sigmoid(x)``, x and t read bilinearly (0 outside, align_corners=False). A row that is not kept is no negative:
    it contributes nothing, whatever its logits hold, and gets gradient 0. The caller divides by the number of masks.

    Of ``int(oversample P)`` uniform points a row, the ``int(importance P)`` with the smallest ``|x|`` are used, and
    ``P - int(importance P)`` further uniform ones (PointRend; Mask2Former; S2D, arXiv 2512.14440).

    Args:
        logits: floating point ``[N, T, h, w]``: predicted masks of N matched pairs.
        target: `BitMasks`, or bool or uint8 (any non-zero is set), ``[N, T, H, W]``; H, W need not be h, w.
        keep: bool ``[N, T]``: the rows that count. None: the rows whose target is not empty.
        num_points: P > 0.
        oversample: at least 1.
        importance: in [0, 1].
        points: None draws them. Or the final points ``[R, P, 2]``, (x, y) in [0, 1]; or ``(candidates
            [R, int(oversample P), 2], uniform [R, P - int(importance P), 2])`` among which the choice is made here.
            R is N T, or the number of kept rows; rows follow each other frame by frame within a mask.
        generator: of the random points, on the device of ``logits``.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        Two scalars of the dtype of ``logits``, differentiable in ``logits``; exactly 0 where no row is kept.

    Raises:
        TypeError: ``target`` or ``keep`` of another dtype.
        ValueError: shapes that do not agree, or a number out of its range.
    """
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(
            "s2d::temporal_drop_loss: expected logits floating point [N, T, h, w], "
            f"got {logits.dtype} {list(logits.shape)}"
        )
    if num_points < 1 or oversample < 1 or not 0 <= importance <= 1:
        raise ValueError(
            "s2d::temporal_drop_loss: expected num_points > 0, oversample >= 1 and importance in [0, 1], "
            f"got {num_points}, {oversample} and {importance}"
        )
    masks = _dense(target)
    if masks.dim() != 4 or masks.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"s2d::temporal_drop_loss: expected target [{logits.shape[0]}, {logits.shape[1]}, H, W], "
            f"got {list(masks.shape)}"
        )
    if keep is None:
        keep = masks.flatten(2).any(2)
    if keep.dtype != torch.bool:
        raise TypeError(f"s2d::temporal_drop_loss: expected keep bool [N, T], got {keep.dtype}")
    if keep.shape != logits.shape[:2]:
        raise ValueError(f"s2d::temporal_drop_loss: expected keep {list(logits.shape[:2])}, got {list(keep.shape)}")
    _check_points(points, keep, num_points, int(oversample * num_points), int(importance * num_points))
    ROOM.choose(logits.device, impl)
    return reference.temporal_drop_loss(logits, masks, keep, num_points, oversample, importance, points, generator)


def _dense(target: BitMasks | Tensor) -> Tensor:
    if isinstance(target, Tensor) and target.dtype in (torch.bool, torch.uint8):
        return target != 0
    return unpack_masks(as_bits(target, "target", "temporal_drop_loss"))


def _check_points(
    points: Tensor | tuple[Tensor, Tensor] | None, keep: Tensor, final: int, candidates: int, chosen: int
) -> None:
    if points is None:
        return
    given = (points,) if isinstance(points, Tensor) else tuple(points)
    counts = (final,) if isinstance(points, Tensor) else (candidates, final - chosen)
    rows = {keep.numel(), int(keep.sum())}
    shapes = [list(p.shape) for p in given]
    if len(given) != len(counts) or any(
        len(shape) != 3 or shape[0] not in rows or shape[1:] != [count, 2]
        for shape, count in zip(shapes, counts, strict=False)
    ):
        wanted = " and ".join(f"[R, {count}, 2]" for count in counts)
        allowed = " or ".join(str(r) for r in sorted(rows))
        raise ValueError(f"s2d::temporal_drop_loss: expected points {wanted} with R = {allowed}, got {shapes}")
