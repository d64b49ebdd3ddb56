"""What the compilers make of the Triton kernels for devices that are not here: registers, spills, shared memory, and
what the search issues for a score.

``python -m benchmarks.ahead_of_time [sm_90 ...]`` prints one row per kernel, launch and target. The launches are the
real ones: the public functions run on small CPU tensors with every launch recorded instead of made, so that a
configuration or an argument that changes is compiled as it changed. Not for a process that interprets kernels.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend

from fastvq.benchmarks import disassembly
from fastvq.kernels import triton as kernels
from fastvq.kernels.triton import _configs


class Launch(NamedTuple):
    """One kernel launch as the compiler sees it: what of its arguments reaches the compiled code."""

    kernel: Any  # triton.JITFunction
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any


class Compiled(NamedTuple):
    """What came out for one target. Bytes of registers spilled to memory and of shared memory are per program.

    instructions: what a lane issues for one score beside the matrix products, see ``disassembly``: once a tile of
    codes and, where rows are read in pieces, for each piece besides; empty where nothing is counted.
    """

    case: str
    kernel: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: list[float]
    assembly: str


@contextlib.contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """Records launches instead of making them, as a device of the target would compile them."""
    launches: list[Launch] = []
    backend = make_backend(gpu(target))

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args, f"{kernel.__name__} was launched with positional arguments"
        binder = triton.runtime.jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, rest = binder(**kwargs)
        options, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, specialization, rest)
        launches.append(Launch(kernel, signature, constants, attributes, options))

    with (
        mock.patch.object(triton.runtime.jit.JITFunction, "run", run),
        mock.patch.object(_configs, "family", return_value=target),
    ):
        yield launches


def gpu(target: str) -> GPUTarget:
    """A target by Triton's description."""
    family = _configs.TARGETS[target]
    return GPUTarget(family.backend, family.arch, family.warp_size)


def compile_launch(case: str, launch: Launch, target: str) -> Compiled:
    """Compiles one launch for one target."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=gpu(target), options=launch.options.__dict__)
    hip = gpu(target).backend == "hip"
    registers, spill_bytes = amd_usage(compiled) if hip else nvidia_usage(compiled)
    return Compiled(
        case,
        launch.kernel.__name__,
        target,
        registers,
        spill_bytes,
        compiled.metadata.shared,
        [] if hip else instructions_a_score(launch, compiled),
        compiled.asm["amdgcn" if hip else "ptx"],
    )


def instructions_a_score(launch: Launch, compiled: Any) -> list[float]:
    """See :class:`Compiled`; of the kernels that search."""
    parameters = [parameter.name for parameter in launch.kernel.params]
    constants = {parameters[place]: value for (place,), value in launch.constants.items()}
    if not disassembly.available() or not launch.kernel.__name__.startswith(("nearest", "residual")):
        return []
    scores = constants["BN"] * constants["BK"] / (launch.options.num_warps * launch.options.warp_size)
    loops = disassembly.matrix_loops(disassembly.disassemble(compiled.asm["cubin"]))
    pieces, codes = ([], loops[:1]) if constants.get("ONE_PIECE", True) else (loops[:1], loops[1:2])
    return [loop.others / scores for loop in codes + pieces]


def nvidia_usage(compiled: Any) -> tuple[int, int]:
    """Registers a thread, and the bytes it stores to or loads from memory to spill them, whichever is more."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        text = output_of(tools / "cuobjdump", "-res-usage", cubin)
        usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
        assert usage, f"cuobjdump printed no resource usage: {text}"
        registers, stack = int(usage[1]), int(usage[2])
        if not stack:
            return registers, 0
        # A stack may also hold what float64 division saves around its subroutine: only ptxas tells them apart.
        ptx.write_text(compiled.asm["ptx"])
        arch = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])
        assert arch, "the PTX names no target"
        tool = get_ptxas(compiled.metadata.target.arch).path
        # Versions of Triton differ in how they run ptxas; the log that counts describes the code at hand.
        for allocator in ((), ("--regAllocOptLevel=2",)):
            with contextlib.suppress(subprocess.CalledProcessError):
                text = output_of(tool, "-v", f"-arch={arch[1]}", *fusion(compiled), *allocator, ptx, "-o", cubin)
                found = re.search(
                    rf"{stack} bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
                    rf"(?s:.*)Used {registers} registers",
                    text,
                )
                if found:
                    return registers, max(int(found[1]), int(found[2]))
        raise AssertionError(f"ptxas did not make the code at hand again: {text}")


