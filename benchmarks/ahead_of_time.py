"""What the compilers make of the Triton kernels for devices that are not here: registers, spills, shared memory, and
what the search issues for a score.

``python -m benchmarks.ahead_of_time [sm_90 ...]`` compiles one configuration of each kernel for all targets, or for
those named, and prints a row for each; ``--all`` compiles every configuration of every kernel (some ten minutes a
target), and ``--out FILE.csv`` writes the rows there, in place of those of the same target and Triton. 1 is returned
where a row misses what is asked of it (:func:`problems`): it spills, asks for more shared memory than there is,
searches without matrix units, or issues more instructions a score on sm_90 than ``MOST``; where ``ALLOWED`` has a
reason, up to the bounds that stand beside it. Not for a process that interprets kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from fastvq.benchmarks import disassembly
from fastvq.benchmarks.launches import Launch, gpu, launches_of, searches
from fastvq.kernels.triton import _configs

MATRIX = {
    "sm_80": r"mma\.sync",
    "sm_90": r"wgmma\.mma_async",
    "sm_100": r"tcgen05\.mma",
    "gfx942": r"v_mfma_f32_\w+_f16",
}
# Instructions a score beside the products on sm_90, of a search and of one for narrow rows. The search for several
# codes passes twice and has no bound.
MOST = {
    "nearest_kernel": 6.5,
    "nearest_staged_kernel": 6.5,
    "residual_kernel": 6.5,
    "nearest_narrow_kernel": 5.0,
}


class Allowance(NamedTuple):
    """What a row may have although it misses the aim, and why; case is a regular expression."""

    kernel: str
    case: str
    reason: str
    instructions: tuple[float, ...] = ()  # at most: once a tile of codes, and for each piece of a row
    spill_bytes: int = 0
    targets: tuple[str, ...] = tuple(_configs.TARGETS)


IN_PIECES = (
    "rows in pieces of 64 (32 for 96): each piece's sums are added to the row's in float32, 1 instruction, which "
    "keeps the bound small; copies and fences take 2; in all 430 cycles of issue beside 1536 of the piece's products"
)
TENSOR_MEMORY = (
    "Triton 3.6 brings scores out of tensor memory by way of shared memory, with addresses that it spills and reads "
    "back once a tile of codes; 3.9 spills none; tiles of half the codes, with which 3.6 spills none, take 1.5 times "
    "as much from L2"
)
STACK = "a row's candidates are counted, not kept in slots, which would spill; see kernels/triton/_stage.py"
LONG_STACK = (
    STACK + "; rows in pieces of 64, each added to the row's sums: 450 cycles of issue beside 1536 of its products; "
    "what Triton 3.6 spills, addresses, is read back once a stage, in no loop over codes"
)
ALLOWED = (
    Allowance("nearest_staged_kernel", r"nearest (96|101|512).*", TENSOR_MEMORY, (), 300, ("sm_100",)),
    Allowance("nearest_staged_kernel", r"nearest (96|101|512).*", IN_PIECES, (10.0, 3.75)),
    Allowance("residual_kernel", r"residual 51\d.*", LONG_STACK, (10.0, 3.75), 80, ("sm_90",)),
    Allowance("residual_kernel", r"residual .*", STACK, (10.0,)),
)


class Compiled(NamedTuple):
    """What came out for one target. Bytes of registers spilled to memory and of shared memory are per program.

    instructions: what a lane issues for one score beside the matrix products, see ``disassembly``: once a tile of
    codes and, where rows are read in pieces, for each piece besides; of either pass where there are two. Empty where
    nothing is counted.
    """

    case: str
    kernel: str
    configuration: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: list[float]
    assembly: str


def compile_launch(case: str, launch: Launch, target: str) -> Compiled:
    """Compiles one launch for one target."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=gpu(target), options=launch.options.__dict__)
    hip = gpu(target).backend == "hip"
    registers, spill_bytes = amd_usage(compiled) if hip else nvidia_usage(compiled)
    return Compiled(
        case,
        launch.kernel.__name__,
        configuration(launch),
        target,
        registers,
        spill_bytes,
        compiled.metadata.shared,
        [] if hip else instructions_a_score(launch, compiled),
        compiled.asm["amdgcn" if hip else "ptx"],
    )


def constants_of(launch: Launch) -> dict[str, Any]:
    """Compile-time arguments by name."""
    parameters = [parameter.name for parameter in launch.kernel.params]
    return {parameters[place]: value for (place,), value in launch.constants.items()}


def configuration(launch: Launch) -> str:
    """Sizes of a launch's tiles, warps and stages, such as "BN128 BK64 BD32 4 warps 2 stages"."""
    constants = constants_of(launch)
    sizes = [f"{name}{constants[name]}" for name in ("BN", "BK", "BD", "BP", "UNIT", "SLOTS") if name in constants]
    stages = [f"{constants['STAGES']} stages"] if "STAGES" in constants else []
    return " ".join([*sizes, f"{launch.options.num_warps} warps", *stages])


