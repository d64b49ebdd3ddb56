"""Stacks of codebooks with state: each stage quantizes what the stages before it left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import distributed, sampling
from . import functional as F
from . import validation as check
from .rules import CodebookRules
from .state import CodebookState, recomputing


class ResidualCodebook(CodebookState):
    """G stacks of Q codebooks, by squared Euclidean distance; see :func:`fastvq.functional.residual_nearest`.

    Args:
        codebook_size: K, or Q sizes; smaller stages are padded to the largest, and their padding never chosen.
        dim: D.
        num_quantizers: Q.
        groups: G.
        shared: all stages use one codebook.
        beam: choices kept from stage to stage, see :func:`fastvq.functional.residual_nearest`.
        rules: initialiser, update and dead-code rule; each stage initialises on what the stage before leaves, with an
            equal share of the codes where one codebook is shared.
        impl: implementation of the ops, see :mod:`fastvq.functional`.

    Buffers, with S = 1 if shared, else Q:
        codebook, embed_sum: (G, S, K, D). cluster_size: (G, S, K). initted: ().

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import ResidualCodebook
        >>> stack = ResidualCodebook((16, 8), 4, num_quantizers=2)
        >>> tuple(stack.search(torch.randn(1, 100, 4)).indices.shape)
        (1, 100, 2)
    """

    def __init__(
        self,
        codebook_size: int | Sequence[int],
        dim: int,
        *,
        num_quantizers: int,
        groups: int = 1,
        shared: bool = False,
        beam: int = 1,
        rules: CodebookRules | None = None,
        impl: str = "auto",
    ) -> None:
        for name, value in (("num_quantizers", num_quantizers), ("groups", groups), ("beam", beam)):
            check.positive(name, value)
        sizes = (codebook_size,) * num_quantizers if isinstance(codebook_size, int) else tuple(codebook_size)
        if len(sizes) != num_quantizers:
            raise ValueError(
                f"codebook_size must be one size or one for each of the {num_quantizers} quantizers, got {len(sizes)}"
            )
        for size in sizes:
            check.positive("codebook_size", size)
        mixed = len(set(sizes)) > 1
        if shared and mixed:
            raise ValueError(f"a shared codebook has one size, got {sizes}")
        lead = (groups, 1 if shared else num_quantizers)
        super().__init__(lead, max(sizes), dim, metric="l2", rules=rules, impl=impl)
        self.num_quantizers, self.shared, self.beam = num_quantizers, shared, beam
        self.sizes = sizes if mixed else None
        self._clear_padding_()

    def stack(self) -> Tensor:
        """The codes of all stages, (G, Q, K, D); a view."""
        return self.codebook.expand(-1, self.num_quantizers, -1, -1)

    def search(self, x: Tensor, mask: Tensor | None = None, stages: Tensor | None = None) -> F.ResidualNearest:
        """Rows (G, *R, D) -> indices (G, *R, Q), quantized (G, *R, D), errors (G, *R, Q).

        mask is bool and broadcasts to (G, *R); stages, how many of them a row takes, is int64 and broadcasts to (*R).
        """
        return F.residual_nearest(
            self.cast(x),
            self.stack().detach(),
            sizes=self.sizes,
            stages=stages,
            mask=mask,
            beam=self.beam,
            impl=self.impl,
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """(G, *R, Q) indices -> (G, *R, D) sums of codes in the state's dtype; -1 adds nothing."""
        return F.lookup(indices, self.stack(), impl=self.impl)

    def _first_codes(self, x: Tensor, usable: Tensor | None) -> Tensor:
        """Each stage's from what the stage before leaves."""
        assert self.rules.init is not None
        residual = x.to(self.codebook.dtype)
        if self.shared:
            return self._first_shared_codes(residual, usable)
        codes = torch.zeros_like(self.codebook)
        for stage in range(codes.shape[1]):
            size = self.codebook_size if self.sizes is None else self.sizes[stage]
            codes[:, stage, :size] = self.rules.init(residual, usable, size).to(codes.dtype)
            if stage + 1 < codes.shape[1]:
                residual = self._left(residual, codes[:, stage, :size])
        return codes

    def _first_shared_codes(self, residual: Tensor, usable: Tensor | None) -> Tensor:
        """K / Q codes from the rows of each stage.

        Codes as large as the rows are too large for what the first stage leaves: with no others, later stages would
        make the error larger, and until training mends it they would share two or three codes.
        """
        assert self.rules.init is not None
        codes = residual.new_empty(self.groups, 0, self.dim)
        for stage in range(self.num_quantizers):
            size = self.codebook_size // self.num_quantizers + (stage < self.codebook_size % self.num_quantizers)
            if size == 0:
                break
            rows = usable
            if stage > 0:
                residual = self._left(residual, codes)
                # Rows that became codes leave nothing, of which a code would be one code too many.
                left = (residual != 0).any(-1).all(0)
                left = left if usable is None else left & usable
                rows = torch.where(left.any(), left, torch.ones_like(left) if usable is None else usable)
            codes = torch.cat([codes, self.rules.init(residual, rows, size).to(codes.dtype)], dim=1)
        return codes.unsqueeze(1)

    def _left(self, rows: Tensor, codes: Tensor) -> Tensor:
        """What the nearest of the codes (G, K, D) leave of rows (G, R1, R2, D)."""
        found = F.nearest(rows, codes, impl=self.impl).indices
        return rows - F.lookup(found.unsqueeze(-1), codes.unsqueeze(1), impl=self.impl)

    def _start_(self, codes: Tensor, rows: int, usable: Tensor | None) -> None:
        super()._start_(codes, rows, usable)
        self._clear_padding_()

    @torch.no_grad()
    def update_(self, x: Tensor, indices: Tensor, *, partial: bool = False) -> None:
        """Moves the codes towards the residuals of their rows and replaces dead ones, by the rules.

        Args:
            x: (G, R1, R2, D). indices: (G, R1, R2, Q), -1 is left out.
            partial: some stages may have been left out altogether; their statistics then stay as they are.
        """
        rows, together = x.shape[1] * x.shape[2], self.ranks > 1
        if not self.follows or recomputing() or (rows == 0 and not together):
            return
        x = self.cast(x)
        sums, counts = F.residual_segment_sum(x, indices, self.stack(), impl=self.impl)
        if self.shared:
            sums, counts = sums.sum(1, keepdim=True), counts.sum(1, keepdim=True)
        turn = None
        if together:
            sums, counts, turn = distributed.totals(sums, counts)
        before = [state.clone() for state in self._books()] if partial else []
        dead = self._move_(sums.flatten(0, 1), counts.flatten(0, 1))
        if partial:
            taken = (counts > 0).any(-1).flatten()
            for state, old in zip(self._books(), before, strict=True):
                state.copy_(torch.where(taken.view(-1, *(1,) * (state.dim() - 1)), state, old))
            dead = dead & taken.unsqueeze(-1)
        if self.rules.dead is None:
            return

        def draw(book: Tensor) -> tuple[Tensor, Tensor]:
            valid = sampling.fullest_rows(indices) if partial else sampling.complete_rows(indices)
            found = indices.new_ones((), dtype=torch.bool) if valid is None else valid.any()
            if partial and not self.shared:
                # This rank may have dropped stages that another one took.
                found = found & (book % self.num_quantizers < (indices >= 0).sum(-1).amax())
            return self._residuals(x, indices, book, sampling.random_positions(x.shape[1:3], valid, book)), found

        self._replace_dead_(dead, rows, turn, draw)

    def _residuals(self, x: Tensor, indices: Tensor, book: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
        """What the rows at a position leave to the stages of the named books, (..., D), by the codes as they are."""
        stages = self.codebook.shape[1]
        group, stage = book // stages, book % stages
        if self.shared:
            stage = torch.randint_like(book, self.num_quantizers)
        outer, inner = position
        row = x[group, outer, inner].to(self.codebook.dtype)
        chosen = indices[group, outer, inner]
        stack = self.stack()
        for before in range(self.num_quantizers - 1):
            code = stack[group, before, chosen[..., before].clamp_min(0)]
            taken = (before < stage) & (chosen[..., before] >= 0)
            row = torch.where(taken.unsqueeze(-1), row - code, row)
        return row

    def _move_(self, sums: Tensor, counts: Tensor) -> Tensor:
        if self.sizes is None:
            return super()._move_(sums, counts)
        dead = torch.zeros_like(counts, dtype=torch.bool)
        for book in range(len(dead)):
            size = self.sizes[book % self.num_quantizers]
            part = slice(book, book + 1), slice(size)
            dead[part] = self._step_(*(state[part] for state in self._books()), sums[part], counts[part])
        return dead

    def _mean_size(self, cluster_size: Tensor) -> Tensor:
        if self.sizes is None:
            return super()._mean_size(cluster_size)
        sizes = torch.tensor(self.sizes, device=cluster_size.device).repeat(self.groups).unsqueeze(-1)
        return cluster_size.sum(-1, keepdim=True) / sizes

    @torch.no_grad()
    def _clear_padding_(self) -> None:
        for stage, size in enumerate(self.sizes or ()):
            for state in (self.codebook, self.embed_sum, self.cluster_size):
                state[:, stage, size:] = 0
