"""Names inside a checkpoint: finding where a quantizer is, and taking its tensors with every check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def join(*parts: str) -> str:
    """Names joined by dots, empty ones left out."""
    return ".".join(part for part in parts if part)


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by their names there."""
    if not prefix:
        return dict(state)
    return {name[len(prefix) + 1 :]: tensor for name, tensor in state.items() if name.startswith(prefix + ".")}


def roots(names: Iterable[str], mark: str) -> list[str]:
    """Every prefix under which there is a name of the form ``mark``, in which {g} and {q} stand for numbers."""
    form = re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(mark))
    pattern = re.compile(rf"(?:(?P<root>.+)\.)?{form}")
    return sorted({match["root"] or "" for name in names if (match := pattern.fullmatch(name))})


def some(names: Sequence[str], shown: int = 4) -> str:
    """The first few of many names."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


class Tensors:
    """The tensors of one quantizer; each is checked as it is taken, and none may be left over.

    Args:
        state: by their names inside the quantizer.
        root: where the quantizer is, for messages.
        layout: the layout's name, for messages.
    """

    def __init__(self, state: Mapping[str, Tensor], root: str, layout: str) -> None:
        self.state, self.root, self.layout = state, root, layout
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def count(self, form: str) -> int:
        """How many numbers {q} of a form such as "layers.{q}." there are: the largest and one.

        Raises:
            ValueError: there is none.
        """
        head, _, tail = form.partition("{q}")
        pattern = re.compile(re.escape(head) + r"(\d+)" + re.escape(tail))
        numbers = {int(match[1]) for name in self.state if (match := pattern.match(name))}
        if not numbers:
            raise ValueError(f"the {self.layout} layout lacks {join(self.root, form.format(q=0))}*")
        return max(numbers) + 1

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A floating-point tensor of this shape, None standing for any size.

        Raises:
            ValueError: it is missing, of another shape or dtype, or not finite.
        """
        tensor, full = self._found(name), join(self.root, name)
        if shape and not fits(tensor, shape):
            wanted = ", ".join("*" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{full} must have shape ({wanted}) by the {self.layout} layout and the other tensors, "
                f"got {tuple(tensor.shape)}; the file mixes models, or is of another layout"
            )
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{full} must hold floating-point numbers, got {tensor.dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{full} is not finite: training had broken down; take an earlier checkpoint")
        return tensor.detach().cpu()

    def flag(self, name: str) -> bool:
        """A tensor of one element as a bool."""
        tensor = self._found(name)
        if tensor.numel() != 1:
            raise ValueError(f"{join(self.root, name)} must be one flag, got shape {tuple(tensor.shape)}")
        return bool(tensor.reshape(()).item())

    def _found(self, name: str) -> Tensor:
        if name not in self.state:
            raise ValueError(
                f"{join(self.root, name)} is missing, which the {self.layout} layout has; "
                "the file is cut short, or of another layout"
            )
        self.taken.add(name)
        if self.state[name].is_meta:
            raise ValueError(
                f"{join(self.root, name)} is on the meta device and has no values; load the weights first"
            )
        return self.state[name]

    def finish(self) -> None:
        """Raises ValueError where a tensor was not taken."""
        left = [join(self.root, name) for name in self.state if name not in self.taken]
        if left:
            raise ValueError(
                f"the {self.layout} layout has no place for {some(left)}; the file is of another layout or of a "
                "quantizer with more parts, or prefix= is too short"
            )


def fits(tensor: Tensor, shape: Sequence[int | None]) -> bool:
    """Whether the tensor has this shape, None standing for any size."""
    return tensor.dim() == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
