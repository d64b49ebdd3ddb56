"""The C++ kernels, compiled once for all tests below this folder."""

import os
from types import ModuleType

import pytest

import fastvq.kernels.cpu
from fastvq.kernels.cpu import build


@pytest.fixture(scope="session")
def compiled() -> ModuleType:
    """The module of kernels; tests that use it skip without a compiler, and fail where ours does not build."""
    if os.environ.get("FASTVQ_NATIVE") == "0":
        pytest.skip("FASTVQ_NATIVE=0 switches the C++ kernels off")
    try:
        build.find_compiler()
        build.find_ninja()
    except build.BuildError as missing:
        pytest.skip(str(missing))
    reason = fastvq.kernels.cpu.unavailable_reason()
    assert reason is None, reason
    return fastvq.kernels.cpu
