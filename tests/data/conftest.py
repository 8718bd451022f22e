"""Small videos written on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


def pictures(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Smooth colours that move: uint8 ``[T, H, W, 3]``, each frame different from all others."""
    height, width = size
    t, y, x = np.ogrid[:number, :height, :width]
    red = 128 + 100 * np.sin(0.11 * x + 0.35 * t)
    green = 128 + 100 * np.cos(0.13 * y + 0.05 * x - 0.27 * t)
    blue = 20 + (t * 7) % 200 + 0 * x * y
    return np.stack(np.broadcast_arrays(red, green, blue), -1).astype(np.uint8)


@pytest.fixture
def encode(tmp_path: Path) -> Callable[..., Path]:
    """``encode(name, codec, frames=40, ...)`` writes a video below the test's folder and returns its path."""

    def write(
        name: str,
        codec: str = "libx264",
        frames: int | np.ndarray = 40,
        *,
        size: tuple[int, int] = (48, 64),
        rate: Fraction | int = 25,
        options: dict[str, str] | None = None,
        times: Sequence[int] | None = None,
        clock: Fraction | None = None,
        rotation: int | None = None,
        container_options: dict[str, str] | None = None,
        pixel_format: str = "yuv420p",
        colorspace: int | None = None,
    ) -> Path:
        path = tmp_path / name
        images = pictures(frames, size) if isinstance(frames, int) else frames
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = size
            stream.pix_fmt = pixel_format
            if colorspace is not None:
                stream.codec_context.colorspace = colorspace
            if clock is not None:
                stream.codec_context.time_base = clock
            if rotation is not None:
                stream.set_display_rotation(rotation)
            for index, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                if colorspace is not None:
                    frame = frame.reformat(format=pixel_format, dst_colorspace=colorspace)
                    frame.colorspace = colorspace
                if times is not None:
                    frame.pts, frame.time_base = times[index], clock
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write
