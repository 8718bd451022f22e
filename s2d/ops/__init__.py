"""The operators. Each line is a room: one name in ``csrc``, ``kernels``, ``s2d/ops``, ``tests/ops`` and ``benchmarks/ops``."""

from s2d.ops.bitmask import BitMasks, mask_area, mask_bbox, mask_iou, mask_nms, pack_masks, unpack_masks
from s2d.ops.mask_cost import mask_cost
from s2d.ops.rle import RLE, rle_area, rle_bbox, rle_decode, rle_encode, rle_iou
from s2d.ops.temporal_drop_loss import temporal_drop_loss

__all__ = [
    "RLE",
    "BitMasks",
    "mask_area",
    "mask_bbox",
    "mask_cost",
    "mask_iou",
    "mask_nms",
    "pack_masks",
    "rle_area",
    "rle_bbox",
    "rle_decode",
    "rle_encode",
    "rle_iou",
    "temporal_drop_loss",
    "unpack_masks",
]
