"""bitmask on the GPU: bits against torch on bytes, matrix products and CuPy."""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer, compiled, equals, same
from s2d.ops import BitMasks, mask_area, mask_bbox, mask_iou, mask_nms, pack_masks, unpack_masks
from s2d.testing.cases import bitmask as cases

# Tubes: [N, T, H, W]. The first is the case of the goal, the second a frame of many proposals.
FULL = [((50, 32, 360, 640),), ((200, 1, 480, 832),)]
TINY = [((5, 2, 12, 128),)]
SMALL = [(shape,) for shape in cases.SHAPES]

THRESHOLD = 0.5
GOAL_US = 25.0  # of mask_iou

if torch.cuda.is_available():
    PACKBITS = "cupy.packbits" if importlib.util.find_spec("cupy") else None
else:
    PACKBITS = "numpy.packbits"


@lru_cache(maxsize=1)
def masks(shape: tuple[int, ...], seed: int) -> Tensor:
    return cases.tubes(*shape, seed=seed) if len(shape) == 4 else cases.masks(shape, seed=seed)


def iou_of(shared: Tensor, area: Tensor) -> Tensor:
    return shared / (area[:, None] + area[None, :] - shared).clamp(min=1)


def torch_pack(dense: Tensor) -> Tensor:
    """Words from rows of whole words: the 64 shifted bits are disjoint, so their sum is their union."""
    shifts = torch.arange(64, device=dense.device)
    return (dense.unflatten(-1, (-1, 64)).long() << shifts).sum(-1)


def torch_unpack(words: Tensor) -> Tensor:
    shifts = torch.arange(64, device=words.device)
    return ((words[..., None] >> shifts) & 1).flatten(-2).bool()


def floats(bits: BitMasks) -> tuple[Tensor]:
    return (unpack_masks(bits).flatten(1).bfloat16(),)


def matmul_iou(flat: Tensor) -> Tensor:
    """Counts of a bfloat16 product; on a GPU the product is given in float32, so that they are exact."""
    wide = {"out_dtype": torch.float32} if flat.is_cuda else {}
    return iou_of(torch.mm(flat, flat.T, **wide).float(), flat.sum(1, dtype=torch.float32))


def matmul_nms(flat: Tensor, scores: Tensor) -> Tensor:
    """A product on the GPU, the greedy choice on the CPU: what suppression by masks does where it has no kernel."""
    overlaps = matmul_iou(flat).cpu().numpy()
    order, kept = scores.argsort(descending=True, stable=True).tolist(), []
    for index in order:
        if not (overlaps[index, kept] > THRESHOLD).any():
            kept.append(index)
    return torch.tensor(kept, device=flat.device)


def torch_bbox(dense: Tensor) -> Tensor:
    """x, y, width, height from the first and last row and column with a set pixel."""

    def extent(lines: Tensor) -> tuple[Tensor, Tensor]:
        line = lines.to(torch.uint8)
        first = line.argmax(-1)
        last = lines.shape[-1] - 1 - line.flip(-1).argmax(-1)
        return first, torch.where(lines.any(-1), last - first + 1, 0)

    (x, width), (y, height) = extent(dense.any(-2)), extent(dense.any(-1))
    return torch.stack([x, y, width, height], -1)


def packbits(dense: Tensor) -> Tensor:
    """CuPy on a GPU; its twin, NumPy, on the CPU. Neither packs a row at a time on a GPU: widths are whole words."""
    if not dense.is_cuda:
        return torch.from_numpy(np.packbits(dense.view(torch.uint8).numpy(), bitorder="little"))
    import cupy

    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        return torch.from_dlpack(cupy.packbits(cupy.from_dlpack(dense.view(torch.uint8)), bitorder="little"))


def close(a: Tensor, b: Tensor) -> bool:
    """bfloat16 has three digits where the product is not given in float32."""
    return torch.allclose(a, b, atol=1e-2)


def entries(shape: tuple[int, ...]) -> list[Entry]:
    number, pixels = shape[0], math.prod(shape)
    words = math.prod(shape[:-1]) * ((shape[-1] + 63) // 64)
    singles = math.prod(shape[:-2])
    case = "x".join(map(str, shape))

    def dense(device: str, seed: int) -> tuple:
        return (masks(shape, seed).to(device),)

    def bits(device: str, seed: int) -> tuple:
        return (pack_masks(*dense(device, seed)),)

    def scored(device: str, seed: int) -> tuple:
        scores = torch.rand(number, generator=torch.Generator().manual_seed(seed))
        return *bits(device, seed), scores.to(device)

    def from_dense(function) -> Peer:
        return Peer(function, same, lambda bits: (unpack_masks(bits),))

    packs = {"torch.compile": Peer(compiled(torch_pack), lambda a, b: same(a.words, b))}
    if PACKBITS:
        agree = lambda a, b: same(a.words.view(torch.uint8).flatten(), b)  # noqa: E731
        packs[PACKBITS] = Peer(packbits, agree, capturable=False)
    return [
        Entry(
            "pack_masks",
            case,
            dense,
            pack_masks,
            equals(lambda m: pack_masks(m, impl="reference")),
            bytes=pixels + 8 * words,
            peers=packs,
        ),
        Entry(
            "unpack_masks",
            case,
            bits,
            unpack_masks,
            equals(lambda b: unpack_masks(b, impl="reference")),
            bytes=pixels + 8 * words,
            peers={"torch.compile": Peer(compiled(torch_unpack), same, lambda b: (b.words,))},
        ),
        Entry(
            "mask_area",
            case,
            bits,
            mask_area,
            equals(lambda b: mask_area(b, impl="reference")),
            bytes=8 * words + 8 * singles,
            operations=2 * words,
            unit="popc32",
            peers={
                "torch sum of bool": from_dense(lambda m: m.sum((-2, -1))),
                "torch.compile of the same": from_dense(compiled(lambda m: m.sum((-2, -1)))),
            },
        ),
        Entry(
            "mask_bbox",
            case,
            bits,
            mask_bbox,
            equals(lambda b: mask_bbox(b, impl="reference")),
            bytes=8 * words + 32 * singles,
            peers={"torch on bool": from_dense(torch_bbox), "torch.compile of it": from_dense(compiled(torch_bbox))},
        ),
        Entry(
            "mask_iou",
            case,
            bits,
            lambda b: mask_iou(b, b),
            equals(lambda b: mask_iou(b, b, impl="reference")),
            bytes=8 * words + 4 * number**2,
            operations=2 * words * number,
            unit="popc32",
            peers={"bf16 matmul": Peer(matmul_iou, close, floats)},
            goal_us=GOAL_US if shape == FULL[0][0] else None,
        ),
        Entry(
            "mask_nms",
            case,
            scored,
            lambda b, scores: mask_nms(b, scores, THRESHOLD),
            equals(lambda b, scores: mask_nms(b, scores, THRESHOLD, impl="reference")),
            bytes=8 * words + 16 * number,
            operations=2 * words * number,
            unit="popc32",
            peers={
                "bf16 matmul, choice on the CPU": Peer(
                    matmul_nms, same, lambda b, scores: (*floats(b), scores), capturable=False
                )
            },
            syncs="how many masks are kept is the size of the result",
        ),
    ]
