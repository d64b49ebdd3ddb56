"""Codebook state that stays float32 whatever is around it, and loads from older layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDE = (torch.float32, torch.float64)
STATE = ("embed", "embed_avg", "cluster_size")


class WideState(nn.Module):
    """Buffers or parameters that ``.half()`` and ``.bfloat16()`` leave as they are: a decay of 0.99 is lost there."""

    initted: Tensor
    _initted: bool

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideState:
        kept = {name: getattr(self, name).detach() for name in self._state_names()}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            new = getattr(self, name)
            if new.dtype in WIDE:
                continue
            if isinstance(new, nn.Parameter):
                new.data = old.to(new.device)
            else:
                setattr(self, name, old.to(new.device))
        return self

    def _state_names(self) -> tuple[str, ...]:
        return STATE

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also takes what older versions wrote: ``initted`` as one float, and no axis of heads."""
        axes = {"embed": 3, "embed_avg": 3, "cluster_size": 2}
        for name, number in axes.items():
            value = state_dict.get(prefix + name)
            if value is not None and value.dim() == number - 1:
                state_dict[prefix + name] = value.unsqueeze(0)
        initted = state_dict.get(prefix + "initted")
        if initted is not None and initted.numel() == 1:
            state_dict[prefix + "initted"] = initted.reshape(()).bool()
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in self._state_names():
            value = getattr(self, name)
            if value.dtype not in WIDE:  # load_state_dict(..., assign=True) takes tensors as they come
                wide = value.detach().float()
                setattr(self, name, nn.Parameter(wide) if isinstance(value, nn.Parameter) else wide)
        if initted is not None:
            self._initted = bool(self.initted)
