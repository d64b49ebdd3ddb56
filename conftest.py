"""Lets a bare checkout run: finds ``fastvq.kernels``, ``fastvq.models`` and ``fastvq.benchmarks`` in place."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import fastvq._checkout

fastvq._checkout.install(ROOT)
