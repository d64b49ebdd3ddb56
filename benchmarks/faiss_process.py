"""FAISS in a process of its own: it brings a second OpenMP runtime, which must not share one with torch's.

The child (``faiss_child.py``, which imports no torch) reads a call a line and answers with the milliseconds it took,
measured inside; so calls can take turns with those of the parent; memory is measured there too.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvq.benchmarks.child import Child
from fastvq.benchmarks.shapes import Shape
from fastvq.benchmarks.timing import Elapsed

CHILD = Path(__file__).resolve().with_name("faiss_child.py")


def available() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


class Faiss(Child):
    """A call in the child: Flat for one codebook, a product quantizer for groups, a residual one for stages.

    Args:
        shape: sizes; groups and stages together are not covered.
        x: (G, N, D) rows. codebooks: (G, Q, K, D).
        threads: of its OpenMP.
        topk: nearest codes, for one codebook.
        iters: not 0: so many of Lloyd's steps from one codebook, instead of a search.
    """

    def __init__(
        self, shape: Shape, x: Tensor, codebooks: Tensor, threads: int, *, topk: int = 1, iters: int = 0
    ) -> None:
        if shape.G > 1 and shape.Q > 1:
            raise ValueError("FAISS has no grouped residual quantizer with separate codebooks to compare with")
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        rows = x.transpose(0, 1).reshape(shape.N, -1)
        np.savez(folder / "given.npz", x=rows.numpy(), codebooks=codebooks.numpy(), topk=topk, iters=iters)
        command = [sys.executable, str(CHILD), str(folder), str(threads)]
        super().__init__(command, "FAISS")

    def milliseconds(self) -> float:
        """Runs the call once."""
        return float(self.ask("time"))

    def elapsed(self) -> Elapsed:
        """Runs the call once, and waits for its threads, which spin on and would take the next contender's cores."""
        taken = Elapsed(self.milliseconds())
        time.sleep(0.05)
        return taken

    def peak_mib(self) -> float | None:
        """:func:`fastvq.benchmarks.resident.peak_growth` of a call, in the child."""
        answer = self.ask("memory")
        return None if answer == "None" else float(answer)

    def result(self) -> Tensor:
        """Of the first call: indices (G, N, Q or topk), int64, or centres (K, D)."""
        return torch.from_numpy(np.load(Path(self._folder.name) / "result.npy"))

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self._folder.cleanup()
