"""connected_components on the GPU: union-find over runs of bits against label propagation in torch and CuPy."""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.entry import Entry, Peer, equals, same
from s2d.ops import BitMasks, connected_components, fill_holes, pack_masks, remove_small, unpack_masks
from s2d.ops.reference import connected_components as reference
from s2d.testing.cases import connected_components as cases

# Masks [N, H, W] of smooth shapes, which is the case of the goal, of specks, and noise.
FULL = [((50, 480, 854), kind) for kind in ("blobs", "specks", "noise")]
TINY = [((2, 24, 70), "blobs"), ((2, 24, 70), "noise")]
SMALL = [(shape, "noise") for shape in (*cases.SHAPES, (1, 300, 65))]

CONNECTIVITY = 8
GOAL_US = 60.0  # of connected_components
SMALLEST = 50

if torch.cuda.is_available():
    NDIMAGE = "cupyx.scipy.ndimage" if importlib.util.find_spec("cupyx") else None
else:
    NDIMAGE = "scipy.ndimage" if importlib.util.find_spec("scipy") else None


@lru_cache(maxsize=1)
def masks(shape: tuple[int, int, int], kind: str, seed: int) -> Tensor:
    if kind == "noise" or 0 in shape:
        return cases.noise(shape, seed=seed)
    smooth = cases.blobs(shape, seed=seed)
    return smooth ^ cases.noise(shape, 0.01, seed + 1) if kind == "specks" else smooth


def in_plane(diagonal: bool) -> np.ndarray:
    """The neighbours of a pixel in its own mask, for calls that take all masks as one volume."""
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True if diagonal else np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    return structure


def ndimage(name: str, dense: Tensor, structure: np.ndarray) -> Tensor:
    """A function of CuPy on a GPU; of its twin, SciPy, on the CPU."""
    if not dense.is_cuda:
        import scipy.ndimage

        result = getattr(scipy.ndimage, name)(dense.numpy(), structure)
        return torch.from_numpy(result[0] if name == "label" else result)
    import cupy
    import cupyx.scipy.ndimage

    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        result = getattr(cupyx.scipy.ndimage, name)(cupy.from_dlpack(dense), cupy.asarray(structure))
        return torch.from_dlpack(result[0] if name == "label" else result)


def same_parts(ours: tuple[Tensor, Tensor], labels: Tensor) -> bool:
    """Whether two labellings tell the same pixels apart, however they number: the other one over all masks at once."""
    mask = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    mine = torch.where(ours[0] > 0, mask * 2**31 + ours[0], 0)
    pairs = torch.stack([mine.flatten(), labels.flatten().long()], 1).unique(dim=0)
    return all(len(pairs) == len(pairs[:, side].unique()) for side in (0, 1))


def dense_of(bits: BitMasks) -> tuple[Tensor]:
    return (unpack_masks(bits),)


def entries(shape: tuple[int, int, int], kind: str) -> list[Entry]:
    number, height, width = shape
    pixels, words = math.prod(shape), number * height * ((width + 63) // 64)
    case = f"{'x'.join(map(str, shape))} {kind}"

    def make(device: str, seed: int) -> tuple:
        return (pack_masks(masks(shape, kind, seed).to(device)),)

    def propagation(function) -> dict[str, Peer]:
        return {"torch label propagation": Peer(function, same, dense_of, capturable=False)}

    labelled = propagation(lambda dense: reference.components(dense, CONNECTIVITY))
    filled = propagation(lambda dense: pack_masks(reference.fill_holes(dense, CONNECTIVITY, None)))
    kept = propagation(lambda dense: pack_masks(reference.remove_small(dense, SMALLEST, CONNECTIVITY)))
    if NDIMAGE and pixels:
        labelled[f"{NDIMAGE}.label (no areas)"] = Peer(
            lambda dense: ndimage("label", dense, in_plane(True)), same_parts, dense_of, capturable=False
        )
        filled[f"{NDIMAGE}.binary_fill_holes"] = Peer(
            lambda dense: ndimage("binary_fill_holes", dense, in_plane(False)),
            lambda a, b: same(unpack_masks(a), b),
            dense_of,
            capturable=False,
        )
    return [
        Entry(
            "connected_components",
            case,
            make,
            lambda bits: connected_components(bits, CONNECTIVITY),
            equals(lambda bits: connected_components(bits, CONNECTIVITY, impl="reference")),
            bytes=8 * words + 8 * pixels,
            peers=labelled,
            goal_us=GOAL_US if (shape, kind) == FULL[0] else None,
        ),
        Entry(
            "fill_holes",
            case,
            make,
            lambda bits: fill_holes(bits, connectivity=CONNECTIVITY),
            equals(lambda bits: fill_holes(bits, connectivity=CONNECTIVITY, impl="reference")),
            bytes=16 * words,
            peers=filled,
        ),
        Entry(
            "remove_small",
            case,
            make,
            lambda bits: remove_small(bits, SMALLEST, CONNECTIVITY),
            equals(lambda bits: remove_small(bits, SMALLEST, CONNECTIVITY, impl="reference")),
            bytes=16 * words,
            peers=kept,
        ),
    ]
