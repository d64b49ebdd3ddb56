"""The codebook under ``_codebook``: its buffers, its k-means start, its moving averages, and its dead codes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ... import validation as check
from ...state import snapshot
from .candidates import Candidates, Codes, GivenCodes, find, scores
from .draws import Rows, drawn_rows, known, positions, rows_of
from .sync import Processes
from .wide_state import WideState

Weight = Tensor | Callable[[Tensor, Tensor], Tensor]


class Codebook(WideState):
    """H codebooks of K codes of dimension D, with the statistics that move them.

    Made by :class:`VectorQuantize`, whose keywords these are. The state stays float32 (float64 after ``.double()``)
    under ``.half()``, ``.bfloat16()`` and autocast.

    Args:
        dim: D.
        codebook_size: K.
        num_codebooks: H.
        kmeans_init, kmeans_iters, sync_kmeans: start with k-means of the first batch.
        decay, eps: of the moving averages and the smoothing of their counts.
        threshold_ema_dead_code: count below which rows of the batch replace a code; 0 for never.
        reset_cluster_size: count that a replaced code starts with; by default the threshold.
        use_ddp: sum statistics over processes.
        learnable_codebook: ``embed`` is a parameter.
        sample_codebook_temp: temperature of sampled codes.
        ema_update: move the codes to the averages of their rows.
        manual_ema_update: move only the averages; the codes when :meth:`update_ema` is called.
        use_cosine_sim: codes on the unit sphere.
        vq_bridge: module applied to the codes (H, K, D) before use.

    Buffers:
        embed: (H, K, D), the codes; a parameter with ``learnable_codebook``.
        embed_avg: (H, K, D), moving average of the sum of each code's rows.
        cluster_size: (H, K), moving average of the number of each code's rows.
        initted: (), bool, whether the codes have been initialised.

    Raises:
        TypeError, ValueError: sizes below 1, a decay outside [0, 1].

    Source: van den Oord et al. 2017, appendix A.1; Zeghidour et al. 2021, section III.C, for dead codes.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import VectorQuantize
    >>> book = VectorQuantize(dim=8, codebook_size=16)._codebook
    >>> tuple(book.embed.shape), tuple(book.cluster_size.shape), bool(book.initted)
    ((1, 16, 8), (1, 16), True)
    """

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    initted: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        *,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        decay: float = 0.8,
        eps: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        reset_cluster_size: float | None = None,
        use_ddp: bool = False,
        learnable_codebook: bool = False,
        sample_codebook_temp: float = 1.0,
        ema_update: bool = True,
        manual_ema_update: bool = False,
        use_cosine_sim: bool = False,
        vq_bridge: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("codebook_size", codebook_size), ("num_codebooks", num_codebooks)):
            check.positive(name, size)
        check.unit_interval("decay", decay)
        check.not_negative("threshold_ema_dead_code", threshold_ema_dead_code)
        self.dim, self.codebook_size, self.num_codebooks = dim, codebook_size, num_codebooks
        self.kmeans_init, self.kmeans_iters, self.sync_kmeans = kmeans_init, kmeans_iters, sync_kmeans
        self.decay, self.eps = decay, eps
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.reset_cluster_size = threshold_ema_dead_code if reset_cluster_size is None else reset_cluster_size
        self.use_ddp, self.learnable_codebook = use_ddp, learnable_codebook
        self.sample_codebook_temp = sample_codebook_temp
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.use_cosine_sim, self.vq_bridge = use_cosine_sim, vq_bridge

        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = self.transform_input(embed)
        self._initted = not kmeans_init
        self._sums: tuple[Tensor, Tensor] | None = None  # what accum_ema_update has put aside
        self.register_buffer("initted", torch.tensor(self._initted))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)

    @property
    def has_dead_code_replacement(self) -> bool:
        """Whether codes can be dead."""
        return self.threshold_ema_dead_code > 0

    def transform_input(self, x: Tensor) -> Tensor:
        """Unit vectors for cosine codebooks; else x itself."""
        return nn.functional.normalize(x, dim=-1, eps=1e-6) if self.use_cosine_sim else x

    def cast(self, x: Tensor) -> Tensor:
        """Brings x to float64 beside a float64 state, and down to float32 beside a float32 one."""
        if (x.dtype == torch.float64) != (self.embed.dtype == torch.float64):
            return x.to(self.embed.dtype)
        return x

    def codes(self) -> Tensor:
        """The codes in use, (H, K, D), through ``vq_bridge``; with gradients if they are learned."""
        embed = self.embed if self.learnable_codebook else self.embed.detach()
        return embed if self.vq_bridge is None else self.vq_bridge(embed).to(self.embed.dtype)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, freeze_codebook: bool = False, **how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the peer's codebook returns when it is called itself, which :class:`VectorQuantize` has no need of.

        Args:
            x: (B, N, D) or (H, B, N, D). mask: (B, N) bool, rows that count. how: the keywords of :meth:`absorb_`.

        Returns:
            codes as x; indices (B, N) or (H, B, N), -1 where masked; the scores of all codes, (H, B, N, K).
        """
        rows = self.transform_input(self.cast(x if x.dim() == 4 else x.unsqueeze(0)))
        self.observe_(rows.detach(), mask)
        candidates = self.candidates()
        found = find(candidates, rows, mask)
        every = torch.arange(rows.shape[1] * rows.shape[2], device=x.device)
        flat = [scores(rows[h].flatten(0, 1), candidates.of(h, every), self.use_cosine_sim) for h in range(len(rows))]
        all_scores = torch.stack(flat).view(*rows.shape[:3], self.codebook_size)
        if self.training and not freeze_codebook:
            self.update_indices(rows.detach(), found.indices, **how)
        lead = () if x.dim() == 4 else (0,)
        return found.codes[lead].to(x.dtype), found.indices[lead], all_scores

    def candidates(self, transform: Callable[[Tensor], Any] | None = None, *, keep: bool = False) -> Candidates:
        """The codes to search, through a function codes (H, K, D) -> codes for every row (H, B, N, K, D), or
        -> :class:`Candidates`; with ``keep`` a copy, that the codebook's next step leaves as it is."""
        codes = snapshot(self.codes()) if keep else self.codes()
        if transform is None:
            return Codes(codes, self.use_cosine_sim)
        made = transform(codes)
        return GivenCodes(made, self.use_cosine_sim) if isinstance(made, Tensor) else made

    def observe_(self, x: Tensor, mask: Tensor | None) -> None:
        """What has to happen before rows x (H, R1, R2, D) are searched: the start by k-means."""
        if not self.begun():
            self.init_embed_(x, mask)

    def begun(self) -> bool:
        """Whether the codes have been initialised: by the buffer, which users set, where asking it costs no sync."""
        if known(self.initted):
            self._initted = bool(self.initted)
        return self._initted

    @torch.no_grad()
    def init_embed_(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Starts the codes with k-means of rows x (H, R1, R2, D), those of the mask (R1, R2), unless they have begun.

        A cluster that ends without rows has the code 0.

        Raises:
            RuntimeError: called in eval mode while a graph is traced, which cannot depend on data.
        """
        if self.begun():
            return
        if torch.compiler.is_compiling() and not self.training:
            raise RuntimeError("kmeans_init has had no batch yet; run one through the module before tracing it")
        x = self.cast(x.detach())
        finite = x.isfinite().all(-1).all(0)
        rows = rows_of(x, None, finite if mask is None else finite & mask)
        processes = Processes(self.use_ddp and self.sync_kmeans)
        empty = rows.number == 0 or (known(x) and not bool(finite.any() if mask is None else (finite & mask).any()))
        if empty and not processes.many:  # with others to wait for, this process takes part all the same
            return
        means = self.transform_input(self._first_means(x, rows, processes))
        metric = "dot" if self.use_cosine_sim else "l2"
        sizes = torch.zeros_like(self.cluster_size)
        for _ in range(max(self.kmeans_iters, 1)):
            indices = F.nearest(x, means, metric=metric, mask=mask).indices
            sums, sizes = processes.total(*F.segment_sum(x, indices, self.codebook_size))
            filled = sizes.unsqueeze(-1)
            if self.kmeans_iters > 0:
                means = torch.where(filled > 0, self.transform_input(sums / filled.clamp_min(1)), means)
        self.embed_avg.copy_(means * sizes.unsqueeze(-1))
        self.cluster_size.copy_(sizes)
        self.update_ema()
        self._initted = True
        self.initted.fill_(True)

    def _first_means(self, x: Tensor, rows: Rows, processes: Processes) -> Tensor:
        """K rows for each head, (H, K, D), distinct if there are enough."""
        K, dtype = self.codebook_size, self.embed.dtype
        if known(x) and not processes.many:
            pool = positions(rows, x.device)
            if len(pool) < K:
                warnings.warn(
                    f"kmeans_init has {len(pool)} rows for {K} codes, so codes repeat; begin with a larger batch",
                    stacklevel=6,
                )
            drawn = [
                torch.randperm(len(pool))[:K] if len(pool) >= K else torch.randint(0, len(pool), (K,))
                for _ in range(self.num_codebooks)
            ]
            return torch.stack([rows.at(head, pool[where]) for head, where in enumerate(drawn)]).to(dtype)
        found, usable = drawn_rows(rows, self.num_codebooks, K, self.embed.detach(), processes)
        slot = torch.arange(K, device=x.device) % usable.sum(-1, keepdim=True).clamp_min(1)
        return found.gather(1, slot.unsqueeze(-1).expand_as(found))

    @torch.no_grad()
    def absorb_(
        self,
        sums: Tensor,
        counts: Tensor,
        rows: Rows | None,
        *,
        weight: Weight | None = None,
        accumulate: bool = False,
        ema_update: bool | None = None,
        active: Tensor | None = None,
    ) -> Tensor | None:
        """One step of the averages, and what follows from it.

        Args:
            sums: (H, K, D), of each code's rows, over all processes. counts: (H, K), how many.
            rows: to replace dead codes from; None to leave that to :meth:`put_`.
            weight: factor of 1 - decay, (K,) or (H, K), or a function of sums and counts that gives it.
            accumulate: only put sums and counts aside, for the next step without it.
            ema_update: whether the codes move; by default as constructed.
            active: () bool, False to leave everything as it is; None for True.

        Returns:
            The codes that :meth:`put_` should replace, (H, K) bool; None where there is nothing to do.
        """
        ema_update = self.ema_update if ema_update is None else ema_update
        if not ema_update and not self.has_dead_code_replacement:
            return None
        if callable(weight):
            weight = weight(sums, counts)
        if self._sums is not None:
            sums, counts = sums + self._sums[0], counts + self._sums[1]
            self._sums = None
        if accumulate:
            self._sums = sums, counts
            return None
        state = (self._writable(), self.embed_avg, self.cluster_size)
        before = None if active is None else [tensor.clone() for tensor in state]
        if weight is None and ema_update and not self.manual_ema_update:
            dead = F.ema_update_(
                *state,
                sums.to(self.embed_avg.dtype),
                counts.to(self.embed_avg.dtype),
                decay=self.decay,
                eps=self.eps,
                normalize=self.use_cosine_sim,
                dead_below=float(self.threshold_ema_dead_code),
            )
        else:
            self._follow_(sums, counts, weight)
            if ema_update and not self.manual_ema_update:
                self.update_ema()
            dead = self.cluster_size < self.threshold_ema_dead_code
        if active is not None and before is not None:
            dead = dead & active
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(torch.where(active, tensor, old))
        if not self.has_dead_code_replacement or not self.training:
            return None
        if rows is not None:
            self._replace_(dead, rows)
        return dead

    def _follow_(self, sums: Tensor, counts: Tensor, weight: Tensor | None) -> None:
        """The averages' step alone."""
        share: Tensor = torch.full_like(self.cluster_size, 1 - self.decay)
        if weight is not None:
            shape = tuple(self.cluster_size.shape)
            if tuple(weight.shape) not in (shape, shape[1:]):
                raise ValueError(f"ema_update_weight must be {shape[1:]} or {shape}, got {tuple(weight.shape)}")
            share = share * weight
        self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), share)
        self.embed_avg.lerp_(sums.to(self.embed_avg.dtype), share.unsqueeze(-1).expand_as(self.embed_avg))

    @torch.no_grad()
    def update_ema(self) -> None:
        """Moves the codes to their averages, with Laplace smoothing of the counts."""
        total = self.cluster_size.sum(-1, keepdim=True)
        size = (self.cluster_size + self.eps) / (total + self.codebook_size * self.eps) * total
        self._writable().copy_(self.transform_input(self.embed_avg / size.unsqueeze(-1)))

    def update_indices(self, x: Tensor, embed_ind: Tensor, mask: Tensor | None = None, **how: Any) -> None:
        """A step as if rows x (H, R1, R2, D) had taken the codes embed_ind (H, R1, R2), -1 for none.

        Args:
            mask: (R1, R2) bool, rows that count. how: the keywords of :meth:`absorb_`.
        """
        if not self.has_dead_code_replacement and not (
            self.ema_update if how.get("ema_update") is None else how["ema_update"]
        ):
            return
        if mask is not None:
            embed_ind = torch.where(mask, embed_ind, -1)
        rows = rows_of(self.cast(x), embed_ind)
        processes = Processes(self.use_ddp)
        sums, counts = F.segment_sum(self.cast(x.detach()), embed_ind, self.codebook_size)
        sums, counts = processes.total(*self.seen(sums, counts))
        self.absorb_(sums, counts, rows, **how)

    update_ema_indices = update_indices

    def seen(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and counts of rows, as they are for the averages."""
        return sums, counts

    @torch.no_grad()
    def expire_codes_(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Replaces codes below the threshold by rows of x (H, R1, R2, D), those of the mask (R1, R2)."""
        if self.has_dead_code_replacement and self.training:
            x = self.cast(x.detach())
            finite = x.isfinite().all(-1).all(0)
            dead = self.cluster_size < self.threshold_ema_dead_code
            self._replace_(dead, rows_of(x, None, finite if mask is None else finite & mask))

    def _replace_(self, dead: Tensor, rows: Rows) -> None:
        """Puts distinct rows in the place of dead codes (H, K), of as many as there are rows."""
        processes = Processes(self.use_ddp)
        embed = self._writable()
        if known(dead) and not processes.many:
            if not bool(dead.any()):
                return
            pool = positions(rows, dead.device)
            if not len(pool):
                return
            for head in range(self.num_codebooks):
                code = dead[head].nonzero().squeeze(-1)
                if len(code) > len(pool):
                    code = code[torch.randperm(len(code))[: len(pool)]]
                    code = code.sort().values
                drawn = rows.at(head, pool[torch.randperm(len(pool))[: len(code)]]).to(embed.dtype)
                drawn = self.transform_input(drawn)
                embed[head, code] = drawn
                self.cluster_size[head, code] = float(self.reset_cluster_size)
                self.embed_avg[head, code] = drawn * self.reset_cluster_size
            return
        self.put_(dead, *drawn_rows(rows, self.num_codebooks, self.codebook_size, embed, processes))

    @torch.no_grad()
    def put_(self, dead: Tensor, drawn: Tensor, usable: Tensor) -> None:
        """Puts rows (H, K, D), where usable (H, K), in the place of dead codes (H, K), and asks for no value."""
        embed, drawn = self._writable(), self.transform_input(drawn)
        slot = (dead.cumsum(-1) - 1).clamp_min(0)
        take = dead & usable.gather(1, slot)
        drawn = drawn.gather(1, slot.unsqueeze(-1).expand_as(drawn))
        self.cluster_size.copy_(torch.where(take, float(self.reset_cluster_size), self.cluster_size))
        take = take.unsqueeze(-1)
        embed.copy_(torch.where(take, drawn, embed))
        self.embed_avg.copy_(torch.where(take, drawn * self.reset_cluster_size, self.embed_avg))

    def _writable(self) -> Tensor:
        """The codes, to be changed behind autograd's back."""
        if not isinstance(self.embed, nn.Parameter):
            return self.embed
        return self.embed.detach() if torch.compiler.is_compiling() else self.embed.data

    def extra_repr(self) -> str:
        metric = ", use_cosine_sim=True" if self.use_cosine_sim else ""
        return f"codebook_size={self.codebook_size}, dim={self.dim}, num_codebooks={self.num_codebooks}{metric}"
