"""From superpixels to pixels: colour models of an object and of what is around it (GrabCut, Rother et al. 2004)."""

from __future__ import annotations

import cv2
import numpy as np

SURE_OUTSIDE = 0.25
"""Pixels farther outside than this many times the square root of the area belong to the background."""

SURE_INSIDE = 0.15
"""Pixels deeper inside than this many times the square root of the area belong to the object."""

CONTEXT = 0.35
"""The window around the object in which it is cut out, in square roots of its area."""


def refine_mask(image: np.ndarray, mask: np.ndarray, iterations: int = 2) -> np.ndarray:
    """Move the outline of a mask to where the colours change.

    Args:
        image: uint8 ``[H, W, 3]``.
        mask: bool ``[H, W]``, one object.
        iterations: of GrabCut.

    Returns:
        bool ``[H, W]``: one connected part; the mask itself where no cut exists.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return mask
    size = float(np.sqrt(mask.sum()))
    margin = int(CONTEXT * size) + 6
    window = (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )
    local = mask[window]
    outside = cv2.distanceTransform((~local).astype(np.uint8), cv2.DIST_L2, 3)
    inside = cv2.distanceTransform(np.pad(local, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    hint = np.where(local, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    hint[outside > SURE_OUTSIDE * size + 2] = cv2.GC_BGD
    hint[inside > min(SURE_INSIDE * size, 0.8 * float(inside.max()))] = cv2.GC_FGD
    if local.all():
        return mask
    # GrabCut starts its colour models by k-means from OpenCV's global generator.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image[window]), hint, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    refined = np.zeros_like(mask)
    refined[window] = (hint == cv2.GC_FGD) | (hint == cv2.GC_PR_FGD)
    number, labels = cv2.connectedComponents(refined.astype(np.uint8))
    overlap = np.bincount(labels[mask], minlength=number)
    overlap[0] = 0
    return labels == overlap.argmax() if overlap.any() else mask
