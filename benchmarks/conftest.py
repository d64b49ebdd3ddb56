"""``pytest benchmarks/``: the registry under pytest-benchmark."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: the sizes of the registry instead of toy ones."""
    parser.addoption("--full", action="store_true", help="sizes of the registry, with torch.compile; some 15 minutes")
