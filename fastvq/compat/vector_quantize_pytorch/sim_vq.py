"""SimVQ with the keywords, returns and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ... import functional as F
from ... import validation as check
from . import layout
from .gradients import StackGradients, stack_pass


class SimVQ(nn.Module):
    """Codes made from a frozen random codebook by a learned map; a drop-in for the class of this name.

    Args:
        dim: channels of the input.
        codebook_size: K.
        codebook_transform: module (K, E) -> (K, dim); by default a linear map without bias.
        init_fn: applied to the random frozen codebook.
        channel_first: (B, C, *R).
        rotation_trick: how gradients pass to the input; else straight through.
        input_to_quantize_commit_loss_weight: of the loss's gradient to the input, beside 1 to the codes.
        commitment_weight: of the loss.
        frozen_codebook_dim: E, by default ``dim``.

    Buffers:
        frozen_codebook: (K, E). The map's parameters are under ``code_transform.``.

    Raises:
        TypeError, ValueError: sizes below 1, shapes that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Zhu et al. 2024.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import SimVQ
    >>> sim_vq = SimVQ(dim=512, codebook_size=1024, rotation_trick=True)
    >>> quantized, indices, loss = sim_vq(torch.randn(1, 1024, 512))
    >>> tuple(quantized.shape), tuple(indices.shape), tuple(loss.shape)
    ((1, 1024, 512), (1, 1024), ())
    """

    frozen_codebook: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] | None = None,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = dim if frozen_codebook_dim is None else frozen_codebook_dim
        for name, size in (("dim", dim), ("codebook_size", codebook_size), ("frozen_codebook_dim", width)):
            check.positive(name, size)
        self.dim, self.codebook_size, self.channel_first = dim, codebook_size, channel_first
        codebook = torch.randn(codebook_size, width) * width**-0.5
        codebook = codebook if init_fn is None else init_fn(codebook)
        self.code_transform = nn.Linear(width, dim, bias=False) if codebook_transform is None else codebook_transform
        self.register_buffer("frozen_codebook", codebook)
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight

    @property
    def codebook(self) -> Tensor:
        """The codes, (K, dim), with gradients to the map."""
        codes: Tensor = self.code_transform(self.frozen_codebook)
        return codes

    @property
    def codebook_dim(self) -> int:
        """The dimension of the codes."""
        return self.dim

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """indices (B, *R) -> codes, channels where the input has them."""
        codes: Tensor = self.code_transform(self.frozen_codebook[indices])
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes.

        Args:
            x: (B, *R, C), with ``channel_first`` (B, C, *R).

        Returns:
            quantized as x; indices (B, *R), -1 where x is not finite; loss ().
        """
        rows, where = layout.tokens(x, first=self.channel_first, image=False, volume=False)
        quantized, indices, losses = quantize_by([self], rows)
        return where.restore(quantized), where.restore_indices(indices[..., 0]), losses[0]


def quantize_by(layers: list[SimVQ], rows: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes rows by the maps' codes, stage after stage, in one search.

    Args:
        rows: (B, N, C).
        depth: () int64, how many stages are taken; None for all.

    Returns:
        quantized (B, N, C), with gradients to the rows; indices (B, N, Q); weighted losses (Q,), with gradients to
        rows and maps.
    """
    if rows.shape[-1] != layers[0].dim:
        raise ValueError(f"x must have {layers[0].dim} channels, got {rows.shape[-1]}")
    first = layers[0]
    codebooks = torch.stack([layer.codebook for layer in layers]).unsqueeze(0)
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    codebooks, x = codebooks.to(wide), rows.unsqueeze(0)
    frozen = codebooks.detach()
    limit = None if depth is None else depth.expand(rows.shape[:2])
    indices, quantized, errors = F.residual_nearest(x.detach(), frozen, stages=limit)
    share = first.input_to_quantize_commit_loss_weight
    how = StackGradients(
        rotate=first.rotation_trick, through=0.0, to_rows=share / (1 + share), to_codes=1 / (1 + share)
    )
    passed, means = stack_pass(x, codebooks, indices, quantized, errors, how)
    weights = means.new_tensor([layer.commitment_weight * (1 + share) for layer in layers])
    return passed[0], indices[0], means[0] * weights