def fusion(compiled: Any) -> tuple[str, ...]:
    """The flag under which Triton runs ptxas where fusing products into sums is off."""
    return () if compiled.metadata.enable_fp_fusion else ("--fmad=false",)


def output_of(*command: str | Path) -> str:
    """What a command prints to either stream."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


def amd_usage(compiled: Any) -> tuple[int, int]:
    """Vector registers a thread, and bytes spilled (4 per vector register; a scalar one spills into those)."""
    text = compiled.asm["amdgcn"]
    counts = {
        name: int(value) for name, value in re.findall(r"\.(\w+_count|private_segment_fixed_size): +(\d+)", text)
    }
    spilled = max(counts["private_segment_fixed_size"], 4 * counts["vgpr_spill_count"])
    return counts["vgpr_count"], spilled


def nearest_case(
    groups: int, dim: int, *, dtype: torch.dtype = torch.float32, metric: str = "l2", layout: str = "rows"
) -> Callable[[], object]:
    """A search of 64 rows, in (rows, groups * dim) storage or as a feature map (batch, groups * dim, length)."""

    def call() -> object:
        if layout == "rows":
            x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
        else:
            x = torch.zeros(2, groups, dim, 32, dtype=dtype).permute(1, 0, 3, 2)
        codebook = torch.zeros(groups, 512, dim, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        return kernels.nearest(x, codebook, torch.ones(1, 1, 1, dtype=torch.bool).expand(x.shape[:-1]), metric)

    return call


def segment_case(groups: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Segment sums of 64 rows."""
    x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    return lambda: kernels.segment_sum(x, torch.zeros(x.shape[:-1], dtype=torch.int64), 4)


def residual_case(
    groups: int, dim: int, *, dtype: torch.dtype = torch.float32, limited: bool = False
) -> Callable[[], object]:
    """A residual stack of 64 rows and 6 stages; with sizes, stages and a mask, or without any limit."""
    x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    codebooks = torch.zeros(groups, 6, 512, dim)
    sizes = [512] * 6 if limited else None
    stages = torch.zeros(1, 64, dtype=torch.int64) if limited else None
    mask = torch.ones(x.shape[:-1], dtype=torch.bool) if limited else None
    return lambda: kernels.residual_nearest(x, codebooks, sizes, stages, mask)


