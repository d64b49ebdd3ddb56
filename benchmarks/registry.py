"""Every op and module that is measured, at every size, with the least work that it can take: the one list.

``python -m benchmarks.run``, ``fastvq bench`` and ``pytest benchmarks/`` all run it. A case is an op at a shape; its
contest says who takes part. Bytes count what must be read and written once, operations what must be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastvq.benchmarks import nearest, quantizers, scalar, sums, updates
from fastvq.benchmarks.contest import Contest
from fastvq.benchmarks.shapes import CODECS, CPU, CUDA, SCALAR, SEARCH, SEEDS, Shape

Prepare = Callable[..., Contest]


class Op(NamedTuple):
    """What is measured of one op: its name, the column ``pass`` of its rows, who takes part, and its least work."""

    name: str
    pass_: str
    prepare: Prepare
    operations: Callable[[Shape], int]
    io_bytes: Callable[[Shape], int]


class Case(NamedTuple):
    """An op at a shape."""

    op: Op
    shape: Shape

    @property
    def name(self) -> str:
        """Such as "nearest a"."""
        return f"{self.op.name} {self.shape.name}"

    def small(self) -> Case:
        """The same at a size that takes a moment."""
        if self.op.prepare in (scalar.fsq_contest, scalar.lfq_contest):  # K follows from D
            return self._replace(shape=self.shape._replace(name=f"{self.shape.name} (toy)", N=min(self.shape.N, 128)))
        return self._replace(shape=self.shape.small())

    def prepare(self, device: str = "cpu", *, compiled: bool = True) -> Contest:
        """Data and contenders; ``compiled``: with torch.compile among them."""
        return self.op.prepare(self.shape, device, compiled=compiled)


def _rows(shape: Shape) -> int:
    return 4 * shape.G * shape.N * shape.D


def _indices(shape: Shape) -> int:
    return 8 * shape.G * shape.N * shape.Q


def _codes(shape: Shape) -> int:
    return 4 * shape.codebooks * shape.K * shape.D


def _additions(shape: Shape) -> int:
    return shape.G * shape.N * shape.Q * shape.D


def _sums_bytes(shape: Shape) -> int:
    """Rows and indices in, a sum and a count for each code out; of several stages also the codes in."""
    sums = 4 * shape.G * shape.Q * shape.K * (shape.D + 1)
    return _rows(shape) + _indices(shape) + sums + (_codes(shape) if shape.Q > 1 else 0)


def _ema_bytes(shape: Shape) -> int:
    """Sums in, moving sums in and out, codes out."""
    return 16 * shape.G * shape.K * shape.D


def _lookup_bytes(shape: Shape) -> int:
    """Indices in, rows out, and of the codes those that rows can choose at the most."""
    return _rows(shape) + _indices(shape) + _codes(shape) * min(shape.N, shape.K) // shape.K


def _kmeans_operations(shape: Shape) -> int:
    return updates.STEPS * shape.operations


def _train_bytes(shape: Shape) -> int:
    """Rows in, quantized rows out, both gradients, indices, and the moving average of the codes."""
    return 4 * _rows(shape) + _indices(shape) + 16 * shape.codebooks * shape.K * shape.D


def _scalar_bytes(shape: Shape) -> int:
    return 4 * _rows(shape) + _indices(shape)


def _entries(shape: Shape) -> int:
    return shape.N * shape.D


def _search_bytes(shape: Shape) -> int:
    return shape.io_bytes


def _search_operations(shape: Shape) -> int:
    return shape.operations


def _module(name: str) -> Op:
    return Op(name, "train-step", quantizers.contest, _search_operations, _train_bytes)


NEAREST = Op("nearest", "search", nearest.contest, _search_operations, _search_bytes)
TOPK = Op("nearest_topk", "search", nearest.topk_contest, _search_operations, _search_bytes)
RESIDUAL = Op("residual_nearest", "search", nearest.contest, _search_operations, _search_bytes)
SUM = Op("segment_sum", "forward", sums.contest, _additions, _sums_bytes)
RESIDUAL_SUM = Op("residual_segment_sum", "forward", sums.residual_contest, _additions, _sums_bytes)
EMA = Op("ema_update_", "update", updates.ema_contest, lambda shape: 6 * shape.G * shape.K * shape.D, _ema_bytes)
LOOKUP = Op("lookup", "forward", updates.lookup_contest, _additions, _lookup_bytes)
KMEANS = Op("kmeans", "fit", updates.kmeans_contest, _kmeans_operations, _search_bytes)
PLAIN, GROUPED, STACK = _module("VectorQuantize"), _module("GroupedVQ"), _module("ResidualVQ")
FSQ = Op("FSQ", "train-step", scalar.fsq_contest, _entries, _scalar_bytes)
LFQ = Op("LFQ", "train-step", scalar.lfq_contest, _entries, _scalar_bytes)
SIM = Op("SimVQ", "train-step", scalar.sim_contest, _search_operations, _train_bytes)
OPS = (NEAREST, TOPK, RESIDUAL, SUM, RESIDUAL_SUM, EMA, LOOKUP, KMEANS, PLAIN, GROUPED, STACK, FSQ, LFQ, SIM)

_ON_CPU: dict[Op, str] = {
    NEAREST: "a b c e s2-128 s2-1024 long",
    TOPK: "e",
    RESIDUAL: "d s0 encodec dac mimi",
    SUM: "a b c e",
    RESIDUAL_SUM: "d s0 encodec dac",
    EMA: "a c e long",
    LOOKUP: "pose c d encodec dac mimi",
    KMEANS: "a s2-128",
    PLAIN: "a b e s2-128 s2-1024",
    GROUPED: "c",
    STACK: "d s0 encodec dac",
    FSQ: "fsq",
    LFQ: "lfq",
    SIM: "e",
}


def cases(device: str = "cpu", ops: Sequence[str] = (), shapes: Sequence[str] = ()) -> list[Case]:
    """The cases of a device, or of them those with these ops and shapes.

    Raises:
        ValueError: there is no op or shape of that name, or none of these ops at any of these shapes.
    """
    every = _on_cpu() if device == "cpu" else _on_cuda()
    for what, wanted, known in (
        ("op", ops, {case.op.name for case in every}),
        ("shape", shapes, {case.shape.name for case in every}),
    ):
        for name in wanted:
            if name not in known:
                raise ValueError(f"there is no {what} {name} in the registry: choose from {', '.join(sorted(known))}")
    chosen = [
        case for case in every if (not ops or case.op.name in ops) and (not shapes or case.shape.name in shapes)
    ]
    if not chosen:
        raise ValueError(
            f"none of the ops {', '.join(ops)} is measured at {', '.join(shapes)}: leave one of them out"
        )
    return chosen


def _on_cpu() -> list[Case]:
    named = {shape.name: shape for shape in (*CPU, *SEEDS, *CODECS, *SEARCH, *SCALAR)}
    return [Case(op, named[name]) for op, names in _ON_CPU.items() for name in names.split()]


def _on_cuda() -> list[Case]:
    found = []
    for shape in CUDA:
        deep = shape.Q > 1
        module = STACK if deep else GROUPED if shape.G > 1 else PLAIN
        for op in (RESIDUAL if deep else NEAREST, RESIDUAL_SUM if deep else SUM, EMA, LOOKUP, module):
            found.append(Case(op, shape))
    return found
