"""Whole quantizers in training: search, straight-through, commitment loss, EMA update, and the backward pass.

Run ``python -m benchmarks.quantizers`` on a quiet machine; it takes about two minutes on two cores and appends its
rows to ``benchmarks/results/cpu/quantizers.csv``. All contenders start from the same codes and see the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvq
from fastvq.benchmarks import peers
from fastvq.benchmarks.nearest import excess
from fastvq.benchmarks.rows import Row, timed, write_rows
from fastvq.benchmarks.shapes import CPU, Shape, make_data
from fastvq.benchmarks.timing import Measure, interleave, wall_ms

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "quantizers.csv"
PASSES = ("train-forward", "train-step")


class TextbookVQ(nn.Module):
    """The quantizer of most papers' repositories, with its sums by ``index_add_`` instead of a one-hot product.

    Args:
        codebooks: (G, Q, K, D) to start from.
        search: (G, N, D), (G, K, D) -> (G, N).
    """

    def __init__(self, codebooks: Tensor, search: Callable[[Tensor, Tensor], Tensor] = peers.textbook) -> None:
        super().__init__()
        self.search = search
        self.codebooks = codebooks.clone()
        self.embed_sum = codebooks.clone()
        self.cluster_size = torch.ones(codebooks.shape[:-1], device=codebooks.device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, N, G D) -> quantized, and the loss."""
        groups, stages, codes, dim = self.codebooks.shape
        rows = x.view(-1, groups, dim).transpose(0, 1)
        group = torch.arange(groups, device=x.device)[:, None]
        residual, total, loss = rows.detach(), torch.zeros_like(rows), x.new_zeros(())
        for stage in range(stages):
            indices = self.search(residual, self.codebooks[:, stage])
            chosen = self.codebooks[group, stage, indices]
            flat = (indices + group * codes).flatten()
            sums = torch.zeros(groups * codes, dim, device=x.device).index_add_(0, flat, residual.flatten(0, 1))
            counts = torch.bincount(flat, minlength=groups * codes).view(groups, codes).to(sums.dtype)
            loss = loss + F.mse_loss(rows - total, chosen)
            self.cluster_size[:, stage].mul_(0.99).add_(counts, alpha=0.01)
            self.embed_sum[:, stage].mul_(0.99).add_(sums.view(groups, codes, dim), alpha=0.01)
            size = self.cluster_size[:, stage]
            number = size.sum(-1, keepdim=True)
            size = (size + 1e-5) / (number + codes * 1e-5) * number
            self.codebooks[:, stage] = self.embed_sum[:, stage] / size.unsqueeze(-1)
            residual, total = residual - chosen, total + chosen
        quantized = total.transpose(0, 1).reshape(x.shape)
        return x + (quantized - x).detach(), loss / stages


def ours(shape: Shape, codebooks: Tensor) -> nn.Module:
    """Our module of this shape, started from these codes."""
    rules = fastvq.CodebookRules(init=None, dead=None)
    dim = shape.G * shape.D
    module: nn.Module
    if shape.Q > 1:
        module = fastvq.ResidualVQ(dim, shape.K, num_quantizers=shape.Q, rules=rules)
    elif shape.G > 1:
        module = fastvq.GroupedVQ(dim, shape.K, groups=shape.G, rules=rules)
    else:
        module = fastvq.VectorQuantize(dim, shape.K, rules=rules)
    module.to(codebooks.device)
    codes: Any = module.codebooks
    for name in ("codebook", "embed_sum"):
        getattr(codes, name).copy_(codebooks.reshape(getattr(codes, name).shape))
    return module


def contenders(shape: Shape, codebooks: Tensor, *, compiled: bool) -> dict[str, nn.Module]:
    """Modules that start from the same codes: ours, textbooks, and the peer in its faster forms."""
    modules: dict[str, nn.Module] = {"fastvq": ours(shape, codebooks)}
    modules["torch textbook"] = TextbookVQ(codebooks)
    modules["torch baddbmm"] = TextbookVQ(codebooks, peers.folded)
    if compiled:
        modules["torch compile"] = cast(nn.Module, torch.compile(TextbookVQ(codebooks), dynamic=False))
    if peers.installed(peers.VQP) and (shape.G == 1 or shape.Q == 1):
        modules[peers.VQP] = peers.vqp_module(shape, codebooks, grouped=shape.G > 1)
    return {name: module.train() for name, module in modules.items()}


def forward(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The quantized rows and the loss of any contender."""
    result = module(x)
    if len(result) == 2:
        return result[0], result[1]
    return result[0], result[2].sum() if result[2].dim() else result[2]


def train_forward(module: nn.Module, x: Tensor) -> None:
    """Forward pass and update."""
    with torch.no_grad():
        forward(module, x)


def train_step(module: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Forward pass, update, and the gradient of the rows, given that of the quantized rows and 1 for the loss."""
    rows = x.detach().requires_grad_()
    torch.autograd.backward(forward(module, rows), (grad, None))


def run(
    shapes: Sequence[Shape],
    *,
    device: str = "cpu",
    reps: int = 9,
    seconds: float = 30.0,
    compiled: bool = True,
    measure: Measure = wall_ms,
) -> list[Row]:
    """Gates ours, then times every contender at every shape."""
    implementation = fastvq.ops.explain(device)["nearest"][0]
    rows = []
    for shape in shapes:
        x, codebooks = make_data(shape, device)
        flat = x.transpose(0, 1).reshape(1, shape.N, shape.G * shape.D)
        grad = torch.randn_like(flat)
        module = ours(shape, codebooks).eval()
        with torch.no_grad():
            found = module(flat).indices.view(shape.N, shape.G, shape.Q).transpose(0, 1)
        wrong = excess(x.contiguous(), codebooks, found)
        if wrong:
            raise SystemExit(f"gate: {wrong} rows got a code that is not the nearest at shape {shape.name}")
        for pass_ in PASSES:
            modules = contenders(shape, codebooks, compiled=compiled)
            calls: dict[str, Callable[[], object]] = {
                name: partial(train_forward, module, flat)
                if pass_ == "train-forward"
                else partial(train_step, module, flat, grad)
                for name, module in modules.items()
            }
            timings = interleave(calls, reps=reps, seconds=seconds, measure=measure)
            for name, timing in timings.items():
                own = name == "fastvq"
                rows.append(
                    timed(
                        shape,
                        timing,
                        op=type(modules["fastvq"]).__name__,
                        pass_=pass_,
                        impl=implementation if own else "",
                        precision="exact" if own else "",
                        peer="" if own else name,
                        peer_version="" if own else peers.version(name),
                        mismatch_rows=wrong if own else None,
                    )
                )
                ratio = timing.median_ms / timings["fastvq"].median_ms
                print(
                    f"{shape.name} {pass_:14s} {name:26s} {timing.median_ms:9.2f} ms  {ratio:6.1f}x ours", flush=True
                )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in CPU]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="which shapes")
    parser.add_argument("--reps", type=int, default=9, help="rounds per shape and pass")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    shapes = [shape for shape in CPU if shape.name in options.shapes]
    write_rows(options.out, run(shapes, reps=options.reps, compiled=not options.no_compile))


if __name__ == "__main__":
    main()
