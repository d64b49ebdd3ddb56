"""VectorQuantize with the keywords, returns and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import functional as F
from ...estimators import RotationTrick, StraightThrough
from ...losses import commitment_loss
from . import layout, losses
from .affine import AffineCodebook
from .candidates import Candidates, Found, find
from .checks import check_options
from .codebook import Codebook, Weight
from .draws import known
from .gradients import directional
from .layout import Layout
from .sync import Processes, running


class LossBreakdown(NamedTuple):
    """The losses before their weights, each a scalar (with ``topk`` commitment is one for each code)."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class VectorQuantize(nn.Module):
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

    zero: Tensor

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

    @property
    def ema_update(self) -> bool:
        """Whether codes follow the moving averages of their rows."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes: (K, D), with separate codebooks (H, K, D). Assign a tensor of that shape to set them."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        with torch.no_grad():
            self._codebook.embed.copy_(codes if self.separate_codebook_per_head else codes.unsqueeze(0))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R), with heads (B, *R, H) -> codes, heads side by side, before ``project_out``, channels where
        the input has them; -1 gives zeros.

        A codebook that heads share gives (B, *R, H, D), as the original does.
        """
        several = self.separate_codebook_per_head
        flat = indices.flatten(0, -2).T.unsqueeze(1) if several else indices.reshape(1, 1, -1)
        codes = F.lookup(flat.unsqueeze(-1), self._codebook.embed.unsqueeze(1))
        if several:
            codes = codes[:, 0].transpose(0, 1).reshape(*indices.shape[:-1], -1)
        else:
            codes = codes.view(*indices.shape, -1)
        first = not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap
        return codes.movedim(-1, 1) if first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices as ``forward`` returns them -> what it quantized to, channels where the input has them."""
        first = not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap
        codes = self.get_codes_from_indices(indices)
        if first:
            codes = codes.movedim(1, -1)
        if self.heads > 1 and not self.separate_codebook_per_head:
            codes = codes.flatten(-2)
        out: Tensor = self.project_out(codes)
        return out.movedim(-1, 1) if first else out

    def update_in_place_optimizer(self) -> None:
        """One step of the ``in_place_codebook_optimizer``, on gradients averaged over processes."""
        if self.in_place_codebook_optimizer is None:
            return
        processes = Processes(self._codebook.use_ddp)
        if processes.many:
            gradients = [p.grad for p in self._codebook.parameters() if p.grad is not None]
            number = torch.distributed.get_world_size()
            for gradient, total in zip(gradients, processes.total(*gradients), strict=True):
                gradient.copy_(total / number)
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    def maybe_split_heads_from_input(self, x: Tensor) -> Tensor:
        """(B, N, H * D) -> (H, B, N, D) or (1, B * H, N, D); x itself for one head."""
        if self.heads == 1:
            return x
        batch, number, width = x.shape
        split = x.view(batch, number, self.heads, width // self.heads)
        if self.separate_codebook_per_head:
            return split.permute(2, 0, 1, 3)
        return split.transpose(1, 2).flatten(0, 1).unsqueeze(0)

    def expire_codes_(self, x: Tensor) -> None:
        """Replaces dead codes by rows of x (B, N, heads * D), as after ``project_in``."""
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        rows = layout.split_heads(x, self.heads, self.separate_codebook_per_head)
        self._codebook.expire_codes_(self._codebook.transform_input(rows))

    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """One update of the codebook as if inputs x had taken these indices.

        Args:
            x, mask: as for ``forward``. indices: as it returns them.
        """
        flat, where = self._tokens(x)
        rows = self._rows(flat)
        indices = indices.reshape(*flat.shape[:2], *((self.heads,) if self.heads > 1 else ()))
        indices = layout.split_indices(indices, self.heads, self.separate_codebook_per_head)
        valid = layout.valid_tokens(mask, None, where, flat.shape[1])
        valid = layout.head_mask(valid, self.heads, self.separate_codebook_per_head)
        self._codebook.update_indices(rows.detach(), indices, valid)

    update_ema_indices = update_indices

    def _tokens(self, x: Tensor) -> tuple[Tensor, Layout]:
        """x as (B, N, C), and its layout."""
        flat, where = layout.tokens(
            x, first=not self.channel_last, image=self.accept_image_fmap, volume=self.accept_3d_fmap
        )
        if flat.shape[-1] != self.dim:
            raise ValueError(
                f"x must have {self.dim} channels {'after the batch' if where.first else 'last'}, "
                f"got shape {tuple(x.shape)}"
            )
        return flat, where

    def _rows(self, x: Tensor) -> Tensor:
        """x (B, N, C) projected, split into heads, and for cosine codebooks normalised: (H, R1, R2, D)."""
        rows = layout.split_heads(self.project_in(x), self.heads, self.separate_codebook_per_head)
        if not self.use_cosine_sim:
            return rows.to(x.dtype)
        wide = rows if rows.dtype == torch.float64 else rows.float()
        return self._codebook.transform_input(wide).to(x.dtype)

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
        freeze = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        flat, where = self._tokens(x)
        token_mask = layout.valid_tokens(mask, lens, where, flat.shape[1])
        row_mask = layout.head_mask(token_mask, self.heads, self.separate_codebook_per_head)
        if topk is not None:
            topk = self._checked_topk(topk)
        rows = self._rows(flat)
        plain = self._codebook.cast(rows.detach())
        temperature = self._temperature(sample_codebook_temp)
        self._codebook.observe_(plain, row_mask)
        scored = indices is not None or self.commitment_use_cross_entropy_loss or self.has_codebook_diversity_loss
        keep = self.training and (scored or temperature[1] > 0)
        candidates = self._codebook.candidates(codebook_transform_fn, keep=keep)
        found = find(candidates, self._codebook.cast(rows), row_mask, topk=topk, temperature=temperature[0])
        learning = self.training and not freeze
        if learning and topk is None:
            how = {"weight": ema_update_weight, "accumulate": accum_ema_update, "ema_update": ema_update}
            if self._codebook.has_dead_code_replacement or (self.ema_update if ema_update is None else ema_update):
                self._codebook.update_indices(plain, found.indices, **how)
        inplace_loss = self.zero
        if learning and self.in_place_codebook_optimizer is not None:
            inplace_loss = self._optimise(rows, found)
            self._codebook.observe_(plain, row_mask)
            candidates = self._codebook.candidates(codebook_transform_fn)
            found = find(candidates, self._codebook.cast(rows), row_mask, temperature=temperature[0])

        quantized = self._with_gradients(rows, found, candidates, temperature[1], topk)
        if indices is not None:
            targets = indices.reshape(*flat.shape[:2], *((self.heads,) if self.heads > 1 else ()))
            targets = layout.split_indices(targets, self.heads, self.separate_codebook_per_head)
            ce = losses.cross_entropy(candidates, self._codebook.cast(rows), targets)
            return self._output(quantized, flat, where, token_mask), ce

        breakdown = self._losses(rows, found, candidates, freeze, topk)._replace(inplace_optimize=inplace_loss)
        loss = self._total(breakdown, topk)
        if loss.dim():
            loss = where.restore_indices(loss[0])
        merged = layout.merge_indices(found.indices, self.heads, self.separate_codebook_per_head)
        out = self._output(quantized, flat, where, token_mask), where.restore_indices(merged), loss
        return (*out, breakdown) if return_loss_breakdown else out

    def _checked_topk(self, topk: int) -> int:
        if self.heads > 1 or topk < 1:
            raise ValueError(f"topk must be at least 1 and needs heads=1, got topk={topk} with heads={self.heads}")
        if self.training and (self.commitment_use_cross_entropy_loss or self.in_place_codebook_optimizer is not None):
            raise ValueError(
                "topk in training mode excludes commitment_use_cross_entropy_loss and in_place_codebook_optimizer; "
                "call .eval() first"
            )
        return min(topk, self.codebook_size)

    def _temperature(self, given: float | None) -> tuple[float, float]:
        """Of the draw of codes, and of the softmax of the straight-through gradient; 0 for neither."""
        temperature = self._codebook.sample_codebook_temp if given is None else given
        if not self.training:
            return 0.0, 0.0
        return temperature * self.stochastic_sample_codes, temperature * self.straight_through

    def _optimise(self, rows: Tensor, found: Found) -> Tensor:
        """One step of the in-place optimizer on the squared distance to the rows; the loss."""
        with torch.enable_grad():
            codes = found.codes
            if not codes.requires_grad:
                codes = self._codebook.candidates().pick(found.indices)
            loss = self._distance(rows.detach(), codes, found.indices)
            loss.backward(inputs=[p for p in self._codebook.parameters() if p.requires_grad])
        if not self.manual_in_place_optimizer_update:
            self.update_in_place_optimizer()
        return loss.detach()

    def _distance(self, rows: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        """mean((rows - codes)^2) over rows that have a code, with gradients to both."""
        rows = rows.to(codes.dtype)
        if known(indices) and not bool((indices < 0).any()):
            return nn.functional.mse_loss(codes, rows)
        valid = indices >= 0
        error = torch.where(valid.unsqueeze(-1), codes - torch.where(valid.unsqueeze(-1), rows, 0), 0)
        return error.square().sum() / (valid.sum().clamp_min(1) * rows.shape[-1])

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

    def _losses(
        self, rows: Tensor, found: Found, candidates: Candidates, freeze: bool, topk: int | None
    ) -> LossBreakdown:
        commitment = diversity = orthogonal = self.zero
        wide = self._codebook.cast(rows)
        if topk is not None:
            if not self.training or self.has_commitment_loss:
                commitment = self._each_distance(rows, found, freeze)
        elif self.training and self.has_commitment_loss:
            if self.commitment_use_cross_entropy_loss:
                commitment = losses.cross_entropy(candidates, wide, found.indices)
            elif self.learnable_codebook and not freeze:
                commitment = self._distance(rows, found.codes, found.indices)
            else:
                holes = not known(found.indices) or bool((found.indices < 0).any())
                valid = (found.indices >= 0) if holes else None
                commitment = commitment_loss(wide, found.codes.detach(), found.distances, valid)
        if self.training and self.has_codebook_diversity_loss:
            shared = 1 if self.separate_codebook_per_head else self.heads
            diversity = losses.diversity(candidates, wide, self.codebook_diversity_temperature, shared)
        if self.training and self.has_codebook_orthogonal_loss:
            orthogonal = self._orthogonal(found.indices)
        return LossBreakdown(commitment, diversity, orthogonal, self.zero)

    def _each_distance(self, rows: Tensor, found: Found, freeze: bool) -> Tensor:
        """The mean squared distance of every row to each of its ``topk`` codes, (1, B, N, k); 0 where masked."""
        codes = found.codes if self.learnable_codebook and not freeze else found.codes.detach()
        each = (codes - rows.to(codes.dtype).unsqueeze(-2)).square().mean(-1)
        return torch.where(found.indices >= 0, each, 0)

    def _orthogonal(self, indices: Tensor) -> Tensor:
        embed, number = self._codebook.embed, self.orthogonal_reg_max_codes
        if not self.orthogonal_reg_active_codes_only:
            if number is not None and number < self.codebook_size:
                embed = embed[:, torch.randperm(self.codebook_size, device=embed.device)[:number]]
            return losses.orthogonal_loss(embed)
        used = torch.zeros(self.codebook_size + 1, dtype=torch.bool, device=embed.device)
        used = used.index_fill(0, indices.flatten() + 1, True)[1:]  # slot 0 is that of holes
        if number is not None and number < self.codebook_size:
            keys = torch.where(used, torch.rand(used.shape, device=embed.device), -1.0)
            keys, kept = keys.topk(number)
            return losses.orthogonal_loss(embed[:, kept], keys >= 0)
        return losses.orthogonal_loss(embed, used)

    def _total(self, parts: LossBreakdown, topk: int | None) -> Tensor:
        """The weighted sum; a leaf that may be given to ``backward`` where nothing contributes in training mode."""
        if not self.training:
            weight = self.commitment_weight if self.has_commitment_loss else 1.0
            return self.zero if topk is None else parts.commitment * weight
        loss = self.zero.clone()
        if self.has_codebook_diversity_loss:
            loss = loss + parts.codebook_diversity * self.codebook_diversity_loss_weight
        if self.has_commitment_loss:
            loss = loss + parts.commitment * self.commitment_weight
        if self.has_codebook_orthogonal_loss:
            loss = loss + parts.orthogonal_reg * self.orthogonal_reg_weight
        if not loss.requires_grad and not torch.compiler.is_compiling():
            loss.requires_grad_()
        return loss

    def _output(self, quantized: Tensor, x: Tensor, where: Layout, mask: Tensor | None) -> Tensor:
        """Rows (H, R1, R2, D) or (1, B, N, k, D) as the input was laid out, projected out and masked."""
        merged = layout.merge_heads(quantized, self.heads, self.separate_codebook_per_head)
        out = self.project_out(merged)
        if mask is not None:
            mask = mask.view(*mask.shape, *(1 for _ in range(out.dim() - mask.dim())))
            rest = x if out.dim() == 3 else x.unsqueeze(-2)
            out = torch.where(mask, out, 0 if self.return_zeros_for_masked_padding else rest)
        return where.restore(out)
