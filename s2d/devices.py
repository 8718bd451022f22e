"""The devices of this machine."""

from __future__ import annotations

import torch

from s2d.errors import InputError


def find_device(name: str) -> torch.device:
    """A device of this machine; InputError for others."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"expected a device such as cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"expected a device of this machine, got {name!r}: torch finds {torch.cuda.device_count()} GPUs"
        )
    return device
