"""The operators. Each line is a room: one name in csrc, kernels, s2d/ops, tests/ops and benchmarks/ops."""

from s2d.ops.bitmask import BitMasks, mask_area, mask_bbox, mask_iou, mask_nms, pack_masks, unpack_masks
from s2d.ops.connected_components import connected_components, fill_holes, remove_small
from s2d.ops.flow_warp_iou import WarpCounts, flow_compose, flow_consistency, flow_warp_counts, flow_warp_iou
from s2d.ops.mask_cost import mask_cost
from s2d.ops.masked_attention import attention_mask, attention_mask_from_features, masked_attention
from s2d.ops.ms_deform_attn import ms_deform_attn
from s2d.ops.point_tracks import PointTracks, TrackCoverage, coverage_of_tracks, track_coverage, track_points
from s2d.ops.rle import RLE, rle_area, rle_bbox, rle_decode, rle_encode, rle_iou
from s2d.ops.temporal_drop_loss import temporal_drop_loss

__all__ = [
    "RLE",
    "BitMasks",
    "PointTracks",
    "TrackCoverage",
    "WarpCounts",
    "attention_mask",
    "attention_mask_from_features",
    "connected_components",
    "coverage_of_tracks",
    "fill_holes",
    "flow_compose",
    "flow_consistency",
    "flow_warp_counts",
    "flow_warp_iou",
    "mask_area",
    "mask_bbox",
    "mask_cost",
    "mask_iou",
    "mask_nms",
    "masked_attention",
    "ms_deform_attn",
    "pack_masks",
    "remove_small",
    "rle_area",
    "rle_bbox",
    "rle_decode",
    "rle_encode",
    "rle_iou",
    "temporal_drop_loss",
    "track_coverage",
    "track_points",
    "unpack_masks",
]
