"""What processes that train together tell one another: sums of statistics, and rows to draw from."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """The processes of the default group, or this one alone.

    Args:
        sync: whether to take part; False keeps to this process.
    """

    def __init__(self, sync: bool) -> None:
        self.sync = sync

    @property
    def many(self) -> bool:
        """Whether there are others to agree with."""
        return self.sync and running()

    def total(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each tensor summed over the processes, in one exchange."""
        if not self.many:
            return values
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        parts = flat.split([value.numel() for value in values])
        return tuple(part.view(value.shape) for part, value in zip(parts, values, strict=True))

    def gather(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """rows (H, n, D) and keys (H, n) of all processes, in their order: (H, W * n, D) and (H, W * n)."""
        own = torch.cat([rows, keys.unsqueeze(-1)], -1).contiguous()
        everyone = own.new_empty((dist.get_world_size() * own.shape[0], *own.shape[1:]))
        dist.all_gather_into_tensor(everyone, own)
        joined = everyone.view(-1, *own.shape).transpose(0, 1).flatten(1, 2)
        return joined[..., :-1], joined[..., -1]


def running() -> bool:
    """Whether a process group of more than one process runs."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared_draw(high: int, device: torch.device) -> int:
    """A random int in [0, high), the same in every process."""
    if not running():
        return int(torch.randint(0, high, ()).item())
    drawn = torch.randint(0, high, (), device=device)
    dist.all_reduce(drawn)
    return int(drawn.item())
