"""Residual stacks of LFQ under vector-quantize-pytorch's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import validation as check
from .lookup_free import LFQ, power_of_two, row_mask
from .scalar import (
    StageDropout,
    from_rows,
    full_precision,
    plain_layers,
    projected,
    projections,
    shared_seed,
    stage_indices,
    sum_of,
    to_rows,
)


class ResidualLFQ(nn.Module):
    """Stages of LFQ, each half as large as the one before it and on what that left.

    Other than in vector-quantize-pytorch 1.32, the dropout of stages neither waits for the device nor breaks a graph,
    residuals stay float32 in half precision, and with ``spherical`` or ``orthogonal_rotation`` codes of indices are
    those of the forward pass.

    Args:
        dim: channels of the input; others than log2(codebook_size) are projected.
        num_quantizers: Q.
        codebook_size: K of every stage, a power of two.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: in training, stages after a
            drawn one are left out, with index -1 and loss 0.
        soft_clamp_input_value: what the first stage's input is squashed to; half of it for each further stage.
        kwargs: of :class:`LFQ`, but for what sets sizes and projections.

    Raises:
        TypeError, ValueError: arguments that do not fit, or that would have no effect.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Yu et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import ResidualLFQ
    >>> quantizer = ResidualLFQ(dim=256, codebook_size=256, num_quantizers=8).eval()
    >>> quantized, indices, commit_loss = quantizer(torch.randn(1, 1024, 256))
    >>> quantized.shape, indices.shape, commit_loss.shape
    (torch.Size([1, 1024, 256]), torch.Size([1, 1024, 8]), torch.Size([8]))
    >>> bool((quantized == quantizer.get_output_from_indices(indices)).all())
    True
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check.positive("num_quantizers", num_quantizers)
        plain_layers(
            "ResidualLFQ",
            kwargs,
            {
                "num_codebooks": 1,
                "keep_num_codebooks_dim": False,
                "channel_first": None,
                "has_projections": False,
                "projection_has_bias": True,
                "cosine_sim_project_in": False,
                "cosine_sim_project_in_scale": None,
            },
        )
        inner = power_of_two(codebook_size)
        self.has_projections = inner != dim
        self.project_in, self.project_out = projections(dim, inner, self.has_projections)
        self.dim, self.num_quantizers, self.codebook_size = dim, num_quantizers, codebook_size
        self.layers = nn.ModuleList(
            LFQ(
                dim=inner,
                codebook_scale=2.0**-stage,
                soft_clamp_input_value=soft_clamp_input_value and soft_clamp_input_value * 0.5**stage,
                **kwargs,
            )
            for stage in range(num_quantizers)
        )
        self.quantize_dropout = quantize_dropout and num_quantizers > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.stage_dropout = (
            StageDropout(num_quantizers, quantize_dropout_cutoff_index, quantize_dropout_multiple_of)
            if self.quantize_dropout
            else None
        )

    def _layer(self, stage: int) -> LFQ:
        layer = self.layers[stage]
        assert isinstance(layer, LFQ)
        return layer

    @property
    def codebooks(self) -> Tensor:
        """All codes of the stages, (Q, K, bits), worked out when read."""
        return torch.stack([self._layer(stage).codebook for stage in range(self.num_quantizers)])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, Q), or fewer stages with quantize_dropout -> codes of the stages, (Q, B, *R, bits)."""
        indices = stage_indices(indices, self.num_quantizers, self.quantize_dropout)
        codes = []
        for stage in range(self.num_quantizers):
            index = indices[..., stage]
            codes.append(torch.where((index >= 0).unsqueeze(-1), self._layer(stage).codes_of(index.clamp_min(0)), 0))
        return torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, Q) -> what forward quantized to, channels last."""
        return projected(self.project_out, sum_of(self.get_codes_from_indices(indices)))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes.

        Args:
            x: (B, N, dim), or (B, dim, *R) for images and videos.
            mask: (B, *R), bool: the rows that the losses see.
            return_all_codes: append the codes of all stages, (Q, B, *R, bits).
            rand_quantize_dropout_fixed_seed: of the dropout, instead of a drawn one.

        Returns:
            The quantized as x, indices (B, *R, Q) int64, and the losses (Q,).
        """
        check.floating("x", x)
        first = x.dim() >= 4
        rows, shape = to_rows(x, self.dim, first)
        rows = projected(self.project_in, rows)
        dtype, mask = rows.dtype, row_mask(mask, shape)
        with full_precision(x, True):
            left = rows.float() if dtype in (torch.float16, torch.bfloat16) else rows
            last = None
            if self.stage_dropout is not None and self.training and torch.is_grad_enabled():
                last = self.stage_dropout(rand_quantize_dropout_fixed_seed)
            total, found, losses = torch.zeros_like(left), [], []
            for stage in range(self.num_quantizers):
                quantized, index, loss = self.layers[stage](left, mask=mask)
                if last is not None:
                    quantized = torch.where(stage <= last, quantized, 0)
                    index, loss = torch.where(stage <= last, index, -1), torch.where(stage <= last, loss, 0)
                left = left - quantized.detach()
                total = total + quantized
                found.append(index)
                losses.append(loss)
        out = from_rows(projected(self.project_out, total.to(dtype)), shape, first)
        indices = torch.stack(found, -1).reshape(*shape, self.num_quantizers)
        result = (out, indices, torch.stack(losses, -1))
        return (*result, self.get_codes_from_indices(indices)) if return_all_codes else result


class GroupedResidualLFQ(nn.Module):
    """A ResidualLFQ for each of G groups of channels.

    Other than in vector-quantize-pytorch 1.32, no step waits for the device, and what indices of images give back has
    the layout of the forward pass.

    Args:
        dim: channels of the input. groups: G; divides dim.
        accept_image_fmap: (B, dim, *R).
        kwargs: of :class:`ResidualLFQ`.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Yu et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import GroupedResidualLFQ
    >>> quantizer = GroupedResidualLFQ(dim=256, groups=2, codebook_size=256, num_quantizers=4)
    >>> quantized, indices, commit_loss = quantizer(torch.randn(1, 1024, 256))
    >>> quantized.shape, indices.shape, commit_loss.shape
    (torch.Size([1, 1024, 256]), torch.Size([2, 1, 1024, 4]), torch.Size([2, 4]))
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"dim must be a multiple of groups, got dim={dim} and groups={groups}")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList(ResidualLFQ(dim=dim // groups, **kwargs) for _ in range(groups))

    def _stack(self, group: int) -> ResidualLFQ:
        stack = self.rvqs[group]
        assert isinstance(stack, ResidualLFQ)
        return stack

    @property
    def codebooks(self) -> Tensor:
        """(G, Q, K, bits)."""
        return torch.stack([self._stack(group).codebooks for group in range(self.groups)])

    @property
    def split_dim(self) -> int:
        """The axis of the channels."""
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (G, B, *R, Q) -> (G, Q, B, *R, bits)."""
        return torch.stack([self._stack(g).get_codes_from_indices(index) for g, index in enumerate(indices)])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (G, B, *R, Q) -> what forward quantized to, in its layout."""
        outputs = [self._stack(g).get_output_from_indices(index) for g, index in enumerate(indices)]
        joined = torch.cat(outputs, -1)
        return joined.movedim(-1, 1) if self.accept_image_fmap else joined

    def forward(self, x: Tensor, mask: Tensor | None = None, return_all_codes: bool = False) -> tuple[Any, ...]:
        """As :meth:`ResidualLFQ.forward`, with a leading axis G on indices and losses, and a tuple of G for codes."""
        if x.dim() < 2 or x.shape[self.split_dim] != self.dim:
            raise ValueError(f"x must have {self.dim} channels on axis {self.split_dim}, got shape {tuple(x.shape)}")
        drops = self.training and self._stack(0).quantize_dropout
        seed = shared_seed(x.device) if drops else None
        parts = x.chunk(self.groups, self.split_dim)
        results = [rvq(part, mask, return_all_codes, seed) for rvq, part in zip(self.rvqs, parts, strict=True)]
        quantized, indices, losses, *codes = zip(*results, strict=True)
        return (torch.cat(quantized, self.split_dim), torch.stack(indices), torch.stack(losses), *codes)
