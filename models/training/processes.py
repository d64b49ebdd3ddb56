"""The processes of a training: each takes its part of every batch, and all hold the same weights.

A step costs one all-reduce for each model that it moves, of all gradients in one tensor, besides what codebooks need
(:mod:`fastvq.distributed`). The first process alone reads what decides and writes; the others hear what came of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from fastvq.distributed import world_size
from fastvq.models import launch
from fastvq.models.errors import UserError

T = TypeVar("T")

# In a checkpoint, beside the first process's own: the random states of all processes, where there were several.
STATES = "processes"


class Averaged(NamedTuple):
    """What :meth:`Processes.average_` found out.

    Attributes:
        share: of this process in the mean over all, a tensor (), or 1 where there is one process.
        stop: whether any process is to stop.
    """

    share: Tensor | float
    stop: bool


class Processes:
    """This process among those of a training.

    Args:
        rank: its number, 0 for the main one.
        count: how many there are.
        device: what this one computes on.
    """

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device

    @property
    def main(self) -> bool:
        """Whether this is the process that talks and writes files."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Which windows of a batch are this process's.

        Raises:
            UserError: the processes cannot share them evenly.
        """
        if batch_size % self.count:
            raise UserError(
                f"batch_size is that of all processes together and must be a multiple of their number, {self.count}, "
                f"got {batch_size}: use {max(1, batch_size // self.count) * self.count}"
            )
        own = batch_size // self.count
        return slice(self.rank * own, (self.rank + 1) * own)

    def average_(
        self, parameters: Iterable[nn.Parameter], *, number: Tensor | float = 1.0, stop: bool = False
    ) -> Averaged:
        """Makes gradients those of the mean loss over all processes, in one all-reduce.

        A parameter that has no gradient on any process keeps none.

        Args:
            parameters: with the gradients of this process's loss; the same ones on every process.
            number: of what this process's loss is the mean; the losses of processes weigh as much.
            stop: whether this process asks all to stop.
        """
        if self.count == 1:
            return Averaged(1.0, stop)
        moved = [parameter for parameter in parameters if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in moved]
        said = torch.tensor([*(float(parameter.grad is not None) for parameter in moved), float(stop)])
        joined = torch.zeros(sum(sizes) + len(said) + 1, dtype=moved[0].dtype, device=self.device)
        *parts, flags, _ = joined.split([*sizes, len(said), 1])
        flags.copy_(said)
        total = joined[-1]
        total.copy_(torch.as_tensor(number))
        weight = total.clone()
        for parameter, part in zip(moved, parts, strict=True):
            if parameter.grad is not None:
                torch.mul(parameter.grad, weight, out=part.view_as(parameter))
        dist.all_reduce(joined)
        *present, stopped = (flags > 0).tolist()
        for parameter, part, held in zip(moved, parts, present, strict=True):
            if held:
                # As the parameters lie in memory, for the sake of optimizers.
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(part.view_as(parameter) / total)
        return Averaged(weight / total, stopped)

    def sum_(self, x: Tensor) -> Tensor:
        """Adds up a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        return x if self.count == 1 else self.sum_(x.clone()) / self.count

    def align_(self, modules: Iterable[nn.Module]) -> None:
        """Gives all processes the weights and buffers of the first."""
        if self.count > 1:
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    held = tensor.detach().contiguous()  # NCCL takes no other
                    dist.broadcast(held, src=0)
                    tensor.detach().copy_(held)

    def on_main(self, action: Callable[..., T], *arguments: Any) -> T | None:
        """Calls something on the first process only, while the others wait for its end.

        Returns:
            What it returns there, None elsewhere.

        Raises:
            UserError: it raised one, with the same words on every process.
        """
        if self.count == 1:
            return action(*arguments)
        result: T | None = None
        if self.main:
            try:
                result = action(*arguments)
            except UserError as error:
                self.tell(str(error))
                raise
        refusal: str | None = self.tell(None)
        if refusal is not None:
            raise UserError(refusal)
        return result

    def tell(self, value: T) -> T:
        """What the first process has, on all: anything that pickles."""
        if self.count == 1:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        told: T = held[0]
        return told

    def gather(self, value: T) -> list[T]:
        """What each process has, on all: anything that pickles."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def seed(self, seed: int, step: int) -> None:
        """Gives every process but the first random numbers of its own, which follow from the seed and the step."""
        if not self.main:
            drawn = np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(drawn[0]))

    def random_states(self) -> dict[str, Any]:
        """The states of torch's generators, for a checkpoint: those of the first process, and where there are several
        those of all."""
        own = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        every = self.gather(own)
        return dict(every[0]) if len(every) == 1 else {**every[0], STATES: every}

    def restore_random_states(self, held: Mapping[str, Any], *, seed: int, step: int) -> int:
        """Takes up the states that a checkpoint holds; a process that had none begins anew.

        Returns:
            How many processes there were.
        """
        every: list[Mapping[str, Any]] = held.get(STATES, [held])
        if self.rank >= len(every):
            self.seed(seed, step)
            return len(every)
        own = every[self.rank]
        torch.set_rng_state(own["rng"])
        if self.device.type == "cuda" and "rng_cuda" in own:  # absent where the run was started on a CPU
            torch.cuda.set_rng_state(own["rng_cuda"], self.device)
        return len(every)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A stretch of work that all processes do; where one fails, none goes on, or waits for it.

        What a user can put right is found by all of them, who stay connected.

        Raises:
            UserError: another process has ended.
        """
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            self.abandon()
            if self.count > 1 and _broken(error):
                raise UserError(
                    "another process of the training has ended, and this one with it: what that one said last tells "
                    "why; resume the run to go on from its newest checkpoint"
                ) from error
            raise

    def leave(self) -> None:
        """Ends the connection to the other processes, as all do when the work is done."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def abandon(self) -> None:
        """Ends it where the work is not done, so that what the others still wait for fails."""
        # NCCL would wait for them. There the end of this process is enough, after which the launcher ends the others.
        if self.count > 1 and dist.is_initialized() and dist.get_backend() == dist.Backend.GLOO:
            dist.destroy_process_group()


def join() -> Processes:
    """The processes that ``torchrun`` or ``accelerate launch`` started, this one among them, or this one alone.

    Connected by NCCL where there are GPUs, each process on its own, by Gloo where there are none.

    Raises:
        UserError: more processes than GPUs, or processes that were connected by somebody else, or not any more.
    """
    count = launch.number_of_processes()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if count > 1 and 0 < gpus < here:
        raise UserError(
            f"each process needs a GPU of its own, got {here} processes and {gpus} GPUs: launch {gpus}, or hide the "
            "GPUs with CUDA_VISIBLE_DEVICES="
        )
    # Casts nothing by itself. Without cpu it would take each of several processes on CPUs for the only one.
    state = Accelerator(cpu=count > 1 and not gpus, mixed_precision="no")
    if state.num_processes != world_size():
        raise UserError(
            f"the launcher says {state.num_processes} processes, and torch.distributed connects {world_size()}: "
            "launch a training with torchrun, anew after one that failed"
        )
    device = torch.device("cpu") if state.device.type == "cpu" else state.device
    return Processes(state.process_index, state.num_processes, device)


def _broken(error: BaseException) -> bool:
    """Whether that is how a collective fails when another process has gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
