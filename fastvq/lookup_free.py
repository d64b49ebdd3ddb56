"""Lookup-free quantization: every channel becomes its sign, and entropies keep the codes in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nnf

from . import bit_entropy
from . import validation as check
from .dropout import QuantizeDropout
from .grouped import Quantized
from .scalar import ScalarQuantizer, mean_of, straight_through

MOST_BITS = 24  # of the codes whose mean probabilities are held: 64 MiB of float32


@dataclass(frozen=True)
class CodeEntropy:
    """The loss weight (E[H(p(c|z))] - diversity H(E[p(c|z)])): certain rows, even use (Yu et al. 2023, eq. 5).

    p(c|z) is the softmax of -|z - c|^2 / temperature over all codes, which factorises over the bits: the first term
    is exactly a sum over bits, the second needs E[p], which is one product of two (rows, 2^(bits / 2)) matrices.

    Args:
        weight: of the loss; 0 leaves it out.
        diversity: weight of the second term within it.
        temperature: of the softmax, for codes of -1 and 1.
        groups: the bits are split in so many groups and the second term is the sum of theirs; an upper bound of it
            that holds 2^(bits / groups) numbers where 1, exact, holds 2^bits (Zhao et al. 2024, section 3.2).
    """

    weight: float = 0.1
    diversity: float = 1.0
    temperature: float = 0.01
    groups: int = 1

    def __post_init__(self) -> None:
        check.not_negative("weight", self.weight)
        check.not_negative("diversity", self.diversity)
        check.not_negative("temperature", self.temperature)
        if self.temperature == 0:
            raise ValueError("temperature must be above 0, got 0")
        check.positive("groups", self.groups)

    def __call__(self, z: Tensor, valid: Tensor, scale: float = 1.0) -> Tensor:
        """z (G, N, C), valid (G, N), codes of -scale and scale -> the loss, the mean over groups G."""
        with torch.autocast(z.device.type, enabled=False):
            logits = z * (4 * scale / self.temperature)
            number = valid.sum(-1).clamp_min(1)
            per_row = torch.where(valid, bit_entropy.conditional_entropy(logits), 0).sum(-1) / number
            loss = per_row
            if self.diversity:
                parts = logits.unflatten(-1, (self.groups, -1)).transpose(-2, -3)
                means = bit_entropy.mean_probabilities(parts, valid.unsqueeze(-2))
                loss = loss - self.diversity * bit_entropy.entropy(means).sum(-1)
            return self.weight * loss.mean()


class GroupedResidualLFQ(ScalarQuantizer):
    """Splits ``dim`` channels into groups and takes the signs of each in Q stages, every stage half as large.

    Stage q turns what is left into codes of -s and s with s = 2^(1-q), by sign; the index reads the signs as bits,
    the first channel the most significant. Gradients pass all stages once, unchanged. The entropies of a stage see
    its residual divided by s, so that one temperature means the same at each.

    Args:
        dim: channels of the input; where it is not G times the number of bits, linear layers lead there and back.
        codebook_size: K, codes of a stage; a power of two.
        groups: G.
        num_quantizers: Q, stages.
        dropout: in training, how many stages are taken (:class:`fastvq.QuantizeDropout`); None for all.
        entropy: the entropy loss; by default ``CodeEntropy()``.
        commitment_weight: weight of mean((z - sg(code))^2), with z and code as shares of the stage's s.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Buffers:
        worth (C,): int64, of the bits in an index; not saved.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Source: Yu et al. 2023 for a stage; the stages' scales are those of ResidualLFQ in
    https://github.com/lucidrains/vector-quantize-pytorch.

    >>> import torch
    >>> from fastvq import GroupedResidualLFQ
    >>> lfq = GroupedResidualLFQ(64, 256, groups=4, num_quantizers=6)
    >>> quantized, indices, loss = lfq(torch.randn(2, 100, 64))
    >>> indices.shape
    torch.Size([2, 100, 4, 6])
    >>> torch.equal(lfq.decode(indices), quantized)
    True
    """

    worth: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        groups: int,
        num_quantizers: int,
        dropout: QuantizeDropout | None = None,
        entropy: CodeEntropy | None = None,
        commitment_weight: float = 0.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        check.positive("codebook_size", codebook_size)
        bits = codebook_size.bit_length() - 1
        if codebook_size != 2**bits or bits < 1:
            raise ValueError(f"codebook_size must be a power of two from 2, got {codebook_size}")
        if bits > 62:
            raise ValueError(f"codebook_size must be at most 2**62, got 2**{bits}; split the channels into groups")
        super().__init__(
            dim,
            bits,
            codebook_size,
            groups=groups,
            num_quantizers=num_quantizers,
            dropout=dropout,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )
        check.not_negative("commitment_weight", commitment_weight)
        self.entropy = CodeEntropy() if entropy is None else entropy
        if not isinstance(self.entropy, CodeEntropy):
            raise TypeError(f"entropy must be a CodeEntropy, got {type(entropy).__name__}")
        if bits % self.entropy.groups:
            raise ValueError(f"entropy.groups must divide the {bits} bits, got {self.entropy.groups}")
        if self.entropy.weight and self.entropy.diversity and bits // self.entropy.groups > MOST_BITS:
            raise ValueError(
                f"the mean probabilities of 2**{bits // self.entropy.groups} codes are too many to hold; "
                "pass entropy=CodeEntropy(groups=...) to split the bits"
            )
        self.commitment_weight = commitment_weight
        self.unit = 1.0
        self.register_buffer("worth", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """Quantizes.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid.
            lengths: (B,), int64: of the first axis after the batch only so many rows are valid. In place of mask.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, G, Q), -1 where masked or not finite.
            loss: entropy and commitment losses, weighted; mean over valid rows, stages and groups.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit; with check_finite, a row that is not finite.
        """
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

    def _signs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., C) -> bits (..., Q, C), and what each stage is given as a share of its s."""
        left, bits, given = z, [], []
        for stage in range(self.num_quantizers):
            scale = 0.5**stage
            bit = left > 0
            given.append(left / scale)
            bits.append(bit)
            left = left - torch.where(bit, scale * self.unit, -scale * self.unit).to(z.dtype)
        return torch.stack(bits, -2), torch.stack(given, -2)

    def _index(self, bits: Tensor) -> Tensor:
        return (bits.long() * self.worth).sum(-1)

    def _sum(self, bits: Tensor, dtype: torch.dtype, taken: Tensor | None) -> Tensor:
        """Bits (..., Q, C) -> the sum of the stages' codes, left to right; stages not ``taken`` add nothing."""
        total = torch.zeros(bits.shape[:-2] + bits.shape[-1:], dtype=dtype, device=bits.device)
        for stage in range(self.num_quantizers):
            scale = 0.5**stage * self.unit
            code = torch.where(bits[..., stage, :], scale, -scale).to(dtype)
            total = total + (code if taken is None else torch.where(taken[..., stage, None], code, 0))
        return total

    def _quantize(self, z: Tensor, valid: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        bits, given = self._signs(z)
        loss = z.new_zeros(())
        counted = valid.unsqueeze(-1).expand(*valid.shape, self.num_quantizers)
        if taken is not None:
            counted = counted & taken
        rows = given.flatten(1, 2).transpose(1, 2).flatten(0, 1)  # (G Q, N, C)
        counted = counted.flatten(1, 2).transpose(1, 2).flatten(0, 1)
        if self.entropy.weight:
            loss = loss + self.entropy(rows, counted, self.unit)
        if self.commitment_weight:
            target = torch.where(rows > 0, self.unit, -self.unit)
            loss = loss + self.commitment_weight * mean_of((rows - target).square(), counted)
        return straight_through(z, self._sum(bits, z.dtype, taken)), self._index(bits), loss

    def _indices(self, z: Tensor) -> Tensor:
        return self._index(self._signs(z)[0])

    def _codes(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        # Division, since ONNX knows no shift of signed integers.
        bits = indices.clamp_min(0).unsqueeze(-1) // self.worth % 2 > 0
        return self._sum(bits, dtype, indices >= 0)


class ResidualLFQ(GroupedResidualLFQ):
    """Takes the signs of every row in Q stages, every stage half as large.

    Args:
        dim, codebook_size, num_quantizers and all others: as :class:`fastvq.GroupedResidualLFQ`.

    Buffers:
        those of :class:`fastvq.GroupedResidualLFQ`.

    >>> import torch
    >>> from fastvq import ResidualLFQ
    >>> lfq = ResidualLFQ(64, 256, num_quantizers=6)
    >>> quantized, indices, loss = lfq(torch.randn(2, 100, 64))
    >>> indices.shape
    torch.Size([2, 100, 6])
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_quantizers: int,
        dropout: QuantizeDropout | None = None,
        entropy: CodeEntropy | None = None,
        commitment_weight: float = 0.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            groups=1,
            num_quantizers=num_quantizers,
            dropout=dropout,
            entropy=entropy,
            commitment_weight=commitment_weight,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.GroupedResidualLFQ.forward`, with indices (*R, Q)."""
        quantized, indices, loss = super().forward(x, mask, lengths=lengths)
        return Quantized(quantized, indices.squeeze(-2), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R, Q)."""
        return super().encode(x, mask, lengths=lengths).squeeze(-2)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized; -1 adds nothing."""
        return super().decode(indices.unsqueeze(-2))


class LFQ(ResidualLFQ):
    """Turns every channel into its sign (Yu et al. 2023).

    code = 1 where z > 0 and -1 elsewhere, read as bits for the index, the first channel the most significant. With
    ``spherical``, rows are normalised first and the C entries of a code are -1/sqrt(C) and 1/sqrt(C) (Zhao et al.
    2024).

    Args:
        dim: channels of the input; where it is not the number of bits, linear layers lead there and back.
        codebook_size: K; a power of two.
        entropy, commitment_weight, channel_dim, check_finite: as :class:`fastvq.GroupedResidualLFQ`.
        spherical: rows and codes of length 1.

    Buffers:
        those of :class:`fastvq.GroupedResidualLFQ`.

    >>> import torch
    >>> from fastvq import LFQ
    >>> lfq = LFQ(64, 2**16)
    >>> quantized, indices, loss = lfq(torch.randn(2, 100, 64))
    >>> quantized.shape, indices.shape, loss.shape
    (torch.Size([2, 100, 64]), torch.Size([2, 100]), torch.Size([]))
    >>> torch.equal(lfq.decode(indices), quantized)
    True
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        entropy: CodeEntropy | None = None,
        commitment_weight: float = 0.0,
        spherical: bool = False,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            num_quantizers=1,
            entropy=entropy,
            commitment_weight=commitment_weight,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )
        self.spherical = spherical
        self.unit = self.codebook_dim**-0.5 if spherical else 1.0

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.GroupedResidualLFQ.forward`, with indices (*R)."""
        quantized, indices, loss = super().forward(x, mask, lengths=lengths)
        return Quantized(quantized, indices.squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R)."""
        return super().encode(x, mask, lengths=lengths).squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R) -> quantized; -1 gives zeros."""
        return super().decode(indices.unsqueeze(-1))

    def _quantize(self, z: Tensor, valid: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._quantize(nnf.normalize(z, dim=-1) if self.spherical else z, valid, taken)
