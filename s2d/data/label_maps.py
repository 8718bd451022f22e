"""Label maps: one PNG a frame in which every value or colour is an object and 0 or black is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from s2d.data.files import atomic_write
from s2d.data.image_folder import list_images
from s2d.data.types import FrameMasks, Tracks
from s2d.errors import InputError
from s2d.ops import RLE, rle_encode, unpack_masks

MAX_LABELS = 255


# Okabe and Ito's colours, which people with any form of colour blindness tell apart, without black, the background.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178), (213, 94, 0))


def label_colours(number: int) -> np.ndarray:
    """Colours that tell neighbours apart, the same for the same label everywhere: uint8 ``[number, 3]`` RGB.

    Entry n is the colour of instance n (label n + 1): the first seven are Okabe and Ito's, then the same ones lighter,
    then darker, and so on around.
    """
    rows = []
    for n in range(number):
        target, share = ((0, 0.0), (255, 0.45), (0, 0.4))[n // len(_COLOURS) % 3]
        rows.append([value + (target - value) * share for value in _COLOURS[n % len(_COLOURS)]])
    return np.array(rows).reshape(-1, 3).round().astype(np.uint8)


def write_label_maps(folder: str | os.PathLike, tracks: Tracks) -> None:
    """Write ``00000.png``, ``00001.png``, ...: 8-bit palette images in which instance n has label n + 1.

    Where instances overlap, the one with the higher score is seen (ties: the lower index).

    Raises:
        InputError: the folder cannot be written to.
        ValueError: more than 255 instances.
    """
    if len(tracks) > MAX_LABELS:
        raise ValueError(f"s2d::write_label_maps: expected at most {MAX_LABELS} instances, got {len(tracks)}")
    palette = np.zeros((MAX_LABELS + 1, 3), dtype=np.uint8)
    palette[1:] = label_colours(MAX_LABELS)
    painted_first = torch.argsort(tracks.scores, descending=True, stable=True).flip(0).tolist()
    for t in range(tracks.num_frames):
        labels = np.zeros(tracks.size, dtype=np.uint8)
        masks = unpack_masks(tracks.bits(slice(t, t + 1))).numpy()
        for n in painted_first:
            labels[masks[n, 0]] = n + 1
        image = Image.fromarray(labels)
        image.putpalette(palette.tobytes())
        with atomic_write(Path(folder) / f"{t:05d}.png") as temporary:
            image.save(temporary)


def read_label_maps(folder: str | os.PathLike) -> FrameMasks:
    """One mask for every label of every image, with score 1.

    Grey and palette images (8 or 16 bit) are read as labels, colour images as one label a colour. Images are frames in
    natural order; within a frame masks are ordered by label or colour.

    Raises:
        InputError: no such folder, no PNG in it, one that cannot be read, or images of two sizes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"expected a folder of label maps at {folder}, got no folder")
    paths = list_images(folder, (".png",))
    if not paths:
        raise InputError(f"expected label maps (.png) in the folder {folder}, got none")
    size: tuple[int, int] | None = None
    codes, frames = [], []
    for t, path in enumerate(paths):
        labels = read_labels(path)
        size = size or labels.shape
        if labels.shape != size:
            found = f"{labels.shape[1]} x {labels.shape[0]} for {path.name}"
            raise InputError(f"expected label maps of one size in {folder}, {size[1]} x {size[0]}, got {found}")
        values = np.unique(labels)
        values = values[values != 0]
        codes.append(rle_encode(torch.from_numpy(labels[None] == values[:, None, None])))
        frames += [t] * len(values)
    return FrameMasks(
        video=folder.resolve().name,
        size=size,
        num_frames=len(paths),
        rle=RLE.cat(codes),
        frames=torch.tensor(frames, dtype=torch.int64),
        scores=torch.ones(len(frames)),
    )


def read_labels(path: Path) -> np.ndarray:
    """Int64 ``[H, W]``: labels as stored, or 24-bit colours; InputError where the file cannot be read."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                red, green, blue = np.asarray(image.convert("RGB")).astype(np.int64).transpose(2, 0, 1)
                return red << 16 | green << 8 | blue
            return np.asarray(image).astype(np.int64)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f"expected a label map in {path}, got a file that cannot be read: {error}") from None
