"""Codebooks with state: search, lookup, and the update that follows the rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional as F
from . import sampling
from . import validation as check
from .rules import EMA, AbsoluteUsage, CodebookRules

STATE = ("codebook", "embed_sum", "cluster_size")


class Codebook(nn.Module):
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
    """

    codebook: Tensor
    embed_sum: Tensor
    cluster_size: Tensor
    initted: Tensor

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
        super().__init__()
        for name, value in (("codebook_size", codebook_size), ("dim", dim), ("groups", groups)):
            check.positive(name, value)
        check.choice("metric", metric, check.METRICS)
        self.codebook_size, self.dim, self.groups = codebook_size, dim, groups
        self.metric, self.impl = metric, impl
        self.rules = CodebookRules() if rules is None else rules
        codes = torch.randn(groups, codebook_size, dim, dtype=torch.float32)
        if metric == "cosine":
            codes = nn.functional.normalize(codes, dim=-1)
        self.register_buffer("codebook", codes)
        self.register_buffer("embed_sum", codes.clone())
        self.register_buffer("cluster_size", torch.ones(groups, codebook_size))
        self._initted = self.rules.init is None
        self.register_buffer("initted", torch.tensor(self._initted))

    def search(self, x: Tensor, mask: Tensor | None = None) -> F.Nearest:
        """The nearest code of every row.

        Args:
            x: (G, *R, D), one or two row axes.
            mask: bool, broadcasts to (G, *R), True where valid.

        Returns:
            indices and distances (G, *R); index -1 where masked or not finite.
        """
        return F.nearest(self._cast(x), self.codebook, metric=self.metric, mask=mask, impl=self.impl)

    def lookup(self, indices: Tensor) -> Tensor:
        """(G, *R) indices -> (G, *R, D) codes in the state's dtype; -1 gives zeros."""
        return F.lookup(indices.unsqueeze(-1), self.codebook.unsqueeze(1), impl=self.impl)

    @torch.no_grad()
    def initialise_(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Sets the codes from rows by the rules' initialiser, if that has not happened yet.

        Args:
            x: (G, R1, R2, D). mask: (R1, R2) bool or None.
        """
        if self._initted or self.rules.init is None or x.shape[1] * x.shape[2] == 0:
            return
        x = self._cast(x)
        codes = self.rules.init(x, self._usable(x, mask), self.codebook_size).to(self.codebook.dtype)
        if self.metric == "cosine":
            codes = nn.functional.normalize(codes, dim=-1)
        self.codebook.copy_(codes)
        # As if the averages had begun at zero and this batch, shared evenly, were their first step: early in training
        # the rows move fast, and averages that weighed 1 / (1 - decay) batches from the start would trail behind.
        share = x.shape[1] * x.shape[2] / self.codebook_size
        if isinstance(self.rules.update, EMA):
            share *= 1 - self.rules.update.decay
        self.cluster_size.fill_(share)
        self.embed_sum.copy_(self.codebook * share)
        self._initted = True
        self.initted.fill_(True)

    @torch.no_grad()
    def update_(self, x: Tensor, indices: Tensor) -> None:
        """Moves the codes towards their rows and replaces dead ones, by the rules.

        Args:
            x: (G, R1, R2, D). indices: (G, R1, R2), -1 is left out.
        """
        rule, dead_rule = self.rules.update, self.rules.dead
        if not isinstance(rule, EMA) or x.shape[1] * x.shape[2] == 0:
            return
        x = self._cast(x)
        if self.metric == "cosine":
            x = nn.functional.normalize(x.to(self.codebook.dtype), dim=-1)
        sums, counts = F.segment_sum(x, indices, self.codebook_size, impl=self.impl)
        dead = F.ema_update_(
            self.codebook,
            self.embed_sum,
            self.cluster_size,
            sums,
            counts,
            decay=rule.decay,
            eps=rule.eps,
            smoothing=rule.smoothing,
            normalize=self.metric == "cosine",
            dead_below=0.0 if dead_rule is None else dead_rule.threshold,
            relative=dead_rule is not None and dead_rule.relative,
            impl=self.impl,
        )
        if dead_rule is None:
            return
        rows = x.shape[1] * x.shape[2]
        if isinstance(dead_rule, AbsoluteUsage) and dead_rule.threshold > 0 and rows < 4 * self.codebook_size:
            self._warn_of_absolute_threshold(rows)
        holes = (indices < 0).any(0)
        if dead.device.type != "cpu" or torch.compiler.is_compiling():
            self._replace_dense_(dead, x, ~holes)
            return
        # On a CPU looking at the codes costs no sync, so that only the dead ones are touched.
        group, code = dead.nonzero(as_tuple=True)
        if len(group) and not bool(holes.all()):
            self._replace_(group, code, x, ~holes if bool(holes.any()) else None)

    def _replace_(self, group: Tensor, code: Tensor, x: Tensor, valid: Tensor | None) -> None:
        """Puts random rows in the place of the named codes."""
        drawn = sampling.random_rows(x, valid, group).to(self.codebook.dtype)
        size = self._reset_size().expand_as(self.cluster_size)[group, code]
        finite = drawn.isfinite().all(-1)
        if not bool(finite.all()):
            group, code, drawn, size = group[finite], code[finite], drawn[finite], size[finite]
        self.cluster_size[group, code] = size
        self.codebook[group, code] = drawn
        self.embed_sum[group, code] = drawn * size.unsqueeze(-1)

    def _replace_dense_(self, dead: Tensor, x: Tensor, valid: Tensor) -> None:
        """The same for a mask of codes, without asking the device how many there are."""
        group = torch.arange(self.groups, device=dead.device).unsqueeze(-1).expand(dead.shape)
        drawn = sampling.random_rows(x, valid, group).to(self.codebook.dtype)
        dead = dead & drawn.isfinite().all(-1) & valid.any()
        size = self._reset_size().expand_as(self.cluster_size)
        self.cluster_size.copy_(torch.where(dead, size, self.cluster_size))
        dead, size = dead.unsqueeze(-1), size.unsqueeze(-1)
        self.codebook.copy_(torch.where(dead, drawn, self.codebook))
        self.embed_sum.copy_(torch.where(dead, drawn * size, self.embed_sum))

    def _reset_size(self) -> Tensor:
        """The cluster size of a replaced code, (G, 1)."""
        rule = self.rules.dead
        assert rule is not None
        mean = self.cluster_size.mean(-1, keepdim=True)
        return mean * rule.reset if rule.relative else torch.full_like(mean, rule.reset)

    def _warn_of_absolute_threshold(self, rows: int) -> None:
        if not getattr(self, "_warned", False) and not torch.compiler.is_compiling():
            self._warned = True
            warnings.warn(
                f"AbsoluteUsage resets most codes at every step with {rows} rows for {self.codebook_size} codes; "
                "use RelativeUsage, or at least four rows a code",
                stacklevel=4,
            )

    def _cast(self, x: Tensor) -> Tensor:
        """Brings x to float64 beside a float64 state, and down to float32 beside a float32 one."""
        if (x.dtype == torch.float64) != (self.codebook.dtype == torch.float64):
            return x.to(self.codebook.dtype)
        return x

    @staticmethod
    def _usable(x: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None and x.device.type == "cpu" and not torch.compiler.is_compiling() and bool(x.isfinite().all()):
            return None
        finite = x.isfinite().all(-1).all(0)
        return finite if mask is None else finite & mask

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        kept = {name: getattr(self, name) for name in STATE}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            new = getattr(self, name)
            if new.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, old.to(new.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "initted" in state_dict:
            self._initted = bool(self.initted)

    def extra_repr(self) -> str:
        return (
            f"codebook_size={self.codebook_size}, dim={self.dim}, groups={self.groups}, metric={self.metric!r}, "
            f"rules={self.rules}"
        )