def residual_segment_case(groups: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Sums of 64 rows at each of 6 stages."""
    x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    indices = torch.zeros(groups, 1, 64, 6, dtype=torch.int64)
    return lambda: kernels.residual_segment_sum(x, indices, torch.zeros(groups, 6, 4, dim))


def ema_case(
    num_codes: int, dim: int, *, dtype: torch.dtype = torch.float32, like_paper: bool = True
) -> Callable[[], object]:
    """A codebook update; with Laplace smoothing and a relative threshold, or normalised without either."""
    codes, sizes = torch.ones(1, num_codes, dim, dtype=dtype), torch.ones(1, num_codes, dtype=dtype)
    smoothing = "laplace" if like_paper else "none"
    return lambda: kernels.ema_update_(
        codes, codes, sizes, codes, sizes, 0.99, 1e-5, smoothing, not like_paper, 0.1, like_paper
    )


def lookup_case(groups: int, stages: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A look-up of 64 rows."""
    indices = torch.zeros(1, 64, groups, stages, dtype=torch.int64).permute(2, 0, 1, 3)
    return lambda: kernels.lookup(indices, torch.zeros(groups, stages, 4, dim, dtype=dtype))


CASES: dict[str, Callable[[], object]] = {
    "nearest 64 x 8": nearest_case(64, 8),
    "nearest 64 x 8 bf16": nearest_case(64, 8, dtype=torch.bfloat16),
    "nearest 16": nearest_case(1, 16),
    "nearest 3 dot": nearest_case(1, 3, metric="dot"),
    "nearest 32": nearest_case(1, 32),
    "nearest 64": nearest_case(1, 64),
    "nearest 64 bf16": nearest_case(1, 64, dtype=torch.bfloat16),
    "nearest 64 dot": nearest_case(1, 64, metric="dot"),
    "nearest 64 cosine fp16": nearest_case(1, 64, metric="cosine", dtype=torch.float16),
    "nearest 101": nearest_case(1, 101),
    "nearest 512": nearest_case(1, 512),
    "nearest 512 bf16": nearest_case(1, 512, dtype=torch.bfloat16),
    "nearest 512 dot": nearest_case(1, 512, metric="dot"),
    "nearest 512 map": nearest_case(1, 512, layout="map"),
    "nearest 8 map bf16": nearest_case(4, 8, layout="map", dtype=torch.bfloat16),
    "nearest 512 fp64": nearest_case(1, 512, dtype=torch.float64),
    "nearest 64 cosine fp64": nearest_case(1, 64, metric="cosine", dtype=torch.float64),
    "residual 64 x 8": residual_case(64, 8),
    "residual 32 bf16": residual_case(1, 32, dtype=torch.bfloat16, limited=True),
    "residual 64": residual_case(1, 64),
    "residual 128": residual_case(1, 128),
    "residual 512": residual_case(1, 512),
    "residual 100 bf16": residual_case(1, 100, dtype=torch.bfloat16, limited=True),
    "residual 517 fp16": residual_case(1, 517, dtype=torch.float16, limited=True),
    "segment 64 x 8": segment_case(64, 8),
    "segment 512 bf16": segment_case(1, 512, dtype=torch.bfloat16),
    "segment 100 fp64": segment_case(1, 100, dtype=torch.float64),
    "segment 6 stages 512": residual_segment_case(1, 512),
    "segment 6 stages 100": residual_segment_case(4, 100, dtype=torch.bfloat16),
    "ema 8 x 8": ema_case(8, 8),
    "ema 1024 x 64": ema_case(1024, 64),
    "ema 8 x 100 normalised": ema_case(8, 100, like_paper=False),
    "ema 8 x 64 fp64": ema_case(8, 64, dtype=torch.float64),
    "ema 1024 x 64 fp64": ema_case(1024, 64, dtype=torch.float64),
    "lookup 64 x 8": lookup_case(64, 1, 8),
    "lookup 6 stages 512": lookup_case(1, 6, 512),
    "lookup 100 fp64": lookup_case(1, 1, 100, dtype=torch.float64),
}


def launches_of(target: str) -> list[tuple[str, Launch]]:
    """The launches of all cases for a target's family, each kind once, under the first case that makes it."""
    found: dict[str, tuple[str, Launch]] = {}
    for case, call in CASES.items():
        with recorded(target) as launches:
            call()
        for launch in launches:
            found.setdefault(repr((launch.kernel.__name__, *launch[1:])), (case, launch))
    return list(found.values())


def compile_all(target: str) -> list[Compiled]:
    """Every launch of every case for a target."""
    return [compile_launch(case, launch, target) for case, launch in launches_of(target)]


def table(rows: list[Compiled]) -> str:
    """Rows as aligned text, with the instructions a score costs and the matrix instructions a kernel uses."""
    lines = [
        f"{'case':<24} {'kernel':<18} {'target':<7} {'regs':>5} {'spill':>6} {'shared':>7} {'a score':>11}  matrix"
    ]
    for row in rows:
        matrix = re.search(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma_\w+?_f16", row.assembly)
        lines.append(
            f"{row.case:<24} {row.kernel.removesuffix('_kernel'):<18} {row.target:<7} {row.registers:>5} "
            f"{row.spill_bytes:>6} {row.shared_bytes:>7} "
            f"{' + '.join(f'{count:.2f}' for count in row.instructions) or '-':>11}  {matrix[0] if matrix else '-'}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """``[TARGET ...] [--json]``: a table of all targets, or of those named; ``--json`` prints rows with assembly."""
    targets = [argument for argument in arguments if argument != "--json"] or list(_configs.TARGETS)
    rows = [row for target in targets for row in compile_all(target)]
    if "--json" in arguments:
        print(json.dumps([row._asdict() for row in rows]))
    else:
        print(f"triton {triton.__version__}\n{table(rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
