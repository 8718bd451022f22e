"""masked_attention in Triton: what rows attend to, forward, backward, and the masks. Not run on a GPU.

                                                                                       a block takes
    plan_kernel          words, frame_keep -> words attended to, tiles of kept frames  4 rows, or all tiles
    attend_kernel        q, k, v, words, tiles -> partial results                      128 rows, a split of the tiles
    combine_kernel       partial results -> out, logsumexp                             128 values of a head
    backward_kernel      q, k, v, grad, ... -> grad_k, grad_v, partial grad_q          as in attend_kernel
    add_kernel           partial grad_q -> grad_q                                      as in combine_kernel
    resize_kernel        logits -> words                                               256 keys, 8 rows
    product_mask_kernel  embed, features -> words                                      64 keys, 128 rows

Queries are few and keys many: a block holds all rows of a head and walks through its part of the tiles, of 64 keys (a
word of each row) that are read once. It keeps the partial softmax and a partial result of 128 x D in registers; dropped
frames are not in the list of tiles. Backward computes the shares again; each tile's grad_k and grad_v belong to one
block, so that nothing is added by atomics. The number of splits depends on sizes alone: results are the same on every
run. A row's fallback is written into the words by `plan_kernel`, so that nothing later asks for it, or for frames.

float32 is multiplied as three products of tf32, which have its accuracy (tests/ops/test_masked_attention.py), halves as
they are; for both sums are in float32. float64 is there to check by: it takes the exact way.

The hard part is what is not attended to but not finite: a product of tiles multiplies it by 0, which gives NaN. The
loops over tiles take the risk and look at their sum in the end; a block whose sum is not finite starts again, a few
rows and keys at a time, with selects in place of products (`attend_exactly`, `slopes_exactly`).

The case of the goal (B=1, h=8, Q=100, D=32, 122,880 keys, bfloat16) on an H200:
forward reads 126 MB (29 us), multiplies 16 GFLOP (20 us) and takes 126 million powers of two (34 us, the least that it
can take); in the loop a warp has 650 instructions for each tile of its 32 rows, 40 us of all multiprocessors, and two
blocks share one. With 3 us for the plan and 4 us for 3.4 MB of partial results and their launches: 60 to 65 us, of a
goal of 60. Backward moves 252 MB (58 us), multiplies 40 GFLOP (51 us) and has 75 us of instructions, one block on a
multiprocessor: 120 to 150 us, of a goal of 150. Masks from logits read each logit of twice the size once (46 us at
100 x 32 x 96 x 160 float32); from features 63 MB of 256 channels in bfloat16 (15 us).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# One binary for all sizes: no number is compiled in because it is 1 or divides by 16. Channels come by sixteens, for
# wide loads.
SIZES = ["heads", "queries", "keys", "length", "channels", "sixteens", "frames", "size", "splits", "block", "number"]
jit = triton.jit(do_not_specialize=[*SIZES, "height", "width", "in_height", "in_width", "groups"])

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

PLAN = {"ROWS": 4, "WORDS": 1024, "num_warps": 8, "num_stages": 1}
ADD = {"SPLITS": 8, "VALUES": 128, "num_warps": 4, "num_stages": 1}
RESIZE = {"ROWS": 8, "HALVES": 8, "num_warps": 4, "num_stages": 1}


def _options(lanes: int, rows: int, warps: int, stages: int) -> dict[str, int]:
    # Few, as they are multiplied in registers; it is steps that take long where they are interpreted.
    few = 32 if INTERPRETED else 256 // lanes
    return {"ROWS": rows, "LANES": lanes, "FEW": few, "num_warps": warps, "num_stages": stages}


HALF, WIDE, DOUBLE = (torch.float16, torch.bfloat16), (torch.float32,), (torch.float64,)
# Dtypes, the most channels of a head; rows, warps and stages of loads, forward and backward.
BLOCKS = (
    (HALF, 32, (128, 4, 5), (128, 8, 5)),
    (HALF, 128, (128, 8, 5), (64, 8, 3)),
    (WIDE, 32, (128, 8, 5), (64, 4, 3)),
    (WIDE, 128, (32, 8, 2), (16, 8, 2)),
    (DOUBLE, 128, (8, 4, 1), (8, 4, 1)),
)
ATTEND = {(dtype, lanes): _options(lanes, *block) for dtypes, lanes, block, _ in BLOCKS for dtype in dtypes}
BACKWARD = {(dtype, lanes): _options(lanes, *block) for dtypes, lanes, _, block in BLOCKS for dtype in dtypes}
PRODUCT = {
    (dtype, group): {
        "ROWS": 16 if dtype == torch.float64 else 128,
        "CHANNELS": 4 if dtype == torch.float64 else 32,
        "KEYS": 64,
        "GROUP": group,
        "num_warps": 4 if dtype == torch.float64 else 8,
        "num_stages": 4,
    }
    for dtype in DTYPES
    for group in (1, 8)
}
PROGRAMS = 264  # two blocks on each of the 132 multiprocessors of an H200


@jit
def product(a, b, sums):
    """``sums + a @ b``."""
    # The interpreter would multiply the codes of bfloat16. Widened, its values have the products that tensor cores add.
    if INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums)
    return tl.dot(a, b, sums, input_precision="tf32x3")


@jit
def kept_bits(keep, word, frames, size, keys):
    """Bits of the keys in kept frames, of a clip's words; without frames all keys are kept."""
    first = word * 64
    frame = first // size
    # Frames change at this bit, and at every size-th from there.
    bit = (frame + 1) * size - first
    now = tl.load(keep + frame, frame < frames, other=1) != 0
    kept = tl.where(now, -1, 0).to(tl.int64)
    for _ in range(64 // size + 1):
        frame += 1
        then = tl.load(keep + frame, frame < frames, other=1) != 0
        from_here = tl.full(word.shape, -1, tl.int64) << tl.minimum(bit, 63).to(tl.int64)
        kept ^= tl.where((then != now) & (bit < 64), from_here, 0)
        bit += size
        now = then
    rest = tl.minimum(tl.maximum(keys - first, 0), 64).to(tl.int64)
    return kept & tl.where(rest == 64, -1, (tl.full(word.shape, 1, tl.int64) << (rest & 63)) - 1)


@jit
def plan_kernel(
    words, keep, attended, tiles, counts, queries, length, frames, size, keys, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    clip = tl.program_id(1).to(tl.int64)
    keep += clip * frames
    if tl.program_id(0) > 0:
        row = (tl.program_id(0) - 1) * ROWS + tl.arange(0, ROWS)[:, None]
        rows = (clip * queries + row) * length
        found = tl.zeros([ROWS, WORDS], tl.int64)
        for first in range(0, length, WORDS):
            word = first + tl.arange(0, WORDS)
            kept = kept_bits(keep, word, frames, size, keys)[None, :]
            use = (row < queries) & (word < length)[None, :]
            found |= tl.load(words + rows + word[None, :], use, other=0) & kept
        own = tl.max((found != 0).to(tl.int32), 1)[:, None] != 0
        for first in range(0, length, WORDS):
            word = first + tl.arange(0, WORDS)
            kept = kept_bits(keep, word, frames, size, keys)[None, :]
            use = (row < queries) & (word < length)[None, :]
            bits = tl.load(words + rows + word[None, :], use, other=0)
            tl.store(attended + rows + word[None, :], tl.where(own, bits & kept, kept), use)
    else:
        before = 0
        for first in range(0, length, WORDS):
            word = first + tl.arange(0, WORDS)
            active = (kept_bits(keep, word, frames, size, keys) != 0).to(tl.int32)
            rank = before + tl.cumsum(active, 0) - active
            place = tl.where(active != 0, rank, length - 1 - (word - rank))
            tl.store(tiles + clip * length + place, word, word < length)
            before += tl.sum(tl.where(word < length, active, 0), 0)
        tl.store(counts + clip, before)


@jit
def bits_of(word):
    """bool ``[rows, 64]`` of one word a row; which half a column lies in is known when it is compiled."""
    bit = tl.arange(0, 64)[None, :]
    half = tl.where(bit < 32, word.to(tl.int32)[:, None], (word >> 32).to(tl.int32)[:, None])
    return (half & (1 << (bit % 32))) != 0


@jit
def share_of(count, split, splits):
    """First and end of the tiles that one of the splits takes."""
    count = count.to(tl.int64)
    return (count * split // splits).to(tl.int32), (count * (split + 1) // splits).to(tl.int32)


@jit
def log2_scale(channels, real: tl.constexpr):
    """1 / sqrt(D), for powers of two."""
    return 1.4426950408889634 / tl.sqrt(channels.to(real))


@jit
def not_finite(x):
    return tl.max((~(tl.abs(x) < float("inf"))).to(tl.int32)) != 0


@jit
def read_rows(rows, row, queries, sixteens, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)[None, :]
    use = (row < queries)[:, None] & (lane < 16 * sixteens)
    return tl.load(rows + row[:, None] * 16 * sixteens + lane, use, other=0.0)


@jit
def write_rows(rows, row, queries, sixteens, values):
    lane = tl.arange(0, values.shape[1])[None, :]
    use = (row < queries)[:, None] & (lane < 16 * sixteens)
    tl.store(rows + row[:, None] * 16 * sixteens + lane, values.to(rows.dtype.element_ty), use)


@jit
def read_keys(tensor, tile, one, keys, sixteens, LANES: tl.constexpr):
    """Some keys of a tile, ``[number, LANES]``."""
    lane = tl.arange(0, LANES)[None, :]
    use = (tile * 64 + one < keys)[:, None] & (lane < 16 * sixteens)
    return tl.load(tensor + tile.to(tl.int64) * 1024 * sixteens + (one[:, None] * 16 * sixteens + lane), use, other=0.0)


@jit
def read_chosen(words, row, tile, one, queries, length):
    """bool ``[rows, number]``: which of some keys of a tile each row attends to."""
    word = tl.load(words + row.to(tl.int64) * length + tile, row < queries, other=0)
    return ((word[:, None] >> one[None, :].to(tl.int64)) & 1) != 0


@jit
def fold(level, total, score, scale):
    """Level (a power of two) and sum of rows once scores join them, the shares of these, what is left of the others."""
    new = tl.maximum(level, tl.max(score, 1) * scale)
    base = tl.where(new == float("-inf"), 0.0, new)
    share, fade = tl.exp2(score * scale - base[:, None]), tl.exp2(level - base)
    return new, total * fade + tl.sum(share, 1), share, fade


@jit
def attend_tiles(
    q, k, v, words, tiles, begin, end, queries, keys, length, channels, sixteens,
    row, LANES: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    query, scale, one = read_rows(q, row, queries, sixteens, LANES), log2_scale(channels, real), tl.arange(0, 64)
    level, total = tl.full(row.shape, float("-inf"), real), tl.zeros(row.shape, real)
    out = tl.zeros(query.shape, real)
    for i in range(begin, end):
        tile = tl.load(tiles + i)
        key = read_keys(k, tile, one, keys, sixteens, LANES)
        value = read_keys(v, tile, one, keys, sixteens, LANES)
        word = tl.load(words + row.to(tl.int64) * length + tile, row < queries, other=0)
        score = product(query, tl.trans(key), tl.zeros([query.shape[0], 64], real))
        level, total, share, fade = fold(level, total, tl.where(bits_of(word), score, float("-inf")), scale)
        out = product(share.to(value.dtype), value, out * fade[:, None])
    return level, total, out


@jit
def attend_exactly(
    q, k, v, words, tiles, begin, end, queries, keys, length, channels, sixteens,
    row, ROWS: tl.constexpr, FEW: tl.constexpr, LANES: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    query = read_rows(q, row, queries, sixteens, LANES).to(real)[:, None, :]
    level, total = tl.full([ROWS], float("-inf"), real), tl.zeros([ROWS], real)
    out, scale = tl.zeros([ROWS, LANES], real), log2_scale(channels, real)
    for i in range(begin * (64 // FEW), end * (64 // FEW)):
        tile, one = tl.load(tiles + i // (64 // FEW)), i % (64 // FEW) * FEW + tl.arange(0, FEW)
        chosen = read_chosen(words, row, tile, one, queries, length)
        key = read_keys(k, tile, one, keys, sixteens, LANES).to(real)[None]
        value = read_keys(v, tile, one, keys, sixteens, LANES).to(real)[None]
        score = tl.where(chosen, tl.sum(query * key, 2), float("-inf"))
        level, total, share, fade = fold(level, total, score, scale)
        out = out * fade[:, None] + tl.sum(tl.where(chosen[:, :, None], share[:, :, None] * value, 0.0), 1)
    return level, total, out


@jit
def attend_kernel(
    q, k, v, words, tiles, counts, partial, levels, sums, heads, queries, keys, length, channels, sixteens,
    ROWS: tl.constexpr, LANES: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    split, splits, head = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    clip, part = head // heads, split * tl.num_programs(1) + head
    real: tl.constexpr = levels.dtype.element_ty
    q += head * queries * 16 * sixteens
    k += head * keys * 16 * sixteens
    v += head * keys * 16 * sixteens
    words += clip * queries * length
    tiles += clip * length
    partial += part * queries * 16 * sixteens
    levels += part * queries
    sums += part * queries
    begin, end = share_of(tl.load(counts + clip), split, splits)
    top = tl.program_id(2) * ROWS
    broken = True
    if q.dtype.element_ty != tl.float64:
        row = top + tl.arange(0, ROWS)
        level, total, out = attend_tiles(
            q, k, v, words, tiles, begin, end, queries, keys, length, channels, sixteens, row, LANES, real
        )
        tl.store(levels + row, level, row < queries)
        tl.store(sums + row, total, row < queries)
        write_rows(partial, row, queries, sixteens, out)
        # Threads meet in this maximum: what was written so far may be overwritten by others.
        broken = not_finite(out)
    if broken:
        for first in range(top, tl.minimum(top + ROWS, queries), 8):
            some = first + tl.arange(0, 8)
            level_, total_, out_ = attend_exactly(
                q, k, v, words, tiles, begin, end, queries, keys, length, channels, sixteens, some, 8, FEW, LANES, real
            )
            tl.store(levels + some, level_, some < queries)
            tl.store(sums + some, total_, some < queries)
            write_rows(partial, some, queries, sixteens, out_)


@jit
def combine_kernel(
    partial, levels, sums, counts, out, logsumexp, heads, queries, sixteens, splits,
    SPLITS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    head, all_heads, stride = tl.program_id(1).to(tl.int64), tl.num_programs(1), 16 * sixteens
    real: tl.constexpr = levels.dtype.element_ty
    at = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    row, inside = at // stride, at < queries * stride
    most = tl.full([VALUES], float("-inf"), real)
    for first in range(0, splits, SPLITS):
        part = first + tl.arange(0, SPLITS)[:, None]
        use = (part < splits) & inside[None, :]
        each = (part * all_heads + head) * queries + row[None, :]
        most = tl.maximum(most, tl.max(tl.load(levels + each, use, other=float("-inf")), 0))
    base = tl.where(most == float("-inf"), 0.0, most)
    total, result = tl.zeros([VALUES], real), tl.zeros([VALUES], real)
    for first in range(0, splits, SPLITS):
        part = first + tl.arange(0, SPLITS)[:, None]
        use, here = (part < splits) & inside[None, :], (part * all_heads + head) * queries
        weight = tl.exp2(tl.load(levels + here + row[None, :], use, other=float("-inf")) - base[None, :])
        total += tl.sum(tl.load(sums + here + row[None, :], use, other=0.0) * weight, 0)
        result += tl.sum(tl.load(partial + here * stride + at[None, :], use, other=0.0) * weight, 0)
    # A clip without a kept frame gives 0; elsewhere every row attends to a key.
    kept = tl.load(counts + head // heads) > 0
    result = tl.where(kept, result / tl.where(kept, total, 1.0), 0.0)
    tl.store(out + head * queries * stride + at, result.to(out.dtype.element_ty), inside)
    total = tl.where(kept, (base + tl.log2(tl.where(kept, total, 1.0))) * 0.6931471805599453, float("-inf"))
    tl.store(logsumexp + head * queries + row, total, inside & (at % stride == 0))


@jit
def slopes_of_tiles(
    q, k, v, grad, out, logsumexp, words, tiles, begin, end, grad_k, grad_v, queries, keys, length, channels, sixteens,
    row, LANES: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    query, by_out, delta, base = read_sides(q, grad, out, logsumexp, row, queries, sixteens, LANES, real)
    scale, one = log2_scale(channels, real), tl.arange(0, 64)
    by_q = tl.zeros(query.shape, real)
    for i in range(begin, end):
        tile = tl.load(tiles + i)
        key = read_keys(k, tile, one, keys, sixteens, LANES)
        value = read_keys(v, tile, one, keys, sixteens, LANES)
        chosen = bits_of(tl.load(words + row.to(tl.int64) * length + tile, row < queries, other=0))
        zeros = tl.zeros([query.shape[0], 64], real)
        share = tl.exp2(product(query, tl.trans(key), zeros) * scale - base[:, None])
        share = tl.where(chosen, share, 0.0)
        slope = product(by_out, tl.trans(value), zeros) - delta[:, None]
        slope = tl.where(share != 0, share * slope, 0.0).to(key.dtype)
        by_v = product(tl.trans(share.to(key.dtype)), by_out, tl.zeros([64, LANES], real))
        by_k = product(tl.trans(slope), query, tl.zeros([64, LANES], real)) * (scale * 0.6931471805599453)
        by_q = product(slope, key, by_q)
        write_keys(grad_v, tile, one, keys, sixteens, by_v)
        write_keys(grad_k, tile, one, keys, sixteens, by_k)
    return by_q, not_finite(query) | not_finite(by_out)


@jit
def write_keys(tensor, tile, one, keys, sixteens, values):
    lane = tl.arange(0, values.shape[1])[None, :]
    use = (tile * 64 + one < keys)[:, None] & (lane < 16 * sixteens)
    at = tile.to(tl.int64) * 1024 * sixteens + (one[:, None] * 16 * sixteens + lane)
    tl.store(tensor + at, values.to(tensor.dtype.element_ty), use)


@jit
def slopes_exactly(query, by_out, delta, base, k, v, words, tile, one, row, queries, keys, length, scale, sixteens,
    LANES: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    """Of some rows and some keys: what is chosen, the shares, their slopes; the keys."""
    chosen = read_chosen(words, row, tile, one, queries, length)
    key = read_keys(k, tile, one, keys, sixteens, LANES).to(real)[None]
    value = read_keys(v, tile, one, keys, sixteens, LANES).to(real)[None]
    share = tl.exp2(tl.sum(query[:, None, :] * key, 2) * scale - base[:, None])
    slope = share * (tl.sum(by_out[:, None, :] * value, 2) - delta[:, None])
    return chosen[:, :, None], share[:, :, None], slope[:, :, None], key


@jit
def read_sides(q, grad, out, logsumexp, row, queries, sixteens, LANES: tl.constexpr, real: tl.constexpr):
    """Of some rows: q, the gradient of the result, its product with the result, logsumexp for powers of two."""
    query, by_out = read_rows(q, row, queries, sixteens, LANES), read_rows(grad, row, queries, sixteens, LANES)
    delta = tl.sum(by_out.to(real) * read_rows(out, row, queries, sixteens, LANES).to(real), 1)
    return query, by_out, delta, tl.load(logsumexp + row, row < queries, other=0.0) * 1.4426950408889634


@jit
def backward_kernel(
    q, k, v, grad, out, logsumexp, words, tiles, counts, grad_k, grad_v, partial,
    heads, queries, keys, length, channels, sixteens,
    ROWS: tl.constexpr, LANES: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    split, splits, head = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    clip, all_heads = head // heads, tl.num_programs(1)
    real: tl.constexpr = logsumexp.dtype.element_ty
    q += head * queries * 16 * sixteens
    grad += head * queries * 16 * sixteens
    out += head * queries * 16 * sixteens
    logsumexp += head * queries
    k += head * keys * 16 * sixteens
    v += head * keys * 16 * sixteens
    words += clip * queries * length
    tiles += clip * length
    partial += (split * all_heads + head) * queries * 16 * sixteens
    block = (tl.program_id(2) * all_heads + head) * keys * 16 * sixteens
    grad_k += block
    grad_v += block
    count = tl.load(counts + clip)
    begin, end = share_of(count, split, splits)
    top = tl.program_id(2) * ROWS
    broken = True
    if q.dtype.element_ty != tl.float64:
        row = top + tl.arange(0, ROWS)
        by_q, broken = slopes_of_tiles(
            q, k, v, grad, out, logsumexp, words, tiles, begin, end, grad_k, grad_v,
            queries, keys, length, channels, sixteens, row, LANES, real,
        )  # fmt: skip
        write_rows(partial, row, queries, sixteens, by_q)
        broken |= not_finite(by_q)
    if broken:
        last, scale = tl.minimum(top + ROWS, queries), log2_scale(channels, real)
        for first in range(top, last, 8):
            some, by_q_ = first + tl.arange(0, 8), tl.zeros([8, LANES], real)
            query, by_out, delta, base = read_sides(q, grad, out, logsumexp, some, queries, sixteens, LANES, real)
            query, by_out = query.to(real), by_out.to(real)
            for i in range(begin * (64 // FEW), end * (64 // FEW)):
                tile, one = tl.load(tiles + i // (64 // FEW)), i % (64 // FEW) * FEW + tl.arange(0, FEW)
                chosen, share, slope, key = slopes_exactly(
                    query, by_out, delta, base, k, v, words, tile, one, some, queries, keys, length, scale, sixteens,
                    LANES, real,
                )  # fmt: skip
                by_q_ += tl.sum(tl.where(chosen, slope * key, 0.0), 1)
            write_rows(partial, some, queries, sixteens, by_q_)
        for i in range(begin * (64 // FEW), end * (64 // FEW)):
            tile, one = tl.load(tiles + i // (64 // FEW)), i % (64 // FEW) * FEW + tl.arange(0, FEW)
            by_k, by_v = tl.zeros([FEW, LANES], real), tl.zeros([FEW, LANES], real)
            for first in range(top, last, 8):
                some = first + tl.arange(0, 8)
                query, by_out, delta, base = read_sides(q, grad, out, logsumexp, some, queries, sixteens, LANES, real)
                query, by_out = query.to(real), by_out.to(real)
                chosen, share, slope, key = slopes_exactly(
                    query, by_out, delta, base, k, v, words, tile, one, some, queries, keys, length, scale, sixteens,
                    LANES, real,
                )  # fmt: skip
                by_k += tl.sum(tl.where(chosen, slope * query[:, None, :], 0.0), 0)
                by_v += tl.sum(tl.where(chosen, share * by_out[:, None, :], 0.0), 0)
            write_keys(grad_k, tile, one, keys, sixteens, by_k / tl.sqrt(channels.to(real)))
            write_keys(grad_v, tile, one, keys, sixteens, by_v)
    begin, end = share_of(length - count, split, splits)
    for i in range(count + begin, count + end):
        tile, nothing = tl.load(tiles + i), tl.zeros([64, LANES], real)
        write_keys(grad_k, tile, tl.arange(0, 64), keys, sixteens, nothing)
        write_keys(grad_v, tile, tl.arange(0, 64), keys, sixteens, nothing)


@jit
def add_kernel(partial, grad_q, number, channels, splits, SPLITS: tl.constexpr, VALUES: tl.constexpr):
    head, all_heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    real: tl.constexpr = partial.dtype.element_ty
    at = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    total = tl.zeros([VALUES], real)
    for first in range(0, splits, SPLITS):
        part = first + tl.arange(0, SPLITS)[:, None]
        use = (part < splits) & (at < number)[None, :]
        total += tl.sum(tl.load(partial + (part * all_heads + head) * number + at[None, :], use, other=0.0), 0)
    total = total / tl.sqrt(channels.to(real))
    tl.store(grad_q + head * number + at, total.to(grad_q.dtype.element_ty), at < number)


@jit
def attends(x, dtype: tl.constexpr):
    """Where ``sigmoid(x) < 0.5`` does not hold in a dtype: its rounding lets small negative logits attend, NaN does."""
    if dtype == tl.float64:
        # 0x1.7ffffffffffffp-52, which would be compared as a float32.
        return ~(x <= tl.full([1], -3.330669073875469e-16, tl.float64))
    elif dtype == tl.float32:
        return ~(x <= -1.7881392011531716e-07)  # 0x1.7ffffep-23
    elif dtype == tl.float16:
        return ~(x < -0.00048828125)
    else:
        return ~(x < -0.00390625)


@jit
def between(place, begin, end, real: tl.constexpr):
    """The two pixels that a pixel of a resized axis lies between, and the share of the second."""
    # A quotient of float32 is only rounded properly where that is asked for.
    ratio = begin.to(real) / end.to(real) if real == tl.float64 else tl.div_rn(begin.to(real), end.to(real))
    at = tl.maximum(ratio * (place.to(real) + 0.5) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), begin - 1)
    share = tl.minimum(tl.maximum(at - first.to(real), 0.0), 1.0)
    return first, tl.minimum(first + 1, begin - 1), share


@jit
def resize_kernel(
    logits, halves, queries, frames, in_height, in_width, height, width, length,
    ROWS: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    clip = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    half = tl.program_id(0) * HALVES + tl.arange(0, HALVES)
    key = half[:, None] * 32 + tl.arange(0, 32)[None, :]
    dtype: tl.constexpr = logits.dtype.element_ty
    real: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    frame, pixel = key // (height * width), key % (height * width)
    top, bottom, down = between(pixel // width, in_height, height, real)
    left, right, aside = between(pixel % width, in_width, width, real)
    upper, lower = (frame * in_height + top) * in_width, (frame * in_height + bottom) * in_width
    inside = frame < frames
    maps = logits + ((clip * queries + row) * frames * in_height * in_width)[:, None, None]
    use = (row < queries)[:, None, None] & inside[None]
    a = tl.load(maps + (upper + left)[None], use, other=0.0).to(real)
    b = tl.load(maps + (upper + right)[None], use, other=0.0).to(real)
    c = tl.load(maps + (lower + left)[None], use, other=0.0).to(real)
    d = tl.load(maps + (lower + right)[None], use, other=0.0).to(real)
    above, below = a * (1 - aside)[None] + b * aside[None], c * (1 - aside)[None] + d * aside[None]
    value = (above * (1 - down)[None] + below * down[None]).to(dtype).to(real)
    bits = (attends(value, dtype) & use).to(tl.int32) << tl.arange(0, 32)[None, None, :]
    at = (clip * queries + row)[:, None] * 2 * length + half[None, :]
    tl.store(halves + at, tl.sum(bits, 2), (row < queries)[:, None] & (half < 2 * length)[None, :])


@jit
def product_mask_kernel(
    embed, features, halves, queries, frames, sixteens, groups, length,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, KEYS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    clip, channels, pixels = tl.program_id(2).to(tl.int64), 16 * sixteens, GROUP * groups
    row, channel = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    dtype: tl.constexpr = embed.dtype.element_ty
    real: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    frame, inside = key // pixels, key < frames * pixels
    embed += clip * queries * channels
    features += clip * frames * channels * pixels
    left = row[:, None] * channels + channel[None, :]
    right = channel[:, None] * pixels + (frame.to(tl.int64) * channels * pixels + key % pixels)[None, :]
    logit = tl.zeros([ROWS, KEYS], real)
    for first in range(0, channels, CHANNELS):
        use = first + channel < channels
        a = tl.load(embed + first + left, (row < queries)[:, None] & use[None, :], other=0.0)
        b = tl.load(features + first * pixels + right, use[:, None] & inside[None, :], other=0.0)
        if dtype == tl.float64:
            logit += tl.sum(a[:, :, None] * b[None, :, :], 1)
        else:
            logit = product(a, b, logit)
    chosen = attends(logit.to(dtype).to(real), dtype) & inside[None, :]
    bits = tl.reshape(chosen.to(tl.int32), [ROWS, KEYS // 32, 32]) << tl.arange(0, 32)[None, None, :]
    half = tl.program_id(0) * (KEYS // 32) + tl.arange(0, KEYS // 32)
    at = (clip * queries + row)[:, None] * 2 * length + half[None, :]
    tl.store(halves + at, tl.sum(bits, 2), (row < queries)[:, None] & (half < 2 * length)[None, :])


def _padded(tensor: Tensor, dim: int = -1) -> Tensor:
    """Contiguous, with zeros up to a multiple of 16 channels, so that 16 bytes are read at once."""
    missing = -tensor.shape[dim] % 16
    if missing:
        shape = list(tensor.shape)
        shape[dim] = missing
        tensor = torch.cat([tensor, tensor.new_zeros(shape)], dim)
    return tensor.contiguous()


def _chosen(table: dict[tuple[torch.dtype, int], dict[str, int]], q: Tensor) -> dict[str, int]:
    """The options of the fewest lanes that hold the channels of q."""
    channels = q.shape[3]
    for (dtype, lanes), options in table.items():
        if dtype == q.dtype and lanes >= channels:
            return options
    raise RuntimeError(f"s2d::masked_attention: expected q with at most 128 channels on a GPU, got {channels}")


class _Plan:
    """What forward and backward share: sizes, blocks, and the keys that are attended to."""

    def __init__(self, q: Tensor, k: Tensor, words: Tensor, frame_keep: Tensor | None, options: dict) -> None:
        self.clips, self.heads, self.queries, self.channels = q.shape
        self.keys, self.length = k.shape[2], words.shape[2]
        self.sixteens = triton.cdiv(self.channels, 16)
        self.options = _chosen(options, q)
        self.blocks = triton.cdiv(self.queries, self.options["ROWS"])
        wanted = PROGRAMS // (self.clips * self.heads * self.blocks)
        self.splits = max(1, min(wanted, self.length))
        self.grid = (self.splits, self.clips * self.heads, self.blocks)
        self.real = torch.promote_types(q.dtype, torch.float32)
        frames = 0 if frame_keep is None else frame_keep.shape[1]
        keep = words if frame_keep is None else frame_keep.contiguous()
        self.words, words = torch.empty_like(words, memory_format=torch.contiguous_format), words.contiguous()
        self.tiles = words.new_empty((self.clips, self.length), dtype=torch.int32)
        self.counts = words.new_empty(self.clips, dtype=torch.int32)
        plan_kernel[1 + triton.cdiv(self.queries, PLAN["ROWS"]), self.clips](
            words, keep.view(torch.uint8), self.words, self.tiles, self.counts,
            self.queries, self.length, frames, self.keys // max(frames, 1), self.keys, **PLAN,
        )  # fmt: skip

    def partial(self, like: Tensor) -> Tensor:
        shape = (self.splits, self.clips, self.heads, self.queries, 16 * self.sixteens)
        return like.new_empty(shape, dtype=self.real)

    @property
    def values(self) -> tuple[int, int]:
        """Grid of what adds up the splits."""
        return triton.cdiv(self.queries * 16 * self.sixteens, ADD["VALUES"]), self.clips * self.heads


def attend(q: Tensor, k: Tensor, v: Tensor, words: Tensor, frame_keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Result and logsumexp of every row."""
    real = torch.promote_types(q.dtype, torch.float32)
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf, dtype=real)
    plan = _Plan(q, k, words, frame_keep, ATTEND)
    partial, levels = plan.partial(q), q.new_empty((plan.splits, *q.shape[:3]), dtype=real)
    sums, logsumexp = torch.empty_like(levels), q.new_empty(q.shape[:3], dtype=real)
    q, k, v = _padded(q), _padded(k), _padded(v)
    out = torch.empty_like(q)
    attend_kernel[plan.grid](
        q, k, v, plan.words, plan.tiles, plan.counts, partial, levels, sums,
        plan.heads, plan.queries, plan.keys, plan.length, plan.channels, plan.sixteens, **plan.options,
    )  # fmt: skip
    combine_kernel[plan.values](
        partial, levels, sums, plan.counts, out, logsumexp, plan.heads, plan.queries, plan.sixteens, plan.splits, **ADD
    )
    return out[..., : plan.channels].contiguous(), logsumexp


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, words: Tensor, frame_keep: Tensor | None, out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    plan = _Plan(q, k, words, frame_keep, BACKWARD)
    partial = plan.partial(q)
    grad, q, k, v, out = (_padded(x) for x in (grad, q, k, v, out))
    # Each block of queries writes its own, as none waits for another.
    grad_q, (grad_k, grad_v) = torch.empty_like(q), (k.new_empty((plan.blocks, *k.shape)) for _ in range(2))
    backward_kernel[plan.grid](
        q, k, v, grad, out, logsumexp.contiguous(), plan.words, plan.tiles, plan.counts, grad_k, grad_v, partial,
        plan.heads, plan.queries, plan.keys, plan.length, plan.channels, plan.sixteens, **plan.options,
    )  # fmt: skip
    add_kernel[plan.values](partial, grad_q, plan.queries * 16 * plan.sixteens, plan.channels, plan.splits, **ADD)
    grad_k, grad_v = (x[0] if plan.blocks == 1 else x.sum(0) for x in (grad_k, grad_v))
    return tuple(x[..., : plan.channels].contiguous() for x in (grad_q, grad_k, grad_v))


def mask_from_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Words of the logits ``[B, Q, T, h, w]``, resized."""
    clips, queries, frames, in_height, in_width = logits.shape
    length = triton.cdiv(frames * height * width, 64)
    words = logits.new_empty((clips, queries, length), dtype=torch.int64)
    if words.numel():
        grid = (triton.cdiv(2 * length, RESIZE["HALVES"]), triton.cdiv(queries, RESIZE["ROWS"]), clips)
        resize_kernel[grid](
            logits.contiguous(), words.view(torch.int32), queries, frames, in_height, in_width, height, width, length,
            **RESIZE,
        )  # fmt: skip
    return words


def mask_from_features(embed: Tensor, features: Tensor) -> Tensor:
    """Words of the products of ``[B, Q, C]`` and ``[B, T, C, h, w]``."""
    clips, queries = embed.shape[:2]
    frames, pixels = features.shape[1], features.shape[3] * features.shape[4]
    length = triton.cdiv(frames * pixels, 64)
    words = embed.new_empty((clips, queries, length), dtype=torch.int64)
    if words.numel():
        embed, features = _padded(embed), _padded(features, 2)
        options = PRODUCT[embed.dtype, 8 if pixels % 8 == 0 else 1]
        grid = (triton.cdiv(64 * length, options["KEYS"]), triton.cdiv(queries, options["ROWS"]), clips)
        product_mask_kernel[grid](
            embed, features, words.view(torch.int32), queries, frames, embed.shape[2] // 16,
            pixels // options["GROUP"], length, **options,
        )  # fmt: skip
    return words


def _variant(kernel: Any, constants: dict[str, int], **pointers: str) -> dict[str, Any]:
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
    return {"kernel": kernel, "signature": signature, "constants": constants, "options": options}


def _pointers(dtype: torch.dtype) -> dict[str, str]:
    name = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}[dtype]
    real = "*fp64" if dtype == torch.float64 else "*fp32"
    given = dict.fromkeys(
        ["q", "k", "v", "grad", "out", "grad_q", "grad_k", "grad_v", "logits", "embed", "features"], name
    )
    kept = dict.fromkeys(["partial", "levels", "sums", "logsumexp"], real)
    return {**dict.fromkeys(given, name), **kept, "words": "*i64", "tiles": "*i32", "counts": "*i32", "halves": "*i32"}


# What can be asked for, by dtype and number of lanes.
VARIANTS = [
    _variant(plan_kernel, PLAN, words="*i64", attended="*i64", keep="*u8", tiles="*i32", counts="*i32"),
    *(
        _variant(kernel, options, **_pointers(dtype))
        for kernel, table in ((attend_kernel, ATTEND), (backward_kernel, BACKWARD), (product_mask_kernel, PRODUCT))
        for (dtype, _), options in table.items()
    ),
    *(
        _variant(kernel, options, **_pointers(dtype))
        for kernel, options in ((combine_kernel, ADD), (add_kernel, ADD), (resize_kernel, RESIZE))
        for dtype in DTYPES
    ),
]
