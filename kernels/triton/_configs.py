"""Launch configurations, one row each, with the reason beside it.

None of them spills registers with the compilers bundled with Triton 3.6 and 3.9, on any of the four targets, or asks
for more shared memory than there is, but one with 3.6 on sm_100, see ``ALLOWED`` there: ``python -m
benchmarks.ahead_of_time --all`` compiles them all and fails where another does,
``tests/kernels/triton/test_ahead_of_time.py`` one of each kernel.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from fastvq.kernels.triton import _tuned


class Target(NamedTuple):
    """A device family that kernels are compiled for ahead of time, and the shared memory one program may have."""

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 101376),  # 99 KiB: the limit of sm_86, sm_89 and sm_120, which share this family
    "sm_90": Target("cuda", 90, 32, 232448),
    "sm_100": Target("cuda", 100, 32, 232448),
    "gfx942": Target("hip", "gfx942", 64, 65536),
}


class Config(NamedTuple):
    """Tile sizes of one kernel."""

    rows: int = 0
    codes: int = 0
    depth: int = 0
    num_warps: int = 4
    stages: int = 1
    unit: int = 1  # codes that are compared in float64 in any case, see ``_units``
    slots: int = 16  # best codes kept of a row
    resident: int = 1  # programs a multiprocessor holds, for kernels whose programs take tile after tile


# A lane is a code: one warp's codes per program keep a small codebook on many multiprocessors.
UNIT_ROWS = Config(codes=64, num_warps=2)
# A program reduces all K codes of 8 dimensions: 32-byte sectors, and as many programs as D / 8.
CENTRE = Config(codes=256, depth=8, num_warps=8)
# The depth is the search's; more than 512 entries a program spill on sm_80.
SPLIT = Config(codes=16, num_warps=4)
# A group is a program, however many codes it has.
PACK = Config(codes=64, num_warps=4)
# A lane is a row and the codes of its candidate. Left alone, ptxas spills up to 72 bytes for one more program on a
# multiprocessor; see ``register_limit``.
RESOLVE = Config(rows=128, num_warps=4)
# Inside it, rows that need every code, of which there is seldom more than one: a lane is a code, of two rows.
RESOLVE_SCAN = Config(rows=2, codes=128, num_warps=RESOLVE.num_warps)
# 16 x 64 float64 sums are 8 registers a lane with 8 warps; with 4, sm_80 spilled.
SCAN = Config(rows=16, codes=64, num_warps=8)

# A group's sizes are one program's: 8 iterations for 8192 codes.
EMA_SIZES = Config(codes=1024, num_warps=8)

# The search, by how a row is read:
# short      the whole row in registers, D <= depth (32 or 64). Registers and shared memory leave room for two
#            programs on a multiprocessor, so that one's comparisons run under the other's products. sm_90: one warp
#            group with 128 codes takes 7.5 instructions a score beside the products, two with 64 codes 11.6.
# scattered  the same where entries lie apart (feature maps) or no wide access reaches them: by way of a scratch.
# long       the row in pieces, from the scratch: two sums of a tile are alive, a piece's and the row's, so 128 x 128
#            fills the registers of 8 warps; sm_80, whose products are not asynchronous, holds operands too.
SEARCH = {
    ("sm_80", "short"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=3, unit=2, slots=8),
    ("sm_80", "scattered"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=3, unit=2, slots=8),
    ("sm_80", "long"): Config(rows=128, codes=64, depth=32, num_warps=8, stages=3),
    ("sm_90", "short"): Config(rows=128, codes=128, depth=64, num_warps=4, stages=2, unit=2, slots=8),
    ("sm_90", "scattered"): Config(rows=128, codes=128, depth=64, num_warps=4, stages=2, unit=2, slots=8, resident=2),
    ("sm_90", "long"): Config(rows=128, codes=128, depth=64, num_warps=8, stages=3),
    ("sm_100", "short"): Config(rows=128, codes=128, depth=64, num_warps=8, stages=2, unit=2),
    ("sm_100", "scattered"): Config(rows=128, codes=128, depth=64, num_warps=8, stages=2, unit=2, slots=8),
    ("sm_100", "long"): Config(rows=128, codes=128, depth=64, num_warps=8, stages=2),
    ("gfx942", "short"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=2, unit=2, slots=8),
    ("gfx942", "scattered"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=2, unit=2, slots=8),
    ("gfx942", "long"): Config(rows=128, codes=128, depth=32, num_warps=8, stages=2),
}
# Rows of no more entries are one piece of the search on every device.
WHOLE = 64

# Rows of up to 16 entries: products are cheap, so tiles are as large as the registers allow, and four codes a unit.
NARROW = {
    "sm_80": Config(rows=128, codes=128, num_warps=8, stages=3, unit=4, slots=8),
    "sm_90": Config(rows=128, codes=128, num_warps=4, stages=3, unit=4, slots=8),
    "sm_100": Config(rows=128, codes=128, num_warps=4, stages=3, unit=4, slots=8),
    "gfx942": Config(rows=128, codes=128, num_warps=8, stages=2, unit=4, slots=8),
}

# Residual stacks, by the length of a row. A scratch stays with its program, so there are as many programs as run at a
# time; ``resident`` of them share a multiprocessor.
# short      D <= depth (16, 32 or 64): a row's float16 pieces are loaded once for all codes of a stage.
# wide       the same up to 128, where splitting whole rows of that length does not spill.
# long       the pieces lie in the scratch: stages x (rows + codes) x depth x 4 bytes of shared memory. As many
#            columns at a time as do not spill in a loop; sm_90 takes 37 instructions a score at D = 512, 56 with half
#            as many. sm_100 holds a tile of scores more than sm_90, so half the codes.
RESIDUAL = {
    ("sm_80", "short"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=2),
    ("sm_80", "long"): Config(rows=128, codes=64, depth=16, num_warps=8, stages=4),
    ("sm_90", "short"): Config(rows=128, codes=128, depth=64, num_warps=4, stages=2, resident=2),
    ("sm_90", "wide"): Config(rows=128, codes=128, depth=128, num_warps=8, stages=2),
    ("sm_90", "long"): Config(rows=128, codes=128, depth=64, num_warps=8, stages=3),
    ("sm_100", "short"): Config(rows=128, codes=64, depth=32, num_warps=8, stages=2),
    ("sm_100", "long"): Config(rows=128, codes=64, depth=32, num_warps=8, stages=3),
    ("gfx942", "short"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=2),
    ("gfx942", "wide"): Config(rows=64, codes=64, depth=128, num_warps=4, stages=1),
    ("gfx942", "long"): Config(rows=128, codes=64, depth=64, num_warps=8, stages=2),
}
# Rows of a tile that need every code are few: 4 at a time.
RESIDUAL_SCAN = Config(rows=4, codes=256)

# The k nearest codes: two sums of a tile and the best of every column are alive, so tiles are small. 4 warps where
# they do not spill, for with 8 each score takes 12 to 13 instructions on sm_90, not 7.
TOPK = {
    "sm_80": Config(rows=64, codes=64, depth=32, num_warps=8, stages=2),
    "sm_90": Config(rows=64, codes=64, depth=32, num_warps=4, stages=2),
    "sm_100": Config(rows=64, codes=64, depth=32, num_warps=8, stages=2),
    "gfx942": Config(rows=64, codes=64, depth=32, num_warps=4, stages=2),
}
# A warp a row, whose candidates are two a lane: what ranks them stays inside the warp.
TOPK_ORDER = Config(rows=4, num_warps=4)


def family(device: torch.device) -> str:
    """The target whose configurations a device takes; sm_80's are the most frugal and serve unknown ones."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def search(device: torch.device, dim: int) -> Config:
    """The tiles of the search for whole rows of ``dim`` entries."""
    depth = 32 if dim <= 32 else WHOLE
    return measured(device, f"search short {depth}", SEARCH[family(device), "short"]._replace(depth=depth))


