"""ResidualSimVQ with the keywords, returns and state-dict keys of vector-quantize-pytorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ... import validation as check
from . import layout
from .dropout import QuantizeDropout
from .sim_vq import SimVQ, quantize_by


class ResidualSimVQ(nn.Module):
    """Quantizes every row in Q stages of :class:`SimVQ`, in one search; a drop-in for the class of this name.

    Args:
        dim: channels of the input.
        num_quantizers: Q.
        codebook_size: K.
        heads: 1.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: in training take only the
            first stages, at random; the others get index -1 and loss 0.
        channel_first: (B, C, *R).
        rotation_trick: how gradients pass to the input; else straight through.
        sim_vq_kwargs: of :class:`SimVQ`.

    Buffers:
        those of :class:`SimVQ` under ``layers.i.``.

    Raises:
        TypeError, ValueError: sizes below 1, shapes that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Zhu et al. 2024.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import ResidualSimVQ
    >>> sim_vq = ResidualSimVQ(dim=512, num_quantizers=4, codebook_size=1024, rotation_trick=True)
    >>> quantized, indices, loss = sim_vq(torch.randn(1, 1024, 512))
    >>> tuple(quantized.shape), tuple(indices.shape), tuple(loss.shape)
    ((1, 1024, 512), (1, 1024, 4), (4,))
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **sim_vq_kwargs: Any,
    ) -> None:
        super().__init__()
        check.positive("num_quantizers", num_quantizers)
        if heads != 1:
            raise ValueError(f"heads must be 1 in a residual stack, got {heads}; use one stack for each head")
        if not 0 <= quantize_dropout_cutoff_index < num_quantizers:
            raise ValueError(
                f"quantize_dropout_cutoff_index must lie in [0, {num_quantizers}), "
                f"got {quantize_dropout_cutoff_index}"
            )
        self.channel_first, self.num_quantizers = channel_first, num_quantizers
        self.layers = nn.ModuleList(
            SimVQ(
                dim=dim,
                codebook_size=codebook_size,
                rotation_trick=rotation_trick,
                channel_first=channel_first,
                **sim_vq_kwargs,
            )
            for _ in range(num_quantizers)
        )
        self.quantize_dropout = quantize_dropout and num_quantizers > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of

    def stages(self) -> list[SimVQ]:
        """The layers."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.stages()[0].codebook_size

    @property
    def codebook_dim(self) -> int:
        """The dimension of the codes."""
        return self.stages()[0].dim

    @property
    def codebooks(self) -> Tensor:
        """The codes of all stages, (Q, K, D), with gradients to the maps."""
        return torch.stack([layer.codebook for layer in self.stages()])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, q), q up to Q -> each stage's codes, (Q, B, *R, D) or (Q, B, D, *R); -1 gives 0."""
        flat = indices.flatten(0, -2)
        flat = nn.functional.pad(flat, (0, self.num_quantizers - flat.shape[-1]), value=-1)
        codes = F.lookup(flat.T[:, :, None].contiguous(), self.codebooks.unsqueeze(1))
        codes = codes.view(self.num_quantizers, *indices.shape[:-1], codes.shape[-1])
        return codes.movedim(-1, 2) if self.channel_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """indices (B, *R, q) -> the sum of their codes, channels where the input has them."""
        return self.get_codes_from_indices(indices).sum(0)

    def forward(
        self, x: Tensor, return_all_codes: bool = False, rand_quantize_dropout_fixed_seed: int | None = None
    ) -> tuple[Tensor, ...]:
        """Quantizes.

        Args:
            x: (B, *R, C), with ``channel_first`` (B, C, *R).
            return_all_codes: also return each stage's codes.
            rand_quantize_dropout_fixed_seed: of this call's quantize-dropout.

        Returns:
            quantized as x; indices (B, *R, Q), -1 where dropped; losses (Q,); codes (Q, B, *R, D) on request.
        """
        rows, where = layout.tokens(x, first=self.channel_first, image=False, volume=False)
        layers, depth = self.stages(), None
        if self.training and self.quantize_dropout:
            dropout = QuantizeDropout(
                self.num_quantizers, self.quantize_dropout_cutoff_index, self.quantize_dropout_multiple_of
            )
            if rand_quantize_dropout_fixed_seed is None and torch.compiler.is_compiling():
                depth = dropout.traced(x.device)
            else:
                layers = layers[: dropout.draw(rand_quantize_dropout_fixed_seed, x.device)]
        quantized, indices, losses = quantize_by(layers, rows, depth)
        missing = self.num_quantizers - len(layers)
        indices = where.restore_indices(nn.functional.pad(indices, (0, missing), value=-1))
        out = where.restore(quantized), indices, nn.functional.pad(losses, (0, missing))
        return (*out, self.get_codes_from_indices(indices)) if return_all_codes else out
