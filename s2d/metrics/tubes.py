"""Overlap of whole tubes, and the assignment of predicted instances to true ones."""

from __future__ import annotations

import dataclasses

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s2d.data.types import Tracks
from s2d.ops import RLE, BitMasks, mask_area, rle_decode, rle_encode, unpack_masks

# Frames decoded at a time: tubes of a long video do not fit in memory at once.
CHUNK = 16


def check_comparable(predictions: Tracks, truth: Tracks) -> None:
    """Raise a ValueError where the two do not describe frames of one number and size."""
    left, right = ((x.num_frames, *x.size) for x in (predictions, truth))
    if left != right and len(predictions) and len(truth):
        raise ValueError(
            f"expected predictions and ground truth of {truth.video!r} with equal frames, height and width, "
            f"got {left} and {right}"
        )


def overlap_counts(predictions: Tracks, truth: Tracks) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels shared by every pair, frame by frame.

    Returns:
        Three int64 tensors: intersection ``[N, M, T]``, area of the predictions ``[N, T]`` and of the truth ``[M, T]``.
    """
    check_comparable(predictions, truth)
    number, others, frames = len(predictions), len(truth), truth.num_frames
    shared = torch.zeros(number, others, frames, dtype=torch.int64)
    areas = torch.zeros(number, frames, dtype=torch.int64)
    true_areas = torch.zeros(others, frames, dtype=torch.int64)
    for start in range(0, frames, CHUNK):
        span = slice(start, start + CHUNK)
        true_bits = truth.bits(span) if others else None
        if true_bits is not None:
            true_areas[:, span] = mask_area(true_bits)
        if not number:
            continue
        bits = predictions.bits(span)
        areas[:, span] = mask_area(bits)
        for m in range(others):
            both = bits.words & true_bits.words[m]
            shared[:, m, span] = mask_area(BitMasks(both, bits.width))
    return shared, areas, true_areas


def tube_iou(predictions: Tracks, truth: Tracks) -> Tensor:
    """IoU of whole tubes, as YouTube-VIS defines it.

    ``iou[n, m] = sum_t |p_n,t & g_m,t| / sum_t |p_n,t | g_m,t|``; 0 where both are empty. A frame in which one of the
    two has no mask adds the area of the other to the union.

    Args:
        predictions: N instances.
        truth: M instances of the same frames.

    Returns:
        float64 ``[N, M]``.

    Raises:
        ValueError: the two differ in number of frames or in mask size.
    """
    shared, areas, true_areas = overlap_counts(predictions, truth)
    intersection = shared.sum(2)
    union = areas.sum(1)[:, None] + true_areas.sum(1)[None] - intersection
    return intersection.double() / union.clamp(min=1).double()


def match_tubes(quality: Tensor) -> list[tuple[int, int]]:
    """One-to-one pairs (prediction, truth) with the greatest total quality (Hungarian method), by truth index.

    Args:
        quality: floating point ``[N, M]``, for instance tube IoU.
    """
    rows, columns = linear_sum_assignment(quality.numpy(), maximize=True)
    return sorted(zip(rows.tolist(), columns.tolist(), strict=True), key=lambda pair: pair[1])


def mean_tube_iou(predictions: Tracks, truth: Tracks) -> float:
    """Mean over the true instances of the tube IoU with the prediction assigned to each; 0 for a missed one.

    Predictions beyond the assigned ones cost nothing: this says how well the instances are found, not how many false
    ones come with them. NaN where the truth has no instance.
    """
    if len(truth) == 0:
        return float("nan")
    iou = tube_iou(predictions, truth)
    return sum(float(iou[pair]) for pair in match_tubes(iou)) / len(truth)


def at_size(tracks: Tracks, size: tuple[int, int]) -> Tracks:
    """The same tracks at another mask size (H, W): nearest neighbour at pixel centres."""
    if tracks.size == size:
        return tracks
    (height, width), (new_height, new_width) = tracks.size, size
    rows = ((torch.arange(new_height) + 0.5) * height / new_height).long()
    columns = ((torch.arange(new_width) + 0.5) * width / new_width).long()
    parts = []
    for start in range(0, len(tracks.rle), CHUNK):
        dense = unpack_masks(rle_decode(tracks.rle[start : start + CHUNK]))
        parts.append(rle_encode(dense[:, rows][:, :, columns]))
    return dataclasses.replace(tracks, size=size, rle=RLE.cat(parts))
