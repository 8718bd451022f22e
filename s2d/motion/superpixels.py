"""A frame as a graph of superpixels, and its normalised cut (Shi and Malik, PAMI 2000)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_matrix, diags, identity
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from skimage.color import rgb2lab
from skimage.segmentation import slic


@dataclass(frozen=True)
class Superpixels:
    """Superpixels of one frame, their cues and who touches whom.

    Attributes:
        labels: int64 ``[H, W]`` in [0, N).
        area: float64 ``[N]``, pixels.
        colour: float64 ``[N, 3]``: mean CIE Lab.
        texture: float64 ``[N]``: mean length of the gradient of L.
        motion: float64 ``[N, 2]``: mean residual flow, pixels per frame.
        touching: bool ``[N, N]``, symmetric, false on the diagonal.
    """

    labels: np.ndarray
    area: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    motion: np.ndarray
    touching: np.ndarray

    def __len__(self) -> int:
        return len(self.area)


def superpixels(frame: np.ndarray, residual: np.ndarray, number: int) -> Superpixels:
    """Cut a frame into about ``number`` superpixels (SLIC on Lab colour).

    Args:
        frame: uint8 ``[H, W, 3]`` RGB.
        residual: float32 ``[H, W, 2]``, pixels per frame.
        number: how many, about.
    """
    lab = rgb2lab(cv2.GaussianBlur(frame, (0, 0), 0.8)).astype(np.float32)
    labels = slic(lab, number, compactness=12, max_num_iter=5, convert2lab=False, start_label=0)
    light = np.ascontiguousarray(lab[..., 0])
    gradient = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1))
    cues = np.concatenate([lab, gradient[..., None], residual], -1).reshape(labels.size, -1)
    flat = labels.reshape(-1)
    area = np.bincount(flat).astype(np.float64)
    means = np.stack([np.bincount(flat, cue) for cue in cues.T], 1) / area[:, None]
    touching = np.zeros((len(area), len(area)), bool)
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        touching[a.reshape(-1), b.reshape(-1)] = True
    touching |= touching.T
    np.fill_diagonal(touching, False)
    return Superpixels(labels, area, means[:, :3], means[:, 3], means[:, 4:], touching)


def affinity(graph: Superpixels, *, motion_scale: float, colour_scale: float, hops: int = 4) -> csr_matrix:
    """Weights between superpixels at most ``hops`` neighbours apart: sparse, symmetric, float64 ``[N, N]``.

    ``w = exp(-(|motion difference|^2 / motion_scale^2 + (|Lab difference|^2 + texture difference^2 / 4) /
    colour_scale^2) / 2) + 1e-4``; the constant keeps the graph connected.
    """
    step = csr_matrix(graph.touching, dtype=np.float32) + identity(len(graph), dtype=np.float32, format="csr")
    near = step
    for _ in range(hops - 1):
        near = near @ step
    rows, columns = near.nonzero()
    cues = np.concatenate(
        [graph.motion / motion_scale, graph.colour / colour_scale, graph.texture[:, None] / (2 * colour_scale)], 1
    )
    distance = ((cues[rows] - cues[columns]) ** 2).sum(1)
    return csr_matrix((np.exp(-distance / 2) + 1e-4, (rows, columns)), shape=near.shape)


def cut_vectors(weights: csr_matrix, number: int) -> np.ndarray:
    """The generalised eigenvectors of (D - W, D) with the smallest eigenvalues, the constant one left out.

    They are D^(-1/2) times the eigenvectors of D^(-1/2) W D^(-1/2) with the largest eigenvalues, which Lanczos finds
    with sparse products alone. A vector that has not converged is left out.

    Returns:
        float64 ``[N, K]`` with K at most ``number``.
    """
    size = weights.shape[0]
    number = min(number, size - 2)
    if number < 1:
        return np.zeros((size, 0))
    root = 1 / np.sqrt(np.asarray(weights.sum(1)).reshape(-1))
    scaled = diags(root) @ weights @ diags(root)
    start = np.random.default_rng(0).random(size)
    try:
        values, vectors = eigsh(scaled, number + 1, which="LA", v0=start, tol=1e-4, maxiter=2000)
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(-values, kind="stable")[1:]
    return vectors[:, order] * root[:, None]


def connected_parts(graph: Superpixels, chosen: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a set of superpixels: bool ``[N]`` each."""
    index = np.flatnonzero(chosen)
    if len(index) == 0:
        return []
    number, part = connected_components(csr_matrix(graph.touching[np.ix_(index, index)]), directed=False)
    parts = np.zeros((number, len(graph)), bool)
    parts[part, index] = True
    return list(parts)
