"""rle on the GPU: codes from and to bits, against torch on bytes, mask by mask and all at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench_bitmask import close, floats, matmul_iou
from benchmarks.gpu.entry import Entry, Peer, compiled, equals, same
from s2d.ops import (
    RLE,
    BitMasks,
    pack_masks,
    rle_area,
    rle_bbox,
    rle_decode,
    rle_encode,
    rle_from_labels,
    rle_iou,
    rle_merge,
    rle_tube_iou,
    unpack_masks,
)
from s2d.testing.cases import rle as cases

# counts, offsets and sizes: what the suite can copy and compare, as a batch of codes it cannot.
Code = tuple[Tensor, Tensor, Tensor]

# Masks [N, H, W].
FULL = [(1000, 480, 854)]
TINY = [(20, 12, 130)]
SMALL = [(3, *shape) for shape in cases.SHAPES] + [(2, 0, 9), (2, 9, 0), (2, 70, 1090)]

MOST_PAIRED = 200  # masks that are compared with each other
FRAMES = 20  # of a tube
GROUP = 10  # masks that are merged to one, or are the labels of a frame
GOAL_SHARE = 0.6  # of the floor, for encoding

RUNS_WAIT = "how many runs there are is the size of the result"
SIZES_WAIT = "the size of the masks, which lies on the device, is that of the result"


@lru_cache(maxsize=1)
def masks(size: tuple[int, ...], seed: int) -> Tensor:
    """Ellipses, as the goal is for; noise of odd sizes for the sanitizers."""
    number, height, width = size
    if size in SMALL:
        return cases.masks(size, seed=seed)
    return cases.tubes(number, 1, height, width, seed=seed)[:, 0]


def as_bool(masks: BitMasks | Tensor) -> Tensor:
    return unpack_masks(masks) if isinstance(masks, BitMasks) else masks


def exact(counts: Tensor, offsets: Tensor, sizes: Tensor) -> Code:
    """Without what lies past the last mask, for which torch's operators and the definition have no use."""
    return counts[: int(offsets[-1])], offsets, sizes


def same_pixels(ours: BitMasks, theirs: Tensor) -> bool:
    return torch.equal(unpack_masks(ours), theirs)


def as_floats_are(ours: Tensor, theirs: Tensor) -> bool:
    return close(ours.float(), theirs)


def parts(rle: RLE) -> tuple[Tensor, Tensor]:
    return rle.counts, rle.offsets


def encode_one(flat: Tensor) -> Tensor:
    """Runs of one mask whose pixels are in the order of columns."""
    starts = (flat[1:] != flat[:-1]).nonzero()[:, 0] + 1
    edges = torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), len(flat))])
    runs = edges.diff()
    return torch.cat([runs.new_zeros(1), runs]) if bool(flat[0]) else runs


def encode_each(dense: Tensor) -> tuple[Tensor, Tensor]:
    """What models' post-processing does: one mask after another, in some operations of torch each."""
    runs = [encode_one(flat) for flat in dense.transpose(1, 2).flatten(1)]
    lengths = torch.tensor([0, *map(len, runs)], device=dense.device)
    return torch.cat(runs).int(), lengths.cumsum(0)


def encode_all(dense: Tensor) -> tuple[Tensor, Tensor]:
    """All masks in one sweep; the end of each is marked like the start of a run."""
    flat = dense.transpose(1, 2).flatten(1)
    changes = torch.cat([flat[:, :1], flat[:, 1:] != flat[:, :-1], flat.new_ones(len(flat), 1)], 1)
    mask, ends = changes.nonzero().unbind(1)
    follows = mask == torch.cat([mask.new_full((1,), -1), mask[:-1]])
    begins = torch.where(follows, ends.roll(1), 0)
    offsets = torch.cat([mask.new_zeros(1), changes.sum(1).cumsum(0)])
    return (ends - begins).int(), offsets


def encode_labels(labels: Tensor) -> tuple[Tensor, ...]:
    values = torch.arange(1, GROUP + 1, device=labels.device)
    dense = labels[:, None] == values[:, None, None]
    which = dense.flatten(2).any(2).nonzero()
    return *encode_all(dense[which[:, 0], which[:, 1]]), torch.stack([which[:, 0], values[which[:, 1]]], 1)


