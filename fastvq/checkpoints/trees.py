"""What a layout consists of: a tree of names that is read into one kind of native module and written from it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .keys import Tensors

OF_FILE = {"dim", "codebook_size", "num_quantizers", "codebook_dim", "groups", "frozen_dim", "project"}


@dataclass(frozen=True, kw_only=True)
class Tree(ABC):
    """A tree of names below a quantizer.

    Args:
        native: class of the module that it is read into.
        marks: forms of the names by which a file is known to hold it, see :func:`keys.roots`.
        hints: further forms that will do where the user names the layout.
        channel_dim: axis on which the source's module takes its channels.
        defaults: further arguments of the native module.
    """

    own: ClassVar[tuple[str, ...]] = ()  # options beside the native module's arguments

    native: type[nn.Module]
    marks: tuple[str, ...]
    hints: tuple[str, ...] = ()
    channel_dim: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def read(self, tensors: Tensors, options: dict[str, Any]) -> nn.Module:
        """The native module; takes its own options out of ``options``.

        Raises:
            TypeError, ValueError: options or tensors that do not fit.
        """

    def configured(self, options: dict[str, Any], config: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The options, with what the config.json beside the file says."""
        return options

    @abstractmethod
    def write(self, module: nn.Module) -> dict[str, Tensor]:
        """The tensors by their names inside the quantizer.

        Raises:
            ValueError: the module is of a form that the tree has no names for.
        """

    def options(self) -> list[str]:
        """Names of the options that :meth:`read` takes."""
        return sorted({*inspect.signature(self.native).parameters, *self.own} - OF_FILE)

    def writes(self, kind: type) -> bool:
        """Whether it writes modules of this very class."""
        return kind is self.native

    def make(self, options: Mapping[str, Any], **sizes: Any) -> Any:
        """The native module of these sizes, by the user's options first and the tree's defaults second."""
        for name in options:
            if name not in self.options():
                raise TypeError(
                    f"there is no option {name!r} for a {self.native.__name__} from a checkpoint, "
                    f"choose from {', '.join(self.options())}"
                )
        return self.native(**{"channel_dim": self.channel_dim, **self.defaults, **options, **sizes})


def linear(tensors: Tensors, name: str, outputs: int | None, inputs: int | None) -> dict[str, Tensor]:
    """weight and bias of a linear layer."""
    weight = tensors.take(f"{name}.weight", outputs, inputs)
    return {"weight": weight, "bias": tensors.take(f"{name}.bias", len(weight))}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under a prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state; a module that gets float64 becomes float64, so that no digit is lost.

    What the state leaves out stays as it is.
    """
    if any(tensor.dtype == torch.float64 for tensor in state.values()):
        module.double()
    module.load_state_dict({**module.state_dict(), **state})


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, free of the module that they came from."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def refuse_unless(condition: bool, what: str) -> None:
    """Raises ValueError unless the module can be written."""
    if not condition:
        raise ValueError(what)


def names_of(trees: Iterable[Tree]) -> str:
    """The native modules that trees hold."""
    return " or ".join(dict.fromkeys(tree.native.__name__ for tree in trees))
