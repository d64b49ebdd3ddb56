"""Lets a bare checkout run: maps ``fastvq.kernels``, ``fastvq.models`` and ``fastvq.benchmarks`` on their folders."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import fastvq._checkout  # noqa: E402  the path comes first

fastvq._checkout.install(ROOT)
