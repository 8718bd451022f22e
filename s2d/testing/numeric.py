"""How much error an implementation may make: a small multiple of what torch itself makes against float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def assert_within_budget(
    result: Tensor, definition: Callable[..., Tensor], *inputs: Tensor, multiple: float = 2.0
) -> None:
    """Check ``result`` against ``definition`` in float64.

    The allowed error is ``multiple`` times the error that the definition itself makes in the inputs' own dtype, and
    never less than one unit in the last place of the largest value.

    Args:
        result: what an implementation gave for ``inputs``.
        definition: the reference, called once with the inputs as they are and once with them in float64.
        inputs: floating point tensors are widened for the exact result, others passed as they are.
        multiple: 1 would ask for torch's own accuracy.
    """
    exact = definition(*(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)).double()
    own_error = (definition(*inputs).double() - exact).abs().max() if exact.numel() else torch.tensor(0.0)
    spacing = torch.finfo(result.dtype).eps * exact.abs().max() if exact.numel() else torch.tensor(0.0)
    budget = multiple * torch.maximum(own_error, spacing)
    error = (result.double() - exact).abs().max() if exact.numel() else torch.tensor(0.0)
    assert result.shape == exact.shape, f"shape {list(result.shape)} instead of {list(exact.shape)}"
    assert bool(error <= budget), f"error {error:.3g} is over the budget {budget:.3g} (torch's own: {own_error:.3g})"


@contextlib.contextmanager
def fresh_memory_is_nan() -> Iterator[None]:
    """Fill memory that torch hands out uninitialised with NaN, integers with their largest value: reading it shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
