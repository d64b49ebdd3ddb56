"""Attention quantization: a row takes the code that it attends to most, and the codebook learns through attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import functional as F
from . import soft
from . import validation as check
from .channels import ChannelGroups
from .codebook import Codebook
from .estimators import StraightThrough
from .grouped import Quantized
from .rules import CodebookRules, FirstRowsInit, Learned
from .state import snapshot

Maps = tuple[Tensor, ...]
STARTS = ("random", "identity")


class AttentionVQ(ChannelGroups):
    """Quantizes a row x to v_k with k = argmax_j norm(W_q x) . norm(W_k c_j), v = W_v c (PGR2M, 2512.22464).

    With p = softmax of the scores over sqrt(D) and h = v_k, the soft code z = h + (p - sg(p)) v carries gradients to
    all three maps. The loss is w (mean((z - x)^2) + mean((sg(h) - x)^2) + beta mean((h - sg(x))^2)) and, with p' the
    softmax at the entropy's temperature, entropy_weight (mean H(p') - H(mean p')). Rows pass gradients straight
    through.

    Args:
        dim: channels of the input and dimension of the codes.
        codebook_size: K.
        beta: of the codes' part of the loss.
        entropy_weight, entropy_temperature: of the entropy loss.
        start: "random" maps, as published, or "identity": a row then begins with the code nearest by angle, as it is.
        rules: update :class:`fastvq.Learned` with its weight w, initialiser, and dead-code rule; by default weight 1,
            the first rows of the first training batch, and, as published, no rule, so that unused codes stay unused.
        channel_dim, check_finite: as :class:`fastvq.GroupedVQ`.

    Parameters: those of ``query``, ``key``, ``value`` and their norms. Parameters and buffers of
    :class:`fastvq.Codebook` with G = 1, the codes c, under ``codebooks.``.

    Raises:
        TypeError, ValueError: sizes or rules that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import AttentionVQ
        >>> vq = AttentionVQ(32, 16)
        >>> quantized, indices, loss = vq(torch.randn(4, 50, 32))
        >>> tuple(quantized.shape), tuple(indices.shape)
        ((4, 50, 32), (4, 50))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        beta: float = 0.25,
        entropy_weight: float = 0.01,
        entropy_temperature: float = 0.01,
        start: str = "random",
        rules: CodebookRules | None = None,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim, check_finite=check_finite)
        check.positive("codebook_size", codebook_size)
        check.not_negative("beta", beta)
        check.not_negative("entropy_weight", entropy_weight)
        check.above_zero("entropy_temperature", entropy_temperature)
        check.choice("start", start, STARTS)
        rules = CodebookRules(update=Learned(), init=FirstRowsInit(), dead=None) if rules is None else rules
        self.codebooks = Codebook(codebook_size, dim, rules=rules)
        if not isinstance(rules.update, Learned):
            raise TypeError(f"rules.update must be Learned(), since gradients move the codes, got {rules.update!r}")
        self.codebook_size, self.beta, self.loss_weight = codebook_size, beta, rules.update.weight
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        if start == "identity":
            for layer in (self.query, self.key, self.value):
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.query_norm, self.key_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self._kept = _Kept()

    @property
    def codebook(self) -> Tensor:
        """The codes as they are used, v = W_v c, (K, D), with gradients to both; at least float32; a copy."""
        return self._values().clone()

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """Quantizes; in training mode takes the first codes from the first batch, and replaces dead ones if told to.

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
        rows, mask, shape = self._rows(x, mask, lengths, self.codebooks.codebook)
        if mask is not None:
            rows = torch.where(mask.unsqueeze(-1), rows, 0)  # NaN in padding must not reach the weights' gradients
        if self.training:
            self.codebooks.initialise_(rows, mask)
        replaced = self.training and self.codebooks.follows
        # Maps keep the codes for their backward pass, and dead ones are about to be replaced.
        raw = snapshot(self.codebooks.codebook)[0] if replaced else self.codebooks.codebook[0]
        queries, (keys, values) = self._queries(rows), self._maps(raw)
        indices = self._search(queries, keys, mask)
        valid = indices >= 0
        codes = F.lookup(indices.unsqueeze(-1), _wide(values)[None, None])
        loss = self._loss(rows, queries, keys, values, indices, codes, valid)
        lost = ~valid if mask is None else ~valid & mask
        codes = torch.where(lost.unsqueeze(-1), float("nan"), codes)
        quantized = StraightThrough()(rows, codes.to(rows.dtype))
        if replaced:
            self.codebooks.update_(rows.detach(), indices)
        return Quantized(self._restore(quantized, shape, mask), self._index_shape(indices, shape).squeeze(-1), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> indices (*R)."""
        rows, mask, shape = self._rows(x, mask, lengths, self.codebooks.codebook)
        indices = self._search(self._queries(rows), self._maps(self.codebooks.codebook[0])[0], mask)
        return self._index_shape(indices, shape).squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R) -> W_v c_k, channels on ``channel_dim``, at least float32; -1 gives zeros."""
        flat, shape = self._flat_indices(indices.unsqueeze(-1))
        return self._restore(F.lookup(flat.unsqueeze(-1), self._values()[None, None]), shape)

    def _values(self) -> Tensor:
        return _wide(self._maps(self.codebooks.codebook[0])[1])

    def _queries(self, rows: Tensor) -> Tensor:
        return _normed(self.query_norm, self.query(rows.to(self.query.weight.dtype)))

    def _maps(self, raw: Tensor) -> Maps:
        """Keys and values of the codes (K, D), (K, D) each."""

        def make() -> Maps:
            codes = raw.to(self.key.weight.dtype)
            return _normed(self.key_norm, self.key(codes)), self.value(codes)

        kept = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
        if not kept or raw.device.type != "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(raw):
            return make()
        maps = (*self.key.parameters(), *self.key_norm.parameters(), *self.value.parameters())
        return self._kept((raw, *maps), make)

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
        return self.loss_weight * loss + self.entropy_weight * (attended.entropies / number - entropy)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, beta={self.beta}"


class _Kept:
    """What was made of tensors, for as long as those hold the same numbers; copies of it begin empty."""

    def __init__(self) -> None:
        self.sources: Maps = ()
        self.made: Maps | None = None

    def __call__(self, sources: Maps, make: Callable[[], Maps]) -> Maps:
        """``make()``, or its earlier result. Numbers are compared: a write to ``data`` leaves no other trace."""
        unchanged = self.made is not None and all(
            old.dtype == new.dtype and torch.equal(old, new) for old, new in zip(self.sources, sources, strict=True)
        )
        if not unchanged:
            self.made, self.sources = make(), tuple(source.detach().clone() for source in sources)
        assert self.made is not None
        return self.made

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """In the norm's own dtype: autocast gives linear layers another."""
    normed: Tensor = norm(x.to(norm.weight.dtype))
    return normed
