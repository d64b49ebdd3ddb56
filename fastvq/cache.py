"""Where fastvq keeps what it makes on a machine, for those who keep something of their own beside it."""

from __future__ import annotations

from fastvq.kernels._cache import cache_directory

__all__ = ["cache_directory"]
