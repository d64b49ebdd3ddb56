"""Vector quantization with one codebook."""

from __future__ import annotations

from torch import Tensor

from .estimators import Estimator
from .grouped import GroupedVQ, Quantized
from .rules import CodebookRules


class VectorQuantize(GroupedVQ):
    """Replaces every row by the nearest of K codes.

    Args:
        dim: channels of the input and dimension of the codes.
        codebook_size: K.
        metric, rules, estimator, commitment_weight, channel_dim, check_finite: as :class:`fastvq.GroupedVQ`.

    Buffers:
        those of :class:`fastvq.Codebook` with G = 1, under ``codebooks.``.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        metric: str = "l2",
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            groups=1,
            metric=metric,
            rules=rules,
            estimator=estimator,
            commitment_weight=commitment_weight,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.GroupedVQ.forward`, with indices (*R)."""
        quantized, indices, loss = super().forward(x, mask)
        return Quantized(quantized, indices.squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x -> indices (*R)."""
        return super().encode(x, mask).squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R) -> quantized; -1 gives zeros."""
        return super().decode(indices.unsqueeze(-1))
