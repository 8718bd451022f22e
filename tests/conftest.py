"""Fixtures every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s2d import _native
from s2d.testing.numeric import fresh_memory_is_nan


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real clips and reference numbers that ``S2D_TEST_DATA`` names."""
    folder = os.environ.get("S2D_TEST_DATA")
    if not folder:
        pytest.skip("S2D_TEST_DATA is not set: it names a folder with real clips and reference numbers")
    if not Path(folder).is_dir():
        pytest.fail(f"S2D_TEST_DATA: expected a folder, got {folder}")
    return Path(folder)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Each device there are native kernels for; CUDA is skipped with the reason where there is none."""
    reason = _native.missing(request.param)
    if reason is not None:
        if request.param == "cpu" or os.environ.get("S2D_REQUIRE_CUDA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return request.param


@pytest.fixture
def nan_memory():
    """Fresh memory holds NaN while the test runs."""
    with fresh_memory_is_nan():
        yield
