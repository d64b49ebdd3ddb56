"""Quantizers without an ordinary codebook in training: FSQ, LFQ and SimVQ, against vector-quantize-pytorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as nnF
from torch import Tensor, nn

import fastvq
from fastvq.benchmarks import peers
from fastvq.benchmarks.contest import Call, Contest
from fastvq.benchmarks.nearest import excess
from fastvq.benchmarks.shapes import Shape, make_data

LEVELS = [8, 5, 5, 5]
TEMPERATURE = 0.01
COMMITMENT = 0.25  # of SimVQ

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def step(forward: Forward, x: Tensor, grad: Tensor) -> Tensor:
    """Forward pass and the gradients of all that was trained, given that of the quantized rows and 1 for the loss."""
    rows = x.detach().requires_grad_()
    quantized, loss = forward(rows)
    if loss.requires_grad:
        torch.autograd.backward((quantized, loss), (grad, None))
    else:
        torch.autograd.backward(quantized, grad)
    return quantized.detach()


def off(expected: Tensor, close: Tensor | None, _: str, found: Tensor) -> int:
    """Rows (1, N, D) farther from the expected ones than rounding, but for those that were a close call."""
    wrong = ((found - expected).abs() > 2.0**-20 * (1 + expected.abs())).any(-1)
    return int((wrong & ~close if close is not None else wrong).sum())


def _contest(
    x: Tensor,
    ours: Forward,
    textbook: Forward,
    peer: Callable[[], Forward],
    wrong: Callable[..., int],
    compiled: bool,
) -> Contest:
    grad = torch.randn_like(x)
    others: dict[str, Call] = {"torch textbook": partial(step, textbook, x, grad)}
    if compiled:
        others["torch compile"] = partial(step, torch.compile(textbook, dynamic=False), x, grad)
    if peers.installed(peers.VQP):
        others[peers.VQP] = partial(step, peer(), x, grad)
    return Contest({"exact": partial(step, ours, x, grad)}, others, wrong)


def _position(x: Tensor, levels: Tensor) -> Tensor:
    """Where a channel lies among its levels, before the rounding (Mentzer et al. 2023)."""
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    return (x + (offset / half).atanh()).tanh() * half - offset


def finite_scalar(levels: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """FSQ in plain torch."""
    position = _position(x, levels)
    return (position + (position.round() - position).detach()) / (levels // 2), x.new_zeros(())


def fsq_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """Four channels of :data:`LEVELS` levels."""
    x = make_data(shape._replace(K=1), device)[0].contiguous()
    levels = torch.tensor(LEVELS, device=device)
    position = _position(x.double(), levels.double())
    # A position next to a half may be rounded either way by arithmetic whose own rounding reaches that far.
    close = ((position - position.floor() - 0.5).abs() < 2.0**-20 * (1 + position.abs())).any(-1)
    ours = fastvq.FSQ(shape.D, LEVELS).to(device).train()

    def peer() -> Forward:
        from vector_quantize_pytorch import FSQ

        module = FSQ(LEVELS).to(device)
        return lambda x: (module(x)[0], x.new_zeros(()))

    wrong = partial(off, finite_scalar(levels.double(), x.double())[0], close)
    return _contest(x, partial(_first_and_loss, ours), partial(finite_scalar, levels), peer, wrong, compiled)


def lookup_free(codes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """LFQ in plain torch: signs, and an entropy over the probabilities (N, K) of all codes (Yu et al. 2023)."""
    probabilities = (2 / TEMPERATURE * x @ codes.T).softmax(-1)
    mean = probabilities.flatten(0, -2).mean(0)
    certain = -(probabilities * probabilities.clamp_min(1e-5).log()).sum(-1).mean()
    spread = -(mean * mean.clamp_min(1e-5).log()).sum()
    quantized = torch.where(x > 0, 1.0, -1.0)
    return x + (quantized - x).detach(), 0.1 * (certain - spread)


def lfq_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """A bit a channel, with the entropy loss of the paper."""
    x = make_data(shape._replace(K=1), device)[0].contiguous()
    places = torch.arange(shape.D - 1, -1, -1, device=device)
    codes = (torch.arange(shape.K, device=device)[:, None] >> places & 1).float() * 2 - 1
    ours = fastvq.LFQ(shape.D, shape.K, entropy=fastvq.CodeEntropy(temperature=TEMPERATURE)).to(device).train()

    def peer() -> Forward:
        from vector_quantize_pytorch import LFQ

        module = LFQ(dim=shape.D, codebook_size=shape.K).to(device).train()
        return partial(_first_and_loss, module)

    wrong = partial(off, torch.where(x > 0, 1.0, -1.0), None)
    return _contest(x, partial(_first_and_loss, ours), partial(lookup_free, codes), peer, wrong, compiled)


class TextbookSimVQ(nn.Module):
    """SimVQ in plain torch: the codes are a linear map of frozen ones (Zhu et al. 2024)."""

    def __init__(self, frozen: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.frozen, self.weight = frozen, nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, N, D) -> quantized, loss."""
        codes = self.frozen @ self.weight.T
        quantized = codes[torch.cdist(x, codes).argmin(-1)]
        loss = nnF.mse_loss(quantized, x.detach()) + COMMITMENT * nnF.mse_loss(x, quantized.detach())
        return x + (quantized - x).detach(), loss


def sim_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """One linear map of a frozen codebook, straight-through."""
    x = make_data(shape, device)[0].contiguous()
    torch.manual_seed(0)
    ours = (
        fastvq.SimVQ(shape.D, shape.K, estimator=fastvq.StraightThrough(), commitment_weight=COMMITMENT)
        .to(device)
        .train()
    )
    weight = cast(nn.Linear, ours.transforms[0]).weight.detach().clone()
    codebook = ours.codebook.detach()
    indices = ours.encode(x)
    unequal = excess(x, codebook.unsqueeze(0), indices.unsqueeze(-1))
    expected = codebook[0][indices]

    def peer() -> Forward:
        from vector_quantize_pytorch import SimVQ

        module: Any = SimVQ(dim=shape.D, codebook_size=shape.K, rotation_trick=False).to(device).train()
        with torch.no_grad():
            module.frozen_codebook.copy_(ours.frozen[0])
            module.code_transform.weight.copy_(weight)
        return partial(_first_and_loss, module)

    def wrong(name: str, found: Tensor) -> int:
        # x + (q - x) is q but for two roundings.
        rows = ((found - expected).abs() > 2.0**-22 * (x.abs() + expected.abs())).any(-1).sum()
        return int(rows) + (0 if name else unequal)

    return _contest(x, partial(_first_and_loss, ours), TextbookSimVQ(ours.frozen[0], weight), peer, wrong, compiled)


def _first_and_loss(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of modules that return the quantized rows, indices and a loss."""
    result = module(x)
    return result[0], result[2]
