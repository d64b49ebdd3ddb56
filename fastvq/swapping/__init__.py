"""Swaps the quantizers of a model that exists for fused ones, in place, and back."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from . import dac, ema_reset, encodec, vector_quantize_pytorch
from .fusing import Fused, fuse, like, restore

HANDLERS = (*encodec.handlers(), *dac.handlers(), *ema_reset.handlers(), *vector_quantize_pytorch.handlers())
SUSPECT = ("quantiz", "codebook", "vq", "fsq", "lfq")


class Swapped(NamedTuple):
    """A module that now searches with fused kernels: its name in the model, its class, and what is fused."""

    name: str
    kind: str
    fused: str


class Left(NamedTuple):
    """A module that looks like a quantizer and was left as it is: its name, its class, and why."""

    name: str
    kind: str
    reason: str


class SwapReport(NamedTuple):
    """What :func:`swap` did; ``print`` it."""

    swapped: list[Swapped]
    left: list[Left]

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, left {len(self.left)}"]
        lines += [f"  + {name or '(the model)'}: {kind}, {fused}" for name, kind, fused in self.swapped]
        lines += [f"  - {name or '(the model)'}: {kind}, {reason}" for name, kind, reason in self.left]
        return "\n".join(lines)


def swap(model: nn.Module) -> SwapReport:
    """Lets the quantizers of a model search with fused kernels: same weights, same state-dict keys, same codes.

    Handled are the modules of vector-quantize-pytorch, of encodec and audiocraft, of Hugging Face's EnCodec, DAC and
    Mimi, of DAC and SNAC, and the EMA-reset quantizers of T2M-GPT and MoMask; they are known by the names of their
    classes and attributes, and no such package is imported. Codes are those of the exact search, so they differ from
    before only where the original's rounding decided. Training goes on as it did, its averages included.

    A swapped module is of a subclass of its class. :func:`unswap` undoes it.

    Args:
        model: changed in place.

    Returns:
        What was swapped, and what was left and why.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    report = SwapReport([], [])
    own = __name__.partition(".")[0] + "."
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, Fused) or type(module).__module__.startswith(own):
            continue
        handler = next((h for h in HANDLERS if like(module, h.names, h.attributes)), None)
        if handler is not None:
            fuse(module, handler)
            report.swapped.append(Swapped(name, kind, (handler.__doc__ or "").split("\n")[0].rstrip(".")))
        elif any(word in kind.lower() for word in SUSPECT):
            report.left.append(Left(name, kind, _reason(module)))
    return report


def unswap(model: nn.Module) -> int:
    """Gives every swapped module of a model its own class again, with the weights as they now are.

    Returns:
        How many modules that were.
    """
    fused = [module for module in model.modules() if isinstance(module, Fused)]
    for module in fused:
        restore(module)
    return len(fused)


def _reason(module: nn.Module) -> str:
    if any(
        isinstance(child, Fused) or any(like(child, h.names, h.attributes) for h in HANDLERS)
        for child in list(module.modules())[1:]
    ):
        return "its own steps stay, the codebooks inside are swapped"
    if any(word in type(module).__name__.lower() for word in ("fsq", "lfq", "scalar")):
        return "it rounds and has no codebook to search"
    return "no handler knows its structure"
