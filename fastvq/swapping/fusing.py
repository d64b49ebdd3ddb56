"""How a module is swapped: its class becomes a subclass that overrides the search, and nothing else of it moves.

Parameters, buffers, state-dict keys, hooks, ``isinstance`` and other references to the module stay as they are, and
:func:`restore` gives the class back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops


class Fused:
    """What all swapped modules derive from, before their own class.

    A module is taken to be of the kind that a subclass fuses where its class, or one that it derives from, has one of
    the ``names`` and it has all of the ``attributes``.
    """

    original: type[nn.Module]
    names: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__mro__[1], self.original), self.__dict__


_CLASSES: dict[tuple[type[Fused], type[nn.Module]], Any] = {}


def fused_class(mixin: type[Fused], original: type[nn.Module]) -> Any:
    """The subclass of both, made once."""
    if (mixin, original) not in _CLASSES:
        members = {"original": original, "__module__": original.__module__}
        _CLASSES[mixin, original] = type(f"Fused{original.__name__}", (mixin, original), members)
    return _CLASSES[mixin, original]


def _rebuild(mixin: type[Fused], original: type[nn.Module]) -> nn.Module:
    kind = fused_class(mixin, original)
    module: nn.Module = kind.__new__(kind)
    return module


def fuse(module: nn.Module, mixin: type[Fused]) -> None:
    """Gives a module the overrides of a mixin."""
    module.__class__ = fused_class(mixin, type(module))


def restore(module: nn.Module) -> None:
    """Gives a module its own class again."""
    assert isinstance(module, Fused)
    forget = getattr(module, "_forget", None)
    if forget is not None:
        forget()
    kind: Any = module.original
    module.__class__ = kind


def like(module: nn.Module, names: Sequence[str], attributes: Sequence[str]) -> bool:
    """Whether a module is of a class of one of these names, or derives from one, and has these attributes."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return not kinds.isdisjoint(names) and all(hasattr(module, name) for name in attributes)


def wide(codes: Tensor) -> Tensor:
    """Codes as the search takes them, detached: float64, or else float32."""
    codes = codes.detach()
    return codes if codes.dtype == torch.float64 else codes.float()


def matching(rows: Tensor, codes: Tensor) -> Tensor:
    """Rows as the search takes them beside these codes, detached: float64 exactly where the codes are."""
    rows = rows.detach()
    return rows.to(codes.dtype) if (rows.dtype == torch.float64) != (codes.dtype == torch.float64) else rows


class PreparedCodes:
    """Codes of our own making, which nothing writes to: kernels that can prepare them do so once.

    Args:
        codes: (1, Q, K, D) float32 or float64.
    """

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes
        keep = getattr(ops.implementation("auto", codes.device.type, "residual_nearest"), "Kept", None)
        self._kept = None if keep is None or torch.compiler.is_compiling() else keep(codes)


class Stack:
    """The codebooks of some layers as one (1, Q, K, D) tensor, of which their own buffers become views.

    So no write to a buffer can be missed and nothing is copied; where a buffer has been replaced, as ``.to()`` does,
    the stack is made anew at the next search.
    """

    def __init__(self) -> None:
        self._codes: Tensor | None = None

    def codes(self, holders: Sequence[nn.Module], name: str) -> Tensor:
        """The stack of ``getattr(holder, name)``, (K, D) each; float32, or float64 where they are."""
        tensors = [getattr(holder, name) for holder in holders]
        first = tensors[0]
        if first.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling() or first.is_inference():
            return wide(torch.stack([tensor.detach() for tensor in tensors])).unsqueeze(0)
        codes, size = self._codes, first.numel() * first.element_size()
        if (
            codes is None
            or codes.dtype != first.dtype
            or any(tensor.data_ptr() != codes.data_ptr() + q * size for q, tensor in enumerate(tensors))
        ):
            with torch.inference_mode(False), torch.no_grad():
                self._codes = codes = torch.stack([tensor.detach() for tensor in tensors]).unsqueeze(0)
                for q, tensor in enumerate(tensors):
                    tensor.data = codes[0, q]
        return codes

    def release(self, holders: Sequence[nn.Module], name: str) -> None:
        """Gives every layer a buffer of its own again."""
        if self._codes is not None:
            for holder in holders:
                tensor = getattr(holder, name)
                tensor.data = tensor.detach().clone()
            self._codes = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Stack:
        return Stack()

    def __reduce__(self) -> tuple[Any, ...]:
        return Stack, ()


class Memory:
    """Keeps a value that was computed from some tensors until one of them is written to or replaced.

    Writes through ``.data`` do not count as writes to torch; they are known by a sample of the values.
    """

    SAMPLE = 8192

    def __init__(self) -> None:
        self._key: object = None
        self._samples: list[Tensor] = []
        self._value: Any = None

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        """``compute()``, or what it last returned for these tensors."""
        if torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            return compute()
        key = tuple((tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device) for tensor in tensors)
        samples = [tensor.detach().reshape(-1)[:: max(1, tensor.numel() // self.SAMPLE)] for tensor in tensors]
        if key != self._key or not all(map(torch.equal, samples, self._samples)):
            self._value, self._key = compute(), key
            self._samples = [sample.clone() for sample in samples]
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()
