"""Optical flow and point tracks in files: Middlebury's .flo, KITTI's 16-bit .png, and .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch

from s2d.data.files import atomic_write
from s2d.errors import InputError
from s2d.motion.dis import VideoFlow
from s2d.ops import PointTracks

_FLO_TAG = np.float32(202021.25).tobytes()
_FLO_UNKNOWN, _FLO_MARK = 1e9, 1e10

_KITTI_STEPS, _KITTI_ZERO = 64, 1 << 15


def read_flow(path: str | Path) -> np.ndarray:
    """The flow of one pair of frames, from ``.flo`` or ``.png``: see `read_flo` and `read_kitti`."""
    return read_kitti(path) if Path(path).suffix.lower() == ".png" else read_flo(path)


def write_flow(path: str | Path, flow: np.ndarray) -> None:
    """Write the flow of one pair of frames as the suffix says: see `write_flo` and `write_kitti`."""
    (write_kitti if Path(path).suffix.lower() == ".png" else write_flo)(path, flow)


def read_flo(path: str | Path) -> np.ndarray:
    """A file of Middlebury's benchmark: float32 ``[H, W, 2]``, (dx, dy) in pixels, NaN where it is unknown.

    The format: the float32 202021.25, width and height as int32, then dx and dy of every pixel as float32, row by row,
    all little-endian; a pixel is unknown where either is above 1e9 in magnitude (or no number).

    Raises:
        InputError: no such file, another kind of file, or another number of bytes than its header says.
    """
    content = _bytes_of(path)
    if content[:4] != _FLO_TAG or len(content) < 12:
        raise InputError(f"expected a .flo file of flow in {path}, got another kind of file")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, 4))
    if min(width, height) < 1 or len(content) != 12 + 8 * width * height:
        whole = 12 + 8 * max(width, 0) * max(height, 0)
        raise InputError(
            f"expected {whole} bytes of flow of {width} x {height} pixels in {path}, got {len(content)} bytes"
        )
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    # Written so that NaN is unknown, too.
    flow[~(np.abs(flow) <= _FLO_UNKNOWN).all(-1)] = np.nan
    return flow


def write_flo(path: str | Path, flow: np.ndarray) -> None:
    """Write float32 ``[H, W, 2]`` as `read_flo` reads it, exactly; NaN becomes 1e10, the mark of the unknown."""
    flow = _as_flow(flow)
    known = np.where(np.isnan(flow).any(-1, keepdims=True), np.float32(_FLO_MARK), flow)
    with atomic_write(path) as temporary:
        temporary.write_bytes(_FLO_TAG + np.array(flow.shape[1::-1], "<i4").tobytes() + known.astype("<f4").tobytes())


def read_kitti(path: str | Path) -> np.ndarray:
    """A file of KITTI's flow benchmark: float32 ``[H, W, 2]``, (dx, dy) in pixels, NaN where it is not valid.

    The format: a 16-bit RGB .png; red and green are 64 dx + 2^15 and 64 dy + 2^15, blue is 0 where there is no flow.

    Raises:
        InputError: no such file, or no 16-bit RGB .png.
    """
    pixels = cv2.imdecode(np.frombuffer(_bytes_of(path) or b"\0", np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise InputError(f"expected a 16-bit RGB .png of flow in {path}, got a file that is no image")
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] != 3:
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        found = f"{8 * pixels.dtype.itemsize} bits and {channels} channels"
        raise InputError(f"expected a 16-bit RGB .png of flow in {path}, got {found}")
    flow = (pixels[:, :, :0:-1].astype(np.float32) - _KITTI_ZERO) / _KITTI_STEPS
    flow[pixels[:, :, 0] == 0] = np.nan
    return flow


def write_kitti(path: str | Path, flow: np.ndarray) -> None:
    """Write float32 ``[H, W, 2]`` as `read_kitti` reads it, rounded to 1/64 px; NaN becomes not valid.

    Raises:
        ValueError: flow that 16 bits do not hold, outside [-512, 511.984] px.
    """
    flow = _as_flow(flow)
    known = ~np.isnan(flow).any(-1)
    steps = np.rint(flow.astype(np.float64) * _KITTI_STEPS) + _KITTI_ZERO
    if not ((steps[known] >= 0) & (steps[known] <= 0xFFFF)).all():
        worst = np.abs(flow[known]).max()
        raise ValueError(f"s2d::write_kitti: expected flow in [-512, 511.984] px, got a magnitude of {worst:g} px")
    pixels = np.zeros((*known.shape, 3), np.uint16)
    pixels[known, 2], pixels[known, 1], pixels[known, 0] = steps[known, 0], steps[known, 1], 1
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def read_npz(path: str | Path) -> tuple[VideoFlow | PointTracks, tuple[int, int]]:
    """The motion of a whole video, and the (H, W) of the frames that its pixels are counted in.

    Either ``forward`` and ``backward``, float32 or float16 ``[T - 1, H, W, 2]`` (see `VideoFlow`; NaN is unknown), or
    ``tracks``, float ``[G, T, 2]``, ``visible``, bool ``[G, T]``, and ``size``, the two integers (H, W).

    Raises:
        InputError: no such file, no .npz, arrays that are missing, of another type, or that do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"expected a .npz file at {path}, got nothing: no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile):
        raise InputError(f"expected a .npz file of arrays in {path}, got one that is cut off or another file") from None
    if {"forward", "backward"} <= arrays.keys():
        forward, backward = arrays["forward"], arrays["backward"]
        fits = forward.ndim == 4 and forward.shape[3] == 2 and forward.dtype in (np.float32, np.float16)
        if not fits or backward.shape != forward.shape or backward.dtype != forward.dtype:
            raise InputError(
                f"expected forward and backward float32 or float16 [T - 1, H, W, 2] in {path}, "
                f"got {_kind(forward)} and {_kind(backward)}"
            )
        return VideoFlow(torch.from_numpy(forward), torch.from_numpy(backward)), forward.shape[1:3]
    if {"tracks", "visible", "size"} <= arrays.keys():
        tracks, visible, size = arrays["tracks"], arrays["visible"], arrays["size"]
        fits = tracks.ndim == 3 and tracks.shape[2] == 2 and tracks.dtype.kind == "f" and visible.dtype == bool
        if not fits or visible.shape != tracks.shape[:2] or size.shape != (2,) or size.dtype.kind not in "iu":
            raise InputError(
                f"expected tracks float [G, T, 2], visible bool [G, T] and size int [2] in {path}, "
                f"got {_kind(tracks)}, {_kind(visible)} and {_kind(size)}"
            )
        height, width = (int(side) for side in size)
        return PointTracks(torch.from_numpy(tracks).float(), torch.from_numpy(visible)), (height, width)
    found = ", ".join(arrays) or "no array"
    raise InputError(f"expected arrays forward and backward, or tracks, visible and size, in {path}, got {found}")


