"""SimVQ: codes are a trained linear map of a frozen random codebook, so that all of them move at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import functional as F
from . import validation as check
from .channels import ChannelGroups
from .estimators import Estimator, RotationTrick, StraightThrough, is_random
from .grouped import Quantized
from .losses import codebook_loss, residual_commitment_loss


class ResidualSimVQ(ChannelGroups):
    """A stack of Q codebooks, each a map of a frozen one (Zhu et al. 2024, "one linear layer"): c_k = W f_k.

    Args:
        dim: channels of the input and dimension of the codes.
        codebook_size: K.
        num_quantizers: Q, stages.
        frozen_dim: dimension of the frozen codes f_k; None: dim.
        transform: makes the map of a stage, a module from (K, frozen_dim) to (K, dim); None: a linear layer without
            bias.
        estimator: how gradients pass; :class:`fastvq.RotationTrick` by default.
        commitment_weight: of mean((r - sg(c))^2); the codes' own loss mean((sg(r) - c)^2) has weight 1.
        channel_dim, check_finite: as :class:`fastvq.GroupedVQ`.

    Buffers:
        frozen: (Q, K, frozen_dim). Parameters: those of ``transforms``, one for each stage.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import ResidualSimVQ
        >>> vq = ResidualSimVQ(32, 16, num_quantizers=4)
        >>> quantized, indices, loss = vq(torch.randn(4, 50, 32))
        >>> tuple(indices.shape), tuple(vq.codebook.shape)
        ((4, 50, 4), (4, 16, 32))
    """

    frozen: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_quantizers: int,
        frozen_dim: int | None = None,
        transform: Callable[[], nn.Module] | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 0.25,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim, check_finite=check_finite)
        frozen_dim = dim if frozen_dim is None else frozen_dim
        for name, value in (
            ("codebook_size", codebook_size),
            ("num_quantizers", num_quantizers),
            ("frozen_dim", frozen_dim),
        ):
            check.positive(name, value)
        check.not_negative("commitment_weight", commitment_weight)
        self.codebook_size, self.num_quantizers = codebook_size, num_quantizers
        self.estimator = RotationTrick() if estimator is None else estimator
        self.commitment_weight = commitment_weight
        self.register_buffer("frozen", torch.randn(num_quantizers, codebook_size, frozen_dim) * frozen_dim**-0.5)
        make = transform or (lambda: nn.Linear(frozen_dim, dim, bias=False))
        self.transforms = nn.ModuleList(make() for _ in range(num_quantizers))

    @property
    def codebook(self) -> Tensor:
        """The codes of all stages, (Q, K, D), with gradients to the transforms; at least float32."""
        codes = torch.stack([map_(frozen) for map_, frozen in zip(self.transforms, self.frozen, strict=True)])
        return codes if codes.dtype == torch.float64 else codes.float()

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """Quantizes.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid. lengths: (B,), int64, in its place.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, Q).
            loss: the codes' and the commitment loss, mean over valid rows and stages.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit.
        """
        stack = self.codebook.unsqueeze(0)
        rows, mask, shape = self._rows(x, mask, lengths, stack)
        wide = rows.to(stack.dtype) if (rows.dtype == torch.float64) != (stack.dtype == torch.float64) else rows
        indices, codes, errors = F.residual_nearest(wide.detach(), stack.detach(), mask=mask)
        valid = (indices >= 0) & ~errors.isnan().any(-1, keepdim=True)
        loss = codebook_loss(stack, wide, indices, errors, valid)
        loss = loss + self.commitment_weight * residual_commitment_loss(rows, indices, codes, errors, stack.detach())
        if is_random(self.estimator) and self.training:
            codes = torch.where(codes.isnan(), codes, F.lookup(indices, stack))
        estimator = self.estimator if self.training or not is_random(self.estimator) else StraightThrough()
        quantized = estimator(rows, codes.to(rows.dtype))
        return Quantized(self._restore(quantized, shape, mask), self._index_shape(indices, shape).squeeze(-2), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R, Q)."""
        stack = self.codebook.detach().unsqueeze(0)
        rows, mask, shape = self._rows(x, mask, lengths, stack)
        wide = rows.to(stack.dtype) if (rows.dtype == torch.float64) != (stack.dtype == torch.float64) else rows
        return self._index_shape(F.residual_nearest(wide.detach(), stack, mask=mask).indices, shape).squeeze(-2)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized, channels on ``channel_dim``, float32; -1 adds nothing."""
        flat, shape = self._flat_indices(indices.unsqueeze(-2), (self.num_quantizers,))
        return self._restore(F.lookup(flat, self.codebook.unsqueeze(0)), shape)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, num_quantizers={self.num_quantizers}"


class SimVQ(ResidualSimVQ):
    """One codebook that is a trained map of a frozen one (Zhu et al. 2024).

    Args:
        all: as :class:`fastvq.ResidualSimVQ`, with one stage.

    Buffers:
        frozen: (1, K, frozen_dim). Parameters: those of ``transforms.0``.

    Example:
        >>> import torch
        >>> from fastvq import SimVQ
        >>> vq = SimVQ(32, 16, frozen_dim=8)
        >>> tuple(vq(torch.randn(4, 50, 32)).indices.shape)
        (4, 50)
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        frozen_dim: int | None = None,
        transform: Callable[[], nn.Module] | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 0.25,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            num_quantizers=1,
            frozen_dim=frozen_dim,
            transform=transform,
            estimator=estimator,
            commitment_weight=commitment_weight,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.ResidualSimVQ.forward`, with indices (*R)."""
        quantized, indices, loss = super().forward(x, mask, lengths=lengths)
        return Quantized(quantized, indices.squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x -> indices (*R)."""
        return super().encode(x, mask, lengths=lengths).squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R) -> quantized; -1 gives zeros."""
        return super().decode(indices.unsqueeze(-1))
