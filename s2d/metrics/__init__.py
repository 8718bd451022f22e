"""How good predictions are: tube IoU, region similarity J, YouTube-VIS average precision. Knows no model."""

from s2d.metrics.baselines import link_greedily
from s2d.metrics.coco import COCOeval
from s2d.metrics.datasets import COCO, YTVOS
from s2d.metrics.davis import JAndF, RegionSimilarity, frame_j, j_and_f, region_similarity
from s2d.metrics.keymasks import KeymaskQuality, keymask_quality
from s2d.metrics.tubes import at_size, match_tubes, mean_tube_iou, tube_iou
from s2d.metrics.ytvis import AveragePrecision, YTVOSeval, average_precision

__all__ = [
    "COCO",
    "YTVOS",
    "AveragePrecision",
    "COCOeval",
    "JAndF",
    "KeymaskQuality",
    "RegionSimilarity",
    "YTVOSeval",
    "at_size",
    "average_precision",
    "frame_j",
    "j_and_f",
    "keymask_quality",
    "link_greedily",
    "match_tubes",
    "mean_tube_iou",
    "region_similarity",
    "tube_iou",
]
