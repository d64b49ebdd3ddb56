"""Where the time of a training step goes, section by section, forward and backward."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class SectionTimer:
    """Wall-clock seconds of named sections; does nothing, at no cost, unless enabled.

    The backward pass is split by hooks on the tensors that one part hands to the next: when the gradient of such a
    tensor arrives, the backward pass of everything behind it is over.

    Args:
        enabled: whether to measure.
        device: what to wait for at each boundary, so that the time of asynchronous work goes where it belongs.

    Attributes:
        seconds: by section, one entry for each time it ran.
    """

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._mark = 0.0

    def section(self, name: str) -> AbstractContextManager[None]:
        """Times a block."""
        return self._section(name) if self.enabled else _NOTHING

    def backward(self, rest: str) -> AbstractContextManager[None]:
        """Times a backward pass; what remains after the last of :meth:`split_backward` counts as ``rest``."""
        return self._backward(rest) if self.enabled else _NOTHING

    def split_backward(self, tensor: Tensor, name: str) -> None:
        """Counts the backward pass from the previous split to this tensor's gradient as ``name``."""
        if self.enabled and tensor.requires_grad:
            tensor.register_hook(functools.partial(self._arrived, name))

    def wrap_method(self, owner: object, method: str, name: str) -> None:
        """Times every call of a method of one object."""
        if not self.enabled:
            return
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args: object, **kwargs: object) -> object:
            with self.section(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    def mean_ms(self, *, reset: bool = False) -> dict[str, float]:
        """Mean milliseconds of each section."""
        means = {name: 1e3 * sum(values) / len(values) for name, values in self.seconds.items()}
        if reset:
            self.seconds.clear()
        return means

    @contextlib.contextmanager
    def _section(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name].append(self._now() - start)

    @contextlib.contextmanager
    def _backward(self, rest: str) -> Iterator[None]:
        self._mark = self._now()
        yield
        self._arrived(rest, None)

    def _arrived(self, name: str, gradient: Tensor | None) -> None:
        now = self._now()
        self.seconds[name].append(now - self._mark)
        self._mark = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
