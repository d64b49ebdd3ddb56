"""Finite scalar quantization: every channel rounded to one of a few fixed levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import validation as check
from .dropout import QuantizeDropout
from .grouped import Quantized
from .scalar import ScalarQuantizer, code_count, on_cpu_now, straight_through

# How far beyond the outermost level the bound reaches, so that level can be reached at all (Mentzer et al. 2023).
SLACK = 1e-3
# Integers up to this are exact in float32, sums of them too.
EXACT = 2**24
# Entries of a row from which a CPU's vector loops are not held up by its end.
ROW = 64


def checked_levels(levels: Sequence[int], least: int) -> list[int]:
    """levels as a list of ints of at least ``least``; raises TypeError or ValueError."""
    if isinstance(levels, (int, str, Tensor)) or not isinstance(levels, Sequence):
        raise TypeError(f"levels must be a sequence of ints, one for each channel, got {type(levels).__name__}")
    if not levels:
        raise ValueError("levels must name at least one channel")
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"levels must hold ints, got {type(level).__name__}")
        if level < least:
            remedy = "; pass symmetric=True for two levels" if least == 3 and level == 2 else ""
            raise ValueError(f"levels must be at least {least}, got {level}{remedy}")
    return list(levels)


class _FiniteScalar(ScalarQuantizer):
    """Indices of levels: index = sum_d level_d basis_d, basis_d = the product of the levels before d."""

    levels: Tensor
    basis: Tensor

    def __init__(
        self,
        dim: int,
        levels: list[int],
        *,
        groups: int,
        num_quantizers: int,
        dropout: QuantizeDropout | None,
        channel_dim: int,
        check_finite: bool,
    ) -> None:
        super().__init__(
            dim,
            len(levels),
            code_count(levels),
            groups=groups,
            num_quantizers=num_quantizers,
            dropout=dropout,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )
        basis = [1]
        for level in levels[:-1]:
            basis.append(basis[-1] * level)
        self._basis, self._widest = basis, max(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def _levels_to_index(self, levels: Tensor) -> Tensor:
        if self.codebook_size > EXACT:
            return (levels.long() * self.basis).sum(-1)
        # Sums of channels are exact in floating point up to there, and as many passes over rows, not over channels.
        index = levels[..., 0]
        for channel, basis in enumerate(self._basis[1:], 1):
            index = index.add(levels[..., channel], alpha=basis)
        return index.long()

    def _long_rows(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., C) and its levels (C,); of a CPU's tensor several rows as one, (R, m C), with m times the levels.

        What is done to z with the levels beside it runs several times as fast so: torch's loops stop at a row's end.
        """
        levels, copies = self.levels.to(z.dtype), 1
        if on_cpu_now(z) and z.is_contiguous():
            number = z.numel() // max(1, len(levels))
            while copies * len(levels) < ROW and number % (2 * copies) == 0 and number > 0:
                copies *= 2
        if copies == 1:
            return z, levels
        return z.view(-1, copies * len(levels)), levels.repeat(copies)

    def _index_to_levels(self, index: Tensor) -> Tensor:
        return index.unsqueeze(-1) // self.basis % self.levels

    def extra_repr(self) -> str:
        return f"dim={self.dim}, levels={self.levels.tolist()}"


