"""How good predictions are: COCO and YouTube-VIS AP, DAVIS J and F, tube IoU. Knows no model."""

from s2d.metrics._evaluator import Evaluator
from s2d.metrics.baselines import link_greedily
from s2d.metrics.coco import COCOeval
from s2d.metrics.datasets import COCO, YTVOS
from s2d.metrics.davis import JAndF, RegionSimilarity, frame_j, j_and_f, region_similarity
from s2d.metrics.keymasks import KeymaskQuality, keymask_quality
from s2d.metrics.scores import Scores, davis_scores, precision_scores
from s2d.metrics.tubes import at_size, match_tubes, mean_tube_iou, tube_iou
from s2d.metrics.ytvis import AveragePrecision, YTVOSeval, average_precision

__all__ = [
    "COCO",
    "YTVOS",
    "AveragePrecision",
    "COCOeval",
    "Evaluator",
    "JAndF",
    "KeymaskQuality",
    "RegionSimilarity",
    "Scores",
    "YTVOSeval",
    "at_size",
    "average_precision",
    "davis_scores",
    "frame_j",
    "j_and_f",
    "keymask_quality",
    "link_greedily",
    "match_tubes",
    "mean_tube_iou",
    "precision_scores",
    "region_similarity",
    "tube_iou",
]
