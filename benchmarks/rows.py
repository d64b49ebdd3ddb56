"""Benchmark rows: one format, written as CSV, with what a reader needs to judge a figure."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch

from fastvq.benchmarks.shapes import Shape
from fastvq.benchmarks.timing import Timing

SCHEMA = "fastvq-bench/1"
MOVED = "bytes copied"  # the floor of what memory bounds


@dataclass(frozen=True)
class Row:
    """One timing. Ratios are derived from rows of one ``run_id`` and never stored.

    ``pass_`` (column ``pass``): search, train-forward, train-step, ... Either ``impl`` (ours) or ``peer``
    is set. ``floor_ms`` is the least time that the hardware allows and ``floor_kind`` says which limit.
    ``mismatch_rows`` counts rows whose code is worse than the oracle's; ``gate`` is "pass" or "fail".
    """

    op: str
    pass_: str
    shape: str
    G: int
    N: int
    K: int
    D: int
    Q: int
    dtype: str
    precision: str
    impl: str
    peer: str
    peer_version: str
    reps: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    floor_ms: float | None
    floor_kind: str
    peak_mib: float | None
    mismatch_rows: int | None
    gate: str


def timed(
    shape: Shape,
    timing: Timing,
    *,
    op: str,
    pass_: str,
    dtype: str = "float32",
    impl: str = "",
    precision: str = "",
    peer: str = "",
    peer_version: str = "",
    floor_ms: float | None = None,
    floor_kind: str = "",
    peak_mib: float | None = None,
    mismatch_rows: int | None = None,
) -> Row:
    """The row of one contender at one shape; the gate fails where rows mismatch."""
    return Row(
        op=op,
        pass_=pass_,
        shape=shape.name,
        G=shape.G,
        N=shape.N,
        K=shape.K,
        D=shape.D,
        Q=shape.Q,
        dtype=dtype,
        precision=precision,
        impl=impl,
        peer=peer,
        peer_version=peer_version,
        reps=timing.reps,
        median_ms=timing.median_ms,
        p20_ms=timing.p20_ms,
        p80_ms=timing.p80_ms,
        floor_ms=floor_ms,
        floor_kind=floor_kind,
        peak_mib=peak_mib,
        mismatch_rows=mismatch_rows,
        gate="fail" if mismatch_rows else "pass",
    )


ENVIRONMENT = (
    "device",
    "threads",
    "cpu_flags",
    "driver",
    "torch",
    "triton",
    "python",
    "commit",
    "dirty",
    "utc",
    "run_id",
)
COLUMNS = ("schema", *(f.name.rstrip("_") for f in fields(Row)), *ENVIRONMENT)


def check_rows_file(path: Path) -> bool:
    """Whether a file of rows is yet to be made; to be asked before anything is measured.

    Raises:
        ValueError: a folder, or a file with other columns than this version writes.
    """
    if not path.exists():
        return True
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a CSV file for the rows")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header = tuple(next(csv.reader(file), ()))
    if header != COLUMNS:
        raise ValueError(f"{path.name} has other columns than schema {SCHEMA}: give another file")
    return False


def write_rows(path: Path, rows: Iterable[Row], device: str = "cpu") -> None:
    """Writes rows under one new ``run_id``; an existing file keeps its rows and gets these behind them.

    Args:
        path: the CSV file.
        rows: the timings of one run.
        device: "cpu" or a CUDA device.

    Raises:
        ValueError: a folder, or a file with other columns than this version writes.
    """
    fresh = check_rows_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(as_text(rows, device))


def as_text(rows: Iterable[Row], device: str = "cpu") -> list[dict[str, str]]:
    """Rows as a CSV file holds them, under one new ``run_id``."""
    run = {"schema": SCHEMA} | environment(device) | {"run_id": uuid.uuid4().hex[:12]}
    found = []
    for row in rows:
        values = {name.rstrip("_"): value for name, value in asdict(row).items()}
        for name in ("median_ms", "p20_ms", "p80_ms", "floor_ms", "peak_mib"):
            if values[name] is not None:
                values[name] = f"{values[name]:.4g}"
        text = {name: "" if value is None else str(value) for name, value in values.items()}
        found.append({name: (run | text)[name] for name in COLUMNS})
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, as text.

    Raises:
        ValueError: rows of another schema.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row.get("schema") != SCHEMA:
            raise ValueError(f"{path.name} holds schema {row.get('schema')!r}, this version reads {SCHEMA!r}")
    return rows


@lru_cache(maxsize=4)
def environment(device: str = "cpu") -> dict[str, str]:
    """Device, versions and commit of this run."""
    root = Path(__file__).resolve().parent.parent
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "cpu_flags": torch.backends.cpu.get_cpu_capability(),
        "driver": torch.version.cuda or "" if cuda else "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _git(root, "rev-parse", "--short=12", "HEAD"),
        "dirty": str(bool(_git(root, "status", "--porcelain", "--untracked-files=no"))).lower(),
        "utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def cpu_name() -> str:
    """The processor's name, its family and model where they are told, and its number of cores.

    A virtual machine may hide the rest of the name: "AMD EPYC" alone is six generations, whose ratios differ.
    """
    name, generation = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields: dict[str, str] = {}
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name", name)
        if "cpu family" in fields and "model" in fields:
            generation = f"family {fields['cpu family']} model {fields['model']}, "
    return f"{name} ({generation}{os.cpu_count()} cores)"


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip()
