"""LatentQuantize under vector-quantize-pytorch's name (Hsu et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ... import validation as check
from ...finite_scalar import checked_levels
from ...scalar import straight_through
from .scalar import from_rows, kept_axis, projected, projections, to_rows


class _Values(nn.Module):
    """Fixed tensors that move with the module and are not saved."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        for place, value in enumerate(values):
            self.register_buffer(str(place), value, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __getitem__(self, place: int) -> Tensor:
        return list(self)[place]

    def __iter__(self) -> Iterator[Tensor]:
        return (value for value in self._buffers.values() if value is not None)


class LatentQuantize(nn.Module):
    """Replaces each channel by the nearest of its own scalar values.

    The arguments and what comes back are vector-quantize-pytorch 1.32's. Other than there, an index is that of the
    value chosen and never a rounded product, so that no level is lost to truncation; codes of indices are the values
    themselves, also after they were changed or loaded; sequences may have their channels last; the losses break no
    graph, and follow the module's device.

    Args:
        levels: how many values each channel of a code has; an int for ``codebook_dim`` channels alike.
        dim: channels of the input; others than num_codebooks * codebook_dim are projected.
        commitment_loss_weight, quantization_loss_weight: of the mean squared differences of input and output, with
            gradients to the output and to the input; None for 0.
        num_codebooks: codes for each row, over as many parts of the channels.
        codebook_dim: channels of a code, where levels is an int.
        keep_num_codebooks_dim: whether indices have an axis for codebooks; by default if there is more than one.
        optimize_values: whether the values are parameters. As in vector-quantize-pytorch no gradient reaches them.
        in_place_codebook_optimizer: refused; in vector-quantize-pytorch it fails at the first training step.

    Parameters:
        values_per_latent.d (levels[d],), with optimize_values; otherwise buffers, not saved.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Hsu et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import LatentQuantize
    >>> quantizer = LatentQuantize(levels=[5, 5, 8], dim=16)
    >>> quantized, indices, loss = quantizer(torch.randn(1, 16, 32, 32))
    >>> quantized.shape, indices.shape, loss.shape
    (torch.Size([1, 16, 32, 32]), torch.Size([1, 32, 32]), torch.Size([]))
    >>> bool((quantized == quantizer.indices_to_codes(indices)).all())
    True
    """

    _levels: Tensor
    _basis: Tensor
    commitment_loss_weight: Tensor
    quantization_loss_weight: Tensor

    def __init__(
        self,
        levels: Sequence[int] | int,
        dim: int,
        commitment_loss_weight: float | None = 0.1,
        quantization_loss_weight: float | None = 0.1,
        num_codebooks: int = 1,
        codebook_dim: int = -1,
        keep_num_codebooks_dim: bool | None = None,
        optimize_values: bool | None = True,
        in_place_codebook_optimizer: Any = None,
    ) -> None:
        super().__init__()
        if in_place_codebook_optimizer is not None:
            raise ValueError(
                "in_place_codebook_optimizer is not supported, since no gradient reaches the values; "
                "give values_per_latent to an optimizer of your own, with a loss on indices_to_codes"
            )
        if isinstance(levels, int):
            if codebook_dim < 1:
                raise ValueError("codebook_dim must be given where levels is an int; or pass a list of levels")
            levels = [levels] * codebook_dim
        levels = checked_levels(levels, 2)
        if codebook_dim > 0 and codebook_dim != len(levels):
            raise ValueError(f"codebook_dim must be the number of levels, {len(levels)}, got {codebook_dim}")
        check.positive("num_codebooks", num_codebooks)
        self.dim, self.codebook_dim, self.num_codebooks = dim, len(levels), num_codebooks
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        self.keep_num_codebooks_dim = kept_axis(keep_num_codebooks_dim or None, num_codebooks)
        self.codebook_size = math.prod(levels)
        self.in_place_codebook_optimizer = None
        for name, weight in (
            ("commitment_loss_weight", commitment_loss_weight),
            ("quantization_loss_weight", quantization_loss_weight),
        ):
            self.register_buffer(name, torch.tensor(weight or 0.0), persistent=False)
        # Known without asking the device.
        self._weights = (commitment_loss_weight or 0.0, quantization_loss_weight or 0.0)
        self.index_dtype = torch.int32 if self.codebook_size < 2**31 else torch.int64
        basis = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels, dtype=torch.int32), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis, dtype=self.index_dtype), persistent=False)
        self.has_projections = dim != self.effective_codebook_dim
        self.project_in, self.project_out = projections(dim, self.effective_codebook_dim, self.has_projections)
        values = [
            torch.linspace(-0.5, 0.5, level) if level % 2 else torch.arange(level) / level - 0.5 for level in levels
        ]
        self.optimize_values = bool(optimize_values)
        if optimize_values:
            self.values_per_latent: Any = nn.ParameterList(nn.Parameter(value) for value in values)
        else:
            self.values_per_latent = _Values(values)

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes, (codebook_size, D), worked out when read."""
        return self._digits_to_values(self._digits(torch.arange(self.codebook_size, device=self._levels.device)))

    def _digits(self, indices: Tensor) -> Tensor:
        return indices.unsqueeze(-1) // self._basis % self._levels

    def _digits_to_values(self, digits: Tensor) -> Tensor:
        return torch.stack([values[digits[..., d]] for d, values in enumerate(self.values_per_latent)], -1)

    def _nearest(self, z: Tensor) -> Tensor:
        """z (..., D) -> which of its values is nearest, (..., D); the first of several."""
        found = [(z[..., d, None] - values).abs().argmin(-1) for d, values in enumerate(self.values_per_latent)]
        return torch.stack(found, -1)

    def _index(self, digits: Tensor) -> Tensor:
        return (digits * self._basis).sum(-1).to(self.index_dtype)

    def quantization_loss(self, z: Tensor, zhat: Tensor, reduce: str = "mean") -> Tensor:
        """The mean squared difference, with a gradient to z."""
        return nnf.mse_loss(zhat.detach(), z, reduction=reduce)

    def commitment_loss(self, z: Tensor, zhat: Tensor, reduce: str = "mean") -> Tensor:
        """The mean squared difference, with a gradient to zhat."""
        return nnf.mse_loss(z.detach(), zhat, reduction=reduce)

    def quantize(self, z: Tensor) -> Tensor:
        """z (..., D) -> the nearest values, with the gradient passed straight to z."""
        return straight_through(z, self._digits_to_values(self._nearest(z)).to(z.dtype))

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Codes (..., D) -> indices (...): of the values nearest to them."""
        if zhat.shape[-1] != self.codebook_dim:
            raise ValueError(f"codes must have {self.codebook_dim} channels last, got shape {tuple(zhat.shape)}")
        return self._index(self._nearest(zhat.detach()))

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Indices (B, *R[, num_codebooks]) -> what forward quantized to, channels first."""
        codes = self._digits_to_values(self._digits(indices))
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        if project_out:
            codes = projected(self.project_out, codes)
        return codes.movedim(-1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes.

        Args:
            z: (B, dim, *R); or (B, N, dim), where axis 1 is not dim.

        Returns:
            The quantized as z, indices (B, *R[, num_codebooks]) int32, and the loss; zero in eval mode. A
            row with a NaN has NaN and -1.
        """
        check.floating("z", z)
        first = not (z.dim() == 3 and z.shape[1] != self.dim and z.shape[2] == self.dim)
        rows, shape = to_rows(z, self.dim, first)
        rows = projected(self.project_in, rows).unflatten(-1, (self.num_codebooks, self.codebook_dim))
        digits = self._nearest(rows)
        codes = straight_through(rows, self._digits_to_values(digits).to(rows.dtype))
        out = from_rows(projected(self.project_out, codes.flatten(-2)), shape, first)
        indices = torch.where(rows.isnan().any(-1), -1, self._index(digits)).reshape(*shape, self.num_codebooks)
        if not self.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        loss = torch.zeros((), device=z.device)
        if self.training:
            if self._weights[0]:
                loss = loss + self.commitment_loss_weight * self.commitment_loss(z, out)
            if self._weights[1]:
                loss = loss + self.quantization_loss_weight * self.quantization_loss(z, out)
        return out, indices, loss
