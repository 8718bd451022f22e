"""One colour for each instance, the same in every picture and every frame."""

from __future__ import annotations

from functools import cache

from s2d.data.label_maps import label_colours


@cache
def instance_colour(index: int) -> tuple[int, int, int]:
    """RGB, 0 to 255, of the instance with this index (from 0): that of its label in the label maps."""
    return tuple(label_colours(index + 1)[index].tolist())


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Near black or white, whichever reads better on ``background``."""
    red, green, blue = background
    return (20, 20, 20) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
