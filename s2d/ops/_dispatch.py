"""Which implementation of an operator runs: one rule for all rooms.

``impl`` argument > ``with s2d.use_impl(...)`` > environment ``S2D_IMPL`` > the native kernel for the tensor's device.
What is asked for by name runs or raises, and so does a kernel that was not built. On a device that a room has no kernel
for it runs its reference.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from s2d import _native

IMPLEMENTATIONS = ("native", "reference")

_forced: list[str] = []


def _check_name(name: str, source: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"s2d: expected {source} to be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


@contextlib.contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Run every s2d operator inside the block with one implementation: ``"native"`` or ``"reference"``."""
    _forced.append(_check_name(name, "use_impl"))
    try:
        yield
    finally:
        _forced.pop()


_environment = os.environ.get("S2D_IMPL") or None
if _environment:
    _check_name(_environment, "S2D_IMPL")


def forced_impl() -> str | None:
    """What `use_impl` or the environment asks for, if anything."""
    return _forced[-1] if _forced else _environment


ROOMS: list[Room] = []


@dataclass(frozen=True)
class Room:
    """An operator and the kinds of kernels it has: of "cpu", "cuda" and "triton" (none: reference-only)."""

    name: str
    kernels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ROOMS.append(self)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a kernel for CUDA tensors, in CUDA or in Triton."""
        return "cuda" in self.kernels or "triton" in self.kernels

    def _kind(self, device_type: str) -> str:
        return "triton" if device_type == "cuda" and "triton" in self.kernels else device_type

    def missing(self, device_type: str) -> str | None:
        """Why the native kernel cannot run on this device type, or None where it can."""
        kind = self._kind(device_type)
        if kind not in self.kernels:
            have = " and ".join(self.kernels) or "no device yet: the room is reference-only"
            return f"it has kernels for {have}"
        return _native.missing(kind)

    def choose(self, device: torch.device, impl: str | None = None) -> str:
        """``"native"`` or ``"reference"`` for tensors on ``device``; raises where the native kernel cannot run."""
        wanted = forced_impl() if impl is None else _check_name(impl, f"impl of {self.name}")
        if wanted == "reference" or (wanted is None and self._kind(device.type) not in self.kernels):
            return "reference"
        reason = self.missing(device.type)
        if reason is not None:
            raise RuntimeError(f"s2d::{self.name}: expected a native kernel for {device.type}, got none: {reason}")
        return "native"
