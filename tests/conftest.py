"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

MOCAP = Path(__file__).resolve().parents[2] / "shared" / "data" / "mocap"


@pytest.fixture(scope="session")
def mocap() -> Path:
    """The folder of real motion capture; it is never committed, so tests that use it skip where it is absent."""
    if not MOCAP.is_dir():
        pytest.skip("the shared motion capture data is not beside this checkout")
    return MOCAP
