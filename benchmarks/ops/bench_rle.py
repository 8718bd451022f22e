"""rle against pycocotools, faster-coco-eval and hotcoco.

All sides begin and end with what a program has: masks ``[N, H, W]`` as torch lays them out, or COCO's dictionaries.
The column 'ours' of the cases named 'growth' is milliseconds for the whole batch, and the peer is ourselves with ten
masks at a time: a ratio of 1 is a time per mask that stays flat.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Comparison, peer_module
from s2d.ops import (
    RLE,
    pack_masks,
    rle_area,
    rle_bbox,
    rle_decode,
    rle_encode,
    rle_from_labels,
    rle_from_polygons,
    rle_iou,
    rle_merge,
    rle_tube_iou,
    unpack_masks,
)
from s2d.testing.cases.rle import label_maps, masks, polygons, tubes


def peers() -> dict[str, Any]:
    """The modules that have pycocotools.mask's functions."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    names = {"pycocotools": "pycocotools", "hotcoco": "hotcoco", "faster-coco-eval": "faster_coco_eval.core"}
    modules = {name: peer_module(f"{package}.mask") for name, package in names.items()}
    if torch.get_num_threads() > 1:
        # Its threads are as many as they were in the first call: one.
        del modules["hotcoco"]
    return modules


def columns(dense: torch.Tensor) -> np.ndarray:
    """``[H, W, N]`` in columns, the layout that pycocotools takes."""
    return np.asfortranarray(dense.permute(1, 2, 0).numpy().view(np.uint8))


def same_codes(ours: list[dict], theirs: list[dict]) -> bool:
    def text(counts: str | bytes) -> bytes:
        return counts if isinstance(counts, bytes) else counts.encode()

    return [text(code["counts"]) for code in ours] == [text(code["counts"]) for code in theirs]


def same_numbers(ours: torch.Tensor, theirs: Any) -> bool:
    return np.array_equal(ours.numpy(), np.asarray(theirs))


Peers = dict[str, tuple[Callable[[], Any], float | None]]
"""By name what a peer does, and the ratio aimed at."""


class Compare:
    """Comparisons of one operator and case, one for each peer that can do it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(
        self,
        op: str,
        case: str,
        ours: Callable[[], Any],
        theirs: Peers,
        agree: Callable[[Any, Any], bool],
        **at: float,
    ) -> Iterator[Comparison]:
        for peer, (call, goal) in theirs.items():
            yield Comparison(op, ours, call, peer, agree, case, goal, at, seconds=self.seconds)


def against(modules: dict[str, Any], call: Callable[[Any], Any], **goals: float) -> dict:
    """A call with every module's functions, and the goals by module."""
    return {name: (lambda module=module: call(module), goals.get(name)) for name, module in modules.items()}


def as_bytes(codes: list[dict]) -> list[dict]:
    return [{**code, "counts": code["counts"].encode()} for code in codes]


def codes_of_masks(compare: Compare, modules: dict[str, Any], case: str, dense: torch.Tensor) -> Iterator[Comparison]:
    codes, bits = as_bytes(rle_encode(dense).to_coco()), pack_masks(dense)

    def encode(module: Any) -> list[dict]:
        # hotcoco takes any layout, and is faster without the copy.
        view = dense.permute(1, 2, 0).numpy().view(np.uint8)
        return module.encode(view if "hotcoco" in module.__name__ else np.asfortranarray(view))

    encoders = against(modules, encode, pycocotools=8, hotcoco=5)
    yield from compare("rle_encode, to strings", case, lambda: rle_encode(dense).to_coco(), encoders, same_codes)
    few = {"pycocotools": (encoders["pycocotools"][0], None)}
    yield from compare("rle_encode from bits, to strings", case, lambda: rle_encode(bits).to_coco(), few, same_codes)
    yield from compare(
        "rle_decode, from strings to bool",
        case,
        lambda: unpack_masks(rle_decode(RLE.from_coco(codes))),
        against(modules, lambda module: module.decode(codes), hotcoco=6),
        lambda a, b: np.array_equal(a.permute(1, 2, 0).numpy(), b),
    )


def measures_of_codes(compare: Compare, modules: dict[str, Any], quick: bool) -> Iterator[Comparison]:
    height, width = (120, 214) if quick else (480, 854)
    # pycocotools' area raises above 255 masks on NumPy 2.4.
    dense = tubes(50 if quick else 250, 1, height, width)[:, 0]
    rle, case = rle_encode(dense), f"{len(dense)} blobs {height}x{width}"
    codes = as_bytes(rle.to_coco())
    for op, ours, name in (("rle_area", rle_area, "area"), ("rle_bbox", rle_bbox, "toBbox")):
        theirs = against(modules, lambda module, name=name: getattr(module, name)(codes), pycocotools=3, hotcoco=3)
        yield from compare(
            f"{op}, from strings", case, lambda ours=ours: ours(RLE.from_coco(codes)), theirs, same_numbers
        )
        only = {"pycocotools": (theirs["pycocotools"][0], None)}
        yield from compare(f"{op} of RLE", case, lambda ours=ours: ours(rle), only, same_numbers)


