"""Temporal DropLoss: the point-sampled mask losses of matched masks, on the frames that say something."""

from __future__ import annotations

import torch
from torch import Tensor

from s2d import _native
from s2d.ops._dispatch import Room
from s2d.ops.bitmask import BitMasks, as_bits, unpack_masks
from s2d.ops.reference import temporal_drop_loss as reference

ROOM = Room("temporal_drop_loss", kernels=("cpu", "triton"))


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
        points: None draws them. Or the final points ``[N T, P, 2]``, (x, y) in [0, 1]; or ``(candidates
            [N T, int(oversample P), 2], uniform [N T, P - int(importance P), 2])`` among which the choice is made
            here. Rows follow each other frame by frame within a mask.
        generator: of the random points, on the device of ``logits``.
        impl: ``"native"`` or ``"reference"``; None chooses for the device.

    Returns:
        Two scalars, float32, or float64 where ``logits`` are, differentiable in ``logits``; exactly 0 where no row is
        kept.

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
    bits = as_bits(target, "target", "temporal_drop_loss", impl)
    if len(bits.shape) != 4 or bits.shape[:2] != logits.shape[:2] or 0 in (*logits.shape[2:], *bits.shape[2:]):
        raise ValueError(
            f"s2d::temporal_drop_loss: expected target [{logits.shape[0]}, {logits.shape[1]}, H, W] "
            f"and H, W, h, w > 0, got {list(bits.shape)} for logits {list(logits.shape)}"
        )
    if keep is None:
        keep = bits.words.flatten(2).ne(0).any(2)
    if keep.dtype != torch.bool:
        raise TypeError(f"s2d::temporal_drop_loss: expected keep bool [N, T], got {keep.dtype}")
    if keep.shape != logits.shape[:2]:
        raise ValueError(f"s2d::temporal_drop_loss: expected keep {list(logits.shape[:2])}, got {list(keep.shape)}")
    chosen, candidates = int(importance * num_points), int(oversample * num_points)
    _check_points(points, keep.numel(), (num_points, candidates, chosen))
    # A tensor, so that drawing on a GPU waits for nothing.
    seed = torch.randint(2**63 - 1, (), generator=generator, device=logits.device)
    if ROOM.choose(logits.device, impl) == "reference":
        masks = unpack_masks(bits, impl="reference")
        return reference.temporal_drop_loss(logits, masks, keep, seed, points, num_points, candidates, chosen)
    given_candidates, given_uniform = (None, points) if points is None or isinstance(points, Tensor) else points
    if isinstance(points, Tensor):
        candidates, chosen = 0, 0
    wide = torch.promote_types(logits.dtype, torch.float32)
    bce, dice, _ = torch.ops.s2d.temporal_drop_loss(
        logits,
        bits.words,
        bits.width,
        keep,
        seed,
        None if given_candidates is None else given_candidates.detach().to(wide),
        None if given_uniform is None else given_uniform.detach().to(wide),
        num_points,
        candidates,
        chosen,
        torch.is_grad_enabled() and logits.requires_grad,
    )
    return bce, dice


def _check_points(points: Tensor | tuple[Tensor, Tensor] | None, rows: int, counts: tuple[int, int, int]) -> None:
    if points is None:
        return
    final, candidates, chosen = counts
    given, wanted = ((points,), (final,)) if isinstance(points, Tensor) else (points, (candidates, final - chosen))
    shapes = [list(part.shape) for part in given]
    if shapes != [[rows, count, 2] for count in wanted]:
        expected = " and ".join(f"[{rows}, {count}, 2]" for count in wanted)
        raise ValueError(f"s2d::temporal_drop_loss: expected points {expected}, got {shapes}")


@_native.fake("temporal_drop_loss")
def _(
    logits: Tensor,
    words: Tensor,
    width: int,
    keep: Tensor,
    seed: Tensor,
    candidates: Tensor | None,
    uniform: Tensor | None,
    num_points: int,
    num_candidates: int,
    chosen: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    bce, dice = (logits.new_empty((), dtype=wide) for _ in range(2))
    return bce, dice, logits.new_empty((2, *logits.shape) if gradient else (0,), dtype=wide)


@_native.fake("temporal_drop_loss_backward")
def _(grad_bce: Tensor, grad_dice: Tensor, gradients: Tensor, logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


@_native.triton("temporal_drop_loss")
def _(
    logits: Tensor,
    words: Tensor,
    width: int,
    keep: Tensor,
    seed: Tensor,
    candidates: Tensor | None,
    uniform: Tensor | None,
    *numbers: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from s2d.kernels.temporal_drop_loss import losses

    candidates, uniform = (None if part is None else part.contiguous() for part in (candidates, uniform))
    with torch.cuda.device_of(logits):
        return losses(
            logits.contiguous(), words.contiguous(), width, keep.contiguous(), seed, candidates, uniform, *numbers
        )


@_native.triton("temporal_drop_loss_backward")
def _(grad_bce: Tensor, grad_dice: Tensor, gradients: Tensor, logits: Tensor) -> Tensor:
    from s2d.kernels.temporal_drop_loss import weigh

    with torch.cuda.device_of(logits):
        return weigh(grad_bce, grad_dice, gradients, logits)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2], inputs[0])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_bce: Tensor, grad_dice: Tensor, _: Tensor) -> tuple:
    gradients, logits = ctx.saved_tensors
    return torch.ops.s2d.temporal_drop_loss_backward(grad_bce, grad_dice, gradients, logits), *[None] * 10


_native.differentiable("temporal_drop_loss", _backward, _save)
