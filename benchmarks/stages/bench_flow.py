"""Quality of optical flow on real pairs with ground truth: python -m benchmarks.stages.bench_flow [--weights RAFT.pth]

Reads the two pairs under ``$S2D_TEST_DATA/data/flow`` and prints the end-point error and KITTI's share of outliers of
the prior `dis` at each quality, which at OpenCV's presets must equal its DIS called directly, and of OpenCV's Farneback
as a yardstick.
KITTI's pair is a fast turn, up to 190 px a frame, so pixels that move less than `SLOW` are shown by themselves, too.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import results
from benchmarks.harness import environment
from s2d.data.image_folder import read_image
from s2d.data.video import Video
from s2d.metrics.flow import flow_quality
from s2d.motion.flow_formats import read_flow
from s2d.motion.prior import make_prior
from s2d.viz.table import text_table

PAIRS = {
    "kitti_pair": ("frame1.png", "frame2.png", "flow_gt.png"),
    "middlebury_rubberwhale": ("frame10.png", "frame11.png", "flow10.flo"),
}
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

SLOW = 20


def flows(folder: Path, first: str, second: str, weights: str | None) -> dict[str, np.ndarray]:
    """Flow of a pair by every method; AssertionError where the prior differs from OpenCV's own."""
    grey = [cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2GRAY) for name in (first, second)]
    pixels = np.stack([read_image(folder / name) for name in (first, second)])
    video = Video.from_frames(torch.from_numpy(pixels).movedim(3, 1))
    frames = video.clip(0, 2)
    found = {}
    for quality, preset in PRESETS.items():
        found[f"dis {quality}"] = flow = make_prior("dis", quality=quality).scene(frames, 0, video).forward[0].numpy()
        direct = cv2.DISOpticalFlow_create(preset).calc(*grey, None)
        assert np.array_equal(flow, direct), f"dis {quality} differs from OpenCV's on {folder.name}"
    found["dis fine"] = make_prior("dis").scene(frames, 0, video).forward[0].numpy()
    found["Farneback"] = cv2.calcOpticalFlowFarneback(*grey, None, 0.5, 5, 15, 3, 5, 1.2, 0)
    if weights:
        found["raft"] = make_prior(f"raft:{weights}").scene(frames, 0, video).forward[0].numpy()
    found["no motion"] = np.zeros_like(direct)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="of torchvision's RAFT, to be compared, too")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")
    arguments = parser.parse_args()
    data = os.environ.get("S2D_TEST_DATA")
    if not data:
        print("expected S2D_TEST_DATA to name the folder that holds data/flow, got nothing", file=sys.stderr)
        return 2
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (first, second, truth) in PAIRS.items():
        folder = Path(data) / "data/flow" / name
        true_flow = read_flow(folder / truth)
        slow = np.where(np.linalg.norm(true_flow, axis=-1, keepdims=True) < SLOW, true_flow, np.float32(np.nan))
        found[name] = {}
        rows = []
        for method, flow in flows(folder, first, second, arguments.weights).items():
            whole, part = flow_quality(flow, true_flow), flow_quality(flow, slow)
            found[name][method] = {
                "end_point_error": whole.end_point_error,
                "outliers": whole.outliers,
                "slow_end_point_error": part.end_point_error,
                "slow_outliers": part.outliers,
            }
            rows.append([method, *(f"{x:.3f}" for x in found[name][method].values())])
        print(f"{name}: {whole.pixels:,} pixels of known flow, {part.pixels:,} of them under {SLOW} px")
        print(text_table(["method", "error (px)", "outliers", f"error < {SLOW} px", f"outliers < {SLOW} px"], rows))
        print()
    print("dis equals OpenCV's own at every preset, bit for bit")
    if arguments.save:
        print(results.keep("flow", {"environment": environment(), "errors": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
