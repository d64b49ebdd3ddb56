"""Pre-LN transformer blocks: torch's own, with the cache of keys and values that they lack.

x-transformers and the GPT-2 of transformers have such caches too; torch's blocks compute the same with parameters of
the same shapes, train as fast here, and cost neither a dependency nor the seconds that importing transformers takes.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

INIT_STD = 0.02  # of linear layers and embeddings, as in GPT-2


class Cache:
    """Keys and values of the positions that a causal transformer has seen.

    Args:
        batch: sequences.
        length: the most positions there will be.
        model: whose.
    """

    def __init__(self, batch: int, length: int, model: Transformer) -> None:
        weight = model.norm.weight
        shape = (len(model.layers), 2, batch, model.heads, length, model.dim // model.heads)
        self.held = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.mask: Tensor | None = None
        self.length = 0


class Block(nn.TransformerEncoderLayer):
    """torch's pre-LN block, which can also go on from earlier positions."""

    def go_on(self, x: Tensor, held: Tensor, start: int, mask: Tensor | None) -> Tensor:
        """The block's output at positions from ``start`` on, without dropout.

        Args:
            x: (B, L, d).
            held: (2, B, H, M, d / H), keys and values before ``start``; gets those of ``x``.
            start: how many positions came before.
            mask: None where every position sees all before it and itself, else (B or 1, 1, L, start + L) of what sees
                what.
        """
        attention, stop = self.self_attn, start + x.shape[1]
        projected = F.linear(self.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        held[0, :, :, start:stop], held[1, :, :, start:stop] = k, v
        seen = F.scaled_dot_product_attention(q, held[0, :, :, :stop], held[1, :, :, :stop], attn_mask=mask)
        x = x + attention.out_proj(seen.transpose(1, 2).flatten(2))
        return x + self._ff_block(self.norm2(x))


class Transformer(nn.Module):
    """Pre-LN blocks with GELU, and a last LayerNorm; positions are the caller's.

    Args:
        dim: channels.
        layers: blocks.
        heads: of the attention; they divide ``dim``.
        dropout: of attention and both branches.
        causal: whether a position sees only those before it and itself.
    """

    def __init__(self, dim: int, layers: int, heads: int, *, dropout: float = 0.1, causal: bool = True) -> None:
        super().__init__()
        self.dim, self.heads, self.causal = dim, heads, causal
        self.layers = nn.ModuleList(
            Block(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.apply(init_weights)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, cache: Cache | None = None) -> Tensor:
        """All positions at once, or, with a cache, those that follow the ones that it holds.

        Args:
            x: (B, L, d).
            mask: (B, L), True where a position is real, the first of every sequence among them; None where all are.
                With a cache it is given with the first call, and what comes later is real.
            cache: of a causal transformer, for evaluation: without dropout and gradients.

        Returns:
            (B, L, d); where a position is not real, nothing that means anything.
        """
        if cache is not None:
            return self._go_on(x, mask, cache)
        length = x.shape[1]
        causal = None
        if self.causal:
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        hidden = None if mask is None else ~mask
        with _backend(x):
            for layer in self.layers:
                x = layer(x, causal, hidden, is_causal=self.causal and mask is None)
        return self.norm(x)

    @torch.no_grad()
    def _go_on(self, x: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        start, stop = cache.length, cache.length + x.shape[1]
        assert self.causal
        if mask is not None:
            assert start == 0
            cache.mask = mask
        seen = None
        if x.shape[1] > 1:
            seen = torch.ones(x.shape[1], stop, dtype=torch.bool, device=x.device).tril(start)[None, None]
        if cache.mask is not None:
            real = F.pad(cache.mask, (0, stop - cache.mask.shape[1]), value=True)[:, None, None]
            seen = real if seen is None else seen & real
        for layer, held in zip(self.layers, cache.held, strict=True):
            assert isinstance(layer, Block)
            x = layer.go_on(x, held, start, seen)
        cache.length = stop
        return self.norm(x)


def _backend(x: Tensor) -> AbstractContextManager[None]:
    """For training on a CPU the plain attention, since of the fused one's the backward pass in bfloat16 takes two to
    five times as long at the lengths of motions (3 to 41, torch 2.13); elsewhere torch's own choice."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def init_weights(module: nn.Module) -> None:
    """Linear layers and embeddings from N(0, 0.02), biases zero (Radford et al. 2019); for ``nn.Module.apply``."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=INIT_STD)
        nn.init.zeros_(module.in_proj_bias)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
