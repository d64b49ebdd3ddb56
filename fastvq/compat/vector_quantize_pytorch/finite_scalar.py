"""FSQ and its residual stacks under vector-quantize-pytorch's names (Mentzer et al. 2023)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ... import validation as check
from ...finite_scalar import SLACK, checked_levels
from ...scalar import straight_through
from .scalar import (
    from_rows,
    full_precision,
    kept_axis,
    projected,
    projections,
    to_rows,
)


class FSQ(nn.Module):
    """Rounds channels to levels.

    The arguments and what comes back are vector-quantize-pytorch 1.32's. Other than there, indices are summed as
    integers, so they are right beyond 2^24 codes; ``implicit_codebook`` is worked out when it is read, so that a
    large one costs nothing; and a module cast to half precision decodes its indices too.

    Args:
        levels: levels of each channel of a code.
        dim: channels of the input; by default num_codebooks * len(levels). Others are projected.
        num_codebooks: codes for each row, over as many parts of the channels.
        keep_num_codebooks_dim: whether indices have an axis for them; by default if there is more than one.
        scale: refused; it has no effect in vector-quantize-pytorch.
        allowed_dtypes, force_quantization_f32: with the second, other dtypes are quantized in float32.
        channel_first: channels on axis 1 even of a sequence; images and videos always have them there.
        projection_has_bias: of the projections.
        return_indices: False returns None for them.
        preserve_symmetry: levels even in [-1, 1].
        noise_dropout: share of entries that get uniform noise in training; with preserve_symmetry only.
        bound_hard_clamp: the input is clamped instead of squashed.
        orthogonal_rotation: a fixed random rotation before, undone after.

    Buffers:
        orthogonal_rot (D, D), where rotated. Not saved: _levels, _basis (D,).

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Mentzer et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import FSQ
    >>> quantizer = FSQ(levels=[8, 5, 5, 5])
    >>> xhat, indices = quantizer(torch.randn(1, 1024, 4))
    >>> xhat.shape, indices.shape
    (torch.Size([1, 1024, 4]), torch.Size([1, 1024]))
    >>> bool((xhat == quantizer.indices_to_codes(indices)).all())
    True
    """

    _levels: Tensor
    _basis: Tensor
    orthogonal_rot: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        if 2 in levels and not preserve_symmetry:
            raise ValueError("levels may hold 2 with preserve_symmetry=True only; pass it, or more levels")
        levels = checked_levels(levels, 2)
        check.positive("num_codebooks", num_codebooks)
        if scale is not None:
            raise ValueError("scale has no effect in vector-quantize-pytorch; leave it out and multiply the output")
        if noise_dropout > 0 and not preserve_symmetry:
            raise ValueError("noise_dropout needs preserve_symmetry=True; pass it too")
        self.scale = None
        self.codebook_dim = len(levels)
        self.num_codebooks = num_codebooks
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        self.keep_num_codebooks_dim = kept_axis(keep_num_codebooks_dim, num_codebooks)
        self.dim = self.effective_codebook_dim if dim is None else dim
        self.codebook_size = math.prod(levels)
        self.index_dtype = torch.int32 if self.codebook_size < 2**31 else torch.int64
        basis = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels, dtype=torch.int32), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis, dtype=self.index_dtype), persistent=False)
        self.channel_first, self.return_indices = channel_first, return_indices
        self.allowed_dtypes, self.force_quantization_f32 = allowed_dtypes, force_quantization_f32
        self.preserve_symmetry, self.noise_dropout = preserve_symmetry, noise_dropout
        self.bound_hard_clamp, self.orthogonal_rotation = bound_hard_clamp, orthogonal_rotation
        self.has_projections = self.dim != self.effective_codebook_dim
        self.project_in, self.project_out = projections(
            self.dim, self.effective_codebook_dim, self.has_projections, projection_has_bias
        )
        if orthogonal_rotation:
            if len(set(levels)) > 1:
                warnings.warn(
                    "orthogonal_rotation mixes channels, so use as many levels in each", UserWarning, stacklevel=2
                )
            rotation = torch.empty(self.codebook_dim, self.codebook_dim)
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(rotation))

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes, (codebook_size, D), worked out when read."""
        return self._indices_to_codes(torch.arange(self.codebook_size, device=self._levels.device))

    def bound(self, z: Tensor, eps: float = SLACK, hard_clamp: bool = False) -> Tensor:
        """z (..., D) bounded and rounded, as a share of half the levels."""
        half = (self._levels - 1) * (1 + eps) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        if hard_clamp:
            bounded = (z + offset / half).clamp(-1.0, 1.0) * half - offset
        else:
            bounded = (z + (offset / half).atanh()).tanh() * half - offset
        return straight_through(bounded, bounded.round()) / (self._levels // 2)

    def symmetry_preserving_bound(self, z: Tensor, hard_clamp: bool = False) -> Tensor:
        """z (..., D) bounded and rounded to levels even in [-1, 1] (Parker et al. 2024, section 3.2)."""
        steps = self._levels - 1
        position = steps * ((z.clamp(-1.0, 1.0) if hard_clamp else z.tanh()) + 1) / 2.0 + 0.5
        return (2.0 / steps) * straight_through(position, position.floor()) - 1.0

    def quantize(self, z: Tensor) -> Tensor:
        """z (..., D) -> its codes."""
        bound = self.symmetry_preserving_bound if self.preserve_symmetry else self.bound
        return bound(z, hard_clamp=self.bound_hard_clamp)

    def maybe_apply_noise(self, bounded_z: Tensor) -> Tensor:
        """In training, uniform noise of width 1 on a share of the entries, within [-1, 1]."""
        if not self.training or self.noise_dropout == 0.0:
            return bounded_z
        chosen = torch.full_like(bounded_z, self.noise_dropout).bernoulli_().bool()
        noise = torch.rand_like(bounded_z) - 0.5
        return torch.where(chosen, bounded_z + noise, bounded_z).clamp(-1.0, 1.0)

    def _code_levels(self, codes: Tensor) -> Tensor:
        if self.preserve_symmetry:
            return (codes + 1.0) / (2.0 / (self._levels - 1))
        half = self._levels // 2
        return codes * half + half

    def _indices_to_codes(self, indices: Tensor) -> Tensor:
        levels = self.indices_to_level_indices(indices)
        if self.preserve_symmetry:
            return levels * (2.0 / (self._levels - 1)) - 1.0
        half = self._levels // 2
        return (levels - half) / half

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """indices (...) -> the level of each channel, (..., D)."""
        return indices.unsqueeze(-1) // self._basis % self._levels

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Codes (..., D) -> indices (...), -1 where one is NaN."""
        if zhat.shape[-1] != self.codebook_dim:
            raise ValueError(f"codes must have {self.codebook_dim} channels last, got shape {tuple(zhat.shape)}")
        levels = self._code_levels(zhat.detach()).round().nan_to_num().to(self.index_dtype)
        index = (levels * self._basis).sum(-1, dtype=self.index_dtype)
        return torch.where(zhat.isnan().any(-1), -1, index)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Indices as forward returns them -> what it quantized to, projected and in its layout."""
        if indices is None:
            raise ValueError("indices must be given; a module with return_indices=False has none")
        first = self.channel_first or indices.dim() >= 3 + self.keep_num_codebooks_dim
        codes = self._indices_to_codes(indices)
        if self.orthogonal_rotation:
            codes = codes @ self.orthogonal_rot.to(codes.dtype).t()
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        codes = projected(self.project_out, codes)
        return codes.movedim(-1, 1) if first else codes

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantizes.

        Args:
            z: (B, N, dim); (B, dim, *R) for images, videos, and with channel_first.

        Returns:
            The quantized as z, and indices (B, *R[, num_codebooks]), int32, or None. A row with a NaN has NaN and -1.
        """
        check.floating("z", z)
        first = self.channel_first or z.dim() >= 4
        rows, shape = to_rows(z, self.dim, first)
        rows = projected(self.project_in, rows).unflatten(-1, (self.num_codebooks, self.codebook_dim))
        dtype, indices = rows.dtype, None
        with full_precision(z, self.force_quantization_f32):
            if self.force_quantization_f32 and dtype not in self.allowed_dtypes:
                rows = rows.float()
            if self.orthogonal_rotation:
                rows = rows @ self.orthogonal_rot.to(rows.dtype)
            codes = self.quantize(rows)
            if self.return_indices:
                indices = self.codes_to_indices(codes).reshape(*shape, self.num_codebooks)
                if not self.keep_num_codebooks_dim:
                    indices = indices.squeeze(-1)
            codes = self.maybe_apply_noise(codes)
            if self.orthogonal_rotation:
                codes = codes @ self.orthogonal_rot.to(codes.dtype).t()
        out = projected(self.project_out, codes.flatten(-2).to(dtype))
        return from_rows(out, shape, first), indices
