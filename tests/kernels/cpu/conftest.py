"""The C++ kernels, compiled once for all tests of this folder."""

import os
from types import ModuleType

import pytest

import fastvq.kernels.cpu
from fastvq.kernels.cpu import build

# test_instruction_sets.py runs the tests once more, with every instruction set but the widest.
ISAS = build.isas()[1:] if os.environ.get("FASTVQ_CPU_ISA") == "all" else [""]


@pytest.fixture(params=ISAS, scope="session")
def cpu(request: pytest.FixtureRequest) -> ModuleType:
    """The module of kernels; tests that use it skip where they cannot be compiled."""
    reason = fastvq.kernels.cpu.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    fastvq.kernels.cpu.select_isa(request.param)
    return fastvq.kernels.cpu
