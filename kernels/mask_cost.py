"""mask_cost in Triton: four kernels, in the order they run. Not run on a GPU.

A point falls anywhere in a map, so a warp whose lanes are points of one map reads 32 cache lines for 128 bytes, and
that alone is over the goal. Hence the lanes are queries: logits are turned once so that the values of a pixel lie side
by side, and a corner of a point is then one read of 512 bytes, for 128 queries; where the point lies and what its
labels are is the same for all of them.

    turn_kernel    logits [Q, T, hw] -> turned [T, hw, L]              a block: 32 pixels of a frame, 128 queries
    label_kernel   words, points -> labels [T, P, K], areas            a block: 128 points of a frame, 8 targets
    sum_kernel     turned, labels -> sums of each chunk of points      a block: a chunk, 128 queries, 8 targets
    cost_kernel    sums, areas -> bce, dice [Q, G]                     a block: 16 queries, one target

L and K are Q and G rounded up to 16 and 8. In `sum_kernel` each of four warps takes a point at a time, a lane four
queries and all eight targets, and the sums stay in registers until the end of the chunk: nothing is shared or waited
for inside the loop. One exponential serves softplus and sigmoid. Chunks are added in a fixed order, without atomics,
and their number depends on the sizes alone: results are the same on every run and every GPU.

Bytes moved: each logit is read once and written once, 16 L for each point of a frame (its corners, of four bytes) and
4 K labels for each point and 128 queries; what was written stays in the second-level cache. At Q=100, G=5, T=3, 90x160
and P=12,544 that is 17 MB from memory, 19 MB to that cache and 67 MB from it. A point of 128 queries takes 346
instructions on sm_90, 14 us on the whole of an H200; with its four launches the estimate is 35 us, of a goal of 60.

The hard part is registers: 64 of a thread hold the products with eight targets, and with 128 in all four blocks share
a multiprocessor, whose 16 warps hide the reads. It holds as long as every tensor of the loop is [POINTS, TARGETS,
QUERIES], of size 1 where the values are the same: a two-dimensional one meets the rest through shared memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# One binary for all sizes: no number is compiled in because it is 1 or divides by 16. Where a kernel needs a multiple,
# for wide loads, it is given the factor.
SIZES = ["queries", "pixels", "sixteens", "eights", "targets", "count", "chunk", "chunks", "blocks", "number"]
jit = triton.jit(do_not_specialize=[*SIZES, "height", "width", "halves"])

TURN = {"PIXELS": 32, "QUERIES": 128, "num_warps": 4, "num_stages": 1}
LABEL = {"POINTS": 128, "TARGETS": 8, "num_warps": 4, "num_stages": 1}
# Left alone, Triton 3.6 takes a few registers more than let four blocks of sum_kernel share a multiprocessor.
SUM = {"POINTS": 4, "TARGETS": 8, "QUERIES": 128, "num_warps": 4, "num_stages": 1, "maxnreg": 128}
SUM_DOUBLE = SUM | {"maxnreg": 255}
COST = {"CHUNKS": 128, "QUERIES": 16, "num_warps": 8, "num_stages": 1}

PROGRAMS = 512  # of sum_kernel: one wave of four blocks on the 132 multiprocessors of an H200


@jit
def turn_kernel(logits, turned, queries, pixels, sixteens, PIXELS: tl.constexpr, QUERIES: tl.constexpr):
    lanes = 16 * sixteens
    frame, frames = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    query = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    source = (query.to(tl.int64) * frames + frame)[:, None] * pixels + pixel[None, :]
    values = tl.load(logits + source, mask=(query < queries)[:, None] & (pixel < pixels)[None, :], other=0.0)
    target = (frame * pixels + pixel)[:, None] * lanes + query[None, :]
    tl.store(turned + target, tl.trans(values), mask=(pixel < pixels)[:, None] & (query < lanes)[None, :])


@jit
def place(x, y, height, width):
    """Row and column of the top left of the four pixels around each point, how far below and right of it the point is.

    The pixels of a point that reads nothing are outside: no weight would save it from a pixel that is infinite.
    """
    x, y = x * width - 0.5, y * height - 0.5
    # NaN is not inside, and a float from far outside does not fit into an integer.
    inside = (x > -1) & (y > -1) & (x < width) & (y < height)
    x, y = tl.where(inside, x, -2.0), tl.where(inside, y, -2.0)
    left, top = tl.floor(x), tl.floor(y)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left


@jit
def place_points(points, point, count, height, width):
    """`place` of points that are stored; one past the last is outside."""
    x = tl.load(points + 2 * point, mask=point < count, other=-1.0)
    y = tl.load(points + 2 * point + 1, mask=point < count, other=-1.0)
    return place(x, y, height, width)


@jit
def read_side(words, row, column, right, height, width, halves):
    """What a mask has between two pixels of a row; they are mostly in one half of a word, and bits past it are 0."""
    inside, last = (row >= 0) & (row < height), (column & 31) == 31
    words += row * halves
    half = tl.load(words + (column >> 5), mask=inside & (column >= 0), other=0)
    following = tl.load(words + ((column + 1) >> 5), mask=inside & last & (column + 1 < width), other=0)
    left = (half >> (column & 31)) & 1
    return (1 - right) * left + right * ((tl.where(last, following, half) >> ((column + 1) & 31)) & 1)


@jit
def read_label(words, row, column, down, right, height, width, halves):
    upper = read_side(words, row, column, right, height, width, halves)
    return (1 - down) * upper + down * read_side(words, row + 1, column, right, height, width, halves)


@jit
def label_kernel(
    words, points, labels, areas, count, targets, height, width, halves, POINTS: tl.constexpr, TARGETS: tl.constexpr
):
    frame, frames = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    slots = tl.num_programs(2) * TARGETS
    point = tl.program_id(0) * POINTS + tl.arange(0, POINTS)[:, None]
    target = tl.program_id(2) * TARGETS + tl.arange(0, TARGETS)[None, :]
    row, column, down, right = place_points(points, point, count, height, width)
    # A slot without a target repeats the last one: its sums are never read.
    mask = words + (tl.minimum(target, targets - 1) * frames + frame) * height * halves
    label = read_label(mask, row, column, down, right, height, width, halves)
    tl.store(labels + (frame * count + point) * slots + target, label, mask=point < count)
    block = frame * tl.num_programs(0) + tl.program_id(0)
    tl.store(areas + block * slots + target, tl.sum(label, 0)[None, :])


@jit
def read_pixel(turned, row, column, query, height, width, lanes):
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tl.load(turned + (row * width + column).to(tl.int64) * lanes + query, inside & (query < lanes), other=0.0)


@jit
def softplus_and_sigmoid(x):
    e = tl.exp(-tl.abs(x))
    if x.dtype == tl.float64:
        # log1p(e): the quotient makes good what 1 + e lost of e (Kahan).
        u = 1 + e
        log1p = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))
        share = 1 / u
    else:
        # log1p(e) = 2 artanh(s) with s = e / (2 + e), at most 1/3: exact where e is small, too. One division for both.
        quotient = 1 / ((1 + e) * (2 + e))
        share = (2 + e) * quotient
        s = e * (1 + e) * quotient
        z = s * s
        log1p = 2 * (s + s * z * (((z * 0.1401221097 + 0.1399957477) * z + 0.2001084923) * z + 0.3333320657))
    return tl.maximum(x, 0.0) + log1p, tl.where(x < 0, e * share, share)


@jit
def sum_kernel(
    turned,
    labels,
    points,
    alone,
    pairs,
    count,
    chunk,
    eights,
    height,
    width,
    sixteens,
    POINTS: tl.constexpr,
    TARGETS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    lanes, slots = 16 * sixteens, 8 * eights
    frame, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    query_blocks = (lanes + QUERIES - 1) // QUERIES
    group = tl.program_id(2) // query_blocks
    query = tl.program_id(2) % query_blocks * QUERIES + tl.arange(0, QUERIES)[None, None, :]
    target = group * TARGETS + tl.arange(0, TARGETS)[None, :, None]
    turned += frame * height * width * lanes
    labels += frame * count * slots
    dtype: tl.constexpr = points.dtype.element_ty
    softplus_sum = tl.zeros([POINTS, 1, QUERIES], dtype)
    sigmoid_sum = tl.zeros([POINTS, 1, QUERIES], dtype)
    with_logit = tl.zeros([POINTS, TARGETS, QUERIES], dtype)
    with_sigmoid = tl.zeros([POINTS, TARGETS, QUERIES], dtype)
    end = tl.minimum((part + 1) * chunk, count)
    for first in range(part * chunk, end, POINTS):
        point = first + tl.arange(0, POINTS)[:, None, None]
        row, column, down, right = place_points(points, point, end, height, width)
        upper = (1 - right) * read_pixel(turned, row, column, query, height, width, lanes).to(dtype)
        upper += right * read_pixel(turned, row, column + 1, query, height, width, lanes).to(dtype)
        lower = (1 - right) * read_pixel(turned, row + 1, column, query, height, width, lanes).to(dtype)
        lower += right * read_pixel(turned, row + 1, column + 1, query, height, width, lanes).to(dtype)
        x = (1 - down) * upper + down * lower
        label = tl.load(labels + point.to(tl.int64) * slots + target, point < end, other=0.0)
        softplus, sigmoid = softplus_and_sigmoid(x)
        # x and the labels of points past the end are 0, but not what an x of 0 gives.
        softplus_sum += tl.where(point < end, softplus, 0.0)
        sigmoid_sum += tl.where(point < end, sigmoid, 0.0)
        with_logit += x * label
        with_sigmoid += sigmoid * label
    number = frame * tl.num_programs(0) + part
    sums = alone + number * 2 * lanes + query
    tl.store(sums, tl.sum(softplus_sum, 0)[None], (query < lanes) & (group == 0))
    tl.store(sums + lanes, tl.sum(sigmoid_sum, 0)[None], (query < lanes) & (group == 0))
    sums = pairs + (number * 2 * slots + target) * lanes + query
    tl.store(sums, tl.sum(with_logit, 0)[None], query < lanes)
    tl.store(sums + slots * lanes, tl.sum(with_sigmoid, 0)[None], query < lanes)


@jit
def cost_kernel(
    alone,
    pairs,
    areas,
    bce,
    dice,
    number,
    chunks,
    blocks,
    queries,
    eights,
    sixteens,
    CHUNKS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    lanes, slots = 16 * sixteens, 8 * eights
    target, targets = tl.program_id(1), tl.num_programs(1)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)[None, :]
    dtype: tl.constexpr = areas.dtype.element_ty
    softplus = tl.zeros([CHUNKS, QUERIES], dtype)
    sigmoid = tl.zeros([CHUNKS, QUERIES], dtype)
    with_logit = tl.zeros([CHUNKS, QUERIES], dtype)
    with_sigmoid = tl.zeros([CHUNKS, QUERIES], dtype)
    for first in range(0, chunks, CHUNKS):
        chunk = (first + tl.arange(0, CHUNKS)).to(tl.int64)[:, None]
        mask = (chunk < chunks) & (query < lanes)
        sums = alone + chunk * 2 * lanes + query
        softplus += tl.load(sums, mask, other=0.0)
        sigmoid += tl.load(sums + lanes, mask, other=0.0)
        sums = pairs + (chunk * 2 * slots + target) * lanes + query
        with_logit += tl.load(sums, mask, other=0.0)
        with_sigmoid += tl.load(sums + slots * lanes, mask, other=0.0)
    area = tl.zeros([CHUNKS], dtype)
    for first in range(0, blocks, CHUNKS):
        block = first + tl.arange(0, CHUNKS)
        area += tl.load(areas + block * slots + target, block < blocks, other=0.0)
    entropy = (tl.sum(softplus, 0) - tl.sum(with_logit, 0)) / number
    overlap = (2 * tl.sum(with_sigmoid, 0) + 1) / (tl.sum(sigmoid, 0) + tl.sum(area, 0) + 1)
    tl.store(bce + query * targets + target, entropy[None, :], query < queries)
    tl.store(dice + query * targets + target, (1 - overlap)[None, :], query < queries)


def launch(logits: Tensor, words: Tensor, width: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """The costs of contiguous ``logits``, int64 ``words`` and ``points`` (float32, float64 for float64 logits)."""
    queries, frames, logit_height, logit_width = logits.shape
    targets, _, height, length = words.shape
    count, pixels = len(points), logit_height * logit_width
    bce, dice = points.new_empty((queries, targets)), points.new_empty((queries, targets))
    if bce.numel() == 0:
        return bce, dice
    sixteens, eights = triton.cdiv(queries, 16), triton.cdiv(targets, LABEL["TARGETS"])
    lanes, slots, query_blocks = 16 * sixteens, 8 * eights, triton.cdiv(queries, SUM["QUERIES"])

    turned = logits.new_empty((frames, pixels, lanes))
    grid = (triton.cdiv(pixels, TURN["PIXELS"]), frames, triton.cdiv(lanes, TURN["QUERIES"]))
    turn_kernel[grid](logits, turned, queries, pixels, sixteens, **TURN)

    blocks = triton.cdiv(count, LABEL["POINTS"])
    labels, areas = points.new_empty((frames, count, slots)), points.new_empty((frames * blocks, slots))
    halves = words.view(torch.int32)
    grid = (blocks, frames, eights)
    label_kernel[grid](halves, points, labels, areas, count, targets, height, width, 2 * length, **LABEL)

    parts = max(1, PROGRAMS // (frames * query_blocks * eights))
    chunk = triton.cdiv(triton.cdiv(count, parts), SUM["POINTS"]) * SUM["POINTS"]
    parts = triton.cdiv(count, chunk)
    alone = points.new_empty((frames * parts, 2, lanes))
    pairs = points.new_empty((frames * parts, 2, slots, lanes))
    grid = (parts, frames, query_blocks * eights)
    options = SUM_DOUBLE if points.dtype == torch.float64 else SUM
    sum_kernel[grid](
        turned, labels, points, alone, pairs, count, chunk, eights, logit_height, logit_width, sixteens, **options
    )

    grid = (triton.cdiv(queries, COST["QUERIES"]), targets)
    number, chunks = frames * count, frames * parts
    cost_kernel[grid](
        alone, pairs, areas, bce, dice, number, chunks, frames * blocks, queries, eights, sixteens, **COST
    )
    return bce, dice


def _variant(kernel: Any, constants: dict[str, int], **pointers: str) -> dict[str, Any]:
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
    return {"kernel": kernel, "signature": signature, "constants": constants, "options": options}


def _pointers(names: str, dtype: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"*{dtype}")


# What `launch` can ask for, by the dtypes of logits and points.
VARIANTS = [
    variant
    for logits, real in (("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp64", "fp64"))
    for variant in (
        _variant(turn_kernel, TURN, **_pointers("logits turned", logits)),
        _variant(
            sum_kernel,
            SUM_DOUBLE if real == "fp64" else SUM,
            turned=f"*{logits}",
            **_pointers("labels points alone pairs", real),
        ),
    )
] + [
    variant
    for real in ("fp32", "fp64")
    for variant in (
        _variant(label_kernel, LABEL, words="*i32", **_pointers("points labels areas", real)),
        _variant(cost_kernel, COST, **_pointers("alone pairs areas bce dice", real)),
    )
]
