"""Whole quantizers in training: search, straight-through, commitment loss, EMA update, and the backward pass.

All contenders start from the same codes and see the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvq
from fastvq.benchmarks import peers
from fastvq.benchmarks.contest import Call, Contest
from fastvq.benchmarks.nearest import MATRIX_LIMIT, excess
from fastvq.benchmarks.nearest import ours as search
from fastvq.benchmarks.shapes import Shape, make_data
from fastvq.benchmarks.sums import by_stage, index_add
from fastvq.benchmarks.updates import ema, ema_expected
from fastvq.functional import lookup


class TextbookVQ(nn.Module):
    """The quantizer of most papers' repositories, with its sums by ``index_add_`` instead of a one-hot product.

    Args:
        codebooks: (G, Q, K, D) to start from.
        search: (G, N, D), (G, K, D) -> (G, N).
    """

    def __init__(
        self,
        codebooks: Tensor,
        search: Callable[[Tensor, Tensor], Tensor] = peers.textbook,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.search, self.stages, self.shared = search, codebooks.shape[1], shared
        self.codebooks = (codebooks[:, :1] if shared else codebooks).clone(memory_format=torch.contiguous_format)
        self.embed_sum = self.codebooks.clone()
        self.cluster_size = torch.ones(self.codebooks.shape[:-1], device=codebooks.device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, N, G D) -> quantized, and the loss."""
        groups, dim = len(self.codebooks), self.codebooks.shape[-1]
        rows = x.view(-1, groups, dim).transpose(0, 1)
        group = torch.arange(groups, device=x.device)[:, None]
        residual, total, loss = rows.detach(), torch.zeros_like(rows), x.new_zeros(())
        found = []
        for stage in range(self.stages):
            codes = self.codebooks[:, 0 if self.shared else stage]
            indices = self.search(residual, codes)
            chosen = codes[group, indices]
            found.append(index_add(residual, indices, codes.shape[1]))
            loss = loss + F.mse_loss(rows - total, chosen)
            residual, total = residual - chosen, total + chosen
        sums, counts = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        if self.shared:
            sums, counts = sums.sum(1, keepdim=True), counts.sum(1, keepdim=True)
        ema(self.codebooks, self.embed_sum, self.cluster_size, sums, counts)
        quantized = total.transpose(0, 1).reshape(x.shape)
        return x + (quantized - x).detach(), loss / self.stages


def ours(shape: Shape, codebooks: Tensor) -> nn.Module:
    """Our module of this shape, started from these codes."""
    rules = fastvq.CodebookRules(init=None, dead=None)
    dim = shape.G * shape.D
    module: nn.Module
    if shape.Q > 1:
        module = fastvq.ResidualVQ(dim, shape.K, num_quantizers=shape.Q, shared=shape.shared, rules=rules)
    elif shape.G > 1:
        module = fastvq.GroupedVQ(dim, shape.K, groups=shape.G, rules=rules)
    else:
        module = fastvq.VectorQuantize(dim, shape.K, rules=rules)
    module.to(codebooks.device)
    codes: Any = module.codebooks
    codebooks = codebooks[:, :1] if shape.shared else codebooks
    for name in ("codebook", "embed_sum"):
        getattr(codes, name).copy_(codebooks.reshape(getattr(codes, name).shape))
    return module


def contenders(shape: Shape, codebooks: Tensor, *, compiled: bool) -> dict[str, nn.Module]:
    """Modules that start from the same codes: ours, textbooks, and the peer in its faster forms."""
    modules: dict[str, nn.Module] = {"fastvq": ours(shape, codebooks)}
    searches = {"torch textbook": peers.textbook, "torch baddbmm": peers.folded}
    if codebooks.device.type == "cpu" and torch.backends.mkldnn.is_available():
        searches[peers.ONEDNN] = peers.onednn
    for name, by in searches.items():
        modules[name] = TextbookVQ(codebooks, by, shared=shape.shared)
    if compiled:
        textbook = TextbookVQ(codebooks, shared=shape.shared)
        modules["torch compile"] = cast(nn.Module, torch.compile(textbook, dynamic=False))
    if peers.installed(peers.VQP) and (shape.G == 1 or shape.Q == 1):
        modules[peers.VQP] = peers.vqp_module(shape, codebooks, grouped=shape.G > 1)
    return {name: module.train() for name, module in modules.items()}


def forward(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The quantized rows and the loss of any contender."""
    result = module(x)
    if len(result) == 2:
        return result[0], result[1]
    return result[0], result[2].sum() if result[2].dim() else result[2]


def train_step(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Forward pass, update, and the gradient of the rows, given that of the quantized rows and 1 for the loss.

    Returns:
        the quantized rows, and the gradient of the rows.
    """
    rows = x.detach().requires_grad_()
    quantized, loss = forward(module, rows)
    torch.autograd.backward((quantized, loss), (grad, None))
    assert rows.grad is not None
    return quantized.detach(), rows.grad


def contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """A training step of the module of this shape."""
    x, codebooks = make_data(shape, device)
    flat = x.transpose(0, 1).reshape(1, shape.N, shape.G * shape.D)
    grad = torch.randn_like(flat)
    modules = contenders(shape, codebooks, compiled=compiled)
    if 4 * shape.G * shape.N * shape.K > MATRIX_LIMIT:
        modules = {"fastvq": modules["fastvq"]}
    dense = x.contiguous()
    indices = search(dense, codebooks)
    unequal = excess(dense, codebooks, indices)
    right, terms = (
        lookup(indices, codes).transpose(0, 1).reshape(flat.shape) for codes in (codebooks, codebooks.abs())
    )
    sums, counts = by_stage(dense.double(), indices, codebooks.double())
    magnitudes, _ = by_stage(dense.double().abs(), indices, -codebooks.double().abs())
    if shape.shared:
        codebooks = codebooks[:, :1]
        sums, counts, magnitudes = (part.sum(1, keepdim=True) for part in (sums, counts, magnitudes))
    expected, allowed = ema_expected(codebooks, sums, counts, magnitudes, counts.unsqueeze(-1) + shape.Q)
    # Each stage's x + (q - x) is q but for two roundings, and the sum over the stages is rounded too.
    slack = 2.0**-23 * (1 + shape.Q) * (flat.abs() + terms)
    own: Any = modules["fastvq"]

    def wrong(name: str, found: tuple[Tensor, Tensor]) -> int:
        """Rows that are quantized to other codes than the oracle's, and for ours codes that did not move rightly."""
        rows = ((found[0] - right).abs() > slack).view(shape.N, shape.G, shape.D).any(-1).sum()
        if name:
            return int(rows)
        moved = own.codebooks.codebook.reshape(expected.shape)
        return unequal + int(rows) + int(((moved - expected).abs() > allowed).any(-1).sum())

    calls: dict[str, Call] = {name: partial(train_step, module, flat, grad) for name, module in modules.items()}
    return Contest({"exact": calls.pop("fastvq")}, calls, wrong)
