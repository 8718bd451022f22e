"""temporal_drop_loss in Triton: eight kernels and that of backward, in the order they run. Not run on a GPU.

                                                                                           a block takes
    corner_kernel  logits -> corners: the four pixels around each place between pixels     256 places of a row
    value_kernel   corners, candidates -> keys, histograms of their first digit            a part of a row
    digit_kernel   keys, histograms -> histograms of the next digit (three times)          a part
    choose_kernel  keys, histograms -> indices of the chosen candidates                    a part
    loss_kernel    corners, words, points -> sums of each part, sigmoids and labels        a part
    total_kernel   sums -> bce, dice, totals of each row                                   everything
    slope_kernel   sigmoids, labels, totals, points -> slopes                              a part
    finish_kernel  slopes -> gradients                                                     512 pixels of a row
    weigh_kernel   gradients -> gradient of the logits                                     1024 values

A row is a mask on a frame; one that is dropped is asked for in `keep` by each block, which then has nothing to do. A
lane owns a point, whose place is drawn again wherever it is needed. What a point reads lies side by side in `corners`:
16 bytes at once instead of four cache lines.

The candidate that is the last to be chosen is found digit by digit of its key, eight bits each: a candidate's key is
computed once and kept, 4 bytes, as two kernels could round it differently. Each part has its own histograms, which
those after it add up: nothing has to be zeroed, and the last of them tell each part how many were chosen before it, so
that indices come in order and of equal candidates the first are chosen.

Sums have a fixed order that depends on the sizes alone. Those of the slopes, of whatever points meet in a pixel, are
of whole numbers, whose order does not matter: 2^62 is P slopes of 1, so that none overflows. They are added by atomics
of eight bytes, two slopes of two neighbouring pixels, 32 bytes, side by side. So results are the same on every run. A
row with a NaN has it everywhere in its gradient.

The hard part is what lies anywhere: a candidate reads 32 bytes from the second-level cache, and a point adds to 64. The
estimate for 15 rows of 96 x 160 with P=160,000 on an H200 (5.5 TB/s from that cache, 0.9 T warp instructions/s): places
4 us; values, 7.2 M times 32 bytes and 106 instructions (155 with Triton 3.6), 50 us; digits, 29 MB and 24 instructions,
three times 10 us; choice, 75 instructions, 22 us; losses, 2.4 M points of 270 instructions that read a map and two rows
of a mask, 30 us; totals 4 us: 140 us, and with the slopes, 4.8 M atomic additions of 32 bytes, 60 to 110 us, and 10 us
for the rest, 210 to 260 us. At P=12,544 it is the launches: 40 and 55 us from a CUDA graph. The official steps, which
cannot be captured, are estimated at 1.2 ms, 1.6 ms with the gradient, and at P=12,544, where 0.3 ms go into waiting
for 15 rows, 0.5 and 0.9 ms: 8, 7, 12 and 16 times as long, of a goal of 10. Values and slopes are what to look at.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2d.kernels.mask_cost import place, read_label, softplus_and_sigmoid

# One binary for all sizes: no number is compiled in because it is 1 or divides by 16.
SIZES = ["height", "width", "mask_height", "mask_width", "halves", "pixels", "rows"]
COUNTS = ["points", "number", "chosen", "chunk", "parts", "value_parts", "shift", "digit", "digits", "saved"]
jit = triton.jit(do_not_specialize=[*SIZES, *COUNTS])

CORNER = {"CELLS": 256, "num_warps": 4, "num_stages": 1}
VALUE = {"POINTS": 1024, "num_warps": 8, "num_stages": 1}
DIGIT = {"POINTS": 2048, "PARTS": 16, "num_warps": 8, "num_stages": 1}
CHOOSE = {"POINTS": 2048, "PARTS": 16, "num_warps": 8, "num_stages": 1}
LOSS = {"POINTS": 512, "num_warps": 8, "num_stages": 1}
TOTAL = {"ROWS": 16, "PARTS": 64, "num_warps": 4, "num_stages": 1}
SLOPE = {"POINTS": 256, "num_warps": 8, "num_stages": 1}
FINISH = {"PIXELS": 512, "num_warps": 4, "num_stages": 1}
WEIGH = {"VALUES": 1024, "num_warps": 4, "num_stages": 1}

UNIT = tl.constexpr(2.0**-24)
MEAN = tl.constexpr(2.0**62)  # of slopes of 1
PROGRAMS = 528  # four blocks on each of the 132 multiprocessors of an H200


@jit
def end_of(keep, row, part, chunk, number):
    """Where a part of a row ends: a row that is dropped has nothing to do."""
    return tl.where(tl.load(keep + row) != 0, tl.minimum((part + 1) * chunk, number), 0)


@jit
def corner_kernel(logits, keep, corners, height, width, CELLS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cells = (height + 1) * (width + 1)
    cell, corner = tl.program_id(1) * CELLS + tl.arange(0, CELLS)[:, None], tl.arange(0, 4)[None, :]
    use = (cell < cells) & (tl.load(keep + row) != 0)
    y, x = cell // (width + 1) - 1 + corner // 2, cell % (width + 1) - 1 + corner % 2
    inside = use & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    value = tl.load(logits + row * height * width + (y * width + x), inside, other=0.0)
    tl.store(corners + row * cells * 4 + (cell * 4 + corner), value.to(corners.dtype.element_ty), use)


@jit
def draw(seed, row, stream, counter):
    """x and y of both points of a counter, in units of 2^-24."""
    a, b, c, d = tl.philox(tl.load(seed), counter, row.to(tl.int32), stream, 0)
    return (a >> 8).to(tl.int32), (b >> 8).to(tl.int32), (c >> 8).to(tl.int32), (d >> 8).to(tl.int32)


@jit
def read_map(corners, row, column, down, right, width):
    """Values of the map of a row between four pixels."""
    corner = tl.arange(0, 4)[None, :]
    cell = (row + 1) * (width + 1) + column + 1
    value = tl.load(corners + (4 * cell[:, None] + corner), (row > -2)[:, None], other=0.0)
    aside = tl.where(corner % 2 == 0, 1 - right[:, None], right[:, None])
    weight = tl.where(corner // 2 == 0, 1 - down[:, None], down[:, None]) * aside
    return tl.sum(value * weight, 1)


@jit
def key_of(x):
    """Grows with |x|; NaN comes before everything."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(x == x, bits + 1, 0)


