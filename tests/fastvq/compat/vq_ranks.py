"""Run by test_vq_distributed.py, once for every rank: ``python vq_ranks.py RANK WORLD STORE``; raises if a check
fails."""

import sys

import torch
import torch.distributed as dist

from fastvq.compat.vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ, VectorQuantize

PLAIN = {"dim": 8, "codebook_size": 12}
STACK = {**PLAIN, "num_quantizers": 3}
KINDS = [
    (VectorQuantize, PLAIN),
    (VectorQuantize, {**PLAIN, "use_cosine_sim": True}),
    (VectorQuantize, {**PLAIN, "heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}),
    (VectorQuantize, {**PLAIN, "affine_param": True, "sync_affine_param": True}),
    (ResidualVQ, STACK),
    (ResidualVQ, {**STACK, "shared_codebook": True}),
    (GroupedResidualVQ, {**STACK, "groups": 2}),
]


def batch(step: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of all ranks, and this one's: uneven, and in the third step none on the first rank."""
    rows = torch.randn(1, 40 * world, 8, generator=torch.Generator().manual_seed(step))
    bounds = [0, *(40 * r + 7 * ((r + step) % 3) for r in range(1, world)), 40 * world]
    if step == 2:
        bounds[1] = 0
    return rows, rows[:, bounds[rank] : bounds[rank + 1]]


def same_everywhere(module: torch.nn.Module) -> None:
    """The state of all ranks is that of the first, bit for bit."""
    for name, value in module.state_dict().items():
        first = value.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(first, value), f"rank {dist.get_rank()} has another {name}"


def agrees_with_one_process(rank: int, world: int) -> None:
    for kind, options in KINDS:
        torch.manual_seed(0)
        together, alone = kind(**options), kind(**options, sync_codebook=False)
        if options.get("sync_affine_param"):
            alone._codebook.sync_affine_param = False
        alone.load_state_dict(together.state_dict())
        for step in range(5):
            rows, own = batch(step, rank, world)
            together(own)
            alone(rows)
        same_everywhere(together)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def stays_equal_where_rows_are_drawn(rank: int, world: int) -> None:
    """k-means of the first batch, dead codes at every step, quantize-dropout; ranks with nothing to draw from."""
    for kind, options in KINDS:
        more = {"quantize_dropout": True} if kind is not VectorQuantize else {}
        torch.manual_seed(0)
        start = not (options.get("separate_codebook_per_head"))
        module = kind(**options, **more, kmeans_init=start, threshold_ema_dead_code=2)
        torch.manual_seed(rank)
        for step in range(6):
            own = batch(step + 2, rank, world)[1]
            mask = torch.rand(own.shape[:2]) > (1.0 if rank == 1 and step == 1 else 0.2)
            before = [value.clone() for value in module.state_dict().values()]
            module(own, mask=mask)
            same_everywhere(module)
            assert any(not torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
            for value in module.state_dict().values():
                assert bool(value.isfinite().all())
        if kind is VectorQuantize and not options.get("affine_param"):
            assert bool((module._codebook.cluster_size >= 2).all())


def takes_one_exchange_of_each_kind(rank: int, world: int) -> None:
    """In the steady state: one sum of statistics, and one gather of rows for dead codes."""
    calls: list[str] = []
    kept = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor", "all_gather", "broadcast")}
    for kind, options in KINDS:
        if options.get("affine_param") or options.get("shared_codebook"):
            continue
        module = kind(**options, threshold_ema_dead_code=1)
        for name, call in kept.items():
            setattr(dist, name, lambda *args, name=name, call=call: (calls.append(name), call(*args))[1])
        module(batch(0, rank, world)[1])
        for name, call in kept.items():
            setattr(dist, name, call)
        assert calls == ["all_reduce", "all_gather_into_tensor"], (kind, calls)
        calls.clear()


def draws_rows_of_all_ranks(rank: int, world: int) -> None:
    module = VectorQuantize(dim=1, codebook_size=64, threshold_ema_dead_code=10, rotation_trick=False)
    module(torch.full((1, 40, 1), float(rank + 1)))
    drawn = set(module.codebook.flatten().tolist())
    assert drawn == {float(r + 1) for r in range(world)}


def steps_its_optimizer_alike(rank: int, world: int) -> None:
    torch.manual_seed(0)
    module = VectorQuantize(
        **PLAIN,
        learnable_codebook=True,
        ema_update=False,
        in_place_codebook_optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
    )
    before = module.codebook.clone()
    for step in range(3):
        module(batch(step, rank, world)[1] if step != 2 else batch(0, rank, world)[1])
    same_everywhere(module)
    assert not torch.equal(before, module.codebook)


def main(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for check in (
        agrees_with_one_process,
        stays_equal_where_rows_are_drawn,
        takes_one_exchange_of_each_kind,
        draws_rows_of_all_ranks,
        steps_its_optimizer_alike,
    ):
        check(rank, world)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
