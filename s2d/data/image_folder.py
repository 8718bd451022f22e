"""A folder of images as the source of a video."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from s2d.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
FPS = Fraction(25)

# Cameras append bytes after the end of a picture: it is looked for in so many.
_TAIL = 4096

# EXIF orientations that lay the image on its side (TIFF 6.0, tag 274).
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images of one size in natural order. The attributes are those of `s2d.data.video.FrameSource`."""

    paths: tuple[Path, ...]
    size: tuple[int, int]
    decoder = "images"
    fps = FPS
    notes: tuple[str, ...] = ()

    @property
    def timestamps(self) -> np.ndarray:
        return np.arange(len(self.paths)) / float(FPS)

    def frames(self, start: int, step: int = 1) -> Iterator[np.ndarray]:
        for path in self.paths[start::step]:
            image = read_image(path)
            check_size(path, image.shape[:2], self.size)
            yield image


def open_image_folder(folder: Path) -> ImageFolder:
    """Check that the folder holds images of one size; their pixels are read later.

    Raises:
        InputError: no image, an image that cannot be read, or two sizes (names the images).
    """
    paths = list_images(folder, SUFFIXES)
    if not paths:
        raise InputError(f"expected images ({', '.join(SUFFIXES)}) in the folder {folder}, got none")
    sizes = [upright_size(path) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            first, other = (f"{name} of {w} x {h}" for name, (h, w) in ((paths[0].name, sizes[0]), (path.name, size)))
            raise InputError(f"expected images of one size in {folder}, got {first} and {other}")
    return ImageFolder(tuple(paths), sizes[0])


def listed_images(paths: Sequence[Path]) -> ImageFolder:
    """The images with these names as one video: only the first is looked at, the others when they are read.

    Raises:
        InputError: there is no first image, or it cannot be read.
    """
    if not paths:
        raise InputError("expected at least one image of a video, got none")
    return ImageFolder(tuple(paths), upright_size(paths[0]))


def list_images(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of these (lower-case) suffixes in natural order; hidden ones are left out."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file() and p.name[0] != "."]
    return sorted(files, key=lambda path: (natural_order(path.stem), path.name))


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 ``[H, W, 3]`` RGB, upright; InputError where it cannot be read."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey: PIL's conversion would clip it
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f"expected an image in {path}, got a file that cannot be read: {error}") from None


def check_size(path: Path, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """InputError where (H, W) of an image are not those of the first one of its video."""
    if found != wanted:
        (height, width), (h, w) = wanted, found
        raise InputError(f"expected an image of {width} x {height} in {path}, got {w} x {h}")


def ends_early(path: Path) -> bool:
    """Whether a JPEG or PNG file lacks its end, as a copy that was broken off does; OSError where unreadable."""
    mark = {".png": b"IEND\xae\x42\x60\x82"}.get(path.suffix.lower(), b"\xff\xd9")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return mark not in file.read()


def natural_order(text: str) -> list[tuple[int, int, str]]:
    """A sort key in which numbers count as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", text)]


def upright_size(path: Path) -> tuple[int, int]:
    """(H, W) from the header of an image file; InputError where it cannot be read."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            return (width, height) if file.getexif().get(_ORIENTATION) in _SIDEWAYS else (height, width)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f"expected an image in {path}, got a file that cannot be read: {error}") from None