def owners(counts: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every run: its mask, whether it is set, and its first pixel within the mask."""
    lengths = offsets.diff()
    mask = torch.repeat_interleave(torch.arange(len(lengths), device=counts.device), lengths, output_size=len(counts))
    begins = counts.long().cumsum(0) - counts
    first = begins[offsets[:-1]]
    return mask, (torch.arange(len(counts), device=counts.device) - offsets[mask]) % 2 == 1, begins - first[mask]


def decode_all(counts: Tensor, offsets: Tensor, sizes: Tensor, *, height: int, width: int) -> Tensor:
    number = len(offsets) - 1
    _, is_set, _ = owners(counts, offsets)
    flat = torch.repeat_interleave(is_set, counts.long(), output_size=number * height * width)
    return flat.view(number, width, height).transpose(1, 2)


def area_all(counts: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    mask, is_set, _ = owners(counts, offsets)
    return offsets.new_zeros(len(offsets) - 1).index_add(0, mask, counts * is_set.long())


def bbox_all(counts: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    mask, is_set, begins = owners(counts, offsets)
    chosen = is_set & (counts > 0)
    height = sizes[mask, 0].long()
    last = begins + counts - 1
    left, right, top, bottom = begins // height, last // height, begins % height, last % height
    top, bottom = torch.where(left < right, 0, top), torch.where(left < right, height - 1, bottom)
    far = 2**31
    least = [torch.where(chosen, value, far) for value in (left, top)]
    most = [torch.where(chosen, value, -1) for value in (right, bottom)]
    empty = offsets.new_zeros(len(offsets) - 1)
    x, y = ((empty + far).scatter_reduce(0, mask, value, "amin") for value in least)
    x_end, y_end = ((empty - 1).scatter_reduce(0, mask, value, "amax") for value in most)
    box = torch.stack([x, y, x_end - x + 1, y_end - y + 1], 1)
    return torch.where((x_end < 0)[:, None], 0, box)


def entries(number: int, height: int, width: int) -> list[Entry]:
    # Runs are left out of the bytes: how many there are only the masks know, and it is little beside their pixels.
    size, case = (number, height, width), f"{number}x{height}x{width}"
    words_per_mask = height * ((width + 63) // 64)
    words = number * words_per_mask
    outline = 2 * width + 1  # runs of an ellipse as wide as the image
    frames = FRAMES if number % FRAMES == 0 else 1
    tubes, paired = number // frames, min(number, MOST_PAIRED)

    def dense(device: str, seed: int) -> tuple[Tensor]:
        return (masks(size, seed).to(device),)

    def bits(device: str, seed: int) -> tuple[BitMasks]:
        return (pack_masks(*dense(device, seed)),)

    def some_codes(device: str, seed: int, chosen: int) -> Code:
        """Counts are as long for any seed, so that a captured graph can take those of another."""
        rle = rle_encode(*bits(device, seed))[:chosen]
        counts = rle.counts.new_zeros(max(len(rle.counts), chosen * outline))
        counts[: len(rle.counts)] = rle.counts
        return counts, rle.offsets, rle.sizes

    def codes(device: str, seed: int) -> Code:
        return some_codes(device, seed, number)

    def codes_in_pairs(device: str, seed: int) -> Code:
        return some_codes(device, seed, paired)

    def label_maps(device: str, seed: int) -> tuple[Tensor]:
        """Masks painted over each other, some to a frame, as labels from 1 on."""
        frames = masks(size, seed).unflatten(0, (-1, GROUP if number % GROUP == 0 else number))
        numbers = torch.arange(1, frames.shape[1] + 1, dtype=torch.uint8)
        return ((frames * numbers[:, None, None]).amax(1).to(device),)

    def encoded_labels(labels: Tensor, **options: str) -> tuple[Tensor, ...]:
        rle, which = rle_from_labels(labels, **options)
        return *parts(rle), which

    def groups(code: Code) -> Tensor:
        return torch.arange(number, device=code[0].device) // GROUP

    def is_defined_as(op: Callable[..., Any]) -> Callable[..., bool]:
        return equals(lambda *code: op(RLE(*exact(*code)), impl="reference"))

    def of_itself(op: Callable[..., Tensor], *arguments: int) -> Callable[..., Tensor]:
        return lambda rle, **options: op(rle, rle, *arguments, **options)

    def merged(rle: RLE, **options: str) -> tuple[Tensor, Tensor]:
        return parts(rle_merge(rle, groups(parts(rle)), **options))

    def merged_bytes(dense: Tensor) -> tuple[Tensor, Tensor]:
        return encode_all(dense.unflatten(0, (-1, GROUP)).any(1))

    def known(*code: Tensor) -> BitMasks:
        return BitMasks(torch.ops.s2d.rle_decode(*code, height, width), width)

    def on_runs(op: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *code: op(RLE(*code))

    def matmul(rows: int) -> Peer:
        return Peer(matmul_iou, as_floats_are, lambda *code: (floats(known(*code))[0].reshape(rows, -1),))

    encoders = {
        "torch, mask by mask": Peer(encode_each, same, lambda masks: (as_bool(masks),), capturable=False),
        "torch, all masks": Peer(encode_all, same, lambda masks: (as_bool(masks),), capturable=False),
    }
    decode = Peer(partial(decode_all, height=height, width=width), same_pixels, exact)
    goal_share = GOAL_SHARE if size in FULL else None
    return [
        Entry(
            "rle_encode",
            f"{case}, from bits",
            bits,
            lambda masks: parts(rle_encode(masks)),
            equals(lambda masks: parts(rle_encode(masks, impl="reference"))),
            bytes=8 * words + 8 * number,
            peers=encoders,
            goal_share=goal_share,
            syncs=RUNS_WAIT,
        ),
        Entry(
            "rle_encode",
            f"{case}, from bool",
            dense,
            lambda masks: parts(rle_encode(masks)),
            equals(lambda masks: parts(rle_encode(masks, impl="reference"))),
            bytes=number * height * width + 8 * number,
            peers=encoders,
            goal_share=goal_share,
            syncs=RUNS_WAIT,
        ),
        Entry(
            "rle_from_labels",
            f"{number // GROUP}x{height}x{width}, {GROUP} labels",
            label_maps,
            encoded_labels,
            equals(partial(encoded_labels, impl="reference")),
            bytes=number // GROUP * height * width,
            peers={"torch, a mask a label": Peer(encode_labels, same, capturable=False)},
            syncs=RUNS_WAIT,
        ),
        Entry(
            "rle_decode",
            f"{case}, of a known size",
            codes,
            known,
            is_defined_as(rle_decode),
            bytes=8 * words,
            peers={"torch.repeat_interleave": decode},
        ),
        Entry(
            "rle_decode",
            case,
            codes,
            on_runs(rle_decode),
            is_defined_as(rle_decode),
            bytes=8 * words,
            peers={"torch.repeat_interleave": decode},
            syncs=SIZES_WAIT,
        ),
        Entry(
            "rle_area",
            case,
            codes,
            on_runs(rle_area),
            is_defined_as(rle_area),
            bytes=16 * number,
            peers={"torch.index_add": Peer(area_all, same, exact)},
        ),
        Entry(
            "rle_bbox",
            case,
            codes,
            on_runs(rle_bbox),
            is_defined_as(rle_bbox),
            bytes=48 * number,
            peers={
                "torch.scatter_reduce": Peer(bbox_all, same, exact),
                "torch.compile of it": Peer(compiled(bbox_all), same, exact),
            },
        ),
        Entry(
            "rle_iou",
            f"{paired} of {case}",
            codes_in_pairs,
            on_runs(of_itself(rle_iou)),
            is_defined_as(of_itself(rle_iou)),
            bytes=8 * paired**2,
            operations=2 * paired**2 * words_per_mask,
            unit="popc32",
            peers={"bf16 matmul of decoded masks": matmul(paired)},
            syncs=SIZES_WAIT,
        ),
        Entry(
            "rle_tube_iou",
            f"{case}, {frames} frames a tube",
            codes,
            on_runs(of_itself(rle_tube_iou, frames)),
            is_defined_as(of_itself(rle_tube_iou, frames)),
            bytes=8 * tubes**2,
            operations=2 * tubes * words,
            unit="popc32",
            peers={"bf16 matmul of decoded tubes": matmul(tubes)},
            syncs=SIZES_WAIT,
        ),
        Entry(
            "rle_merge",
            f"{case}, unions of {GROUP}",
            codes,
            on_runs(merged),
            is_defined_as(merged),
            bytes=8 * number,
            peers={
                "torch on bool": Peer(merged_bytes, same, lambda *code: (unpack_masks(known(*code)),), capturable=False)
            },
            syncs=SIZES_WAIT,
        ),
    ]
