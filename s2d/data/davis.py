"""Sequences as DAVIS keeps them: a folder of label maps in which a label is the same object in every frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from s2d.data.image_folder import list_images
from s2d.data.label_maps import read_labels
from s2d.data.types import Tracks
from s2d.errors import InputError
from s2d.ops import RLE, rle_from_labels

VOID = 255


@dataclass(frozen=True)
class LabelledSequence:
    """The objects of a sequence.

    Attributes:
        tracks: one for each label from 1 to the greatest, all with score 1.
        void: T masks: pixels that do not count.
        frames: names of the frames, without suffix.
    """

    tracks: Tracks
    void: RLE
    frames: tuple[str, ...]


def read_sequence(
    folder: str | os.PathLike,
    *,
    like: LabelledSequence | None = None,
    most: int | None = None,
    optional: Sequence[str] = (),
    single: bool = False,
) -> LabelledSequence:
    """Read ``folder/FRAME.png``: grey or palette images, label 0 none; 255 is void.

    Args:
        folder: its name is that of the sequence.
        like: the ground truth of the sequence: there must be the same frames, of the same size.
        most: greatest label allowed.
        optional: names of frames that may be missing; they read as empty.
        single: take everything that is not 0 for one object (DAVIS-2016 marks it with 255); nothing is void.

    Raises:
        InputError: no such folder, a missing frame or one too many, one that cannot be read, of another size or with a
            label above ``most`` (a picture in colours has those); names the sequence and the frame.
    """
    folder = Path(folder)
    who = f"sequence {folder.name!r}"
    if not folder.is_dir():
        raise InputError(f"expected a folder of label maps for {who} at {folder}, got no folder")
    paths = {path.stem: path for path in list_images(folder, (".png",))}
    frames = like.frames if like else tuple(paths)
    if not frames:
        raise InputError(f"expected label maps (.png) for {who} in {folder}, got none")
    missing = [frame for frame in frames if frame not in paths and frame not in optional]
    if missing:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"expected frame {missing[0]!r} of {who} in {folder}, got no such file{rest}")
    more = [frame for frame in paths if frame not in set(frames)]
    if more:
        raise InputError(
            f"expected the {len(frames)} frames of {who} in {folder}, got {len(paths)}: {more[0]!r} is new"
        )
    size = like.tracks.size if like else None
    maps: list[np.ndarray] = []
    for frame in frames:
        labels = read_labels(paths[frame]) if frame in paths else np.zeros(size or (0, 0), dtype=np.int64)
        size = size or labels.shape
        name = f"frame {frame!r} of {who}"
        if labels.shape != size:
            found = f"{labels.shape[1]} x {labels.shape[0]}"
            raise InputError(f"expected {name} in {folder} to be {size[1]} x {size[0]}, got {found}")
        highest = int(np.where(labels == VOID, 0, labels).max(initial=0))
        if not single and highest > (most or VOID):
            raise InputError(f"expected labels of at most {most or VOID} in {name} in {folder}, got {highest}")
        maps.append((labels > 0 if single else labels).astype(np.uint8))
    stack = np.stack(maps)
    void = stack == VOID
    stack[void] = 0
    return LabelledSequence(_tracks(folder.name, stack), _void(void), tuple(frames))


def _tracks(name: str, labels: np.ndarray) -> Tracks:
    codes, which = rle_from_labels(labels)
    length, number = len(labels), int(labels.max(initial=0))
    # The mask of label n in frame t is number (n - 1) T + t; those that are not there are the one behind the last.
    place = torch.full((number * length,), len(codes), dtype=torch.int64)
    place[(which[:, 1] - 1) * length + which[:, 0]] = torch.arange(len(codes))
    height, width = labels.shape[1:]
    rle = RLE.cat([codes, RLE.empty(1, height, width)])[place]
    annotated = (place < len(codes)).view(number, length)
    return Tracks(name, (height, width), rle, annotated, torch.ones(number))


def _void(void: np.ndarray) -> RLE:
    codes, which = rle_from_labels(void.astype(np.uint8))
    place = torch.full((len(void),), len(codes), dtype=torch.int64)
    place[which[:, 0]] = torch.arange(len(codes))
    return RLE.cat([codes, RLE.empty(1, *void.shape[1:])])[place]