def overlaps(compare: Compare, modules: dict[str, Any], quick: bool) -> Iterator[Comparison]:
    height, width = (120, 214) if quick else (480, 854)
    for kind, dense, other, goal in (
        ("blobs", tubes(40 if quick else 200, 1, height, width)[:, 0], None, 8),
        ("blobs", tubes(60 if quick else 500, 1, height, width)[:, 0], None, 8),
        ("noisy", masks((10 if quick else 100, height, width), 0.02), 1, 50),
    ):
        right = dense if other is None else masks(tuple(dense.shape), 0.02, seed=other)
        a, b = (rle_encode(x).to_coco() for x in (dense, right))
        theirs = against(
            modules, lambda module, a=a, b=b: module.iou(a, b, [0] * len(b)), pycocotools=goal, hotcoco=None
        )
        yield from compare(
            "rle_iou, from strings",
            f"{len(dense)} x {len(right)} {kind} {height}x{width}",
            lambda a=a, b=b: rle_iou(RLE.from_coco(a), RLE.from_coco(b)),
            theirs,
            same_numbers,
        )


def official_tubes(coco: Any, a: list[list[dict]], b: list[list[dict]]) -> np.ndarray:
    """As YouTube-VIS' evaluation: two merged masks for each pair and frame."""
    result = np.zeros((len(a), len(b)))
    for n, first in enumerate(a):
        for m, second in enumerate(b):
            pairs = list(zip(first, second, strict=True))
            shared = sum(int(coco.area(coco.merge([x, y], True))) for x, y in pairs)
            either = sum(int(coco.area(coco.merge([x, y], False))) for x, y in pairs)
            result[n, m] = shared / either if either else 0.0
    return result


def tubes_by_frames(coco: Any, a: list[list[dict]], b: list[list[dict]]) -> np.ndarray:
    """The quicker way that people take: a frame's IoU and areas give what two masks share."""
    shared, area = 0.0, 0.0
    for t in range(len(a[0])):
        first, second = [tube[t] for tube in a], [tube[t] for tube in b]
        iou = np.asarray(coco.iou(first, second, [0] * len(second)))
        both = np.asarray(coco.area(first))[:, None] + np.asarray(coco.area(second)).astype(np.float64)[None]
        shared = shared + iou * both / (1 + iou)
        area = area + both
    return shared / np.maximum(area - shared, 1)


def tube_overlaps(compare: Compare, modules: dict[str, Any], quick: bool) -> Iterator[Comparison]:
    number, frames, height, width = (10, 8, 120, 214) if quick else (50, 30, 480, 854)
    dense, truth = tubes(number, frames, height, width), tubes(5, frames, height, width, seed=1)
    flat_a, flat_b = (rle_encode(x.flatten(0, 1)).to_coco() for x in (dense, truth))
    a, b = ([codes[i : i + frames] for i in range(0, len(codes), frames)] for codes in (flat_a, flat_b))
    coco = modules["pycocotools"]
    theirs = {
        "official, pycocotools": (lambda: official_tubes(coco, a, b), 20),
        "frame by frame, pycocotools": (lambda: tubes_by_frames(coco, a, b), 4),
    }
    if "hotcoco" in modules:
        theirs["frame by frame, hotcoco"] = (lambda: tubes_by_frames(modules["hotcoco"], a, b), None)
    yield from compare(
        "rle_tube_iou, from strings",
        f"{number} x 5 tubes of {frames} frames {height}x{width}",
        lambda: rle_tube_iou(RLE.from_coco(flat_a), RLE.from_coco(flat_b), frames),
        theirs,
        lambda ours, theirs: np.allclose(ours.numpy(), theirs, rtol=1e-12, atol=0),
    )


def merged_and_drawn(compare: Compare, modules: dict[str, Any], quick: bool) -> Iterator[Comparison]:
    number, height, width = (20, 120, 214) if quick else (100, 480, 854)
    codes = rle_encode(tubes(number, 1, height, width)[:, 0]).to_coco()
    case = f"{number} blobs {height}x{width}"
    yield from compare(
        "rle_merge, union of all",
        case,
        lambda: rle_merge(RLE.from_coco(codes)).to_coco(),
        against(modules, lambda module: [module.merge(codes)], pycocotools=1.5, hotcoco=1.5),
        same_codes,
    )
    groups = torch.arange(number) // 2
    yield from compare(
        "rle_merge, unions of pairs",
        case,
        lambda: rle_merge(RLE.from_coco(codes), groups).to_coco(),
        against(
            modules,
            lambda module: [module.merge(codes[i : i + 2]) for i in range(0, number, 2)],
            pycocotools=1.5,
            hotcoco=1.5,
        ),
        same_codes,
    )
    yield from compare(
        "rle_merge, one pair",
        f"2 blobs {height}x{width}",
        lambda: rle_merge(RLE.from_coco(codes[:2])).to_coco(),
        against(modules, lambda module: [module.merge(codes[:2])]),
        same_codes,
    )
    drawn = polygons(100 if quick else 1000, height, width)
    rings = [ring for mask in drawn for ring in mask]
    theirs = against(modules, lambda module: module.frPyObjects(rings, height, width), pycocotools=1.5, hotcoco=1.5)
    case = f"{len(drawn)} polygons of 40 corners {height}x{width}"
    yield from compare(
        "RLE.from_coco of polygons, to strings",
        case,
        lambda: RLE.from_coco(drawn, (height, width)).to_coco(),
        theirs,
        same_codes,
    )
    yield from compare(
        "rle_from_polygons, to strings",
        case,
        lambda: rle_from_polygons(drawn, (height, width)).to_coco(),
        {"pycocotools": theirs["pycocotools"]},
        same_codes,
    )


