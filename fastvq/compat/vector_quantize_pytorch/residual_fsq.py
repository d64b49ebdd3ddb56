"""Residual stacks of FSQ under vector-quantize-pytorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import validation as check
from .finite_scalar import FSQ
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


class ResidualFSQ(nn.Module):
    """Stages of FSQ, each on what the stages before it left.

    Other than in vector-quantize-pytorch 1.32, a stage's scale stays float32 in a module cast to half precision, the
    dropout of stages neither waits for the device nor breaks a graph, and with ``orthogonal_rotation`` codes of
    indices are those of the forward pass.

    Args:
        levels: of every stage.
        num_quantizers: Q.
        dim: channels of the input; others than len(levels) are projected.
        is_channel_first: (B, dim, *R) in, and indices (B, Q, *R) out.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: in training, stages after a
            drawn one are left out, with index -1.
        soft_clamp_input_value: the input is squashed to this; with bound_hard_clamp it is 1 + 1 / (levels - 1).
        bound_hard_clamp: of the stages.
        kwargs: allowed_dtypes, force_quantization_f32, noise_dropout and orthogonal_rotation of :class:`FSQ`.

    Raises:
        TypeError, ValueError: arguments that do not fit, or that would have no effect.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Mentzer et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import ResidualFSQ
    >>> quantizer = ResidualFSQ(dim=256, levels=[8, 5, 5, 3], num_quantizers=8).eval()
    >>> quantized, indices = quantizer(torch.randn(1, 1024, 256))
    >>> quantized.shape, indices.shape
    (torch.Size([1, 1024, 256]), torch.Size([1, 1024, 8]))
    >>> bool((quantized == quantizer.get_output_from_indices(indices)).all())
    True
    """

    _soft_clamp: Tensor | None

    def __init__(
        self,
        *,
        levels: Sequence[int],
        num_quantizers: int,
        dim: int | None = None,
        is_channel_first: bool = False,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | list[float] | Tensor | None = None,
        bound_hard_clamp: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check.positive("num_quantizers", num_quantizers)
        plain_layers(
            "ResidualFSQ",
            kwargs,
            {
                "num_codebooks": 1,
                "keep_num_codebooks_dim": False,
                "channel_first": False,
                "projection_has_bias": True,
                "return_indices": True,
                "preserve_symmetry": True,
            },
        )
        kwargs.pop("preserve_symmetry", None)
        if bound_hard_clamp and soft_clamp_input_value is not None:
            raise ValueError("soft_clamp_input_value is given by bound_hard_clamp=True; pass bound_hard_clamp=False")
        inner = len(levels)
        dim = inner if dim is None else dim
        self.has_projections = inner != dim
        self.project_in, self.project_out = projections(dim, inner, self.has_projections)
        self.is_channel_first, self.num_quantizers, self.levels = is_channel_first, num_quantizers, levels
        self.dim, self.bound_hard_clamp = dim, bound_hard_clamp
        self.layers = nn.ModuleList(
            FSQ(levels=levels, dim=inner, preserve_symmetry=True, bound_hard_clamp=bound_hard_clamp, **kwargs)
            for _ in range(num_quantizers)
        )
        self.codebook_size: int = self._layer(0).codebook_size
        self.quantize_dropout = quantize_dropout and num_quantizers > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.stage_dropout = (
            StageDropout(num_quantizers, quantize_dropout_cutoff_index, quantize_dropout_multiple_of)
            if self.quantize_dropout
            else None
        )
        given = None if soft_clamp_input_value is None else torch.as_tensor(soft_clamp_input_value)
        self.register_buffer("_soft_clamp", given, persistent=False)

    def _layer(self, stage: int) -> FSQ:
        layer = self.layers[stage]
        assert isinstance(layer, FSQ)
        return layer

    @property
    def scales(self) -> Tensor:
        """What the codes of each stage are multiplied by, (Q, D): float32 whatever the module is cast to."""
        levels = self._layer(0)._levels.float()
        return torch.stack([levels**-stage for stage in range(self.num_quantizers)])

    @property
    def soft_clamp_input_value(self) -> Tensor | None:
        """What the input is squashed to, or None."""
        return 1 + 1 / (self._layer(0)._levels - 1) if self.bound_hard_clamp else self._soft_clamp

    @property
    def codebooks(self) -> Tensor:
        """All codes of the stages before their scales, (Q, K, D), worked out when read."""
        return torch.stack([self._layer(stage).implicit_codebook for stage in range(self.num_quantizers)])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, Q), or fewer stages with quantize_dropout -> codes of the stages, (Q, B, *R, D)."""
        indices = stage_indices(indices, self.num_quantizers, self.quantize_dropout)
        codes = []
        for stage, scale in enumerate(self.scales):
            layer, index = self._layer(stage), indices[..., stage]
            code = layer._indices_to_codes(index.clamp_min(0))
            if layer.orthogonal_rotation:
                code = code @ layer.orthogonal_rot.to(code.dtype).t()
            codes.append(torch.where((index >= 0).unsqueeze(-1), code * scale, 0))
        return torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, Q) -> what forward quantized to, channels last."""
        return projected(self.project_out, sum_of(self.get_codes_from_indices(indices)))

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes.

        Args:
            x: (B, N, dim), or (B, dim, *R) with is_channel_first.
            return_all_codes: append the codes of all stages, (Q, B, *R, D).
            rand_quantize_dropout_fixed_seed: of the dropout, instead of a drawn one.

        Returns:
            The quantized as x, and indices (B, *R, Q), or (B, Q, *R) with is_channel_first; int32.
        """
        check.floating("x", x)
        first = self.is_channel_first
        rows, shape = to_rows(x, self.dim, first)
        rows = projected(self.project_in, rows)
        dtype = rows.dtype
        with full_precision(x, True):
            if dtype in (torch.float16, torch.bfloat16):
                rows = rows.float()
            clamp = self.soft_clamp_input_value
            if clamp is not None:
                rows = (rows / clamp).tanh() * clamp
            last = None
            if self.stage_dropout is not None and self.training and torch.is_grad_enabled():
                last = self.stage_dropout(rand_quantize_dropout_fixed_seed)
            left, total, found = rows, torch.zeros_like(rows), []
            for stage, scale in enumerate(self.scales):
                quantized, index = self.layers[stage](left / scale)
                quantized = quantized * scale
                if last is not None:
                    quantized = torch.where(stage <= last, quantized, 0)
                    index = torch.where(stage <= last, index, -1)
                left = left - quantized.detach()
                total = total + quantized
                found.append(index)
            indices = torch.stack(found, -1)
        out = from_rows(projected(self.project_out, total.to(dtype)), shape, first)
        result = (out, from_rows(indices, shape, first))
        if not return_all_codes:
            return result
        return (*result, self.get_codes_from_indices(indices.reshape(*shape, -1)))


