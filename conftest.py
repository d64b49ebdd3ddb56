"""Lets a bare checkout run: maps ``fastvq.kernels``, ``fastvq.models`` and ``fastvq.benchmarks`` on their folders."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Workers of pytest-xdist share the cores, and so do the processes that they start. torch reads this when imported;
# threads that wait must not spin where another worker could compute.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import fastvq._checkout  # noqa: E402  the path comes first

fastvq._checkout.install(ROOT)
