"""What a training loop on a card relies on: no host sync, capture in a CUDA graph, the same bits, huge inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastvq import functional as F
from fastvq.benchmarks import quantizers
from fastvq.benchmarks.nearest import ours
from fastvq.benchmarks.shapes import Shape, make_data

SHAPES = (
    Shape("4k x 512 x 64", 1, 4096, 512, 64),
    Shape("16 groups x 512 x 8", 16, 4096, 512, 8),
    Shape("4 stages x 512 x 64", 1, 4096, 512, 64, 4),
)


def behaviours(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """What a training loop relies on, by name; each raises where it does not hold."""
    for shape in SHAPES:
        x, codebooks = make_data(shape, device)
        flat = x.transpose(0, 1).reshape(1, shape.N, -1)

        def syncs(flat: Tensor = flat, shape: Shape = shape, codebooks: Tensor = codebooks) -> None:
            module = quantizers.ours(shape, codebooks).train()
            grad = torch.randn_like(flat)
            quantizers.train_step(module, flat, grad)
            torch.cuda.synchronize()
            with _no_sync():
                quantizers.train_step(module, flat, grad)

        def graph(flat: Tensor = flat, shape: Shape = shape, codebooks: Tensor = codebooks) -> None:
            captured, eager = (quantizers.ours(shape, codebooks).train() for _ in range(2))
            place, stream = flat.clone(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), torch.no_grad():
                for _ in range(2):
                    captured(place)
            torch.cuda.current_stream().wait_stream(stream)
            cuda_graph = torch.cuda.CUDAGraph()
            with torch.no_grad(), torch.cuda.graph(cuda_graph):
                output = captured(place)
            with torch.no_grad():
                for _ in range(2):
                    eager(flat)
                for step in range(3):
                    place.copy_(flat + step)
                    cuda_graph.replay()
                    expected = eager(flat + step)
                    if not torch.equal(output.indices, expected.indices):
                        raise AssertionError(f"replay {step} chose other codes than the same step run eagerly")

        def same_bits(x: Tensor = x, codebooks: Tensor = codebooks) -> None:
            states = set()
            for _ in range(20):
                indices = ours(x, codebooks)
                sums, counts = F.segment_sum(x, indices[..., 0], codebooks.shape[2])
                states.add(tuple(float(part.double().sum()) for part in (indices, sums, counts)))
                states.add(tuple(hash(part.cpu().numpy().tobytes()) % 2**53 for part in (indices, sums, counts)))
            if len(states) != 2:
                raise AssertionError("20 runs did not give the same bits")

        yield f"no host sync in a training step, {shape.name}", syncs
        yield f"a CUDA graph replays training steps, {shape.name}", graph
        yield f"20 runs give the same bits, {shape.name}", same_bits

    def large() -> None:
        rows, dim = 2**31 // 64 + 1000, 64
        x = torch.zeros(rows, dim, device=device, dtype=torch.bfloat16)
        x[-1] = 1
        found = F.nearest(x, torch.stack([torch.zeros(dim), torch.ones(dim)]).to(device)).indices
        if int(found[-1]) != 1 or int(found[:-1].sum()) != 0:
            raise AssertionError("rows beyond 2^31 elements got wrong codes")

    yield "rows beyond 2^31 elements", large


@contextlib.contextmanager
def _no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_behaviours(device: str, path: Path) -> int:
    """Writes what holds and what does not; returns the number that does not."""
    lines, failed = [], 0
    for name, check in behaviours(device):
        try:  # one failure must not hide the others
            check()
        except Exception as error:
            failed += 1
            lines.append(f"FAIL {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        else:
            lines.append(f"ok   {name}")
        print(lines[-1], flush=True)
        torch.cuda.empty_cache()
    path.write_text("\n".join(lines) + "\n")
    return failed
