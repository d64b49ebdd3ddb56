"""What every codebook with statistics shares: its buffers, the moving average, and the replacement of dead codes."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import distributed, soft
from . import functional as F
from . import validation as check
from .rules import EMA, AbsoluteUsage, CodebookRules, Learned

STATE = ("codebook", "embed_sum", "cluster_size")
WIDE = (torch.float32, torch.float64)
ROWS_OF_ALL_RANKS = 1 << 18  # at most so many start a codebook


def recomputing() -> bool:
    """Whether this runs within a backward pass, where gradient checkpointing computes a step of training again: what
    that step did to the codebook has been done."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0


def snapshot(codebook: Tensor) -> Tensor:
    """Codes (G, K, D) as they are, in memory of their own, with gradients to them."""
    if not torch.compiler.is_compiling():
        return codebook.clone()
    # A compiler may make a copy again where it is needed, after the codes have moved; a look-up it leaves alone.
    every = torch.arange(codebook.shape[1], device=codebook.device).expand(len(codebook), -1)
    return F.lookup(every.unsqueeze(-1), codebook.unsqueeze(1))


class CodebookState(nn.Module, ABC):
    """Codebooks of K codes of dimension D over leading axes, with the statistics that move them.

    The state stays float32 (float64 after ``.double()``) under ``.half()``, ``.bfloat16()`` and autocast: a decay of
    0.99 is lost in 16 bits. A training step that gradient checkpointing computes again moves nothing, but searches
    the codes as they have become: leave quantizers out of checkpointed segments where that matters.

    Args:
        lead: the leading axes, (G,) or (G, Q); together they count "books".
        codebook_size: K.
        dim: D.
        metric: "l2", "cosine" (codes on the unit sphere) or "dot".
        rules: initialiser, update and dead-code rule.
        impl: implementation of the ops, see :mod:`fastvq.functional`.

    Buffers:
        codebook: (*lead, K, D), the codes; a parameter where the rules say :class:`fastvq.Learned`.
        embed_sum: (*lead, K, D), moving average of the sum of each code's rows.
        cluster_size: (*lead, K), moving average of the number of each code's rows.
        initted: (), bool, whether the codes have been initialised from data.

    Raises:
        TypeError, ValueError: sizes below 1, an unknown metric.
    """

    codebook: Tensor
    embed_sum: Tensor
    cluster_size: Tensor
    initted: Tensor

    def __init__(
        self,
        lead: tuple[int, ...],
        codebook_size: int,
        dim: int,
        *,
        metric: str,
        rules: CodebookRules | None,
        impl: str,
    ) -> None:
        super().__init__()
        for name, value in (("codebook_size", codebook_size), ("dim", dim)):
            check.positive(name, value)
        check.choice("metric", metric, check.METRICS)
        self.codebook_size, self.dim, self.groups = codebook_size, dim, lead[0]
        if rules is not None and not isinstance(rules, CodebookRules):
            raise TypeError(
                f"rules must be a CodebookRules, got {type(rules).__name__}: CodebookRules(update=EMA(0.99))"
            )
        self.metric, self.impl = metric, impl
        self.rules = CodebookRules() if rules is None else rules
        codes = torch.randn(*lead, codebook_size, dim, dtype=torch.float32)
        if metric == "cosine":
            codes = nn.functional.normalize(codes, dim=-1)
        if isinstance(self.rules.update, Learned):
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        self.register_buffer("embed_sum", codes.clone())
        self.register_buffer("cluster_size", torch.ones(*lead, codebook_size))
        self._initted = self.rules.init is None
        self._aligned = False
        self.register_buffer("initted", torch.tensor(self._initted))

    @property
    def ranks(self) -> int:
        """How many ranks the codes follow."""
        return distributed.world_size() if self.rules.sync else 1

    @torch.no_grad()
    def initialise_(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Sets the codes from rows by the rules' initialiser, if that has not happened yet.

        Args:
            x: (G, R1, R2, D). mask: (R1, R2) bool or None.
        """
        together = self.ranks > 1
        if together and not self._aligned:
            # Ranks that were seeded differently, or loaded by the first one only, start from its state.
            distributed.broadcast_(self.codebook.data, self.embed_sum, self.cluster_size, self.initted)
            self._initted, self._aligned = bool(self.initted), True
        rows = x.shape[1] * x.shape[2]
        if self._initted or self.rules.init is None or (rows == 0 and not together):
            return
        x = self.cast(x)
        usable = self._usable(x, mask)
        if together:
            x, usable = distributed.gather_rows(x, usable, ROWS_OF_ALL_RANKS), None
            rows = x.shape[1] * x.shape[2]
            if rows == 0:
                return
        elif self._none_usable(usable):
            return
        codes = self._first_codes(x, usable)
        if together:
            distributed.broadcast_(codes)
        self._start_(codes, rows, usable)

    @abstractmethod
    def _first_codes(self, x: Tensor, usable: Tensor | None) -> Tensor:
        """Codes (*lead, K, D) from rows (G, R1, R2, D), by the rules' initialiser."""

    def _start_(self, codes: Tensor, rows: int, usable: Tensor | None) -> None:
        """Takes the first codes, (*lead, K, D), found from a batch of that many rows, some or all of them usable."""
        if self.unit:
            codes = soft.unit(codes)
        if usable is not None:
            # Codes found from no row at all are padding, or NaN; the random ones stay, and go as dead codes do.
            codes = torch.where(usable.any(), codes, self.codebook)
        self.codebook.copy_(codes)
        # As if the averages had begun at zero and this batch, shared evenly, were their first step: early in training
        # the rows move fast, and averages that weighed 1 / (1 - decay) batches from the start would trail behind.
        share = rows / self.codebook_size
        if isinstance(self.rules.update, EMA | Learned):
            share *= 1 - self.rules.update.decay
        self.cluster_size.fill_(share)
        self.embed_sum.copy_(self.codebook * share)
        self._initted = True
        self.initted.fill_(True)

    def _books(self) -> tuple[Tensor, Tensor, Tensor]:
        """The state with its leading axes as one: (M, K, D) twice and (M, K)."""
        books = math.prod(self.codebook.shape[:-2])
        shape = (books, self.codebook_size, self.dim)
        return self.codebook.view(shape), self.embed_sum.view(shape), self.cluster_size.view(shape[:2])

    def _move_(self, sums: Tensor, counts: Tensor) -> Tensor:
        """One step of the moving average. sums (M, K, D) and counts (M, K) -> dead (M, K)."""
        return self._step_(*self._books(), sums, counts)

    def _step_(self, *state: Tensor) -> Tensor:
        """The same on a part of the state: codebook, embed_sum, cluster_size, sums, counts."""
        rule, dead = self.rules.update, self.rules.dead
        if isinstance(rule, Learned):
            cluster_size, counts = state[2], state[4]
            cluster_size.lerp_(counts, 1 - rule.decay)
            if dead is None:
                return torch.zeros_like(cluster_size, dtype=torch.bool)
            unit = cluster_size.mean(-1, keepdim=True) if dead.relative else 1.0
            return cluster_size < dead.threshold * unit
        assert isinstance(rule, EMA)
        return F.ema_update_(
            *state,
            decay=rule.decay,
            eps=rule.eps,
            smoothing=rule.smoothing,
            normalize=self.unit,
            dead_below=0.0 if dead is None else dead.threshold,
            relative=dead is not None and dead.relative,
            impl=self.impl,
        )

    def _replace_dead_(
        self, dead: Tensor, rows: int, turn: Tensor | None, draw: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        """Puts drawn rows in the place of dead codes.

        Args:
            dead: (M, K) bool.
            rows: how many rows this rank's batch had.
            turn: what :func:`fastvq.distributed.totals` gave, None on a single rank.
            draw: books (...) int64 -> rows (..., D), and whether there was a row to draw, a bool tensor.
        """
        rule = self.rules.dead
        if isinstance(rule, AbsoluteUsage) and rule.threshold > 0 and rows < 4 * self.codebook_size:
            self._warn_of_absolute_threshold(rows)
        codebook, embed_sum, cluster_size = self._books()
        if dead.device.type == "cpu" and not torch.compiler.is_compiling():
            # On a CPU looking at the codes costs no sync, so that only the dead ones are touched.
            book, code = dead.nonzero(as_tuple=True)
            if not len(book):
                return
            drawn, kept = self._drawn(book, rows, turn, draw)
            if not bool(kept.all()):
                book, code, drawn = book[kept], code[kept], drawn[kept]
            reset = self._reset_size(cluster_size)
            codebook[book, code] = drawn
            if reset is not None:
                size = reset.expand_as(cluster_size)[book, code]
                cluster_size[book, code] = size
                embed_sum[book, code] = drawn * size.unsqueeze(-1)
            return
        # Elsewhere the same for all codes, without asking the device how many are dead.
        book = torch.arange(len(dead), device=dead.device).unsqueeze(-1).expand(dead.shape)
        drawn, kept = self._drawn(book.flatten(), rows, turn, draw)
        drawn, dead = drawn.view_as(codebook), dead & kept.view_as(dead)
        reset = self._reset_size(cluster_size)
        replaced = dead.unsqueeze(-1)
        codebook.copy_(torch.where(replaced, drawn, codebook))
        if reset is not None:
            embed_sum.copy_(torch.where(replaced, drawn * reset.unsqueeze(-1), embed_sum))
            cluster_size.copy_(torch.where(dead, reset, cluster_size))

    def _drawn(
        self, book: Tensor, rows: int, turn: Tensor | None, draw: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A row for every named book (n,), and whether it may be used: (n, D) in the state's dtype and (n,) bool."""
        number = len(book)
        if turn is not None:
            book = book[distributed.own_items(number, turn).clamp_max(number - 1)]
        if rows:
            drawn, found = draw(book)
            drawn = drawn.to(self.codebook.dtype)
            kept = drawn.isfinite().all(-1) & found
        else:
            drawn = torch.zeros(len(book), self.dim, dtype=self.codebook.dtype, device=book.device)
            kept = torch.zeros_like(book, dtype=torch.bool)
        if turn is None:
            return drawn, kept
        joined = torch.cat([drawn, kept.to(drawn.dtype).unsqueeze(-1)], dim=-1)
        joined = distributed.gather_items(joined, number, turn)
        return joined[:, :-1], joined[:, -1] > 0

    def _reset_size(self, cluster_size: Tensor) -> Tensor | None:
        """The cluster size of a replaced code, (M, 1), or None where statistics stay."""
        rule = self.rules.dead
        assert rule is not None
        if rule.reset is None:
            return None
        mean = self._mean_size(cluster_size)
        return mean * rule.reset if rule.relative else torch.full_like(mean, rule.reset)

    def _mean_size(self, cluster_size: Tensor) -> Tensor:
        """The mean of each book's cluster sizes, (M, 1)."""
        return cluster_size.mean(-1, keepdim=True)

    def _warn_of_absolute_threshold(self, rows: int) -> None:
        if not getattr(self, "_warned", False) and not torch.compiler.is_compiling():
            self._warned = True
            warnings.warn(
                f"AbsoluteUsage resets most codes at every step with {rows} rows for {self.codebook_size} codes; "
                "use RelativeUsage, or at least four rows a code",
                stacklevel=5,
            )

    def cast(self, x: Tensor) -> Tensor:
        """Brings x to float64 beside a float64 state, and down to float32 beside a float32 one."""
        if (x.dtype == torch.float64) != (self.codebook.dtype == torch.float64):
            return x.to(self.codebook.dtype)
        return x

    @staticmethod
    def _usable(x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Rows (R1, R2) that an initialiser may use, None for all. x (G, R1, R2, D), mask (R1, R2) or None."""
        if mask is None and x.device.type == "cpu" and not torch.compiler.is_compiling() and bool(x.isfinite().all()):
            return None
        finite = x.isfinite().all(-1).all(0)
        return finite if mask is None else finite & mask

    @staticmethod
    def _none_usable(usable: Tensor | None) -> bool:
        """Whether no row is usable, so that a later batch has to start the codes; asked where it costs no sync."""
        if usable is None or usable.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        return not bool(usable.any())

    @property
    def unit(self) -> bool:
        """Whether codes lie on the unit sphere."""
        return self.metric == "cosine" and not isinstance(self.rules.update, Learned)

    @property
    def follows(self) -> bool:
        """Whether :meth:`update_` has anything to do."""
        rules = self.rules
        learned = isinstance(rules.update, Learned) and rules.dead is not None and self.codebook.requires_grad
        return isinstance(rules.update, EMA) or learned

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodebookState:
        kept = {name: getattr(self, name).detach() for name in STATE}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            new = getattr(self, name)
            if new.dtype not in WIDE:
                self._replace(name, old.to(new.device))
        return self

    def _replace(self, name: str, value: Tensor) -> None:
        """Puts a tensor in the place of a buffer or parameter of another dtype."""
        old = getattr(self, name)
        if not isinstance(old, nn.Parameter):
            setattr(self, name, value)
            return
        # The parameter itself stays: an optimizer may hold it.
        grad, old.grad = old.grad, None
        old.data = value
        old.grad = None if grad is None else grad.to(value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in STATE:
            if getattr(self, name).dtype not in WIDE:  # load_state_dict(..., assign=True) takes tensors as they come
                self._replace(name, getattr(self, name).detach().float())
        if prefix + "initted" in state_dict:
            self._initted = bool(self.initted)

    def extra_repr(self) -> str:
        lead = ", ".join(
            f"{name}={size}" for name, size in zip(("groups", "stages"), self.codebook.shape[:-2], strict=False)
        )
        return (
            f"codebook_size={self.codebook_size}, dim={self.dim}, {lead}, metric={self.metric!r}, rules={self.rules}"
        )
