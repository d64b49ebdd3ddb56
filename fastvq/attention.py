"""Attention quantization: a row takes the code that it attends to most, and the codebook learns through attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import distributed, soft
from . import functional as F
from . import validation as check
from .channels import ChannelGroups
from .dropout import QuantizeDropout
from .estimators import StraightThrough
from .grouped import Quantized
from .rules import FirstRowsInit, Initialiser
from .state import ROWS_OF_ALL_RANKS


class AttentionVQ(ChannelGroups):
    """Quantizes a row x to v_k with k = argmax_j norm(W_q x) . norm(W_k c_j), v = W_v c (PGR2M, 2512.22464).

    With p = softmax of the scores over sqrt(D) and h = v_k, the soft code z = h + (p - sg(p)) v carries gradients to
    all three maps. The loss is mean((z - x)^2) + mean((sg(h) - x)^2) + beta mean((h - sg(x))^2) and, with p' the
    softmax at the entropy's temperature, weight (mean H(p') - H(mean p')). Rows pass gradients straight through.

    Args:
        dim: channels of the input and dimension of the codes.
        codebook_size: K.
        beta: of the codes' part of the loss.
        entropy_weight, entropy_temperature: of the entropy loss.
        init: makes the first codes from the first training batch, see :class:`fastvq.CodebookRules`; None keeps
            random normal ones.
        channel_dim, check_finite: as :class:`fastvq.GroupedVQ`.

    Parameters: codebook (K, dim), and those of ``query``, ``key``, ``value`` and their norms. Buffers: initted ().

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import AttentionVQ
        >>> vq = AttentionVQ(32, 16)
        >>> quantized, indices, loss = vq(torch.randn(4, 50, 32))
        >>> tuple(quantized.shape), tuple(indices.shape)
        ((4, 50, 32), (4, 50))
    """

    initted: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        beta: float = 0.25,
        entropy_weight: float = 0.01,
        entropy_temperature: float = 0.01,
        init: Initialiser | None = FirstRowsInit(),  # noqa: B008  frozen
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim, check_finite=check_finite)
        check.positive("codebook_size", codebook_size)
        check.not_negative("beta", beta)
        check.not_negative("entropy_weight", entropy_weight)
        check.above_zero("entropy_temperature", entropy_temperature)
        self.codebook_size, self.beta, self.init = codebook_size, beta, init
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.query_norm, self.key_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self._initted = init is None
        self.register_buffer("initted", torch.tensor(self._initted))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """Quantizes, and takes the first codes from the first training batch.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid. lengths: (B,), int64, in its place.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R).
            loss: as above; mean over valid rows.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit.
        """
        rows, mask, shape = self._rows(x, mask, lengths, self.codebook)
        if mask is not None:
            rows = torch.where(mask.unsqueeze(-1), rows, 0)  # NaN in padding must not reach the weights' gradients
        if self.training:
            self._initialise_(rows, mask)
        queries, keys, values = self._queries(rows), self._keys(), self.value(self.codebook)
        indices = self._search(queries, keys, mask)
        valid = indices >= 0
        codes = F.lookup(indices.unsqueeze(-1), _wide(values)[None, None])
        loss = self._loss(rows, queries, keys, values, indices, codes, valid)
        lost = ~valid if mask is None else ~valid & mask
        codes = torch.where(lost.unsqueeze(-1), float("nan"), codes)
        quantized = StraightThrough()(rows, codes.to(rows.dtype))
        return Quantized(self._restore(quantized, shape, mask), self._index_shape(indices, shape).squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R)."""
        rows, mask, shape = self._rows(x, mask, lengths, self.codebook)
        indices = self._search(self._queries(rows), self._keys(), mask)
        return self._index_shape(indices, shape).squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R) -> W_v c_k, channels on ``channel_dim``, at least float32; -1 gives zeros."""
        flat, shape = self._flat_indices(indices.unsqueeze(-1))
        return self._restore(F.lookup(flat.unsqueeze(-1), _wide(self.value(self.codebook))[None, None]), shape)

    def _queries(self, rows: Tensor) -> Tensor:
        return _normed(self.query_norm, self.query(rows.to(self.query.weight.dtype)))

    def _keys(self) -> Tensor:
        return _normed(self.key_norm, self.key(self.codebook))

    def _search(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        return F.nearest(queries.detach(), _wide(keys.detach())[None], metric="dot", mask=mask).indices

    def _loss(
        self,
        rows: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        indices: Tensor,
        codes: Tensor,
        valid: Tensor,
    ) -> Tensor:
        dtype, kept = codes.dtype, valid.reshape(-1, 1)
        weight = kept.squeeze(-1).to(dtype)
        number = weight.sum().clamp_min(1)
        x = torch.where(kept, rows.to(dtype).reshape(-1, self.dim), 0)
        hard = codes.reshape(-1, self.dim)
        scaled = torch.where(kept, queries.to(dtype).reshape(-1, self.dim), 0) * self.dim**-0.5
        attended = soft.attend(scaled, keys.to(dtype), values.detach().to(dtype), weight, self.entropy_temperature)
        z = hard + (attended.means - attended.means.detach())

        def mean(error: Tensor) -> Tensor:
            return torch.where(kept, error, 0).square().sum() / (number * self.dim)

        loss = mean(z - x) + mean(hard.detach() - x) + self.beta * mean(hard - x.detach())
        entropy = soft.entropy(attended.usage / number)
        return loss + self.entropy_weight * (attended.entropies / number - entropy)

    @torch.no_grad()
    def _initialise_(self, rows: Tensor, mask: Tensor | None) -> None:
        if self._initted or self.init is None:
            return
        finite = rows.isfinite().all(-1).all(0)
        usable: Tensor | None = finite if mask is None else finite & mask
        together = distributed.world_size() > 1
        if together:
            rows, usable = distributed.gather_rows(rows, usable, ROWS_OF_ALL_RANKS), None
        known = rows.device.type == "cpu" and not torch.compiler.is_compiling()
        if rows.shape[1] * rows.shape[2] == 0 or (known and usable is not None and not bool(usable.any())):
            return
        codes = self.init(rows, usable, self.codebook_size)[0].to(self.codebook.dtype)
        if together:
            distributed.broadcast_(codes)
        self.codebook.copy_(codes if usable is None else torch.where(usable.any(), codes, self.codebook))
        self._initted = True
        self.initted.fill_(True)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "initted" in state_dict:
            self._initted = bool(self.initted)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, beta={self.beta}"


class ResidualAttentionVQ(nn.Module):
    """Q attention quantizers, each of what the ones before it left.

    Args:
        dim, codebook_size and all others: as :class:`fastvq.AttentionVQ`.
        num_quantizers: Q, stages.
        dropout: :class:`fastvq.QuantizeDropout`, for training with fewer stages.

    Parameters: those of :class:`fastvq.AttentionVQ`, under ``stages.<q>.``.

    Example:
        >>> import torch
        >>> from fastvq import ResidualAttentionVQ
        >>> vq = ResidualAttentionVQ(32, 16, num_quantizers=6)
        >>> tuple(vq(torch.randn(4, 50, 32)).indices.shape)
        (4, 50, 6)
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_quantizers: int,
        dropout: QuantizeDropout | None = None,
        channel_dim: int = -1,
        **others: object,
    ) -> None:
        super().__init__()
        check.positive("num_quantizers", num_quantizers)
        self.num_quantizers, self.dropout, self.channel_dim = num_quantizers, dropout, channel_dim
        self.stages = nn.ModuleList(
            AttentionVQ(dim, codebook_size, channel_dim=channel_dim, **others)  # type: ignore[arg-type]
            for _ in range(num_quantizers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.AttentionVQ.forward`, with indices (*R, Q); the loss is the mean over stages taken.

        Stages that dropout leaves out have index -1.
        """
        shape = x.movedim(self.channel_dim, -1).shape[:-1]
        taken = None
        if self.training and self.dropout is not None:
            rows = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1:].numel())
            taken = self.dropout(rows, self.num_quantizers, x.device).expand(rows).reshape(shape)
        residual, total, loss = x, torch.zeros_like(x), x.new_zeros((), dtype=torch.float32)
        weight: Tensor | float = 0.0
        indices = []
        for number, stage in enumerate(self.stages):
            valid = mask
            if taken is not None:
                valid = taken > number if mask is None else (taken > number) & mask
            quantized, found, part = stage(residual, valid)
            share = 1.0 if valid is None else valid.any().to(part.dtype)
            loss, weight = loss + share * part, weight + share
            residual, total = residual - quantized.detach(), total + quantized
            indices.append(found)
        loss = loss / (weight.clamp_min(1) if isinstance(weight, Tensor) else weight)
        return Quantized(total, torch.stack(indices, dim=-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x and mask as for forward -> indices (*R, Q)."""
        residual, indices = x, []
        stages: Any = self.stages
        for stage in stages:
            indices.append(stage.encode(residual, mask))
            residual = residual - stage.decode(indices[-1]).to(x.dtype)
        return torch.stack(indices, dim=-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized, channels on ``channel_dim``; -1 adds nothing."""
        if indices.shape[-1] != self.num_quantizers:
            raise ValueError(f"indices must be (*R, {self.num_quantizers}), got shape {tuple(indices.shape)}")
        stages: Any = self.stages
        parts = [stage.decode(part) for stage, part in zip(stages, indices.unbind(-1), strict=True)]
        return torch.stack(parts).sum(0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """In the norm's own dtype: autocast gives linear layers another."""
    normed: Tensor = norm(x.to(norm.weight.dtype))
    return normed