def instructions_a_score(launch: Launch, compiled: Any) -> list[float]:
    """See :class:`Compiled`; of the kernels that search."""
    constants = constants_of(launch)
    if not disassembly.available() or not searches(launch.kernel.__name__):
        return []
    scores = constants["BN"] * constants["BK"] / (launch.options.num_warps * launch.options.warp_size)
    loops = disassembly.matrix_loops(disassembly.disassemble(compiled.asm["cubin"]))
    if launch.kernel.__name__.startswith("topk"):
        return [loop.others / scores for loop in reversed(loops)]
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


def compile_all(target: str, everything: bool) -> list[Compiled]:
    """Every launch of every case for a target, or one of each kernel."""
    return [compile_launch(case, launch, target) for case, launch in launches_of(target, everything)]


def allowance(row: Compiled) -> Allowance | None:
    """Why a row may miss an aim."""
    for allowed in ALLOWED:
        if allowed.kernel == row.kernel and row.target in allowed.targets and re.fullmatch(allowed.case, row.case):
            return allowed
    return None


def matrix_instruction(row: Compiled) -> str:
    """The target's instruction that multiplies matrices, where the assembly has one."""
    found = re.search(MATRIX[row.target], row.assembly)
    return found[0] if found else ""


def problems(row: Compiled) -> list[str]:
    """What of a row is not as asked for; see the module's docstring."""
    allowed = allowance(row)
    found = []
    if row.spill_bytes > (allowed.spill_bytes if allowed else 0):
        found.append(f"spills {row.spill_bytes} bytes")
    if row.shared_bytes > (limit := _configs.TARGETS[row.target].shared_bytes):
        found.append(f"asks for {row.shared_bytes} of {limit} bytes of shared memory")
    if searches(row.kernel) and not matrix_instruction(row):
        found.append("does not use matrix units")
    if costly(row):
        most = allowed.instructions if allowed else ()
        counts = [count > bound for count, bound in itertools.zip_longest(row.instructions, most, fillvalue=0.0)]
        if any(counts):
            found.append(f"issues {amounts(row)} instructions a score")
    return found


def costly(row: Compiled) -> bool:
    """Whether a search issues more instructions a score than ``MOST`` on sm_90."""
    return row.target == "sm_90" and sum(row.instructions) > MOST.get(row.kernel, math.inf)


def note(row: Compiled) -> str:
    """The reason for which a row may miss an aim, if it does."""
    allowed = allowance(row)
    return allowed.reason if allowed and (row.spill_bytes or costly(row)) else ""


def amounts(row: Compiled) -> str:
    """Instructions a score: once a tile of codes + for each piece of a row."""
    return " + ".join(f"{count:.2f}" for count in row.instructions)


def table(rows: list[Compiled]) -> str:
    """Rows as aligned text, with the instructions a score costs and the matrix instructions a kernel uses."""
    lines = [
        f"{'case':<26} {'kernel':<15} {'target':<7} {'regs':>5} {'spill':>6} {'shared':>7} {'a score':>13}  matrix"
    ]
    for row in rows:
        lines.append(
            f"{row.case:<26} {row.kernel.removesuffix('_kernel'):<15} {row.target:<7} {row.registers:>5} "
            f"{row.spill_bytes:>6} {row.shared_bytes:>7} {amounts(row) or '-':>13}  {matrix_instruction(row) or '-'}"
        )
    return "\n".join(lines)


def record(row: Compiled) -> dict[str, str]:
    """A row as it is written to a file."""
    return {
        "triton": triton.__version__,
        "target": row.target,
        "case": row.case,
        "kernel": row.kernel,
        "configuration": row.configuration,
        "registers": str(row.registers),
        "spill_bytes": str(row.spill_bytes),
        "shared_bytes": str(row.shared_bytes),
        "shared_limit": str(_configs.TARGETS[row.target].shared_bytes),
        "matrix_instruction": matrix_instruction(row),
        "instructions_a_score": amounts(row),
        "problems": "; ".join(problems(row)),
        "reason": note(row),
    }


def write(path: Path, rows: Sequence[Compiled]) -> None:
    """Rows as CSV, in place of those that the file has of the same Triton and targets."""
    records = [record(row) for row in rows]
    fresh = {(entry["triton"], entry["target"]) for entry in records}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            kept = [entry for entry in csv.DictReader(stream) if (entry["triton"], entry["target"]) not in fresh]
        records = kept + records
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a row misses what is asked of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", choices=[*_configs.TARGETS, []], help="devices to compile for")
    parser.add_argument("--all", action="store_true", help="every configuration of every kernel")
    parser.add_argument("--out", type=Path, help="a CSV file to write")
    parser.add_argument("--json", action="store_true", help="rows with assembly instead of a table")
    options = parser.parse_args(arguments)
    rows: list[Compiled] = []
    for target in options.target or _configs.TARGETS:
        rows += (found := compile_all(target, options.all))
        if options.out:
            write(options.out, found)
    if options.json:
        print(json.dumps([row._asdict() for row in rows]))
    else:
        print(f"triton {triton.__version__}\n{table(rows)}")
    missed = [f"{row.case}, {row.kernel}, {row.target}: {problem}" for row in rows for problem in problems(row)]
    print("\n".join(missed), file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