def staged(device: torch.device, dim: int) -> Config:
    """The tiles of the search by way of a scratch."""
    kind = "scattered" if dim <= WHOLE else "long"
    config = SEARCH[family(device), kind]
    # Where pieces of 64 would be padded most.
    frugal = dim <= 32 or WHOLE < dim <= WHOLE + 32
    return measured(device, f"search {kind}", config._replace(depth=32) if frugal else config)


def narrow(device: torch.device, dim: int, unit_stride: bool) -> Config:
    """The narrow search's tiles: the depth is that of a row, padded, of which each entry takes four columns.

    Entries that lie apart have an address each: with 4 warps and 16 of them sm_90 spilled.
    """
    config = NARROW[family(device)]._replace(depth=max(4, triton.next_power_of_2(dim)))
    config = config if unit_stride else config._replace(num_warps=8)
    return measured(device, f"search narrow {config.depth}", config)


def measured(device: torch.device, key: str, config: Config) -> Config:
    """A configuration with what ``fastvq tune`` found on this device, if it was asked."""
    return config._replace(**(_overrides.get(key) or _tuned.fields(device, key)))


_overrides: dict[str, dict[str, int]] = {}


@contextlib.contextmanager
def overridden(key: str, fields: dict[str, int]) -> Iterator[None]:
    """Uses other fields for a configuration meanwhile."""
    _overrides[key] = fields
    try:
        yield
    finally:
        del _overrides[key]


def residual(device: torch.device, dim: int) -> Config:
    """A residual stack's tiles for rows of ``dim`` entries: in one piece where ``dim`` is at most the depth."""
    config = RESIDUAL[family(device), "short"]
    if dim <= config.depth:
        return config._replace(depth=16 if dim <= 16 else 32 if dim <= 32 else 64)
    long = RESIDUAL[family(device), "long"]
    return RESIDUAL.get((family(device), "wide"), long) if dim <= 128 else long


def topk(device: torch.device, dim: int, alignment: int) -> Config:
    """The tiles of the search for several codes: the depth is that of a row, padded, up to 32."""
    config = TOPK[family(device)]._replace(depth=16 if dim <= 16 else 32)
    return config if alignment >= 4 else config._replace(num_warps=8)


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; interpreted kernels run as on two."""
    return 2 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def register_limit(device: torch.device, unit: int) -> dict[str, int]:
    """A limit that keeps ptxas from spilling for occupancy; AMD's compiler neither does that nor knows the option."""
    return {} if family(device) == "gfx942" else {"maxnreg": 128 if unit < 4 else 168}


def split(depth: int) -> Config:
    """The codebook's split in pieces of ``depth`` entries."""
    return SPLIT._replace(codes=min(SPLIT.codes, 512 // depth))


def ema(dim: int) -> Config:
    """Codebook updates: 512 entries at a time are 4 a lane, one 16-byte access where codes are that long."""
    depth = min(64, triton.next_power_of_2(dim))
    return Config(codes=512 // depth, depth=depth, num_warps=4)


def segment(dim: int) -> Config:
    """Segment sums: 16 rows at a time, of up to 128 entries, 16 or more entries of float64 a lane."""
    depth = min(128, triton.next_power_of_2(dim))
    return Config(rows=16, depth=depth, num_warps=max(1, depth // 32))


def lookup(dim: int) -> Config:
    """Look-up: 2048 entries a program, 16 a lane."""
    depth = min(128, triton.next_power_of_2(dim))
    return Config(rows=2048 // depth, depth=depth, num_warps=4)
