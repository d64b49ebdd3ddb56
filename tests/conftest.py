"""Fixtures shared by all tests, and how many processes they run in."""

import os
import shutil
import sys
from pathlib import Path

import pytest

MOCAP = Path(__file__).resolve().parents[2] / "shared" / "data" / "mocap"
MOST_WORKERS = 8  # each takes up to 2 GB, and more do not shorten the longest test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: one worker a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


@pytest.fixture(scope="session")
def mocap() -> Path:
    """The folder of real motion capture; it is never committed, so tests that use it skip where it is absent."""
    if not MOCAP.is_dir():
        pytest.skip("the shared motion capture data is not beside this checkout")
    return MOCAP


@pytest.fixture(scope="session")
def inductor() -> None:
    """The C++ compiler that torch.compile's default backend takes; tests that use it skip where there is none."""
    program = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(program) is None:
        pytest.skip(f"torch.compile's default backend needs a C++ compiler, and {program!r} was not found")
