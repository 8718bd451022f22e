"""How much memory a clip takes in a model, and which clips fit into a bound."""

from __future__ import annotations

import re

from s2d.errors import InputError
from s2d.models.config import ModelConfig
from s2d.models.inference import frames_at_once
from s2d.models.video_mask2former import padded_size

_UNITS = {"": 1, "B": 1, **{f"{unit}B": 1000 ** (i + 1) for i, unit in enumerate("KMGT")}}
_UNITS |= {f"{unit}iB": 1024 ** (i + 1) for i, unit in enumerate("KMGT")}
# Python, torch and the other libraries, with what their allocators keep.
_PROGRAM = 600_000_000


def parse_bytes(text: str) -> int:
    """Bytes from ``"4GB"`` (10^9), ``"512 MiB"`` (2^20) or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise InputError(f"expected an amount of memory such as 4GB or 500MB, got {text!r}")
    return int(float(match[1]) * units[match[2].lower()])


def format_bytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def clip_bytes(config: ModelConfig, weights: int, inner: tuple[int, int], frames: int, device: str = "cpu") -> int:
    """The most memory that a process needs that reads clips of so many frames, bytes: an estimate, in float32.

    Args:
        config: of the model.
        weights: bytes of its parameters and buffers.
        inner: height and width of the frames that enter it.
        device: type of the one it runs on.
    """
    height, width = padded_size(inner)
    fine = height * width // 16
    tokens = [height * width // stride**2 for stride in (32, 16, 8)[: config.num_feature_levels]]
    expansion = 1 if config.depth < 50 else 4
    # What stays for every frame of the clip: mask features; levels, keys, values and mask features at level size; and
    # the projected keys and values of one level at a time.
    kept = config.mask_dim * fine + config.hidden_dim * (4 * sum(tokens) + 2 * tokens[-1])
    # What a few frames need at a time: three maps of the first stage beside the features of all four, whose sizes halve
    # from stage to stage; or the features beside three fine maps of the pixel decoder and its wide tokens.
    first = expansion * config.width * fine
    wide = 3 * config.hidden_dim * fine + (2 * config.encoder_ffn + 6 * config.hidden_dim) * sum(tokens)
    passing = 2 * first + max(3 * first, wide)
    at_once = frames_at_once(inner, device)
    frame = 4 * kept + 3 * inner[0] * inner[1]
    return _PROGRAM + weights + frame * frames + 4 * passing * min(frames, at_once)


def longest_clip(
    config: ModelConfig, weights: int, inner: tuple[int, int], frames: int, memory: int, device: str = "cpu"
) -> int:
    """The most frames, up to ``frames``, that `clip_bytes` puts within ``memory``.

    Raises:
        InputError: not even one frame fits.
    """
    least = clip_bytes(config, weights, inner, 1, device)
    if least > memory:
        raise InputError(
            f"expected memory of at least {format_bytes(least)}, which this model needs for one frame of "
            f"{inner[1]} x {inner[0]}, got {format_bytes(memory)}"
        )
    fits = (n for n in range(frames, 0, -1) if clip_bytes(config, weights, inner, n, device) <= memory)
    return next(fits)
