"""ResidualVQ with the keywords, returns and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ... import validation as check
from . import layout
from .beam import beam_search
from .dropout import QuantizeDropout
from .gradients import directional
from .implicit import MLP, implicit_transform
from .layout import Layout
from .residual_stack import StackOptions, fits, packed, quantize_stacks
from .stepwise import Stages, cross_entropies, quantize_stepwise
from .vector_quantize import VectorQuantize


class ResidualVQ(nn.Module):
    """Quantizes every row in Q stages; a drop-in for vector-quantize-pytorch 1.32's class of this name.

    Where stages depend on one another by their residuals alone (squared Euclidean distance, codes not sampled, no
    network between), all codes come from one search; else stage by stage, none of them with an N x K matrix.

    Differences, all of them on purpose, besides those of :class:`VectorQuantize`: ``freeze_codebook=True`` of the
    constructor freezes; ``indices`` and feature maps with projections work; fewer stages' indices always decode;
    ``diveq`` adds no noise in eval mode; residuals are float32.

    Args:
        dim: channels of the input.
        num_quantizers: Q; may be left out where ``codebook_size`` is a tuple.
        codebook_size: K, or a tuple of one for each stage.
        codebook_dim: D, by default ``dim``; else linear layers project in and out.
        shared_codebook: all stages use one codebook.
        diveq: learn codes by DiVeQ, on the sum over stages.
        heads: 1.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: in training take only the
            first stages, at random; the others get index -1 and loss 0.
        accept_image_fmap: (B, C, H, W).
        implicit_neural_codebook, mlp_kwargs: codes of all stages but the first are made by an :class:`MLP`.
        beam_size, eval_beam_size, beam_score_quantizer_weights: choices kept from stage to stage, by the weighted
            sum of the stages' errors.
        quant_grad_frac: share of the gradient that passes by way of the residual.
        return_zeros_for_masked_padding: else the input.
        vq_kwargs: of :class:`VectorQuantize`.

    Buffers:
        those of :class:`VectorQuantize` under ``layers.i.``; ``mlps.i.``, ``project_in`` and ``project_out``.

    Raises:
        TypeError, ValueError: options that exclude one another, shapes that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Zeghidour et al. 2021.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import ResidualVQ
    >>> residual_vq = ResidualVQ(dim=256, num_quantizers=8, codebook_size=1024)
    >>> quantized, indices, loss = residual_vq(torch.randn(1, 1024, 256))
    >>> tuple(quantized.shape), tuple(indices.shape), tuple(loss.shape)
    ((1, 1024, 256), (1, 1024, 8), (8,))
    """

    beam_score_weights: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict[str, Any] | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: list[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        **vq_kwargs: Any,
    ) -> None:
        super().__init__()
        if heads != 1:
            raise ValueError(f"heads must be 1 in a residual stack, got {heads}; GroupedResidualVQ splits channels")
        sizes = codebook_size if isinstance(codebook_size, tuple) else None
        if sizes is None:
            if num_quantizers is None:
                raise ValueError("num_quantizers is missing; give it, or a tuple of codebook sizes")
            check.positive("num_quantizers", num_quantizers)
            sizes = (int(codebook_size),) * num_quantizers  # type: ignore[arg-type]
        if num_quantizers not in (None, len(sizes)):
            raise ValueError(f"codebook_size must hold num_quantizers={num_quantizers} sizes, got {len(sizes)}")
        if shared_codebook and len(set(sizes)) > 1:
            raise ValueError(f"shared_codebook needs one size for all stages, got {sizes}")
        if beam_size is None and eval_beam_size is not None:
            raise ValueError("eval_beam_size needs beam_size; give beam_size=1 to search without beams in training")
        if beam_size is not None and vq_kwargs.get("stochastic_sample_codes"):
            raise ValueError("beam_size excludes stochastic_sample_codes, whose codes are drawn; leave one out")
        if quantize_dropout_cutoff_index < 0 or quantize_dropout_cutoff_index >= len(sizes):
            raise ValueError(
                f"quantize_dropout_cutoff_index must lie in [0, {len(sizes)}), got {quantize_dropout_cutoff_index}"
            )
        self.num_quantizers, self.codebook_sizes = len(sizes), sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.dim, self.has_projections = dim, self.codebook_dim != dim
        self.project_in = nn.Linear(dim, self.codebook_dim) if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(self.codebook_dim, dim) if self.has_projections else nn.Identity()
        self.accept_image_fmap = accept_image_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook, self.diveq, self.shared_codebook = (
            implicit_neural_codebook,
            diveq,
            shared_codebook,
        )
        if implicit_neural_codebook:
            vq_kwargs.update(learnable_codebook=True, ema_update=False)
        if shared_codebook:
            vq_kwargs.update(manual_ema_update=True, manual_in_place_optimizer_update=True)
        if diveq:
            vq_kwargs.update(
                ema_update=False, learnable_codebook=True, route_gradients_to_input=False, commitment_weight=0.0
            )
        self.layers = nn.ModuleList(
            VectorQuantize(
                dim=self.codebook_dim,
                codebook_size=size,
                codebook_dim=self.codebook_dim,
                accept_image_fmap=accept_image_fmap,
                return_zeros_for_masked_padding=return_zeros_for_masked_padding,
                **vq_kwargs,
            )
            for size in sizes
        )
        self.quantize_dropout = quantize_dropout and len(sizes) > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.vq_is_ema_updating = self.stages()[0].ema_update
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size
        weights = [1.0] * len(sizes) if beam_score_quantizer_weights is None else beam_score_quantizer_weights
        if len(weights) != len(sizes):
            raise ValueError(f"beam_score_quantizer_weights must hold {len(sizes)} weights, got {len(weights)}")
        self.register_buffer("beam_score_weights", torch.tensor(weights), persistent=False)
        self.mlps: nn.ModuleList | tuple[None, ...] = (None,) * (len(sizes) - 1)
        if implicit_neural_codebook:
            unit = self.stages()[0].use_cosine_sim
            self.mlps = nn.ModuleList(
                MLP(dim=self.codebook_dim, l2norm_output=unit, **(mlp_kwargs or {})) for _ in sizes[1:]
            )
        if shared_codebook:
            for layer in self.stages()[1:]:
                layer._codebook = self.stages()[0]._codebook

    def stages(self) -> list[VectorQuantize]:
        """The layers."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def codebook_size(self) -> int:
        """K, of the first stage."""
        return self.stages()[0].codebook_size

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The codes of all stages, (Q, K, D); a tuple of (K, D) where sizes differ."""
        books = tuple(layer._codebook.embed[0] for layer in self.stages())
        return torch.stack(books) if self.uniform_codebook_size else books

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, q), q up to Q -> each stage's codes (Q, B, *R, D), before ``project_out``; -1 gives 0."""
        shape = indices.shape[:-1]
        flat = indices.reshape(-1, indices.shape[-1])
        if flat.shape[-1] > self.num_quantizers:
            raise ValueError(f"indices must be (B, *R, q) with q up to {self.num_quantizers}, got {indices.shape}")
        flat = nn.functional.pad(flat, (0, self.num_quantizers - flat.shape[-1]), value=-1)
        if self.implicit_neural_codebook:
            codes = self._implicit_codes(flat)
        else:
            books, _ = packed([self.stages()])
            codes = F.lookup(flat.T[:, :, None].contiguous(), books[0].unsqueeze(1))
        return codes.view(self.num_quantizers, *shape, codes.shape[-1])

    def _implicit_codes(self, indices: Tensor) -> Tensor:
        """(N, Q) -> (Q, N, D), each stage's codes made from those before it."""
        made: list[Tensor] = []
        total: Tensor | None = None
        for index, layer, mlp in zip(indices.unbind(-1), self.stages(), (None, *self.mlps), strict=True):
            transform = None
            if isinstance(mlp, MLP) and total is not None:
                transform = implicit_transform(mlp, total.unsqueeze(0), layer.use_cosine_sim)
            code = layer._codebook.candidates(transform).pick(index[None, None])[0, 0]
            made.append(code)
            total = code if total is None else total + code
        return torch.stack(made)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, q) -> the sum of their codes, projected out, channels last."""
        out: Tensor = self.project_out(self.get_codes_from_indices(indices).sum(0))
        return out

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
        *,
        stages_taken: int | Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes, and in training mode initialises and updates the codebooks.

        Args:
            x: (B, N, C), (B, C), or (B, C, H, W). mask: (B, N) bool, True where valid.
            indices: (B, N, Q), or a list of Q: return the cross-entropy of every stage's scores with them.
            return_all_codes: also return each stage's codes.
            sample_codebook_temp, freeze_codebook, beam_size: instead of those constructed with.
            rand_quantize_dropout_fixed_seed: of this call's quantize-dropout.
            stages_taken: how many stages, instead of a draw by quantize-dropout.

        Returns:
            quantized as x; indices (*R, Q), -1 where masked or dropped; losses (Q,); codes (Q, *R, D) on request.
            With ``indices`` quantized and the sum of the cross-entropies.
        """
        flat, where = self.tokens(x)
        valid = layout.valid_tokens(mask, None, where, flat.shape[1])
        rows = self.project_in(flat).to(flat.dtype)
        if indices is not None:
            targets = torch.stack(indices, -1) if isinstance(indices, list) else indices
            targets = targets.reshape(*flat.shape[:2], self.num_quantizers)
            stages = self.one_by_one(sample_codebook_temp, freeze_codebook)
            total, entropy = cross_entropies(stages, rows, valid, targets)
            return self.output(total, flat, where, valid), entropy
        one = self.fits(sample_codebook_temp)
        beam = self.beam(beam_size)
        depth = stages_taken
        if depth is None:
            depth = self.depth(x.device, rand_quantize_dropout_fixed_seed, traced=one and beam == 1)
        chosen = self.beams(rows, valid, beam, depth)
        if one:
            given = None if chosen is None else chosen.unsqueeze(0)
            options = self.options(freeze_codebook)
            found = quantize_stacks([self.stages()], rows.unsqueeze(0), valid, options, depth=depth, chosen=given)
            total, codes, losses = (part[0] for part in found)
        else:
            taken = self.num_quantizers if depth is None else int(depth)
            stages = self.one_by_one(sample_codebook_temp, freeze_codebook)
            total, codes, losses = quantize_stepwise(stages, rows, valid, taken, chosen)
        total = self.reparametrised(rows, total)
        out = self.output(total, flat, where, valid), where.restore_indices(codes), losses
        return (*out, self.get_codes_from_indices(out[1])) if return_all_codes else out

    def fits(self, temperature: float | None = None) -> bool:
        """Whether one search finds the codes of all stages."""
        if self.implicit_neural_codebook:
            return False
        return fits(self.stages(), shared=self.shared_codebook, temperature=temperature)

    def options(self, freeze: bool | None) -> StackOptions:
        """How a call goes."""
        return StackOptions(freeze=freeze, shared=self.shared_codebook, through=self.quant_grad_frac)

    def one_by_one(self, temperature: float | None, freeze: bool | None) -> Stages:
        """The stages, to be run one after the other."""
        return Stages(self.stages(), (None, *self.mlps), self.options(freeze), temperature)

    def beam(self, given: int | None) -> int:
        """The number of choices kept."""
        size = given if given is not None else self.beam_size if self.training else self.eval_beam_size
        return 1 if size is None else size

    def depth(self, device: torch.device, seed: int | None, *, traced: bool) -> int | Tensor | None:
        """How many stages a training batch takes; None for all. A tensor where a graph is traced."""
        if not self.training or not self.quantize_dropout:
            return None
        dropout = QuantizeDropout(
            self.num_quantizers, self.quantize_dropout_cutoff_index, self.quantize_dropout_multiple_of
        )
        if traced and seed is None and torch.compiler.is_compiling():
            return dropout.traced(device)
        return dropout.draw(seed, device)

    def beams(self, rows: Tensor, mask: Tensor | None, beam: int, depth: int | Tensor | None) -> Tensor | None:
        """The codes (B, N, q) that a beam search chooses; None without beams, or before k-means made codes."""
        if beam == 1:
            return None
        if self.training and self.stages()[0].in_place_codebook_optimizer is not None:
            raise ValueError(
                "beam_size excludes in_place_codebook_optimizer in training, whose step changes the best codes; pass "
                "beam_size=1 with eval_beam_size"
            )
        stages = self.stages()[: None if depth is None else int(depth)]
        if not all(layer._codebook.begun() for layer in stages):
            return None
        wide = rows.detach() if rows.dtype == torch.float64 else rows.detach().float()
        mlps: tuple[Any, ...] = (None, *self.mlps)
        return beam_search(stages, mlps[: len(stages)], wide, mask, beam, self.beam_score_weights)

    def reparametrised(self, rows: Tensor, total: Tensor) -> Tensor:
        """The quantized rows, in training with ``diveq`` in a noised direction of them."""
        return directional(rows, total) if self.diveq and self.training else total

    def tokens(self, x: Tensor) -> tuple[Tensor, Layout]:
        """x as (B, N, C), and its layout."""
        return self.stages()[0]._tokens_of(x, self.dim)

    def output(self, total: Tensor, x: Tensor, where: Layout, mask: Tensor | None) -> Tensor:
        """(B, N, D) projected out, masked, and as the input was laid out."""
        out = self.project_out(total)
        if mask is not None:
            out = torch.where(mask.unsqueeze(-1), out, 0 if self.return_zeros_for_masked_padding else x)
        return where.restore(out)
