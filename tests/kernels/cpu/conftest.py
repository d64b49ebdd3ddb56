"""The C++ kernels of each instruction set that the tests of this folder are to run with."""

import os
from types import ModuleType

import pytest
import torch

from fastvq.kernels.cpu import build

# test_instruction_sets.py runs the tests once more, with every instruction set but the widest.
ISAS = build.isas()[1:] if os.environ.get("FASTVQ_CPU_ISA") == "all" else [""]


@pytest.fixture(params=ISAS, scope="session")
def cpu(request: pytest.FixtureRequest, compiled: ModuleType) -> ModuleType:
    """The module of kernels, with one instruction set."""
    compiled.select_isa(request.param)
    return compiled


@pytest.fixture(autouse=True, scope="module")
def _several_threads():
    """The kernels share their work out, also where each worker of pytest-xdist has one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    yield
    torch.set_num_threads(threads)