def labels_by_value(labels: torch.Tensor, coco: Any) -> list[dict]:
    """A mask for each label, compared and encoded one by one, as scripts do."""
    codes = []
    for image in labels.numpy():
        for value in np.unique(image):
            if value:
                codes.append(coco.encode(np.asfortranarray(image == value).view(np.uint8)))
    return codes


def of_labels(compare: Compare, modules: dict[str, Any], quick: bool) -> Iterator[Comparison]:
    labels = label_maps(2 if quick else 10, 480, 854, 20, cell=40).to(torch.uint8)
    yield from compare(
        "rle_from_labels, to strings",
        f"{len(labels)} maps of 20 labels 480x854",
        lambda: rle_from_labels(labels)[0].to_coco(),
        {"numpy unique and pycocotools": (lambda: labels_by_value(labels, modules["pycocotools"]), None)},
        same_codes,
    )


def small_calls(compare: Compare, modules: dict[str, Any]) -> Iterator[Comparison]:
    dense = tubes(1, 1, 30, 40)[:, 0]
    coco = {"pycocotools": modules["pycocotools"]}
    binary = as_bytes(rle_encode(dense).to_coco())
    for op, ours, theirs, agree in (
        ("rle_encode, to strings", lambda: rle_encode(dense).to_coco(), lambda m: m.encode(columns(dense)), same_codes),
        (
            "rle_decode, from strings to bool",
            lambda: unpack_masks(rle_decode(RLE.from_coco(binary))),
            lambda m: m.decode(binary),
            lambda a, b: np.array_equal(a.permute(1, 2, 0).numpy(), b),
        ),
        ("rle_area, from strings", lambda: rle_area(RLE.from_coco(binary)), lambda m: m.area(binary), same_numbers),
        ("rle_bbox, from strings", lambda: rle_bbox(RLE.from_coco(binary)), lambda m: m.toBbox(binary), same_numbers),
        (
            "rle_iou, from strings",
            lambda: rle_iou(RLE.from_coco(binary), RLE.from_coco(binary)),
            lambda m: m.iou(binary, binary, [0]),
            same_numbers,
        ),
    ):
        yield from compare(op, "a small call: 1 mask 30x40", ours, against(coco, theirs), agree)


def same_number(ours: Any, theirs: list) -> bool:
    return len(ours) == sum(len(part) for part in theirs)


def growth(compare: Compare, quick: bool) -> Iterator[Comparison]:
    height, width = 48, 86
    ten = tubes(10, 1, height, width)[:, 0]
    for number in (10, 100, 1000) if quick else (10, 100, 1000, 10_000, 100_000):
        dense = ten.repeat(number // 10, 1, 1)
        case = f"growth: {number} masks {height}x{width}"
        rle, codes = rle_encode(dense), rle_encode(dense).to_coco()
        held = sum(x.numel() * x.element_size() for x in (rle.counts, rle.offsets, rle.sizes)) / number
        case += f", {held:.0f} bytes a mask, {rle.counts.numel() / number:.0f} runs"
        for op, call, data, few in (
            ("rle_encode", rle_encode, dense, ten),
            ("rle_decode", rle_decode, rle, rle[:10]),
            ("RLE.to_coco", RLE.to_coco, rle, rle[:10]),
            ("RLE.from_coco", RLE.from_coco, codes, codes[:10]),
        ):
            times = number // 10
            theirs = {
                "s2d, ten at a time": (lambda call=call, few=few, times=times: [call(few) for _ in range(times)], 1)
            }
            yield from compare(op, case, lambda call=call, data=data: call(data), theirs, same_number, masks=number)


def measure(quick: bool) -> Iterator[Comparison]:
    modules, compare = peers(), Compare(0.3 if quick else 1.0)
    number, height, width = (10, 120, 214) if quick else (100, 480, 854)
    yield from codes_of_masks(
        compare, modules, f"{number} blobs {height}x{width}", tubes(number, 1, height, width)[:, 0]
    )
    number //= 5
    noisy = masks((number, height, width), 0.02)
    yield from codes_of_masks(compare, modules, f"{number} noisy {height}x{width}", noisy)
    for part in (measures_of_codes, overlaps, tube_overlaps, merged_and_drawn, of_labels):
        yield from part(compare, modules, quick)
    yield from small_calls(compare, modules)
    if torch.get_num_threads() == 1:
        yield from growth(compare, quick)
