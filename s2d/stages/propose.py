"""Stage 1: masks of single frames, without weights (`motioncut`) or from files (`load_proposals`)."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from s2d.data.coco import read_proposals, write_proposals
from s2d.data.files import read_json
from s2d.data.label_maps import read_label_maps
from s2d.data.types import FrameMasks
from s2d.data.video import Video
from s2d.data.ytvis import read_ytvis
from s2d.errors import InputError
from s2d.motion.moving import MovingClip, moving_clip
from s2d.motion.objectness import Objectness
from s2d.motion.refine import refine_mask
from s2d.motion.regions import cut_regions, level_regions, without_twins
from s2d.motion.superpixels import superpixels
from s2d.ops import RLE, mask_nms, pack_masks, rle_encode

TWINS = 0.85
"""IoU of candidates that are not told apart."""

ROUGH_OVERLAP = 0.7
"""IoU up to which two candidates are both refined: more than in the result, as refinement changes them."""


@dataclass(frozen=True)
class ProposeSettings:
    """Numbers of `motioncut`.

    Attributes:
        working_short_side: frames are looked at with at most this short side, pixels; masks are then enlarged.
        chunk: frames that are worked out together, and kept together in the work folder.
        margin: frames before and after a chunk whose motion is used too.
        nodes: superpixels of a frame, at most 1,000.
        vectors: eigenvectors per normalised cut.
        smallest: least area of a mask, a share of the frame.
        largest: greatest area.
        refined: candidates of a frame that are refined to pixels.
        masks: masks of a frame, at most.
        overlap: IoU above which the lower-scored of two masks of a frame is dropped.
        persistence: how much of the motion a frame takes from its neighbours, in [0, 1).
        still: residual speed, in pixels per frame at the working size, that no part of a chunk in which nothing moves
            exceeds; such a chunk has no masks.
    """

    working_short_side: int = 240
    chunk: int = 32
    margin: int = 10
    nodes: int = 400
    vectors: int = 5
    smallest: float = 0.002
    largest: float = 0.6
    refined: int = 12
    masks: int = 6
    overlap: float = 0.5
    persistence: float = 0.8
    still: float = 0.6


def propose(
    video: Video, settings: ProposeSettings = ProposeSettings(), *, work: Path | None = None, progress: bool = True
) -> FrameMasks:
    """Masks of whatever moves on its own, frame by frame: normalised cuts on motion, colour and texture.

    Args:
        video: read in chunks, so that its length does not matter.
        settings: see `ProposeSettings`.
        work: a folder in which finished chunks are kept; a later call with the same video and settings continues there
            and gives the same result.
        progress: show a bar.

    Returns:
        `FrameMasks` at ``video.size``; none where nothing moves.
    """
    parts = []
    with tqdm(total=video.num_frames, desc="propose", disable=not progress) as bar:
        for start in range(0, video.num_frames, settings.chunk):
            stop = min(start + settings.chunk, video.num_frames)
            path = None if work is None else Path(work) / f"{_fingerprint(video, settings)}-{start:06d}.json"
            if path is not None and path.is_file():
                part = read_proposals(path)
            else:
                part = _propose_chunk(video, settings, start, stop, bar)
                if path is not None:
                    write_proposals(path, part)
            bar.n = stop
            bar.refresh()
            parts.append(part)
    return FrameMasks(
        video=video.name,
        size=video.size,
        num_frames=video.num_frames,
        rle=RLE.cat([part.rle for part in parts]),
        frames=torch.cat([part.frames for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
    )


def _fingerprint(video: Video, settings: ProposeSettings) -> str:
    """Tells one video and one set of numbers from another, so that a work folder cannot mix them."""
    facts = [video.name, *video.size, video.num_frames, asdict(settings)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _propose_chunk(video: Video, settings: ProposeSettings, start: int, stop: int, bar: tqdm) -> FrameMasks:
    first, last = max(0, start - settings.margin), min(video.num_frames, stop + settings.margin)
    small = video.resized(short_side=min(settings.working_short_side, *video.size))
    frames = np.ascontiguousarray(small.clip(first, last).permute(0, 2, 3, 1).numpy())
    moving = moving_clip(frames, persistence=settings.persistence)
    codes, index, scores = [], [], []
    if moving.anything(settings.still):
        # OpenCV and the array work release the interpreter, and a frame's result does not depend on the others'.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            results = pool.map(
                lambda t: _propose_frame(frames[t], moving, t, settings), range(start - first, stop - first)
            )
            for t, (masks, values) in zip(range(start, stop), results, strict=True):
                if len(masks):
                    enlarged = np.stack([_resize(mask, video.size) for mask in masks])
                    codes.append(rle_encode(torch.from_numpy(enlarged)))
                    index += [t] * len(masks)
                    scores += values
                bar.update()
    return FrameMasks(
        video=video.name,
        size=video.size,
        num_frames=video.num_frames,
        rle=RLE.cat(codes),
        frames=torch.tensor(index, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def _propose_frame(
    frame: np.ndarray, moving: MovingClip, t: int, settings: ProposeSettings
) -> tuple[np.ndarray, list[float]]:
    """Masks of one frame at the working size, best first, and their scores."""
    residual, saliency = moving.residual[t], moving.saliency[t]
    graph = superpixels(frame, residual, settings.nodes)
    motion_scale = max(0.25 * float(moving.speed[t]), 0.12)
    smallest, largest = settings.smallest * saliency.size, settings.largest * saliency.size
    regions = np.concatenate(
        [
            level_regions(saliency, smallest),
            level_regions(np.linalg.norm(residual, axis=-1), smallest),
            cut_regions(graph, motion_scale=motion_scale, colour_scale=25.0, vectors=settings.vectors),
        ]
    )
    area = regions.sum((1, 2))
    regions = without_twins(regions[(area >= smallest) & (area <= largest)], TWINS)
    objectness = Objectness(frame, residual, saliency)
    rough, _ = _best(regions, objectness, ROUGH_OVERLAP, settings.refined)
    smooth = cv2.GaussianBlur(frame, (0, 0), 0.7)
    refined = [refine_mask(smooth, mask) for mask in rough]
    refined = [mask for mask in refined if smallest <= mask.sum() <= largest]
    return _best(np.stack([*rough, *refined]) if len(rough) else rough, objectness, settings.overlap, settings.masks)


def _best(masks: np.ndarray, objectness: Objectness, overlap: float, number: int) -> tuple[np.ndarray, list[float]]:
    """At most ``number`` masks that score above 0 and do not overlap much, best first, and their scores."""
    scores = torch.from_numpy(objectness.scores(masks).astype(np.float32))
    kept = mask_nms(pack_masks(torch.from_numpy(masks)), scores, overlap)
    kept = kept[scores[kept] > 0][:number]
    return masks[kept.numpy()], scores[kept].tolist()


def _resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size: its outline interpolated."""
    if mask.shape == size:
        return mask
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def load_proposals(path: str | Path, video: Video) -> FrameMasks:
    """Masks of single frames from files.

    Args:
        path: a folder of label maps (one PNG a frame), or a json: COCO (one image a frame) or YouTube-VIS (every
            instance in every frame is a mask; of several videos the one named like ``video`` is taken).
        video: whose masks they are. The masks may have another resolution, but the same shape and number of frames.

    Raises:
        InputError: nothing there, an unknown kind of file, another number of frames or another shape.
    """
    path = Path(path)
    if path.is_dir():
        masks = read_label_maps(path)
    elif path.suffix.lower() == ".json":
        content = read_json(path)
        masks = _masks_of(path, video) if isinstance(content, dict) and "videos" in content else read_proposals(path)
    else:
        raise InputError(f"expected proposals as a folder of label maps or a .json file, got {path}")
    if masks.num_frames != video.num_frames:
        raise InputError(
            f"expected proposals for the {video.num_frames} frames of {video.name} in {path}, got {masks.num_frames}"
        )
    (height, width), (own_height, own_width) = masks.size, video.size
    if abs(width * own_height - own_width * height) > max(own_height, own_width, height, width):
        raise InputError(
            f"expected proposals of the shape of {video.name}, {own_width} x {own_height}, in {path}, "
            f"got {width} x {height}"
        )
    return replace(masks, video=video.name)


def _masks_of(path: Path, video: Video) -> FrameMasks:
    """Every mask of one video of a YouTube-VIS json, frame by frame."""
    tracks = read_ytvis(path)
    chosen = [one for one in tracks if one.video == video.name] if len(tracks) > 1 else tracks
    if len(chosen) != 1:
        names = ", ".join(one.video for one in tracks) or "none"
        raise InputError(f"expected a video named {video.name} in {path}, got {names}")
    (one,) = chosen
    frames, instances = one.annotated.T.nonzero(as_tuple=True)
    return FrameMasks(
        video=one.video,
        size=one.size,
        num_frames=one.num_frames,
        rle=one.rle[instances * one.num_frames + frames],
        frames=frames,
        scores=one.scores[instances],
    )
