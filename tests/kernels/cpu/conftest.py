"""The C++ kernels, compiled once for all tests of this folder."""

import os
from types import ModuleType

import pytest
import torch

import fastvq.kernels.cpu
from fastvq.kernels.cpu import build

# test_instruction_sets.py runs the tests once more, with every instruction set but the widest.
ISAS = build.isas()[1:] if os.environ.get("FASTVQ_CPU_ISA") == "all" else [""]


@pytest.fixture(params=ISAS, scope="session")
def cpu(request: pytest.FixtureRequest) -> ModuleType:
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
    fastvq.kernels.cpu.select_isa(request.param)
    return fastvq.kernels.cpu


@pytest.fixture(autouse=True, scope="module")
def _several_threads():
    """The kernels share their work out, also where each worker of pytest-xdist has one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    yield
    torch.set_num_threads(threads)
