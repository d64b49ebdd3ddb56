"""Vector quantization with one codebook."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .estimators import Estimator
from .grouped import GroupedVQ, Quantized
from .losses import Regulariser
from .rules import CodebookRules


class VectorQuantize(GroupedVQ):
    """Replaces every row by the nearest of K codes.

    Args:
        dim: channels of the input, and dimension of the codes unless ``codebook_dim`` or ``heads`` say otherwise.
        codebook_size: K.
        heads: H; the channels are split into so many rows of one codebook.
        codebook_dim, metric, rules, estimator, commitment_weight, regularisers, sample_temperature, channel_dim,
            check_finite: as :class:`fastvq.GroupedVQ`.

    Buffers:
        those of :class:`fastvq.Codebook` with G = 1, under ``codebooks.``.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import VectorQuantize
        >>> vq = VectorQuantize(64, 256)
        >>> quantized, indices, loss = vq(torch.randn(8, 100, 64))
        >>> tuple(quantized.shape), tuple(indices.shape), tuple(loss.shape)
        ((8, 100, 64), (8, 100), ())
        >>> tuple(vq.decode(indices).shape)
        (8, 100, 64)
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        heads: int = 1,
        codebook_dim: int | None = None,
        metric: str = "l2",
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        regularisers: Sequence[Regulariser] = (),
        sample_temperature: float = 0.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            groups=1,
            heads=heads,
            codebook_dim=codebook_dim,
            metric=metric,
            rules=rules,
            estimator=estimator,
            commitment_weight=commitment_weight,
            regularisers=regularisers,
            sample_temperature=sample_temperature,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.GroupedVQ.forward`, with indices (*R), or (*R, H) for more than one head."""
        quantized, indices, loss = super().forward(x, mask, lengths=lengths)
        return Quantized(quantized, indices if self.heads > 1 else indices.squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x -> indices (*R), or (*R, H)."""
        indices = super().encode(x, mask, lengths=lengths)
        return indices if self.heads > 1 else indices.squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R), or (*R, H) -> quantized; -1 gives zeros before ``project_out``."""
        return super().decode(indices if self.heads > 1 else indices.unsqueeze(-1))
