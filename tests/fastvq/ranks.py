"""Run by test_distributed.py, once for every rank: ``python ranks.py RANK WORLD STORE``; raises if a check fails."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastvq
from fastvq import (
    EMA,
    AbsoluteUsage,
    CodebookRules,
    FirstRowsInit,
    KMeansInit,
    Learned,
    QuantizeDropout,
    RelativeUsage,
)

CALLS: Counter[str] = Counter()


COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "barrier", "reduce_scatter_tensor", "all_gather_into_tensor")


def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def inner(*args: Any, **kwargs: Any) -> Any:
        CALLS[name] += 1
        return call(*args, **kwargs)

    return inner


@contextmanager
def collectives_counted() -> Iterator[None]:
    """CALLS says which collectives were called, and how often."""
    CALLS.clear()
    kept = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, call in kept.items():
        setattr(dist, name, counted(name, call))
    yield
    for name, call in kept.items():
        setattr(dist, name, call)


def same_everywhere(module: nn.Module) -> None:
    """The state of all ranks is that of the first one, bit for bit."""
    for name, value in module.state_dict().items():
        first = value.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(first, value), f"rank {dist.get_rank()} has another {name}"


def batches(steps: int, world: int, dim: int) -> list[list[torch.Tensor]]:
    """The same on every rank: for every step one batch a rank, of uneven sizes, one of them now and then empty."""
    random = torch.Generator().manual_seed(5)
    found = []
    for step in range(steps):
        sizes = [23 + 9 * rank for rank in range(world)]
        sizes[step % world] = 0 if step % 3 == 1 else 40
        found.append([torch.randn(size, dim, generator=random) + 0.3 for size in sizes])
    return found


MAKERS = {
    "vq": lambda rules: fastvq.VectorQuantize(6, 8, rules=rules),
    "grouped": lambda rules: fastvq.GroupedVQ(6, 8, groups=2, rules=rules),
    "residual": lambda rules: fastvq.ResidualVQ(6, 8, num_quantizers=3, rules=rules),
    "mixed": lambda rules: fastvq.ResidualVQ(6, (8, 5), num_quantizers=2, rules=rules),
    "shared": lambda rules: fastvq.ResidualVQ(6, 8, num_quantizers=3, shared=True, rules=rules),
    "cosine": lambda rules: fastvq.VectorQuantize(6, 8, metric="cosine", rules=rules),
}


def agrees_with_one_process(make, rank: int, world: int) -> None:
    """Codebooks on many ranks are those of one process that sees all rows, within 1e-5."""
    torch.manual_seed(0)
    rules = CodebookRules(update=EMA(0.8), init=None, dead=None)
    many, alone = make(rules), make(CodebookRules(update=EMA(0.8), init=None, dead=None, sync=False))
    alone.load_state_dict(many.state_dict())
    for batch in batches(10, world, 6):
        many(batch[rank])
        alone(torch.cat(batch))
    same_everywhere(many)
    for name, value in many.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-5, atol=1e-5)


def stays_equal(make, rules, rank: int, world: int) -> None:
    """With ranks seeded differently, initialisation and replacement from data, empty and masked batches."""
    torch.manual_seed(rank)
    module = make(rules)
    for step, batch in enumerate(batches(12, world, 6)):
        rows = batch[rank]
        mask = torch.zeros(len(rows), dtype=torch.bool) if (step + rank) % 4 == 0 else None
        with collectives_counted():
            module(rows, mask)
        if step > 1:
            assert CALLS["all_reduce"] <= 1, CALLS
            assert CALLS["all_gather"] <= 1, CALLS
            assert sum(CALLS.values()) <= 2, CALLS
        same_everywhere(module)
    assert bool(module.codebooks.initted)
    assert module.codebooks.codebook.isfinite().all()


def first_batches_without_rows(rank: int, world: int) -> None:
    """Nobody has a row at first, then only the last rank; the codes start from its rows, on all ranks."""
    torch.manual_seed(rank)
    module = fastvq.VectorQuantize(6, 4)
    module(torch.zeros(0, 6))
    assert not module.codebooks.initted
    module(torch.full((3, 6), float("nan")))
    assert not module.codebooks.initted
    module(torch.randn(20, 6) + 100 if rank == world - 1 else torch.zeros(0, 6))
    assert module.codebooks.initted
    assert (module.codebook > 90).all()
    same_everywhere(module)


def dead_codes_take_rows_of_all_ranks(rank: int, world: int) -> None:
    """Rows of each rank lie in a place of their own; codes that are all dead are spread over these places."""
    torch.manual_seed(rank)
    rules = CodebookRules(update=EMA(0.5), init=None, dead=AbsoluteUsage(1e9, reset=1e9))
    module = fastvq.VectorQuantize(2, 12, rules=rules)
    module(torch.randn(100, 2) + 1000.0 * rank)
    place = (module.codebook[0, :, 0] / 1000).round()
    assert place.unique().tolist() == list(range(world)), place
    same_everywhere(module)


class Net(nn.Module):
    def __init__(self, rules: CodebookRules) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
        self.quantizer = fastvq.ResidualVQ(6, 8, num_quantizers=2, rules=rules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantized, _, loss = self.quantizer(self.encoder(x))
        return (self.decoder(quantized) - x).square().mean() + loss


def trains_under_ddp(update, rank: int, world: int) -> None:
    """Weights and codebooks are equal on every rank after training, learned or averaged."""
    torch.manual_seed(0)
    net = Net(CodebookRules(update=update, init=KMeansInit(2), dead=RelativeUsage(0.3)))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for step in range(12):
        torch.manual_seed(100 * step + rank)
        optimizer.zero_grad()
        loss = model(torch.randn(30 + rank, 6))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    same_everywhere(net)
    assert losses[-1] < losses[0]


def trains_under_fsdp(rank: int, world: int) -> None:
    torch.manual_seed(rank)
    net = Net(CodebookRules(update=EMA(0.9), init=FirstRowsInit(), dead=RelativeUsage(0.3)))
    model = fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(6):
        torch.manual_seed(100 * step + rank)
        optimizer.zero_grad()
        model(torch.randn(30 + rank, 6)).backward()
        optimizer.step()
    same_everywhere(net.quantizer)


def compiles_whole(rank: int, world: int) -> None:
    torch.manual_seed(rank)
    rules = CodebookRules(update=EMA(0.9), init=None, dead=RelativeUsage(0.5))
    module = fastvq.VectorQuantize(6, 8, rules=rules)
    module(torch.randn(16, 6))  # the first step aligns the ranks
    compiled = torch.compile(module, fullgraph=True)
    for _ in range(3):
        compiled(torch.randn(16, 6))
    same_everywhere(module)


def main(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    checks = [partial(agrees_with_one_process, make) for make in MAKERS.values()]
    for dead in (RelativeUsage(0.5), AbsoluteUsage(2.0, reset=None)):
        rules = CodebookRules(update=EMA(0.8), init=KMeansInit(3), dead=dead)
        checks += [partial(stays_equal, make, rules) for make in MAKERS.values()]
    dropout = QuantizeDropout(per_sequence=True)
    rules = CodebookRules(update=EMA(0.8), dead=RelativeUsage(0.5))
    for shared in (False, True):
        make = partial(fastvq.ResidualVQ, 6, 8, num_quantizers=3, shared=shared, dropout=dropout)
        checks.append(partial(stays_equal, lambda rules, make=make: make(rules=rules), rules))
    checks += [first_batches_without_rows, dead_codes_take_rows_of_all_ranks]
    checks += [partial(trains_under_ddp, update) for update in (EMA(0.9), Learned())]
    checks += [trains_under_fsdp]
    if world == 2 and shutil.which(os.environ.get("CXX", "g++")):  # torch.compile needs a C++ compiler
        checks.append(compiles_whole)
    for check in checks:
        check(rank, world)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    # DTensor's caches keep the group that FSDP used past its end, and with it Gloo's threads. One that still holds a
    # tensor while the interpreter is torn down aborts the process, so it ends here, all checks done, without that.
    sys.stdout.flush()
    os._exit(0)
