"""BinaryMapper under vector-quantize-pytorch's name (Fleuret 2025, "The Free Transformer")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ... import validation as check
from ...bit_entropy import patterns
from ...scalar import straight_through as pass_straight

NAT = math.log(2)


class BinaryMapper(nn.Module):
    """Draws bits from logits and gives the code that they spell as a one-hot vector.

    The arguments and what comes back are vector-quantize-pytorch 1.32's. Other than there, half precision and float64
    train, in the dtype of the logits; the one-hot is 0 and 1 to the bit; the probabilities that carry its gradient
    are built bit by bit, not by two products with a table of all codes; ``log_prob`` looks up no table either.

    Args:
        bits: of a code; bit d is worth 2^d.
        kl_loss_threshold: what a row's divergence from even bits may be before the loss sees it, in nats.
        deterministic_on_eval: in eval mode bits are the likelier ones and not drawn.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Source: the class of this name, https://github.com/lucidrains/vector-quantize-pytorch; Fleuret 2025.

    >>> import torch
    >>> from fastvq.compat.vector_quantize_pytorch import BinaryMapper
    >>> mapper = BinaryMapper(bits=8)
    >>> one_hot, indices, aux_loss = mapper(torch.randn(3, 4, 8), return_indices=True)
    >>> one_hot.shape, indices.shape, aux_loss.shape
    (torch.Size([3, 4, 256]), torch.Size([3, 4]), torch.Size([]))
    """

    power_two: Tensor
    zero: Tensor

    def __init__(self, bits: int = 1, kl_loss_threshold: float = NAT, deterministic_on_eval: bool = False) -> None:
        super().__init__()
        check.positive("bits", bits)
        if bits > 30:
            raise ValueError(f"bits must be at most 30, since a row becomes 2**bits numbers, got {bits}")
        self.bits, self.num_codes = bits, 2**bits
        self.kl_loss_threshold, self.deterministic_on_eval = kl_loss_threshold, deterministic_on_eval
        self.register_buffer("power_two", 2 ** torch.arange(bits), persistent=False)
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    @property
    def codes(self) -> Tensor:
        """The bits of all codes, (num_codes, bits) bool, worked out when read."""
        return patterns(self.bits, self.power_two).flip(-1).bool()

    def binary_entropy(self, logits: Tensor) -> Tensor:
        """logits (..., bits) -> the entropy of the bits, in nats (...)."""
        chance = logits.sigmoid()
        return -(chance * nnf.logsigmoid(logits) + (1 - chance) * nnf.logsigmoid(-logits)).sum(-1)

    def calc_aux_loss(self, logits: Tensor, reduce_aux_kl_loss: bool = True) -> Tensor:
        """logits (..., bits) -> what their divergence from even bits exceeds the threshold by: the mean, or (...)."""
        loss = (self.bits * NAT - self.binary_entropy(logits) - self.kl_loss_threshold).relu()
        return loss.mean() if reduce_aux_kl_loss else loss

    def log_prob(
        self, logits: Tensor, *, indices: Tensor | None = None, one_hot: Tensor | None = None, sum_bits: bool = True
    ) -> Tensor:
        """The log probability of codes, given as indices (...) or one-hot (..., num_codes).

        Args:
            logits: (..., bits).
            sum_bits: False gives that of each bit, (..., bits).

        Raises:
            ValueError: neither or both are given.
        """
        if (indices is None) == (one_hot is None):
            raise ValueError("indices or one_hot must be given, and not both")
        if indices is None:
            assert one_hot is not None
            indices = one_hot.argmax(-1)
        bits = (indices.unsqueeze(-1) & self.power_two) != 0
        found = nnf.logsigmoid(torch.where(bits, logits, -logits))
        return found.sum(-1) if sum_bits else found

    def _probabilities(self, logits: Tensor) -> Tensor:
        """logits (..., bits) -> the probability of every code, (..., num_codes), bit by bit."""
        found = torch.ones_like(logits[..., :1])
        for d in range(self.bits):
            logit = logits[..., d, None]
            found = torch.cat([found * (-logit).sigmoid(), found * logit.sigmoid()], -1)
        return found

    def forward(
        self,
        logits: Tensor,
        temperature: float = 1.0,
        straight_through: bool | None = None,
        calc_aux_loss: bool | None = None,
        deterministic: bool | None = None,
        return_indices: bool = False,
        reduce_aux_kl_loss: bool = True,
    ) -> tuple[Tensor, ...]:
        """Draws codes.

        Args:
            logits: (..., bits).
            temperature: what logits are divided by before the draw.
            straight_through: whether the one-hot carries gradients to the logits; by default in training.
            calc_aux_loss: whether to; by default in training.
            deterministic: the likelier bits; by default in eval mode with deterministic_on_eval.
            return_indices: (...) between the two others.
            reduce_aux_kl_loss: False gives the loss of each row, (...).

        Returns:
            The one-hot (..., num_codes)[, indices], and the auxiliary loss, or zero.
        """
        check.floating("logits", logits)
        if logits.shape[-1] != self.bits:
            raise ValueError(f"logits must have {self.bits} bits last, got shape {tuple(logits.shape)}")
        if deterministic is None:
            deterministic = self.deterministic_on_eval and not self.training
        chance = (logits / temperature).sigmoid()
        drawn = (chance > 0.5 if deterministic else chance.bernoulli()).long()
        indices = (self.power_two * drawn).sum(-1)
        one_hot = nnf.one_hot(indices, self.num_codes).to(logits.dtype)
        loss = self.zero
        if self.training if calc_aux_loss is None else calc_aux_loss:
            loss = self.calc_aux_loss(logits, reduce_aux_kl_loss)
        if self.training if straight_through is None else straight_through:
            one_hot = pass_straight(self._probabilities(logits), one_hot)
        return (one_hot, indices, loss) if return_indices else (one_hot, loss)