class FSQ(_FiniteScalar):
    """Rounds every channel to one of its levels (Mentzer et al. 2023).

    Channel d of L levels is bounded and rounded: with h = (L - 1)(1 + 1e-3) / 2 and o = 0.5 for even L, 0 for odd,
    code = round(h tanh(z + atanh(o / h)) - o) / floor(L / 2). With ``symmetric`` the levels lie evenly in [-1, 1]:
    code = 2 round((L - 1)(tanh(z) + 1) / 2) / (L - 1) - 1 (Parker et al. 2024, section 3.2). Gradients pass the
    rounding unchanged, and the bound by its derivative. Nothing is learned but the projections, no code can die, and
    no distance is computed; the arithmetic is float32 whatever the input's dtype (float64 for float64).

    Args:
        dim: channels of the input; where it is not the number of levels, linear layers lead there and back.
        levels: the levels of each channel of the code, from 3 (from 2 with ``symmetric``).
        symmetric: levels even in [-1, 1].
        noise_dropout: the share of entries that, in training, take uniform noise one level wide instead of the
            rounding (Parker et al. 2024, section 3.2). Indices stay those of the rounding.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Buffers:
        levels (C,), basis (C,): int64, not saved.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    >>> import torch
    >>> from fastvq import FSQ
    >>> fsq = FSQ(64, levels=[8, 5, 5, 5])
    >>> quantized, indices, loss = fsq(torch.randn(2, 100, 64))
    >>> quantized.shape, indices.shape, fsq.codebook_size
    (torch.Size([2, 100, 64]), torch.Size([2, 100]), 1000)
    >>> torch.equal(fsq.decode(indices), quantized)
    True
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        *,
        symmetric: bool = False,
        noise_dropout: float = 0.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            checked_levels(levels, 2 if symmetric else 3),
            groups=1,
            num_quantizers=1,
            dropout=None,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )
        check.unit_interval("noise_dropout", noise_dropout)
        self.symmetric, self.noise_dropout = symmetric, noise_dropout
        # The index of the level from which positions count in every channel.
        self._origin = 0 if symmetric else sum(n // 2 * basis for n, basis in zip(levels, self._basis, strict=True))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """Quantizes.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid.
            lengths: (B,), int64: of the first axis after the batch only so many rows are valid. In place of mask.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R), -1 where masked or not finite.
            loss: zero; there is nothing to commit to.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit; with check_finite, a row that is not finite.
        """
        quantized, indices, loss = self._quantized(x, mask, lengths)
        return Quantized(quantized, indices.flatten(-2).squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R)."""
        return self._encoded(x, mask, lengths).flatten(-2).squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R) -> quantized, channels on ``channel_dim``; -1 gives zeros.

        Raises:
            IndexError: an index outside [-1, K), on a CPU.
        """
        return self._decoded(indices.unsqueeze(-1).unsqueeze(-1))

    def _position(self, z: Tensor, levels: Tensor) -> Tensor:
        """Where z lies before the rounding, counted in levels from the middle one; from the lowest if symmetric."""
        if self.symmetric:
            return (levels - 1) * (z.tanh() + 1) / 2
        half = (levels - 1) * ((1 + SLACK) / 2)
        offset = (1 - levels % 2) / 2
        return (z + (offset / half).atanh()).tanh() * half - offset

    def _round(self, position: Tensor, levels: Tensor) -> Tensor:
        """The level that a position is nearest to."""
        level = position.round()
        if self.symmetric or self._widest * SLACK < 1:
            return level
        # Of so many levels the slack is more than one.
        return level.maximum(-(levels // 2)).minimum((levels - 1) // 2)

    def _value(self, position: Tensor, levels: Tensor) -> Tensor:
        """The code of a position."""
        if self.symmetric:
            return position * (2 / (levels - 1)) - 1
        return position / (levels // 2)

    def _quantize(self, z: Tensor, valid: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        rows, levels = self._long_rows(z)
        position = self._position(rows, levels)
        level = self._round(position.detach(), levels)
        index = self._levels_to_index(level.view(z.shape)) + self._origin
        level = straight_through(position, level)
        if self.training and self.noise_dropout:
            noisy = position + (torch.rand_like(position) - 0.5)
            level = torch.where(torch.rand_like(position) < self.noise_dropout, noisy, level)
        return self._value(level, levels).view(z.shape), index.unsqueeze(-1), z.new_zeros(())

    def _indices(self, z: Tensor) -> Tensor:
        rows, levels = self._long_rows(z)
        level = self._round(self._position(rows, levels), levels).view(z.shape)
        return (self._levels_to_index(level) + self._origin).unsqueeze(-1)

    def _codes(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        level = self._index_to_levels(indices.squeeze(-1).clamp_min(0))
        level = level if self.symmetric else level - self.levels // 2
        codes = self._value(level.to(dtype), self.levels.to(dtype))
        return torch.where(indices >= 0, codes, 0)


class GroupedResidualFSQ(_FiniteScalar):
    """Splits ``dim`` channels into groups and rounds each in Q stages, every stage finer by its levels.

    Channel d of L levels is bounded, softly, to (-c, c) with c = L / (L - 1): v = c tanh(z / c). Stage q rounds what
    is left to the nearest of L levels, 2 L^(1-q) / (L - 1) apart; the first stage's span [-1, 1]. Together the stages
    are a uniform quantizer of L^Q levels, found digit by digit. Gradients pass all stages once, unchanged, and the
    bound by its derivative.

    Args:
        dim: channels of the input; where it is not G times the number of levels, linear layers lead there and back.
        levels: the levels of each channel of the code, from 2.
        groups: G.
        num_quantizers: Q, stages.
        dropout: in training, how many stages are taken (:class:`fastvq.QuantizeDropout`); None for all.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Buffers:
        levels (C,), basis (C,): int64, not saved.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Source: Mentzer et al. 2023 for a stage; the stages' scales are those of ResidualFSQ in
    https://github.com/lucidrains/vector-quantize-pytorch.

    >>> import torch
    >>> from fastvq import GroupedResidualFSQ
    >>> fsq = GroupedResidualFSQ(64, levels=[5, 5, 3], groups=4, num_quantizers=6)
    >>> quantized, indices, loss = fsq(torch.randn(2, 100, 64))
    >>> indices.shape
    torch.Size([2, 100, 4, 6])
    >>> torch.equal(fsq.decode(indices), quantized)
    True
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        *,
        groups: int,
        num_quantizers: int,
        dropout: QuantizeDropout | None = None,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            checked_levels(levels, 2),
            groups=groups,
            num_quantizers=num_quantizers,
            dropout=dropout,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.FSQ.forward`, with indices (*R, G, Q)."""
        return self._quantized(x, mask, lengths)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R, G, Q)."""
        return self._encoded(x, mask, lengths)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, G, Q) -> quantized, channels on ``channel_dim``; -1 adds nothing.

        Raises:
            ValueError: the last axes are not G and Q. IndexError: an index outside [-1, K), on a CPU.
        """
        return self._decoded(indices)

    def _bounded(self, z: Tensor) -> Tensor:
        """z within (-1, 1), as a share of c."""
        levels = self.levels.to(z.dtype)
        return (z * ((levels - 1) / levels)).tanh()

    def _digits(self, bounded: Tensor) -> Tensor:
        """bounded -> the levels of the stages, (..., Q, C): digits of (bounded + 1) / 2 to the base L."""
        left, digits = (bounded.detach() + 1) / 2, []
        for _ in range(self.num_quantizers):
            left = left * self.levels
            # At the top end every digit is the last; below, rounding must not reach L or fall under zero.
            digit = left.floor().clamp_min(0).minimum((self.levels - 1).to(left.dtype))
            left = left - digit
            digits.append(digit)
        return torch.stack(digits, -2)

    def _sum(self, digits: Tensor, taken: Tensor | None = None) -> Tensor:
        """Levels (..., Q, C) -> the sum of the stages' codes, left to right; stages not ``taken`` add nothing."""
        total, levels = torch.zeros_like(digits[..., 0, :]), self.levels.to(digits.dtype)
        scale, step = torch.ones_like(levels), 2 / (levels - 1)
        for stage in range(self.num_quantizers):
            code = scale * (digits[..., stage, :] * step - 1)
            total = total + (code if taken is None else torch.where(taken[..., stage, None], code, 0))
            scale = scale / levels
        return total

    def _quantize(self, z: Tensor, valid: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        bounded, levels = self._bounded(z), self.levels.to(z.dtype)
        digits, reach = self._digits(bounded), levels / (levels - 1)
        return (
            straight_through(bounded * reach, self._sum(digits, taken)),
            self._levels_to_index(digits),
            z.new_zeros(()),
        )

    def _indices(self, z: Tensor) -> Tensor:
        return self._levels_to_index(self._digits(self._bounded(z)))

    def _codes(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        return self._sum(self._index_to_levels(indices.clamp_min(0)).to(dtype), indices >= 0)


class ResidualFSQ(GroupedResidualFSQ):
    """Rounds every channel in Q stages, every stage finer by its levels.

    Args:
        dim, levels, num_quantizers and all others: as :class:`fastvq.GroupedResidualFSQ`.

    Buffers:
        those of :class:`fastvq.GroupedResidualFSQ`.

    >>> import torch
    >>> from fastvq import ResidualFSQ
    >>> fsq = ResidualFSQ(64, levels=[5, 5, 3], num_quantizers=6)
    >>> quantized, indices, loss = fsq(torch.randn(2, 100, 64))
    >>> indices.shape
    torch.Size([2, 100, 6])
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        *,
        num_quantizers: int,
        dropout: QuantizeDropout | None = None,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            levels,
            groups=1,
            num_quantizers=num_quantizers,
            dropout=dropout,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.FSQ.forward`, with indices (*R, Q)."""
        quantized, indices, loss = super().forward(x, mask, lengths=lengths)
        return Quantized(quantized, indices.squeeze(-2), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R, Q)."""
        return super().encode(x, mask, lengths=lengths).squeeze(-2)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized; -1 adds nothing."""
        return super().decode(indices.unsqueeze(-2))
