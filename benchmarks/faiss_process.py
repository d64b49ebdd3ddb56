"""FAISS in a process of its own: it brings a second OpenMP runtime, which must not share one with torch's.

The child (``faiss_child.py``, which imports no torch) reads a call a line and answers with the milliseconds it took,
measured inside; so calls can take turns with those of the parent.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from fastvq.benchmarks.shapes import Shape

CHILD = Path(__file__).resolve().with_name("faiss_child.py")


def available() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


class Faiss:
    """A search in the child: Flat for one codebook, a product quantizer for groups, a residual one for stages.

    Args:
        shape: sizes; groups and stages together are not covered.
        x: (G, N, D) rows. codebooks: (G, Q, K, D).
        threads: of its OpenMP.
    """

    def __init__(self, shape: Shape, x: Tensor, codebooks: Tensor, threads: int) -> None:
        if shape.G > 1 and shape.Q > 1:
            raise ValueError("FAISS has no grouped residual quantizer with separate codebooks to compare with")
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        np.save(folder / "x.npy", x.transpose(0, 1).reshape(shape.N, -1).numpy())
        np.save(folder / "codebooks.npy", codebooks.numpy())
        command = [sys.executable, str(CHILD), str(folder), str(threads)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def milliseconds(self) -> float:
        """Runs the search once."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("search\n")
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError("the FAISS process ended; run it alone to see why")
        return float(answer)

    def indices(self) -> np.ndarray:
        """(G, N, Q) int64 of the first search."""
        found: np.ndarray = np.load(Path(self._folder.name) / "indices.npy")
        return found

    def __enter__(self) -> Faiss:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate(timeout=10)
        self._folder.cleanup()
