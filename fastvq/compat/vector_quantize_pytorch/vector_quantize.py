"""VectorQuantize with the keywords, returns and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...estimators import RotationTrick, StraightThrough
from . import layout, losses
from .affine import AffineCodebook
from .candidates import Candidates, Found, find, taken
from .checks import check_options
from .codebook import Codebook, Weight
from .draws import known
from .gradients import directional
from .layout import Layout
from .objectives import Objectives
from .sync import running


class VectorQuantize(Objectives):
    """Replaces every row by the nearest of K codes; a drop-in for vector-quantize-pytorch 1.32's class of this name.

    Differences, all of them on purpose: codes are exact where the original's float32 distances round; the state
    stays float32 under ``.half()`` and ``.bfloat16()``; a mask works with ``codebook_dim`` and is right with
    ``use_cosine_sim``; rows that are not finite get index -1 and NaN; losses are float32; affine statistics rest in
    eval mode; ``indices`` with heads, projections or feature maps returns ``quantized`` in the input's layout.

    Args:
        dim: channels of the input.
        codebook_size: K.
        codebook_dim: D, dimension of the codes, by default ``dim``; where heads * D differs from ``dim`` linear
            layers project in and out, with ``layernorm_after_project_in`` behind the first.
        heads, separate_codebook_per_head: codes for each row, of one codebook or of one for each head.
        decay, eps, ema_update, manual_ema_update, freeze_codebook: moving averages, see :class:`Codebook`.
        kmeans_init, kmeans_iters, sync_kmeans: start with k-means of the first batch.
        use_cosine_sim: rows and codes on the unit sphere.
        threshold_ema_dead_code: count below which a row of the batch replaces a code; 0 for never.
        channel_last, accept_image_fmap, accept_3d_fmap: (B, N, C), else (B, C, N), (B, C, H, W), (B, C, D, H, W).
        commitment_weight, commitment_use_cross_entropy_loss: of the commitment loss.
        orthogonal_reg_weight, orthogonal_reg_active_codes_only, orthogonal_reg_max_codes: loss on codes' cosines.
        codebook_diversity_loss_weight, codebook_diversity_temperature: loss on the entropy of the codes' use.
        stochastic_sample_codes, sample_codebook_temp: draw codes in training.
        straight_through: gradients through the softmax of the scores (Gumbel); with ``rotation_trick=False``.
        rotation_trick, directional_reparam, directional_reparam_variance, route_gradients_to_input: how gradients
            pass to the input; by default the rotation trick.
        sync_codebook, sync_affine_param: over processes; by default where there are some.
        vq_bridge: module applied to the codes before use.
        learnable_codebook, in_place_codebook_optimizer, manual_in_place_optimizer_update, sync_update_v: codes
            learned by gradients.
        affine_param, affine_param_batch_decay, affine_param_codebook_decay: see :class:`AffineCodebook`.
        return_zeros_for_masked_padding: else the input.

    Buffers:
        those of :class:`Codebook` under ``_codebook.``; ``project_in`` and ``project_out`` where they are needed.

    Raises:
        TypeError, ValueError: options that exclude one another, shapes that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; van den Oord et al. 2017.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import VectorQuantize
    >>> vq = VectorQuantize(dim=256, codebook_size=512, decay=0.8, commitment_weight=1.0)
    >>> quantized, indices, loss = vq(torch.randn(1, 1024, 256))
    >>> tuple(quantized.shape), tuple(indices.shape), tuple(loss.shape)
    ((1, 1024, 256), (1, 1024), ())
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
    ) -> None:
        super().__init__()
        by_gradient = directional_reparam or vq_bridge is not None
        ema_update = not by_gradient if ema_update is None else ema_update
        learnable_codebook = by_gradient if learnable_codebook is None else learnable_codebook
        if rotation_trick is None:
            rotation_trick = not directional_reparam and dim > 1
        check_options(
            learnable=learnable_codebook,
            ema_update=ema_update,
            cosine=use_cosine_sim,
            straight_through=straight_through,
            rotation_trick=rotation_trick,
            directional=directional_reparam,
            threshold=threshold_ema_dead_code,
            bridge=vq_bridge is not None,
            affine=affine_param,
            sync_update_v=sync_update_v,
            active_only_of_heads=orthogonal_reg_active_codes_only and heads > 1 and separate_codebook_per_head,
            optimizer_without_codes=in_place_codebook_optimizer is not None
            and not (learnable_codebook or orthogonal_reg_weight > 0.0),
        )
        self.dim, self.heads, self.codebook_size = dim, heads, codebook_size
        self.separate_codebook_per_head = separate_codebook_per_head
        width = (dim if codebook_dim is None else codebook_dim) * heads
        self.has_projections = width != dim
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, width)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(width))
            self.project_out = nn.Linear(width, dim)

        self.eps, self.learnable_codebook, self.freeze_codebook = eps, learnable_codebook, freeze_codebook
        self.has_commitment_loss = commitment_weight > 0.0 and not directional_reparam
        self.commitment_weight = commitment_weight
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0.0
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.has_codebook_diversity_loss = codebook_diversity_loss_weight > 0.0
        self.codebook_diversity_loss_weight = codebook_diversity_loss_weight
        self.codebook_diversity_temperature = codebook_diversity_temperature
        self.stochastic_sample_codes, self.straight_through = stochastic_sample_codes, straight_through
        self.rotation_trick, self.directional_reparam = rotation_trick, directional_reparam
        self.directional_reparam_variance = directional_reparam_variance
        self.route_gradients_to_input, self.sync_update_v = route_gradients_to_input, sync_update_v
        self.use_cosine_sim = use_cosine_sim
        self.channel_last = channel_last
        self.accept_image_fmap, self.accept_3d_fmap = accept_image_fmap, accept_3d_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding

        common: dict[str, Any] = {
            "dim": width // heads,
            "codebook_size": codebook_size,
            "num_codebooks": heads if separate_codebook_per_head else 1,
            "kmeans_init": kmeans_init,
            "kmeans_iters": kmeans_iters,
            "sync_kmeans": sync_kmeans,
            "decay": decay,
            "eps": eps,
            "threshold_ema_dead_code": threshold_ema_dead_code,
            "use_ddp": running() if sync_codebook is None else sync_codebook,
            "learnable_codebook": self.has_codebook_orthogonal_loss or learnable_codebook,
            "sample_codebook_temp": sample_codebook_temp,
            "ema_update": ema_update,
            "manual_ema_update": manual_ema_update,
            "use_cosine_sim": use_cosine_sim,
            "vq_bridge": vq_bridge,
        }
        self._codebook: Codebook
        if affine_param:
            self._codebook = AffineCodebook(
                **common,
                affine_param_batch_decay=affine_param_batch_decay,
                affine_param_codebook_decay=affine_param_codebook_decay,
                sync_affine_param=sync_affine_param,
            )
        else:
            self._codebook = Codebook(**common)
        self.in_place_codebook_optimizer = (
            None if in_place_codebook_optimizer is None else in_place_codebook_optimizer(self._codebook.parameters())
        )
        self.manual_in_place_optimizer_update = manual_in_place_optimizer_update
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Callable[[Tensor], Any] | None = None,
        ema_update_weight: Weight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes, and in training mode initialises and updates the codebook.

        Args:
            x: (B, N, C), or as ``channel_last``, ``accept_image_fmap``, ``accept_3d_fmap`` say; (B, C) for one token.
            indices: shaped as the returned ones, -1 for none: return the cross-entropy of the scores with them.
            mask: (B, N) or as the row axes, bool, True where valid. lens: (B,), valid tokens from the first on.
            topk: return the k nearest codes instead of one; nothing is updated.
            sample_codebook_temp, freeze_codebook, ema_update: instead of those constructed with.
            codebook_transform_fn: codes (H, K, D) -> codes for every row, (H, B, N, K, D).
            ema_update_weight, accum_ema_update: see :meth:`Codebook.absorb_`.
            return_loss_breakdown: also return a :class:`LossBreakdown`.

        Returns:
            quantized as x, k behind the row axes; indices (*R), (*R, H) or (*R, k), -1 where masked; loss (), with
            ``topk`` (*R, k); 0 in eval mode without ``topk``. With ``indices`` quantized and the cross-entropy ().
        """
        flat, where = self._tokens(x)
        valid = layout.valid_tokens(mask, lens, where, flat.shape[1])
        out = self.quantize(
            flat,
            where,
            valid,
            indices=indices,
            topk=None if topk is None else self._checked_topk(topk),
            temperature=sample_codebook_temp,
            freeze=freeze_codebook,
            transform=codebook_transform_fn,
            how={"weight": ema_update_weight, "accumulate": accum_ema_update, "ema_update": ema_update},
        )
        return out if return_loss_breakdown or indices is not None else out[:3]

    def quantize(
        self,
        x: Tensor,
        where: Layout,
        mask: Tensor | None,
        *,
        indices: Tensor | None = None,
        chosen: Tensor | None = None,
        topk: int | None = None,
        temperature: float | None = None,
        freeze: bool | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        how: dict[str, Any] | None = None,
    ) -> tuple[Any, ...]:
        """``forward`` of tokens x (B, N, C) with a mask (B, N), for a layout to bring results back to.

        Args:
            chosen: (B, N), the codes to take instead of the nearest, -1 for none; one head.
            how: the keywords of :meth:`Codebook.absorb_`. all others: as for ``forward``.

        Returns:
            quantized, indices, loss and LossBreakdown; or, given indices, quantized and the cross-entropy.
        """
        book, how = self._codebook, how or {}
        freeze = self.freeze_codebook if freeze is None else freeze
        row_mask = layout.head_mask(mask, self.heads, self.separate_codebook_per_head)
        rows = self._rows(x)
        wide = book.cast(rows)
        plain = wide.detach()
        draw, soft = self._temperatures(temperature)
        book.observe_(plain, row_mask)
        scored = indices is not None or self.commitment_use_cross_entropy_loss or self.has_codebook_diversity_loss
        candidates = book.candidates(transform, keep=self.training and (scored or soft > 0))
        if chosen is None:
            found = find(candidates, wide, row_mask, topk=topk, temperature=draw)
        else:
            found = taken(candidates, wide, chosen.unsqueeze(0))
        learning = self.training and not freeze
        if learning and topk is None:
            book.update_indices(plain, found.indices, **how)
        inplace = self.zero
        if learning and self.in_place_codebook_optimizer is not None:
            inplace = self._optimise(rows, found)
            book.observe_(plain, row_mask)
            candidates = book.candidates(transform)
            found = find(candidates, wide, row_mask, temperature=draw)

        quantized = self._with_gradients(rows, found, candidates, soft, topk)
        if indices is not None:
            targets = indices.reshape(*x.shape[:2], *((self.heads,) if self.heads > 1 else ()))
            targets = layout.split_indices(targets, self.heads, self.separate_codebook_per_head)
            return self._output(quantized, x, where, mask), losses.cross_entropy(candidates, wide, targets)
        breakdown = self._losses(rows, found, candidates, freeze, topk)._replace(inplace_optimize=inplace)
        loss = self._total(breakdown, topk)
        if loss.dim():
            loss = where.restore_indices(loss[0])
        merged = layout.merge_indices(found.indices, self.heads, self.separate_codebook_per_head)
        return self._output(quantized, x, where, mask), where.restore_indices(merged), loss, breakdown

    def _checked_topk(self, topk: int) -> int:
        if self.heads > 1 or topk < 1:
            raise ValueError(f"topk must be at least 1 and needs heads=1, got topk={topk} with heads={self.heads}")
        if self.training and (self.commitment_use_cross_entropy_loss or self.in_place_codebook_optimizer is not None):
            raise ValueError(
                "topk in training mode excludes commitment_use_cross_entropy_loss and in_place_codebook_optimizer; "
                "call .eval() first"
            )
        return min(topk, self.codebook_size)

    def _temperatures(self, given: float | None) -> tuple[float, float]:
        """Of the draw of codes, and of the softmax of the straight-through gradient; 0 for neither."""
        temperature = self._codebook.sample_codebook_temp if given is None else given
        if not self.training:
            return 0.0, 0.0
        return temperature * self.stochastic_sample_codes, temperature * self.straight_through

    def _with_gradients(
        self, rows: Tensor, found: Found, candidates: Candidates, soft: float, topk: int | None
    ) -> Tensor:
        """The chosen codes in the rows' dtype, NaN where a row is not finite, with gradients as the options say."""
        codes = found.codes
        if soft > 0 and topk is None and not (rows.requires_grad and self.route_gradients_to_input):
            average = losses.soft_codes(candidates, self._codebook.cast(rows), soft)
            codes = codes + torch.where((found.indices >= 0).unsqueeze(-1), average - average.detach(), 0)
        if not known(found.indices) or bool((found.indices < 0).any()):
            codes = codes + torch.where(found.distances.isnan(), float("nan"), 0.0).to(codes.dtype).unsqueeze(-1)
        codes = codes.to(rows.dtype)
        if not self.training:
            return codes
        if rows.requires_grad and self.route_gradients_to_input:
            source = rows if topk is None else rows.unsqueeze(-2).expand_as(codes)
            if self.rotation_trick:
                codes = RotationTrick()(source, codes)
            elif self.directional_reparam:
                codes = directional(source, codes, self.directional_reparam_variance)
            else:
                codes = StraightThrough()(source, codes)
        if self.sync_update_v > 0.0:
            # Equation 21 of Huh et al. 2023: the gradient counts 1 + v times.
            codes = codes + self.sync_update_v * (codes - codes.detach())
        return codes
