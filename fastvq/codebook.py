"""Codebooks with state: search, lookup, and the update that follows the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from . import distributed, sampling, soft
from . import functional as F
from . import validation as check
from .rules import CodebookRules
from .state import CodebookState, recomputing


class Codebook(CodebookState):
    """G codebooks of K codes of dimension D, with the statistics that move them.

    The state stays float32 (float64 after ``.double()``) under ``.half()``, ``.bfloat16()`` and autocast: a decay of
    0.99 is lost in 16 bits.

    Args:
        codebook_size: K.
        dim: D.
        groups: G.
        metric: "l2", "cosine" (codes on the unit sphere) or "dot".
        rules: initialiser, update and dead-code rule.
        impl: implementation of the ops, see :mod:`fastvq.functional`.

    Buffers:
        codebook: (G, K, D), the codes.
        embed_sum: (G, K, D), moving average of the sum of each code's rows.
        cluster_size: (G, K), moving average of the number of each code's rows.
        initted: (), bool, whether the codes have been initialised from data.

    Raises:
        TypeError, ValueError: sizes below 1, an unknown metric.

    Example:
        >>> import torch
        >>> from fastvq import Codebook
        >>> codebook = Codebook(16, 8, groups=4)
        >>> indices, distances = codebook.search(torch.randn(4, 100, 8))
        >>> tuple(indices.shape), tuple(codebook.lookup(indices).shape)
        ((4, 100), (4, 100, 8))
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        groups: int = 1,
        metric: str = "l2",
        rules: CodebookRules | None = None,
        impl: str = "auto",
    ) -> None:
        check.positive("groups", groups)
        super().__init__((groups,), codebook_size, dim, metric=metric, rules=rules, impl=impl)

    def search(self, x: Tensor, mask: Tensor | None = None) -> F.Nearest:
        """The nearest code of every row.

        Args:
            x: (G, *R, D), one or two row axes.
            mask: bool, broadcasts to (G, *R), True where valid.

        Returns:
            indices and distances (G, *R); index -1 where masked or not finite.
        """
        return F.nearest(self.cast(x), self.codebook.detach(), metric=self.metric, mask=mask, impl=self.impl)

    def place(self, x: Tensor) -> Tensor:
        """Rows as the codes lie: on the unit sphere for cosine codebooks that are not learned."""
        return soft.unit(x) if self.unit else x

    def sample(
        self, x: Tensor, mask: Tensor | None, temperature: float, *, relaxed: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draws codes at random, see :func:`fastvq.soft.sample`.

        Args:
            x: (G, R1, R2, D). mask: (R1, R2) or None.
            relaxed: the codes (G, K, D) that a relaxed draw keeps for its backward pass; None for no such draw.
        """
        valid = None if mask is None else mask.expand(x.shape[:-1])
        codebook = self.codebook.detach() if relaxed is None else relaxed
        return soft.sample(self.cast(x), codebook, self.metric, temperature, valid, relaxed=relaxed is not None)

    def lookup(self, indices: Tensor) -> Tensor:
        """(G, *R) indices -> (G, *R, D) codes in the state's dtype; -1 gives zeros."""
        return F.lookup(indices.unsqueeze(-1), self.codebook.unsqueeze(1), impl=self.impl)

    def _first_codes(self, x: Tensor, usable: Tensor | None) -> Tensor:
        assert self.rules.init is not None
        return self.rules.init(x, usable, self.codebook_size).to(self.codebook.dtype)

    @torch.no_grad()
    def update_(self, x: Tensor, indices: Tensor) -> None:
        """Moves the codes towards their rows and replaces dead ones, by the rules.

        Args:
            x: (G, R1, R2, D). indices: (G, R1, R2), -1 is left out.
        """
        rows, together = x.shape[1] * x.shape[2], self.ranks > 1
        if not self.follows or recomputing() or (rows == 0 and not together):
            return
        x = self.cast(x)
        x = self.place(x.to(self.codebook.dtype)) if self.unit else x
        sums, counts = F.segment_sum(x, indices, self.codebook_size, impl=self.impl)
        turn = None
        if together:
            sums, counts, turn = distributed.totals(sums, counts)
        dead = self._move_(sums, counts)
        if self.rules.dead is None:
            return

        def draw(group: Tensor) -> tuple[Tensor, Tensor]:
            valid = sampling.complete_rows(indices)
            found = indices.new_ones((), dtype=torch.bool) if valid is None else valid.any()
            return sampling.random_rows(x, valid, group), found

        self._replace_dead_(dead, rows, turn, draw)