@jit
def value_kernel(
    corners, keep, seed, candidates, keys, histograms, number, height, width, chunk, shift,
    POINTS: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    real: tl.constexpr = corners.dtype.element_ty
    corners += row * (height + 1) * (width + 1) * 4
    candidates += row * number * 2
    keys += row * number
    half = (number + 1) // 2
    end = end_of(keep, row, part, chunk, half)
    bins, histogram = tl.arange(0, 256), tl.full([256], 0, tl.int32)
    for first in range(part * chunk, end, POINTS):
        counter = first + tl.arange(0, POINTS)
        if not GIVEN:
            xs, ys, next_xs, next_ys = draw(seed, row, 0, counter)
        for second in tl.static_range(2):
            point = counter + second * half
            use = (counter < end) & (point < number)
            if GIVEN:
                x = tl.load(candidates + 2 * point.to(tl.int64), use, other=-1.0)
                y = tl.load(candidates + 2 * point.to(tl.int64) + 1, use, other=-1.0)
            elif second == 0:
                x, y = xs.to(real) * UNIT, ys.to(real) * UNIT
            else:
                x, y = next_xs.to(real) * UNIT, next_ys.to(real) * UNIT
            top, left, down, right = place(x, y, height, width)
            key = key_of(read_map(corners, top, left, down, right, width))
            tl.store(keys + point, key, use)
            histogram += tl.histogram((key >> shift).to(tl.int32), 256, mask=use)
    tl.store(histograms + (row * parts + part) * 256 + bins, histogram)


@jit
def counts_of(histograms, parts, PARTS: tl.constexpr):
    """The sum of the histograms of some parts."""
    bins, counts = tl.arange(0, 256)[None, :], tl.full([PARTS, 256], 0, tl.int32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        counts += tl.load(histograms + part * 256 + bins, part < parts, other=0)
    return tl.sum(counts, 0)


@jit
def next_digit(states, histograms, row, part, parts, digit, digits, chosen, PARTS: tl.constexpr):
    """Of the last candidate to be chosen: its key up to a digit, and its rank among those that begin with it."""
    states += 2 * (row * digits + digit - 1)
    upper = tl.load(states - 2, digit > 1, other=0)
    rank = tl.load(states - 1, digit > 1, other=chosen)
    counts = counts_of(histograms, parts, PARTS)
    found = tl.sum((tl.cumsum(counts, 0) < rank).to(tl.int32), 0)
    upper = upper * 256 + found
    rank -= tl.sum(tl.where(tl.arange(0, 256) < found, counts, 0), 0)
    if part == 0:
        tl.store(states, upper)
        tl.store(states + 1, rank)
    return upper, rank


@jit
def digit_kernel(
    keys, keep, states, histograms, next_histograms, unders, number, chosen, chunk, value_parts, digit, digits, shift,
    POINTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    keys += row * number
    end = end_of(keep, row, part, chunk, number)
    if end > 0:
        histograms += row * value_parts * 256
        upper, _ = next_digit(states, histograms, row, part, value_parts, digit, digits, chosen, PARTS)
        histogram, under = tl.full([256], 0, tl.int32), tl.full([POINTS], 0, tl.int32)
        for first in range(part * chunk, end, POINTS):
            point = first + tl.arange(0, POINTS)
            key = tl.load(keys + point, point < end, other=0)
            begins = key >> (shift + 8)
            same = (point < end) & (begins == upper)
            histogram += tl.histogram((key >> shift).to(tl.int32) & 255, 256, mask=same)
            under += ((point < end) & (begins < upper)).to(tl.int32)
        tl.store(next_histograms + (row * parts + part) * 256 + tl.arange(0, 256), histogram)
        tl.store(unders + row * parts + part, tl.sum(under, 0))


@jit
def choose_kernel(
    keys, keep, states, histograms, unders, indices, number, chosen, chunk, digits,
    POINTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    keys += row * number
    indices += row * chosen
    end = end_of(keep, row, part, chunk, number)
    if end > 0:
        histograms += row * parts * 256
        threshold, ties = next_digit(states, histograms, row, part, parts, digits, digits, chosen, PARTS)
        bins, before, last = tl.arange(0, 256), counts_of(histograms, part, PARTS), threshold & 255
        under_before = tl.sum(tl.where(bins < last, before, 0), 0)
        equal_before = tl.sum(tl.where(bins == last, before, 0), 0)
        for first in range(0, part, 256):
            one = first + tl.arange(0, 256)
            under_before += tl.sum(tl.load(unders + row * parts + one, one < part, other=0), 0)
        for first in range(part * chunk, end, POINTS):
            point = first + tl.arange(0, POINTS)
            key = tl.load(keys + point, point < end, other=0)
            under, equal = (point < end) & (key < threshold), (point < end) & (key == threshold)
            # Both counts in one scan.
            both = tl.cumsum(under.to(tl.int32) + (equal.to(tl.int32) << 16), 0)
            rank = under_before + (both & 0xFFFF) - under.to(tl.int32)
            tie = equal_before + (both >> 16) - equal.to(tl.int32)
            tl.store(indices + rank + tl.minimum(tie, ties), point, under | (equal & (tie < ties)))
            both = tl.sum(under.to(tl.int32) + (equal.to(tl.int32) << 16), 0)
            under_before += both & 0xFFFF
            equal_before += both >> 16


@jit
def point_of(
    seed, row, indices, candidates, uniform, point, use, points, number, chosen,
    GIVEN: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    """x and y of the points of a row: those that were chosen, then those that are uniform."""
    further = point >= chosen
    index = tl.load(indices + row * chosen + point, use & ~further, other=0)
    index = tl.where(further, point - chosen, index)
    if GIVEN:
        candidates += row * number * 2
        uniform += row * (points - chosen) * 2
        one = 2 * index.to(tl.int64)
        x = tl.load(candidates + one, use & ~further, other=-1.0)
        y = tl.load(candidates + one + 1, use & ~further, other=-1.0)
        x = tl.where(further, tl.load(uniform + one, use & further, other=-1.0), x)
        y = tl.where(further, tl.load(uniform + one + 1, use & further, other=-1.0), y)
    else:
        half = (tl.where(further, points - chosen, number) + 1) // 2
        second = index >= half
        x, y, next_x, next_y = draw(seed, row, further.to(tl.int32), index - tl.where(second, half, 0))
        x, y = tl.where(second, next_x, x).to(real) * UNIT, tl.where(second, next_y, y).to(real) * UNIT
    return x, y


@jit
def loss_kernel(
    corners, words, keep, seed, indices, candidates, uniform, sums, terms, points, number, chosen, height, width,
    mask_height, mask_width, halves, chunk, saved, POINTS: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    real: tl.constexpr = corners.dtype.element_ty
    corners += row * (height + 1) * (width + 1) * 4
    words += row * mask_height * halves
    terms += row * points * 2
    end = end_of(keep, row, part, chunk, points)
    bce, overlap = tl.full([POINTS], 0, real), tl.full([POINTS], 0, real)
    probabilities, labels = tl.full([POINTS], 0, real), tl.full([POINTS], 0, real)
    for first in range(part * chunk, end, POINTS):
        point = first + tl.arange(0, POINTS)
        use = point < end
        x, y = point_of(seed, row, indices, candidates, uniform, point, use, points, number, chosen, GIVEN, real)
        top, left, down, right = place(x, y, mask_height, mask_width)
        label = read_label(words, top, left, down, right, mask_height, mask_width, halves)
        top, left, down, right = place(x, y, height, width)
        logit = read_map(corners, top, left, down, right, width)
        softplus, probability = softplus_and_sigmoid(logit)
        bce += tl.where(use, softplus - logit * label, 0.0)
        overlap += tl.where(use, probability * label, 0.0)
        probabilities += tl.where(use, probability, 0.0)
        labels += tl.where(use, label, 0.0)
        tl.store(terms + point, probability, use & (saved != 0))
        tl.store(terms + points + point, label, use & (saved != 0))
    sums += (row * parts + part) * 4
    tl.store(sums, tl.sum(bce, 0))
    tl.store(sums + 1, tl.sum(overlap, 0))
    tl.store(sums + 2, tl.sum(probabilities, 0))
    tl.store(sums + 3, tl.sum(labels, 0))


@jit
def sum_of(sums, row, use, kind, parts, PARTS: tl.constexpr):
    real: tl.constexpr = sums.dtype.element_ty
    total = tl.full([row.shape[0], PARTS], 0, real)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[None, :]
        total += tl.load(sums + (row[:, None] * parts + part) * 4 + kind, use[:, None] & (part < parts), other=0.0)
    return tl.sum(total, 1)


@jit
def total_kernel(sums, keep, bce, dice, totals, rows, parts, points, ROWS: tl.constexpr, PARTS: tl.constexpr):
    real: tl.constexpr = sums.dtype.element_ty
    bce_sum, dice_sum = tl.full([ROWS], 0, real), tl.full([ROWS], 0, real)
    for first in range(0, rows, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        use = tl.load(keep + row, row < rows, other=0) != 0
        area = sum_of(sums, row, use, 2, parts, PARTS) + sum_of(sums, row, use, 3, parts, PARTS) + 1
        share = (2 * sum_of(sums, row, use, 1, parts, PARTS) + 1) / area
        bce_sum += sum_of(sums, row, use, 0, parts, PARTS) / points
        dice_sum += tl.where(use, 1 - share, 0.0)
        tl.store(totals + 2 * row, area, use)
        tl.store(totals + 2 * row + 1, share, use)
    tl.store(bce, tl.sum(bce_sum, 0))
    tl.store(dice, tl.sum(dice_sum, 0))


@jit
def slope_kernel(
    keep, seed, indices, candidates, uniform, terms, totals, slopes, points, number, chosen, height, width, chunk,
    POINTS: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    real: tl.constexpr = terms.dtype.element_ty
    terms += row * points * 2
    slopes += row * height * width * 2
    end = end_of(keep, row, part, chunk, points)
    # Two pixels side by side, two slopes of each.
    four = tl.arange(0, 4)[None, :]
    share = tl.load(totals + 2 * row + 1, end > 0, other=0.0)
    scale = tl.full([1, 1], MEAN, real) / points
    for first in range(part * chunk, end, POINTS):
        point = first + tl.arange(0, POINTS)
        use = point < end
        x, y = point_of(seed, row, indices, candidates, uniform, point, use, points, number, chosen, GIVEN, real)
        top, left, down, right = place(x, y, height, width)
        s, t = tl.load(terms + point, use, other=0.0), tl.load(terms + points + point, use, other=0.0)
        slope = tl.where(four % 2 == 0, (s - t)[:, None], (s * (1 - s) * (share - 2 * t))[:, None])
        slope = slope * tl.where(four // 2 == 0, 1 - right[:, None], right[:, None]) * scale
        # NaN is told by the sums of the row.
        slope = tl.where(slope == slope, slope, 0.0)
        column = left[:, None] + four // 2
        inside = use[:, None] & (column >= 0) & (column < width)
        for lower in tl.static_range(2):
            pixel_row = top[:, None] + lower
            share_of_row = down[:, None] if lower else 1 - down[:, None]
            tl.atomic_add(
                slopes + (pixel_row * width + left[:, None]) * 2 + four,
                (slope * share_of_row).to(tl.int64),
                inside & (pixel_row >= 0) & (pixel_row < height),
                sem="relaxed",
            )


@jit
def finish_kernel(slopes, keep, totals, gradients, pixels, points, PIXELS: tl.constexpr):
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    real: tl.constexpr = gradients.dtype.element_ty
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    use = tl.load(keep + row) != 0
    area = tl.load(totals + 2 * row, use, other=1.0)
    unit = tl.where(area == area, tl.full([1], 1.0, real) / MEAN, float("nan"))
    slopes += row * pixels * 2
    by_bce = tl.load(slopes + 2 * pixel, use & (pixel < pixels), other=0).to(real) * unit
    by_dice = tl.load(slopes + 2 * pixel + 1, use & (pixel < pixels), other=0).to(real) * unit * (points / area)
    tl.store(gradients + row * pixels + pixel, by_bce, pixel < pixels)
    tl.store(gradients + (rows + row) * pixels + pixel, by_dice, pixel < pixels)


@jit
def weigh_kernel(by_bce, by_dice, gradients, grad, number, VALUES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    use = at < number
    value = tl.load(by_bce) * tl.load(gradients + at, use, other=0.0)
    value += tl.load(by_dice) * tl.load(gradients + number + at, use, other=0.0)
    tl.store(grad + at, value.to(grad.dtype.element_ty), use)


def _split(number: int, rows: int, block: int) -> tuple[int, int]:
    """How much of a row a program takes, in whole blocks, and how many programs that makes."""
    chunk = triton.cdiv(triton.cdiv(number, max(1, PROGRAMS // rows)), block) * block
    return chunk, triton.cdiv(number, chunk)


def _choose(
    corners: Tensor, keep: Tensor, seed: Tensor, candidates: Tensor | None, height: int, width: int, number: int,
    chosen: int,
) -> Tensor:  # fmt: skip
    """Indices of the chosen candidates of each row, int32."""
    rows, exact = len(corners), corners.dtype == torch.float64
    digits = 8 if exact else 4
    keys = corners.new_empty((rows, number), dtype=torch.int64 if exact else torch.int32)
    states = keys.new_empty((rows, digits, 2), dtype=torch.int64)
    indices = keys.new_empty((rows, chosen), dtype=torch.int32)
    chunk, value_parts = _split(triton.cdiv(number, 2), rows, VALUE["POINTS"])
    histograms = indices.new_empty((rows, value_parts, 256))
    value_kernel[rows, value_parts](
        corners, keep, seed, corners if candidates is None else candidates, keys, histograms, number, height, width,
        chunk, 8 * (digits - 1), GIVEN=int(candidates is not None), **VALUE,
    )  # fmt: skip
    chunk, parts = _split(number, rows, DIGIT["POINTS"])
    unders = indices.new_empty((rows, parts))
    for digit in range(1, digits):
        before, histograms = histograms, indices.new_empty((rows, parts, 256))
        digit_kernel[rows, parts](
            keys, keep, states, before, histograms, unders, number, chosen, chunk,
            value_parts if digit == 1 else parts, digit, digits, 8 * (digits - 1 - digit), **DIGIT,
        )  # fmt: skip
    choose_kernel[rows, parts](keys, keep, states, histograms, unders, indices, number, chosen, chunk, digits, **CHOOSE)
    return indices


def losses(
    logits: Tensor, words: Tensor, width: int, keep: Tensor, seed: Tensor, candidates: Tensor | None,
    uniform: Tensor | None, points: int, number: int, chosen: int, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Both sums, and the maps of their slopes where they are wanted, of contiguous tensors."""
    real = torch.promote_types(logits.dtype, torch.float32)
    rows, (height, map_width), (mask_height, length) = keep.numel(), logits.shape[2:], words.shape[2:]
    bce, dice = (logits.new_empty((), dtype=real) for _ in range(2))
    gradients = logits.new_empty((2, *logits.shape) if gradient else (0,), dtype=real)
    if rows == 0:
        return bce.zero_(), dice.zero_(), gradients
    if chosen and (candidates is None) != (uniform is None):
        raise RuntimeError(
            "s2d::temporal_drop_loss: expected candidates and uniform points both given or both drawn on a GPU, got one"
        )
    keep, cells = keep.view(torch.uint8), (height + 1) * (map_width + 1)
    corners = logits.new_empty((rows, cells, 4), dtype=real)
    corner_kernel[rows, triton.cdiv(cells, CORNER["CELLS"])](logits, keep, corners, height, map_width, **CORNER)
    given = {"GIVEN": int(uniform is not None)}
    if chosen:
        indices = _choose(corners, keep, seed, candidates, height, map_width, number, chosen)
    else:
        indices = words.view(torch.int32)
    # What is not read has the type of what is.
    candidates, uniform = (corners if given is None else given for given in (candidates, uniform))
    chunk, parts = _split(points, rows, LOSS["POINTS"])
    sums, totals = corners.new_empty((rows, parts, 4)), corners.new_empty((rows, 2))
    terms = corners.new_empty((rows, 2, points if gradient else 0))
    loss_kernel[rows, parts](
        corners, words.view(torch.int32), keep, seed, indices, candidates, uniform, sums, terms, points, number, chosen,
        height, map_width, mask_height, width, 2 * length, chunk, int(gradient), **given, **LOSS,
    )  # fmt: skip
    total_kernel[(1,)](sums, keep, bce, dice, totals, rows, parts, points, **TOTAL)
    if gradient:
        pixels = height * map_width
        slopes = words.new_zeros((rows, pixels, 2))
        slope_kernel[rows, parts](
            keep, seed, indices, candidates, uniform, terms, totals, slopes, points, number, chosen, height, map_width,
            chunk, **given, **SLOPE,
        )  # fmt: skip
        finish_kernel[rows, triton.cdiv(pixels, FINISH["PIXELS"])](
            slopes, keep, totals, gradients, pixels, points, **FINISH
        )
    return bce, dice, gradients


def weigh(by_bce: Tensor, by_dice: Tensor, gradients: Tensor, logits: Tensor) -> Tensor:
    """The gradient of the logits from the maps of both sums' slopes."""
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if grad.numel():
        weigh_kernel[(triton.cdiv(grad.numel(), WEIGH["VALUES"]),)](
            by_bce, by_dice, gradients, grad, grad.numel(), **WEIGH
        )
    return grad


def _variant(kernel: Any, constants: dict[str, int], **pointers: str) -> dict[str, Any]:
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
    return {"kernel": kernel, "signature": signature, "constants": constants, "options": options}


def _pointers(real: str) -> dict[str, str]:
    names = "corners candidates uniform sums terms totals bce dice gradients by_bce by_dice"
    kinds = {"keep": "u8", "seed": "i64", "words": "i32", "indices": "i32", "states": "i64", "slopes": "i64"}
    kinds |= dict.fromkeys(["histograms", "next_histograms", "unders"], "i32")
    kinds |= {"keys": "i64" if real == "fp64" else "i32"} | dict.fromkeys(names.split(), real)
    return {name: f"*{kind}" for name, kind in kinds.items()}


# What can be asked for, by the dtype of the logits and that of the computation.
VARIANTS = [
    _variant(kernel, options, **_pointers(real), **{name: f"*{logits}"})
    for logits, real in (("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp64", "fp64"))
    for kernel, options, name in ((corner_kernel, CORNER, "logits"), (weigh_kernel, WEIGH, "grad"))
] + [
    _variant(kernel, options, **_pointers(real))
    for real in ("fp32", "fp64")
    for kernel, options in (
        *((value_kernel, VALUE | {"GIVEN": given}) for given in (0, 1)),
        (digit_kernel, DIGIT),
        (choose_kernel, CHOOSE),
        *((loss_kernel, LOSS | {"GIVEN": given}) for given in (0, 1)),
        (total_kernel, TOTAL),
        *((slope_kernel, SLOPE | {"GIVEN": given}) for given in (0, 1)),
        (finish_kernel, FINISH),
    )
]