def write_npz(path: str | Path, motion: VideoFlow | PointTracks, size: tuple[int, int] | None = None) -> None:
    """Write the motion of a whole video as `read_npz` reads it, exactly; ``path`` ends in ``.npz``.

    Args:
        path: the file.
        motion: of all frames.
        size: (H, W) of the frames that point tracks are in; flow says it by its shape.
    """
    if isinstance(motion, PointTracks):
        if size is None:
            raise ValueError("s2d::write_npz: expected size (H, W) with point tracks, got None")
        arrays = {"tracks": motion.tracks, "visible": motion.visible, "size": torch.tensor(size)}
    else:
        arrays = {"forward": motion.forward, "backward": motion.backward}
    with atomic_write(path) as temporary:
        np.savez(temporary, **{name: tensor.numpy() for name, tensor in arrays.items()})


def _bytes_of(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"expected a file of flow at {path}, got nothing: no such file") from None
    except OSError as error:
        raise InputError(f"expected a file of flow at {path}, got: {(error.strerror or str(error)).lower()}") from None


def _as_flow(flow: np.ndarray) -> np.ndarray:
    flow = np.asarray(flow, dtype=np.float32)
    if flow.ndim != 3 or flow.shape[2] != 2 or 0 in flow.shape:
        raise ValueError(f"expected flow [H, W, 2] of at least one pixel, got {list(flow.shape)}")
    return flow


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
