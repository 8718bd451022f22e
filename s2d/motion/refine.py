"""From regions to pixels: colour models of an object and of what is around it (GrabCut, Rother et al. 2004)."""

from __future__ import annotations

import cv2
import numpy as np

SURE_OUTSIDE = 0.25
"""Pixels farther outside than this many times the square root of the area belong to the background."""

SURE_INSIDE = 0.15
"""Pixels deeper inside than this many times the square root of the area belong to the object."""

CONTEXT = 0.35
"""Margin of the window in which an object is cut out, in square roots of its area."""

ITERATIONS = 2
"""Rounds of GrabCut."""

LARGEST_WINDOW = 12_000
"""Windows of more pixels are shrunk to this many: large objects need no finer outline than small ones."""


def refine_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Move the outline of a mask to where the colours change.

    Args:
        image: uint8 ``[H, W, 3]``.
        mask: bool ``[H, W]``, one object.

    Returns:
        bool ``[H, W]``: one connected part; the mask itself where no cut exists.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return mask
    margin = int(CONTEXT * float(mask.sum()) ** 0.5) + 6
    window = (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )
    local, colours = mask[window], np.ascontiguousarray(image[window])
    height, width = local.shape
    shrink = min(1.0, (LARGEST_WINDOW / local.size) ** 0.5)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        colours = cv2.resize(colours, size, interpolation=cv2.INTER_AREA)
        local = cv2.resize(local.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    if local.all() or not local.any():
        return mask
    found = _cut(colours, local)
    if shrink < 1:
        found = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    refined = np.zeros_like(mask)
    refined[window] = found
    number, labels = cv2.connectedComponents(refined.astype(np.uint8))
    overlap = np.bincount(labels[mask], minlength=number)
    overlap[0] = 0
    return labels == overlap.argmax() if overlap.any() else mask


def _cut(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    size = float(mask.sum()) ** 0.5
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    inside = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    hint = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    hint[outside > SURE_OUTSIDE * size + 2] = cv2.GC_BGD
    hint[inside > min(SURE_INSIDE * size, 0.8 * float(inside.max()))] = cv2.GC_FGD
    # GrabCut starts its colour models by k-means from OpenCV's global generator.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, hint, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return (hint == cv2.GC_FGD) | (hint == cv2.GC_PR_FGD)