class GroupedResidualFSQ(nn.Module):
    """A ResidualFSQ for each of G groups of channels.

    Other than in vector-quantize-pytorch 1.32, no step waits for the device.

    Args:
        dim: channels of the input. groups: G; divides dim.
        accept_image_fmap: (B, dim, *R); with is_channel_first=True.
        kwargs: of :class:`ResidualFSQ`.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Mentzer et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import GroupedResidualFSQ
    >>> quantizer = GroupedResidualFSQ(dim=256, groups=2, levels=[5, 5, 3], num_quantizers=4)
    >>> quantized, indices = quantizer(torch.randn(1, 1024, 256))
    >>> quantized.shape, indices.shape
    (torch.Size([1, 1024, 256]), torch.Size([2, 1, 1024, 4]))
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"dim must be a multiple of groups, got dim={dim} and groups={groups}")
        if bool(kwargs.get("is_channel_first", False)) != accept_image_fmap:
            raise ValueError("accept_image_fmap and is_channel_first must be the same; pass both or neither")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList(ResidualFSQ(dim=dim // groups, **kwargs) for _ in range(groups))
        self.codebook_size: int = self._stack(0).codebook_size

    def _stack(self, group: int) -> ResidualFSQ:
        stack = self.rvqs[group]
        assert isinstance(stack, ResidualFSQ)
        return stack

    @property
    def codebooks(self) -> Tensor:
        """(G, Q, K, D)."""
        return torch.stack([self._stack(group).codebooks for group in range(self.groups)])

    @property
    def split_dim(self) -> int:
        """The axis of the channels."""
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (G, B, *R, Q) -> (G, Q, B, *R, D)."""
        return torch.stack([self._stack(g).get_codes_from_indices(index) for g, index in enumerate(indices)])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (G, B, *R, Q) -> what forward quantized to, in its layout."""
        outputs = [self._stack(g).get_output_from_indices(index) for g, index in enumerate(indices)]
        joined = torch.cat(outputs, -1)
        return joined.movedim(-1, 1) if self.accept_image_fmap else joined

    def forward(self, x: Tensor, return_all_codes: bool = False) -> tuple[Any, ...]:
        """As :meth:`ResidualFSQ.forward`, with a leading axis G on indices, and a tuple of G for codes."""
        if x.dim() < 2 or x.shape[self.split_dim] != self.dim:
            raise ValueError(f"x must have {self.dim} channels on axis {self.split_dim}, got shape {tuple(x.shape)}")
        drops = self.training and self._stack(0).quantize_dropout
        seed = shared_seed(x.device) if drops else None
        parts = x.chunk(self.groups, self.split_dim)
        results = [rvq(part, return_all_codes, seed) for rvq, part in zip(self.rvqs, parts, strict=True)]
        quantized, indices, *codes = zip(*results, strict=True)
        return (torch.cat(quantized, self.split_dim), torch.stack(indices), *codes)
