"""EnCodec and Mimi: residual stacks of Euclidean codebooks, in encodec, audiocraft and Hugging Face's transformers.

A codebook's own search becomes one fused kernel, also in training, where its averages get their sums without a
one-hot matrix; a stack outside training becomes one search for all its stages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .fusing import Fused, Memory, PreparedCodes, Stack, matching, wide


class EuclideanCodebook(Fused):
    """``quantize``: rows (N, D) -> (N,) int64, from ``embed`` (K, D)."""

    names: tuple[str, ...] = ("EuclideanCodebook", "EncodecEuclideanCodebook", "MimiEuclideanCodebook")
    attributes: tuple[str, ...] = ("quantize", "embed", "codebook_size")
    embed: Tensor

    def quantize(self, x: Tensor) -> Tensor:
        codes = wide(self.embed)
        # A row that is not finite gets the first code, as it does there.
        return F.nearest(matching(x, codes), codes).indices.clamp_min(0)


class TrainableCodebook(EuclideanCodebook):
    """The codebook of encodec and audiocraft, which follows its rows in training."""

    names = ("EuclideanCodebook",)
    attributes = (
        *("quantize", "embed", "embed_avg", "cluster_size", "codebook_size", "decay", "epsilon"),
        *("init_embed_", "expire_codes_", "dequantize"),
    )
    embed_avg: Tensor
    cluster_size: Tensor
    codebook_size: int
    decay: float
    epsilon: float
    training: bool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (..., D) -> codes (..., D) and indices (...)."""
        module: Any = self
        if self.training and self.embed.dtype not in (torch.float32, torch.float64):
            return super().forward(x)  # type: ignore[misc]
        rows = x.reshape(-1, x.shape[-1])
        module.init_embed_(rows)
        flat = self.quantize(rows)
        quantized = module.dequantize(flat.view(x.shape[:-1]))
        if self.training:
            # As there: dead codes are replaced before the averages move, by rows that the averages do not see.
            module.expire_codes_(rows)
            with torch.no_grad():
                sums, counts = F.segment_sum(rows.to(self.embed.dtype), flat, self.codebook_size)
                embed, average, size = self.embed.data, self.embed_avg.data, self.cluster_size.data
                F.ema_update_(embed, average, size, sums, counts, decay=self.decay, eps=self.epsilon)
        return quantized, flat.view(x.shape[:-1])


class Stacked(Fused):
    """A stack of codebooks: rows (B, D, T) -> indices (Q, B, T), and back."""

    layers: nn.ModuleList
    training: bool

    def _codes(self, number: int) -> Tensor:
        """The codes of the first stages, (1, number, K, D)."""
        holders = _holders(self.layers)
        stack = self.__dict__.setdefault("_stack", Stack())
        codes: Tensor = stack.codes(holders, "embed")
        return codes[:, :number]

    def _forget(self) -> None:
        stack = self.__dict__.pop("_stack", None)
        if stack is not None:
            stack.release(_holders(self.layers), "embed")

    def _search(self, x: Tensor, number: int) -> Tensor:
        codes = self._codes(number)
        indices = F.residual_nearest(matching(x, codes).mT.unsqueeze(0), codes).indices[0]
        return indices.permute(2, 0, 1).clamp_min(0)

    def _sum(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """(Q, B, T) -> (B, D, T)."""
        codes = self._codes(len(indices))
        return F.lookup(indices.long().permute(1, 2, 0).unsqueeze(0), codes)[0].mT.to(dtype)


def _holders(layers: nn.ModuleList) -> list[Any]:
    """The modules with ``embed``, one for each layer."""
    return [layer._modules.get("codebook") or layer._modules["_codebook"] for layer in layers]


class EncodecStack(Stacked):
    """The stack of Hugging Face's EnCodec."""

    names = ("EncodecResidualVectorQuantizer",)
    attributes = ("layers", "encode", "decode", "get_num_quantizers_for_bandwidth")

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        module: Any = self
        number = module.get_num_quantizers_for_bandwidth(bandwidth)
        return self._search(embeddings, min(number, len(self.layers)))

    def decode(self, codes: Tensor) -> Tensor:
        return self._sum(codes, _holders(self.layers)[0].embed.dtype)


class MimiStack(Stacked):
    """The stack of Hugging Face's Mimi, whose codes are sums over usage and which may project its input."""

    names = ("MimiResidualVectorQuantizer",)
    attributes = ("layers", "encode", "decode", "input_proj", "output_proj")
    input_proj: nn.Module | None
    output_proj: nn.Module | None
    num_quantizers: int

    def _codes(self, number: int) -> Tensor:
        holders = _holders(self.layers)
        memory = self.__dict__.setdefault("_memory", Memory())

        def codes() -> PreparedCodes:
            parts = [h.embed_sum / h.cluster_usage.clamp(min=h.epsilon)[:, None] for h in holders]
            return PreparedCodes(wide(torch.stack(parts)).unsqueeze(0))

        found: PreparedCodes = memory([t for h in holders for t in (h.embed_sum, h.cluster_usage)], codes)
        return found.codes[:, :number]

    def _forget(self) -> None:
        self.__dict__.pop("_memory", None)

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        if self.input_proj is not None:
            embeddings = self.input_proj(embeddings)
        number = self.num_quantizers if num_quantizers is None else num_quantizers
        return self._search(embeddings, min(number, len(self.layers)))

    def decode(self, codes: Tensor) -> Tensor:
        holders = _holders(self.layers)
        quantized = self._sum(codes.transpose(0, 1), holders[0].embed_sum.dtype)
        return quantized if self.output_proj is None else self.output_proj(quantized)


class AudiocraftStack(Stacked):
    """The stack of encodec and audiocraft; outside training, and where its layers do not project."""

    names = ("ResidualVectorQuantization",)
    attributes = ("layers", "encode", "decode")

    def _plain(self) -> bool:
        return not self.training and all(
            isinstance(getattr(layer, "project_in", nn.Identity()), nn.Identity) for layer in self.layers
        )

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        if not self._plain():
            return super().encode(x, n_q)  # type: ignore[misc]
        return self._search(x, min(n_q or len(self.layers), len(self.layers)))

    def decode(self, q_indices: Tensor) -> Tensor:
        if not self._plain():
            return super().decode(q_indices)  # type: ignore[misc]
        return self._sum(q_indices, _holders(self.layers)[0].embed.dtype)


def handlers() -> tuple[type[Fused], ...]:
    """What is tried on a module, in this order."""
    return EncodecStack, MimiStack, AudiocraftStack, TrainableCodebook, EuclideanCodebook
