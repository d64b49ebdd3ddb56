"""How a codebook starts, follows its rows, and gives up codes: small objects that compose into CodebookRules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from . import sampling
from . import validation as check
from .clustering import kmeans


class Initialiser(Protocol):
    """Makes a first codebook from the first training batch."""

    def __call__(self, x: Tensor, valid: Tensor | None, num_codes: int) -> Tensor:
        """x (G, R1, R2, D), valid (R1, R2) or None -> codebook (G, K, D)."""
        ...


@dataclass(frozen=True)
class RandomInit:
    """Rows of the first training batch, drawn at random."""

    def __call__(self, x: Tensor, valid: Tensor | None, num_codes: int) -> Tensor:
        return sampling.draw_rows(x, valid, num_codes)


@dataclass(frozen=True)
class FirstRowsInit:
    """The first K rows of the first training batch; rows repeat, with a little noise, where there are fewer.

    So begin the quantizers of T2M-GPT (Zhang et al. 2023) and MoMask (Guo et al. 2023).

    Args:
        noise: standard deviation of what is added to repeated rows, divided by sqrt(D).
    """

    noise: float = 0.01

    def __post_init__(self) -> None:
        check.not_negative("noise", self.noise)

    def __call__(self, x: Tensor, valid: Tensor | None, num_codes: int) -> Tensor:
        return sampling.first_rows(x, valid, num_codes, self.noise)


@dataclass(frozen=True)
class KMeansInit:
    """k-means on the first training batch.

    Args:
        iters: Lloyd steps.
        max_rows: at most this many rows are used, evenly spaced over the batch.
    """

    iters: int = 10
    max_rows: int = 65536

    def __post_init__(self) -> None:
        if self.iters < 0:
            raise ValueError(f"iters must be at least 0, got {self.iters}")
        check.positive("max_rows", self.max_rows)

    def __call__(self, x: Tensor, valid: Tensor | None, num_codes: int) -> Tensor:
        centres = sampling.draw_rows(x, valid, num_codes)
        step = -(-x.shape[1] * x.shape[2] // self.max_rows)
        rows = x.detach().flatten(1, 2)[:, ::step]
        mask = None if valid is None else valid.flatten()[::step]
        return kmeans(rows, num_codes, iters=self.iters, init=centres, mask=mask).codebook


@dataclass(frozen=True)
class EMA:
    """Codes follow the exponential moving average of their rows (van den Oord et al. 2017, appendix A.1).

    Args:
        decay: share of the old statistics that stays at each step.
        eps: of the Laplace smoothing.
        smoothing: "laplace" or "none".
    """

    decay: float = 0.99
    eps: float = 1e-5
    smoothing: str = "laplace"

    def __post_init__(self) -> None:
        check.unit_interval("decay", self.decay)
        check.not_negative("eps", self.eps)
        check.choice("smoothing", self.smoothing, check.SMOOTHINGS)


@dataclass(frozen=True)
class Learned:
    """Codes are parameters: an optimizer moves them down the gradient of the codebook loss, mean((sg(x) - c)^2).

    That is the loss of van den Oord et al. 2017, equation 3; an estimator that passes gradients to the codes, such as
    :class:`fastvq.DiVeQ`, adds its own. Give the codes to the optimizer with ``module.parameters()``.

    Args:
        weight: of the codebook loss; 0 leaves the codes to the other gradients.
        decay: of the moving average of cluster sizes, by which dead codes are known.
    """

    weight: float = 1.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        check.not_negative("weight", self.weight)
        check.unit_interval("decay", self.decay)


@dataclass(frozen=True)
class Frozen:
    """Codes never change."""


@dataclass(frozen=True)
class RelativeUsage:
    """A code is dead where its cluster size falls below a share of its group's mean; a row of the batch replaces it.

    The threshold moves with the batch, so it means the same at any ratio of rows to codes.

    Args:
        threshold: share of the mean cluster size below which a code is dead.
        reset: share of the mean cluster size that a replaced code starts with.
    """

    threshold: float = 0.1
    reset: float = 1.0
    relative = True

    def __post_init__(self) -> None:
        check.unit_interval("threshold", self.threshold)
        check.not_negative("reset", self.reset)


@dataclass(frozen=True)
class AbsoluteUsage:
    """A code is dead where its cluster size falls below a fixed number of rows, as the literature has it.

    With fewer than four rows a code in a batch the usual threshold of 1 resets most codes at every step;
    :class:`RelativeUsage` does not.

    Args:
        threshold: cluster size below which a code is dead.
        reset: cluster size that a replaced code starts with; None leaves its statistics as they are, so that a code
            gets another row at every step until enough rows have come to it (T2M-GPT, MoMask).
    """

    threshold: float = 1.0
    reset: float | None = 1.0
    relative = False

    def __post_init__(self) -> None:
        check.not_negative("threshold", self.threshold)
        if self.reset is not None:
            check.not_negative("reset", self.reset)


@dataclass(frozen=True)
class CodebookRules:
    """How a codebook is initialised, updated, and rid of dead codes.

    Args:
        update: :class:`EMA`, :class:`Learned` or :class:`Frozen`.
        init: :class:`KMeansInit`, :class:`RandomInit`, :class:`FirstRowsInit`, any callable of that form, or None to
            keep the random normal codes that the module is made with.
        dead: :class:`RelativeUsage`, :class:`AbsoluteUsage`, or None to keep dead codes.
        sync: where torch.distributed runs, follow the rows of all ranks, so that codebooks are equal on each: one
            all-reduce, and one all-gather where dead codes are replaced, for each codebook module and step. All ranks
            must then train the module in step. Without it each rank's codebook goes its own way.
    """

    update: EMA | Learned | Frozen = field(default_factory=EMA)
    init: Initialiser | None = field(default_factory=KMeansInit)
    dead: RelativeUsage | AbsoluteUsage | None = field(default_factory=RelativeUsage)
    sync: bool = True

    def __post_init__(self) -> None:
        kinds = {"update": (EMA, Learned, Frozen), "dead": (RelativeUsage, AbsoluteUsage)}
        for name, allowed in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, allowed) and not (name == "dead" and value is None):
                given = value.__name__ if isinstance(value, type) else repr(value)
                listed = ", ".join(f"{kind.__name__}()" for kind in allowed)
                raise TypeError(f"{name} must be one of {listed}, got {given}")
        if self.init is not None and (isinstance(self.init, type) or not callable(self.init)):
            given = self.init.__name__ if isinstance(self.init, type) else repr(self.init)
            raise TypeError(f"init must be an initialiser such as KMeansInit(), or None, got {given}")
