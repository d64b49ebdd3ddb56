"""LFQ and its residual stacks under vector-quantize-pytorch's names (Yu et al. 2023)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as nnf

from ... import bit_entropy
from ... import validation as check
from ...lookup_free import MOST_BITS
from ...scalar import mean_of, straight_through
from .scalar import (
    from_rows,
    full_precision,
    kept_axis,
    projected,
    projections,
    to_rows,
)
from .sync import running

FLOOR = 1e-5  # probabilities below it count as it within vector-quantize-pytorch's logarithms


class Return(NamedTuple):
    """What LFQ returns."""

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LossBreakdown(NamedTuple):
    """What LFQ's loss consists of, before the weights."""

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


class CosineSimLinear(nn.Module):
    """The cosines of x and the columns of a weight (dim_in, dim_out), times ``scale``."""

    def __init__(self, dim_in: int, dim_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return nnf.normalize(x, dim=-1) @ nnf.normalize(self.weight, dim=0) * self.scale


def floored_entropy(logits: Tensor, floor: float = FLOOR) -> Tensor:
    """-sum_c p_c log(max(p_c, floor)) over the codes c of independent bits: (..., C) -> (...).

    The codes below the floor add sum p (log p - log floor) to the bits' entropies. With p the product of a first and
    a second half's probability, a first half a needs the second halves below floor / a: a run of the sorted ones,
    whose sums are differences of running sums. So 2^(C/2) numbers do for a row, where there are 2^C codes.
    """
    first, second = (half.log_softmax(-1) for half in bit_entropy.halves(logits))
    second = second.sort(-1).values
    share = second.exp()
    mass, weighted = (nnf.pad(part.cumsum(-1), (1, 0)) for part in (share, share * second))
    limit = math.log(floor)
    below = torch.searchsorted(second.detach(), (limit - first.detach()).contiguous())
    found = (first - limit) * mass.gather(-1, below) + weighted.gather(-1, below)
    return bit_entropy.conditional_entropy(logits) + (first.exp() * found).sum(-1)


class LFQ(nn.Module):
    """Turns channels into their signs.

    The arguments and what comes back are vector-quantize-pytorch 1.32's. Other than there, the entropies hold
    2^(bits / 2) numbers for a row where it holds 2^bits several times over; a mask breaks no graph and may leave
    nothing; the mean over processes is one (there the sum is lost and each process divides its own share);
    ``codebook`` is worked out when it is read; quantized is the code to the bit.

    Args:
        dim: channels of the input. codebook_size: K, a power of two. One of the two may be left out.
        entropy_loss_weight, diversity_gamma: weights of the entropies, and of the batch's within them.
        commitment_loss_weight: of the mean squared difference of input and code.
        straight_through_activation: what the gradient passes.
        num_codebooks: codes for each row, over as many parts of the channels.
        keep_num_codebooks_dim: whether indices have an axis for them; by default if there is more than one.
        codebook_scale: size of the codes' entries.
        frac_per_sample_entropy: share of the rows, drawn at random, that the entropies see.
        has_projections, projection_has_bias: linear layers before and after; by default where dim needs them.
        soft_clamp_input_value: the input is squashed to it.
        cosine_sim_project_in, cosine_sim_project_in_scale: the layer before gives cosines.
        channel_first: channels on axis 1; by default for images and videos.
        experimental_softplus_entropy_loss, entropy_loss_offset: softplus(loss + offset) in place of the loss.
        spherical: rows and codes are normalised (Zhao et al. 2024).
        force_quantization_f32: quantize in float32; otherwise float64 stays.
        orthogonal_rotation: a fixed random rotation before, undone after.

    Buffers:
        mask (bits,): int64, what the bits are worth. orthogonal_rot (bits, bits), where rotated.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Yu et al. 2023.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import LFQ
    >>> quantizer = LFQ(codebook_size=65536, dim=16, entropy_loss_weight=0.1, diversity_gamma=1.0)
    >>> quantized, indices, entropy_aux_loss = quantizer(torch.randn(1, 16, 32, 32), inv_temperature=100.0)
    >>> quantized.shape, indices.shape, entropy_aux_loss.shape
    (torch.Size([1, 16, 32, 32]), torch.Size([1, 32, 32]), torch.Size([]))
    >>> bool((quantized == quantizer.indices_to_codes(indices)).all())
    True
    """

    mask: Tensor
    zero: Tensor
    orthogonal_rot: Tensor

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: float | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        if dim is None and codebook_size is None:
            raise ValueError("dim or codebook_size must be given")
        check.positive("num_codebooks", num_codebooks)
        codebook_size = 2**dim if codebook_size is None else codebook_size  # type: ignore[operator]
        bits = power_of_two(codebook_size)
        if not 0 < frac_per_sample_entropy <= 1:
            raise ValueError(f"frac_per_sample_entropy must lie in (0, 1], got {frac_per_sample_entropy}")
        if soft_clamp_input_value is not None and soft_clamp_input_value < codebook_scale:
            raise ValueError(
                f"soft_clamp_input_value must be at least codebook_scale, {codebook_scale}, "
                f"got {soft_clamp_input_value}"
            )
        if cosine_sim_project_in_scale is not None and not cosine_sim_project_in:
            raise ValueError("cosine_sim_project_in_scale needs cosine_sim_project_in=True; pass it too")
        inner = bits * num_codebooks
        self.dim = inner if dim is None else dim
        self.codebook_size, self.codebook_dim, self.num_codebooks = codebook_size, bits, num_codebooks
        self.keep_num_codebooks_dim = kept_axis(keep_num_codebooks_dim, num_codebooks)
        self.has_projections = self.dim != inner if has_projections is None else has_projections
        if self.has_projections and cosine_sim_project_in:
            scale = codebook_scale if cosine_sim_project_in_scale is None else cosine_sim_project_in_scale
            self.project_in: nn.Module = CosineSimLinear(self.dim, inner, scale)
            self.project_out: nn.Module = nn.Linear(inner, self.dim, bias=projection_has_bias)
        else:
            self.project_in, self.project_out = projections(
                self.dim, inner, self.has_projections, projection_has_bias
            )
        if not self.has_projections and self.dim != inner:
            raise ValueError(f"dim={self.dim} needs projections to {inner} channels; leave has_projections out")
        self.channel_first = channel_first
        self.activation = nn.Identity() if straight_through_activation is None else straight_through_activation
        self.spherical, self.orthogonal_rotation = spherical, orthogonal_rotation
        if orthogonal_rotation:
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(bits, bits)))
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.diversity_gamma, self.entropy_loss_weight = diversity_gamma, entropy_loss_weight
        self.codebook_scale, self.commitment_loss_weight = codebook_scale, commitment_loss_weight
        self.soft_clamp_input_value = soft_clamp_input_value
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.entropy_loss_offset = entropy_loss_offset
        self.force_quantization_f32 = force_quantization_f32
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return self.zero.dtype

    @property
    def codebook(self) -> Tensor:
        """All codes before normalisation, (codebook_size, bits), worked out when read."""
        return self.bits_to_codes(self._bits(torch.arange(self.codebook_size, device=self.mask.device)))

    def _bits(self, indices: Tensor) -> Tensor:
        return ((indices.unsqueeze(-1) & self.mask) != 0).to(self.dtype)

    def _normed(self, t: Tensor) -> Tensor:
        return nnf.normalize(t, dim=-1) * self.codebook_scale if self.spherical else t

    def _rotated(self, t: Tensor, back: bool) -> Tensor:
        if not self.orthogonal_rotation:
            return t
        rotation = self.orthogonal_rot.to(t.dtype)
        return t @ (rotation.t() if back else rotation)

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """0 and 1 -> -codebook_scale and codebook_scale."""
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def codes_of(self, indices: Tensor) -> Tensor:
        """indices (...) -> codes (..., bits), normalised and rotated back."""
        return self._rotated(self._normed(self.bits_to_codes(self._bits(indices))), back=True)

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Indices as forward returns them -> what it quantized to, in its layout."""
        image = indices.dim() >= 3 + self.keep_num_codebooks_dim
        first = image if self.channel_first is None else self.channel_first
        if not self.keep_num_codebooks_dim:
            indices = indices.unsqueeze(-1)
        codes = self.codes_of(indices).flatten(-2)
        if project_out:
            codes = projected(self.project_out, codes)
        return codes.movedim(-1, 1) if first else codes

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Return | tuple[Return, LossBreakdown]:
        """Quantizes.

        Args:
            x: (B, N, dim), or (B, dim, *R) with channels first.
            inv_temperature: of the softmax over the codes.
            return_loss_breakdown: append the parts of the loss.
            mask: (B, *R) or (B, N), bool: the rows that the losses see.

        Returns:
            Return(quantized as x, indices (B, *R[, num_codebooks]) int64, the loss; zero in eval mode). A row with a
            NaN has NaN and -1, and the losses do not see it.
        """
        check.floating("x", x)
        first = x.dim() >= 4 if self.channel_first is None else self.channel_first
        rows, shape = to_rows(x, self.dim, first)
        rows = projected(self.project_in, rows)
        dtype, clamp = rows.dtype, self.soft_clamp_input_value
        if clamp is not None:
            rows = (rows / clamp).tanh() * clamp
        rows = rows.unflatten(-1, (self.num_codebooks, self.codebook_dim))
        wide = torch.float32 if self.force_quantization_f32 else torch.promote_types(dtype, torch.float32)
        with full_precision(x, True):
            rows = self._normed(self._rotated(rows.to(wide), back=False))
            above, lost = rows > 0, rows.isnan().any(-1)
            indices = torch.where(lost, -1, (above.long() * self.mask).sum(-1))
            quantized = self._normed(torch.where(above, self.codebook_scale, -self.codebook_scale).to(wide))
            quantized = torch.where(lost.unsqueeze(-1), float("nan"), quantized)
            out = straight_through(self.activation(rows), quantized) if self.training else quantized
            losses = self._losses(rows, quantized, inv_temperature, row_mask(mask, shape), return_loss_breakdown)
            out = self._rotated(out, back=True).to(dtype)
        out = from_rows(projected(self.project_out, out.flatten(-2)), shape, first)
        indices = indices.reshape(*shape, self.num_codebooks)
        if not self.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        per_sample, batch, commitment = losses
        entropies = per_sample - self.diversity_gamma * batch
        if self.training and self.experimental_softplus_entropy_loss:
            entropies = nnf.softplus(entropies + self.entropy_loss_offset)
        loss = entropies * self.entropy_loss_weight + commitment * self.commitment_loss_weight
        result = Return(out, indices, loss)
        return (result, losses) if return_loss_breakdown else result

    def _losses(
        self, rows: Tensor, quantized: Tensor, inv_temperature: float, valid: Tensor | None, wanted: bool
    ) -> LossBreakdown:
        """rows (B, N, c, bits) and their codes, valid (B, N) or None -> the parts of the loss."""
        if not self.training:
            return LossBreakdown(self.zero, self.zero, self.zero)
        rows, quantized = rows.flatten(0, 1), quantized.detach().flatten(0, 1)
        lost = rows.isnan().flatten(1).any(-1)
        counted = ~lost if valid is None else valid.flatten() & ~lost
        rows = torch.where(lost[:, None, None], 0, rows)
        commitment = self.zero
        if self.commitment_loss_weight > 0:
            commitment = mean_of((rows - quantized).square(), counted.unsqueeze(-1).expand(rows.shape[:-1]))
        if not self.entropy_loss_weight and not wanted:
            return LossBreakdown(self.zero, self.zero, commitment)
        if self.codebook_dim > MOST_BITS:
            raise ValueError(
                f"the entropy of {self.codebook_size} codes needs as many numbers; pass entropy_loss_weight=0, or "
                "split the bits over num_codebooks, or use fastvq.LFQ with CodeEntropy(groups=...)"
            )
        if self.frac_per_sample_entropy < 1:
            rows, counted = self._fraction(rows, counted, whole=valid is None)
        # The entries of a code, up to sign, give by how much a bit sets two codes apart in the softmax.
        entry = self.codebook_scale / (self.codebook_dim**0.5 if self.spherical else 1)
        logits = rows * (4 * entry * inv_temperature)
        per_sample = mean_of(floored_entropy(logits), counted)
        share = mean_over_processes(bit_entropy.mean_probabilities(logits.transpose(0, 1), counted))
        batch = -(share * share.clamp_min(FLOOR).log()).sum(-1).mean()
        return LossBreakdown(per_sample, batch, commitment)

    def _fraction(self, rows: Tensor, valid: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
        """A random share of the rows (N, c, bits) that are valid (N,), and which of the returned count."""
        noise = torch.randn(len(rows), device=rows.device)
        if whole:
            number = max(int(len(rows) * self.frac_per_sample_entropy), 1)
            chosen = noise.argsort().argsort()[:number]
            return rows[chosen], valid[chosen]
        # How many there are to choose from only the device knows, so all rows stay and some do not count.
        place = torch.where(valid, noise, torch.inf).argsort().argsort()
        few = (valid.sum().double() * self.frac_per_sample_entropy).long().clamp_min(1)
        return rows, (place < few) & valid


def power_of_two(codebook_size: int) -> int:
    """Its logarithm; ValueError where that is no whole number from 1."""
    check.positive("codebook_size", codebook_size)
    bits = codebook_size.bit_length() - 1
    if codebook_size != 2**bits or bits < 1:
        raise ValueError(f"codebook_size must be a power of two from 2, got {codebook_size}; try {2 ** (bits + 1)}")
    return bits


def row_mask(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """mask (B, *R), or (B, N) with the rows flattened, as (B, N)."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True where a row is valid, got {got}")
    if mask.shape not in (shape, torch.Size((shape[0], shape[1:].numel()))):
        raise ValueError(f"mask must have the rows' shape {tuple(shape)}, got {tuple(mask.shape)}")
    return mask.reshape(shape[0], shape[1:].numel())


def mean_over_processes(share: Tensor) -> Tensor:
    """The mean over all processes that train together, with gradients to each; the same where there is one."""
    if not running():
        return share
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(share)
    return total / dist.get_world_size()
