"""How single-frame proposals go wrong: missed, split, merged, eroded, jittered and false masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.random import Generator

from s2d.data.synthetic.texture import cloud
from s2d.data.types import FrameMasks, Tracks
from s2d.ops import rle_encode, unpack_masks


@dataclass(frozen=True)
class ProposalNoise:
    """Chances are per mask; lengths are shares of the square root of the mask's area.

    Attributes:
        miss: share of masks that are missing. Misses come in runs, as they do when an object stops or turns.
        miss_run: mean length of such a run in frames.
        split: chance that a mask comes as two.
        merge: chance that a mask comes together with the nearest other one.
        swell: most that a mask is dilated or eroded.
        shift: most that a mask is displaced.
        ripple: how far its outline wanders.
        false_masks: mean number of masks per frame that show no object.
        score_noise: standard deviation of the score about what the mask deserves.
        min_area: pixels; smaller masks are left out.
    """

    miss: float = 0.2
    miss_run: float = 4.0
    split: float = 0.06
    merge: float = 0.06
    swell: float = 0.06
    shift: float = 0.03
    ripple: float = 0.05
    false_masks: float = 0.5
    score_noise: float = 0.1
    min_area: int = 24

    def __post_init__(self) -> None:
        chances = (self.miss, self.split, self.merge)
        if not all(0 <= chance <= 1 for chance in chances) or self.miss_run < 1:
            found = f"{chances} and {self.miss_run}"
            raise ValueError(
                f"s2d::ProposalNoise: expected chances in [0, 1] and runs of at least a frame, got {found}"
            )


LEVELS = (
    ProposalNoise(0.1, 3.0, 0.02, 0.02, 0.03, 0.01, 0.02, 0.1, 0.05),
    ProposalNoise(0.2, 4.0, 0.06, 0.06, 0.06, 0.03, 0.05, 0.5, 0.1),
    ProposalNoise(0.35, 5.0, 0.12, 0.1, 0.1, 0.05, 0.08, 1.0, 0.15),
    ProposalNoise(0.5, 6.0, 0.2, 0.15, 0.15, 0.08, 0.12, 2.0, 0.2),
    ProposalNoise(0.65, 8.0, 0.3, 0.2, 0.2, 0.12, 0.16, 3.0, 0.25),
)


def perturb_proposals(tracks: Tracks, noise: ProposalNoise | int = 2, *, seed: int = 0) -> FrameMasks:
    """Proposals such as a detector without labels makes for these tracks.

    A mask's score is ``0.1 + 0.8 IoU`` with the object it shows, plus noise, within [0.01, 1]; that of a false mask is
    drawn from 0.05 to 0.55.

    Args:
        tracks: the truth.
        noise: the model, or its level: 1 (mild) to 5 (severe).
        seed: the same tracks, noise and seed give the same masks.
    """
    if isinstance(noise, int):
        if not 1 <= noise <= len(LEVELS):
            raise ValueError(f"s2d::perturb_proposals: expected a level from 1 to {len(LEVELS)}, got {noise}")
        noise = LEVELS[noise - 1]
    rng = np.random.default_rng(seed)
    missed = _runs(rng, len(tracks), tracks.num_frames, noise)
    masks: list[np.ndarray] = []
    frames: list[int] = []
    scores: list[float] = []
    for t in range(tracks.num_frames):
        truth = unpack_masks(tracks.bits(slice(t, t + 1)))[:, 0].numpy()
        for mask, overlap in _proposals(rng, truth, missed[:, t], noise):
            masks.append(mask)
            frames.append(t)
            scores.append(float(np.clip(0.1 + 0.8 * overlap + noise.score_noise * rng.standard_normal(), 0.01, 1)))
        for _ in range(int(rng.poisson(noise.false_masks))):
            blob = _false_mask(rng, tracks.size)
            if blob.sum() >= noise.min_area:
                masks.append(blob)
                frames.append(t)
                scores.append(float(rng.uniform(0.05, 0.55)))
    stacked = np.stack(masks) if masks else np.zeros((0, *tracks.size), dtype=bool)
    return FrameMasks(
        video=tracks.video,
        size=tracks.size,
        num_frames=tracks.num_frames,
        rle=rle_encode(torch.from_numpy(stacked)),
        frames=torch.tensor(frames, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def _runs(rng: Generator, number: int, length: int, noise: ProposalNoise) -> np.ndarray:
    """Which masks are missing, bool ``[N, T]``: a two-state chain with the wanted share and mean run."""
    if noise.miss >= 1:
        return np.ones((number, length), dtype=bool)
    leave = 1 / noise.miss_run
    enter = min(1.0, leave * noise.miss / (1 - noise.miss))
    missed = np.zeros((number, length), dtype=bool)
    state = rng.random(number) < noise.miss
    for t in range(length):
        missed[:, t] = state
        draw = rng.random(number)
        state = np.where(state, draw >= leave, draw < enter)
    return missed


def _proposals(
    rng: Generator, truth: np.ndarray, missed: np.ndarray, noise: ProposalNoise
) -> list[tuple[np.ndarray, float]]:
    """The masks of one frame ``[N, H, W]`` as they are found, each with its IoU with the object it began as."""
    there = [n for n in range(len(truth)) if truth[n].sum() >= noise.min_area]
    found = []
    for n in there:
        if missed[n]:
            continue
        pieces = [truth[n]]
        others = [m for m in there if m != n]
        if others and rng.random() < noise.merge:
            pieces = [truth[n] | truth[_nearest(truth, n, others)]]
        elif rng.random() < noise.split:
            pieces = _split(rng, truth[n])
        for piece in pieces:
            mask = _deform(rng, piece, noise)
            if mask.sum() >= noise.min_area:
                found.append((mask, float((mask & truth[n]).sum() / (mask | truth[n]).sum())))
    return found


def _centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


def _nearest(truth: np.ndarray, n: int, others: list[int]) -> int:
    return min(others, key=lambda m: float(np.linalg.norm(_centre(truth[m]) - _centre(truth[n]))))


def _split(rng: Generator, mask: np.ndarray) -> list[np.ndarray]:
    """The mask cut by a random line near its centre."""
    rows, columns = np.indices(mask.shape)
    row, column = _centre(mask) + rng.uniform(-0.15, 0.15, 2) * np.sqrt(mask.sum())
    angle = rng.uniform(0, np.pi)
    side = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle) > 0
    return [mask & side, mask & ~side]


def _deform(rng: Generator, mask: np.ndarray, noise: ProposalNoise) -> np.ndarray:
    """Dilate or erode, displace, and let the outline wander."""
    length = float(np.sqrt(mask.sum()))
    if length == 0:
        return mask
    image = mask.astype(np.uint8)
    radius = round(float(rng.uniform(-1, 1)) * noise.swell * length)
    if radius:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(radius) + 1,) * 2)
        image = cv2.dilate(image, kernel) if radius > 0 else cv2.erode(image, kernel)
    rows, columns = np.indices(mask.shape, dtype=np.float32)
    move = rng.uniform(-1, 1, 2) * noise.shift * length
    wander = [(cloud(rng, mask.shape, max(0.5 * length, 4.0), 2) - 0.5) * 4 * noise.ripple * length for _ in range(2)]
    columns = (columns + move[0] + wander[0]).astype(np.float32)
    rows = (rows + move[1] + wander[1]).astype(np.float32)
    return cv2.remap(image, columns, rows, cv2.INTER_NEAREST) > 0


def _false_mask(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """A blob somewhere: an oval with a wandering outline."""
    height, width = size
    radius = rng.uniform(0.05, 0.2, 2) * min(size)
    rows, columns = np.indices(size)
    distance = np.hypot((rows - rng.uniform(0, height)) / radius[0], (columns - rng.uniform(0, width)) / radius[1])
    return distance + 1.2 * (cloud(rng, size, float(radius.mean()), 2) - 0.5) < 1
