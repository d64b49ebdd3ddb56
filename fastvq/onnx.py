"""ONNX export: the ops written out in what ONNX knows, for runtimes that have no fused kernels.

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    program = fastvq.onnx.export(fastvq.onnx.Encode(vq), (x,), "encode.onnx", dynamic_shapes=(axes,))

The search becomes one matrix product with codes centred by their mean, in float32, so that a close call may go to the
other code; :class:`Encode` and :class:`Decode` make modules of a quantizer's two directions. Any model that holds our
quantizers exports alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Encode(nn.Module):
    """x -> ``quantizer.encode(x)``."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer.encode(x)  # type: ignore[operator]


class Decode(nn.Module):
    """indices -> ``quantizer.decode(indices)``."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, indices: Tensor) -> Tensor:
        return self.quantizer.decode(indices)  # type: ignore[operator]


def export(
    module: nn.Module, args: tuple[Any, ...], path: str | Path | None = None, *, dynamic_shapes: Any = None
) -> Any:
    """Exports a module in eval mode, with the quantizers' ops written out.

    Args:
        module: is put in eval mode for the export.
        args: example inputs.
        path: file to write; None writes none.
        dynamic_shapes: as for ``torch.export.export``.

    Returns:
        The ``torch.onnx.ONNXProgram``.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export needs onnx and onnxscript; pip install onnx onnxscript") from error
    training = module.training
    module.eval()
    try:
        exported = torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
    finally:
        module.train(training)
    program = torch.onnx.export(exported.run_decompositions(decompositions()), dynamo=True, verbose=False)
    assert program is not None
    if path is not None:
        program.save(str(path))
    return program


def decompositions() -> Any:
    """The ops of a search and a look-up in plain torch, for ``ExportedProgram.run_decompositions``."""
    table = torch.export.default_decompositions()
    ops = torch.ops.fastvq
    table[ops.nearest.default] = _nearest
    table[ops.residual_nearest.default] = _residual_nearest
    table[ops.lookup.default] = _lookup
    # Shifts of signed integers, which ONNX has for unsigned ones only.
    aten: Any = torch.ops.aten
    table[aten.__lshift__.Tensor] = lambda x, places: x * 2**places
    table[aten.__rshift__.Tensor] = lambda x, places: x // 2**places
    return table


def _nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str, precision: str, impl: str
) -> tuple[Tensor, Tensor]:
    rows = x.to(codebook.dtype).permute(1, 2, 0, 3)  # (R1, R2, G, D): results keep the rows outermost
    if metric == "cosine":
        rows, codebook = _unit(rows), _unit(codebook)
    if metric == "l2":
        mean = codebook.mean(1)
        centred, codes = rows - mean, codebook - mean.unsqueeze(1)
        scores = _products(centred, codes) - codes.square().sum(-1) / 2
    else:
        scores = _products(rows, codebook)
    valid = rows.sub(rows).sum(-1) == 0  # False for NaN and for infinity
    if mask is not None:
        valid = valid & mask.permute(1, 2, 0)
    indices = scores.argmax(-1)
    chosen = _gather(indices, codebook)
    if metric == "l2":
        distances = (rows - chosen).square().sum(-1)
    else:
        distances = (rows * chosen).sum(-1)
        distances = 1 - distances if metric == "cosine" else distances
    lost = torch.full_like(distances, float("nan"))
    if mask is not None:
        lost = torch.where(mask.permute(1, 2, 0), lost, 0)
    return torch.where(valid, indices, -1).permute(2, 0, 1), torch.where(valid, distances, lost).permute(2, 0, 1)


def _residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    sizes: list[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    precision: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    residual, total = x.to(codebooks.dtype), torch.zeros_like(x, dtype=codebooks.dtype)
    indices, errors = [], []
    for q in range(codebooks.shape[1]):
        taken = mask
        if stages is not None:
            reached = (stages > q).expand(x.shape[:-1])
            taken = reached if mask is None else reached & mask
        codes = codebooks[:, q] if sizes is None else codebooks[:, q, : sizes[q]]
        found, distances = _nearest(residual, codes, taken, "l2", precision, impl)
        chosen = _lookup(found.unsqueeze(-1), codes.unsqueeze(1), impl)
        residual, total = residual - chosen, total + chosen
        indices.append(found)
        errors.append(distances)
    error = torch.stack(errors, dim=-1)
    lost = error.isnan().any(-1, keepdim=True)
    quantized = torch.where(lost, float("nan"), total).to(x.dtype)
    order = (1, 2, 0, 3)
    return tuple(  # type: ignore[return-value]
        t.permute(order).contiguous().permute(2, 0, 1, 3) for t in (torch.stack(indices, dim=-1), quantized, error)
    )


def _lookup(indices: Tensor, codebooks: Tensor, impl: str) -> Tensor:
    total: Tensor | None = None
    for q in range(codebooks.shape[1]):
        index = indices[..., q].permute(1, 2, 0)
        chosen = torch.where((index >= 0).unsqueeze(-1), _gather(index.clamp_min(0), codebooks[:, q]), 0)
        total = chosen if total is None else total + chosen
    assert total is not None
    return total.permute(2, 0, 1, 3)


def _products(rows: Tensor, codes: Tensor) -> Tensor:
    """(R1, R2, G, D) and (G, K, D) -> (R1, R2, G, K)."""
    return (rows.unsqueeze(-2) @ codes.mT).squeeze(-2)


def _gather(indices: Tensor, codebook: Tensor) -> Tensor:
    """(R1, R2, G) and (G, K, D) -> (R1, R2, G, D)."""
    groups, size, dim = codebook.shape
    place = indices + torch.arange(groups, device=indices.device) * size
    return codebook.reshape(groups * size, dim)[place]


def _unit(x: Tensor) -> Tensor:
    norm = x.square().sum(-1, keepdim=True).sqrt()
    return torch.where(norm == 0, 0, x / norm)
