"""The modules of vector-quantize-pytorch: their codebook's search, and its averages without a one-hot matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional as F
from .fusing import Fused


class PeerCodebook(Fused):
    """Nearest codes and averages of ``Codebook``; whatever asks for every distance goes its own way."""

    names = ("Codebook",)
    attributes = (
        *("embed", "embed_avg", "cluster_size", "gumbel_sample", "init_embed_", "expire_codes_", "update_ema"),
        *("learnable_codebook", "use_cosine_sim", "affine_param", "vq_bridge", "all_reduce_fn", "decay"),
    )
    training: bool
    whole_table = False  # whether the module around it wants distances, for one call

    def forward(
        self,
        x: Tensor,
        sample_codebook_temp: float | None = None,
        mask: Tensor | None = None,
        freeze_codebook: bool = False,
        ema_update: bool | None = None,
        update_usage: bool = True,
        **others: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        module: Any = self
        drawn = getattr(module.gumbel_sample, "keywords", None)
        random = drawn is None or (self.training and (drawn.get("stochastic") or drawn.get("straight_through")))
        unusual = any(value is not None and value is not False for value in others.values())
        if self.whole_table or unusual or random or module.affine_param or module.vq_bridge is not None:
            return super().forward(  # type: ignore[misc]
                x,
                sample_codebook_temp=sample_codebook_temp,
                mask=mask,
                freeze_codebook=freeze_codebook,
                ema_update=ema_update,
                update_usage=update_usage,
                **others,
            )
        books = x.float()
        single = books.dim() < 4
        books = books.unsqueeze(0) if single else books
        rows = books.flatten(1, -2)
        if mask is not None:
            # One head's rows after the other, as the module around lays them out.
            heads = rows.shape[1] // mask.numel()
            mask = mask[:, None].expand(-1, heads, -1).reshape(1, -1).expand(len(rows), -1)
        module.init_embed_(rows, mask=mask)
        embed = (module.embed if module.learnable_codebook else module.embed.detach()).float()
        metric = "dot" if module.use_cosine_sim else "l2"
        indices = F.nearest(rows.detach(), embed.detach(), metric=metric).indices
        quantized = F.lookup(indices.unsqueeze(-1), embed.unsqueeze(1)).view(books.shape)
        if self.training and update_usage and not freeze_codebook:
            self._follow(rows, indices, mask, module.ema_update if ema_update is None else ema_update)
        indices = indices.view(books.shape[:-1])
        return (quantized[0], indices[0], None) if single else (quantized, indices, None)

    @torch.no_grad()
    def _follow(self, rows: Tensor, indices: Tensor, mask: Tensor | None, ema_update: bool) -> None:
        module: Any = self
        if not ema_update and not module.has_dead_code_replacement:
            return
        counted = indices if mask is None else torch.where(mask, indices, -1)
        sums, counts = F.segment_sum(rows, counted, module.codebook_size)
        for total in (counts, sums):
            module.all_reduce_fn(total)
        for average, total in ((module.cluster_size, counts), (module.embed_avg, sums)):
            if average.grad is not None:
                total = total + average.grad
                average.grad = None
            average.data.lerp_(total.to(average), 1 - module.decay)
        if ema_update and not module.manual_ema_update:
            module.update_ema()
        module.expire_codes_(rows, seq_mask=mask)


class PeerModule(Fused):
    """``VectorQuantize``: tells its codebook when every distance is wanted."""

    names = ("VectorQuantize",)
    attributes = ("_codebook", "has_codebook_diversity_loss", "commitment_use_cross_entropy_loss")
    training: bool

    def forward(self, x: Tensor, indices: Tensor | None = None, *rest: Any, **others: Any) -> Any:
        module: Any = self
        losses = module.has_codebook_diversity_loss or module.commitment_use_cross_entropy_loss
        module._codebook.whole_table = indices is not None or (self.training and losses)
        return super().forward(x, indices, *rest, **others)  # type: ignore[misc]

    def _forget(self) -> None:
        self.__dict__["_modules"]["_codebook"].__dict__.pop("whole_table", None)


def handlers() -> tuple[type[Fused], ...]:
    """What is tried on a module, in this order."""
    return PeerModule, PeerCodebook
