"""What leads from frame to frame: one interface for optical flow and for point trackers, chosen by a word."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from s2d.errors import InputError
from s2d.motion.dis import VideoFlow
from s2d.ops import PointTracks

if TYPE_CHECKING:
    from s2d.data.video import Video


class MotionPrior(Protocol):
    """Says how the pixels or points of a scene move.

    Attributes:
        name: the word that chooses it.
        pure: whether equal frames always have an equal result. Only such results can be kept by what they were
            made from (`s2d.motion.cache`); files, for one, belong to a place in a video.
    """

    name: str
    pure: bool

    def fingerprint(self) -> dict[str, Any]:
        """All that the result depends on beside the frames, as JSON values: name, settings, sha256 of weights."""
        ...

    def scene(self, frames: Tensor, start: int, video: Video) -> VideoFlow | PointTracks:
        """The motion in a scene without cuts.

        Args:
            frames: uint8 ``[T, 3, H, W]`` RGB, T >= 1, at the size in which motion is followed.
            start: index of the first of them in ``video``.
            video: which they are from.

        Returns:
            `VideoFlow` of T - 1 pairs on the frames' grid, NaN where it is unknown; or `PointTracks` of a dense grid
            over the scene, in pixels of the frames.

        Raises:
            InputError: files that do not fit the video, or cannot be read.
        """
        ...


class _Kind(NamedTuple):
    paths: tuple[str, ...]
    module: str
    constructor: str


_KINDS = {
    "dis": _Kind((), "s2d.motion.dis", "DisPrior"),
    "raft": _Kind(("WEIGHTS",), "s2d.motion.raft", "RaftPrior"),
    "files": _Kind(("FOLDER",), "s2d.motion.files", "FilesPrior"),
    "cotracker3": _Kind(("CHECKOUT", "CHECKPOINT"), "s2d.motion.cotracker3", "CoTracker3Prior"),
}


def make_prior(word: str, **options: Any) -> MotionPrior:
    """The prior that a word of the command line names.

    ==================================  ==================================  ===================================
    word                                what                                options
    ==================================  ==================================  ===================================
    ``dis``                             flow by DIS, without weights        ``quality``
    ``raft:WEIGHTS``                    flow by torchvision's RAFT          ``iterations``, ``device``
    ``files:FOLDER``                    flow or tracks that others made
    ``cotracker3:CHECKOUT:CHECKPOINT``  point tracks by CoTracker3          ``grid``, ``query_frames``, ``device``
    ==================================  ==================================  ===================================

    Args:
        word: as above; the last colon divides two paths.
        options: keyword arguments of the prior's class; text is read as the type of the option's default.

    Raises:
        InputError: an unknown prior or option, a missing path, a value of another type, and whatever the prior's class
            refuses: files that are not there, weights of another model, libraries that do not import.
    """
    name, colon, rest = word.partition(":")
    if name not in _KINDS:
        raise InputError(f"expected a motion prior ({', '.join(map(_usage, _KINDS))}), got {word!r}")
    kind = _KINDS[name]
    paths = rest.rsplit(":", len(kind.paths) - 1) if kind.paths else [rest] if colon else []
    if len(paths) != len(kind.paths) or "" in paths:
        raise InputError(f"expected the motion prior {name} as {_usage(name)}, got {word!r}")
    constructor = getattr(importlib.import_module(kind.module), kind.constructor)
    return constructor(*paths, **_typed(name, constructor, options))


def parse_options(words: list[str]) -> dict[str, str]:
    """``["iterations=20"]`` as ``{"iterations": "20"}``; InputError for anything without a name, ``=`` and a value."""
    options = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise InputError(f"expected an option of the motion prior as NAME=VALUE, got {word!r}")
        options[name] = value
    return options


def _usage(name: str) -> str:
    return ":".join((name, *_KINDS[name].paths))


def _typed(name: str, constructor: type, options: dict[str, Any]) -> dict[str, Any]:
    known = {
        parameter.name: type(parameter.default)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    typed = {}
    for option, value in options.items():
        if option not in known:
            choice = f"an option of the motion prior {name} ({', '.join(known)})" if known else f"no option of {name}"
            raise InputError(f"expected {choice}, got {option!r}")
        try:
            typed[option] = known[option](value)
        except ValueError:
            kind = known[option].__name__
            raise InputError(f"expected {option} of the motion prior {name} as {kind}, got {value!r}") from None
    return typed
