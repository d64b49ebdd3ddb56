"""``fastvq doctor``: what this machine has, and what fastvq makes of it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata

import torch
from rich.table import Table

import fastvq
from fastvq import ops
from fastvq.models.commands import common
from fastvq.models.commands.options import Doctor
from fastvq.models.training.config import fastest_precision
from fastvq.models.training.environment import PACKAGES, device_name


def run(command: Doctor) -> int:
    """Prints the findings; returns the exit code."""
    device = common.choose_device(command.device)
    console = common.make_console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in findings(device):
        table.add_row(name, value)
    console.print(table, soft_wrap=False)
    console.print()
    kernels = Table(title=f"What impl='auto' takes on {device}", title_justify="left", pad_edge=False)
    for heading in ("op", "implementation", "because"):
        kernels.add_column(heading)
    for op, (implementation, reason) in ops.explain(device).items():
        kernels.add_row(op, implementation, reason)
    console.print(kernels, soft_wrap=False)
    return 0


def findings(device: torch.device) -> list[tuple[str, str]]:
    """Device, versions, compiler and the settings that matter, as (name, value)."""
    rows = [
        ("fastvq", fastvq.__version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
        ("device", f"{device}: {device_name(device)}"),
        ("CPU features", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        ("CUDA in torch", torch.version.cuda or torch.version.hip or "none (CPU build)"),
        ("training precision", f"{fastest_precision(device)} is the fastest here"),
        ("C++ compiler", compiler()),
        ("ninja", shutil.which("ninja") or "not on the path"),
        ("FASTVQ_NATIVE", os.environ.get("FASTVQ_NATIVE", "not set: compiled CPU kernels are used")),
        ("FASTVQ_CACHE_DIR", os.environ.get("FASTVQ_CACHE_DIR", "not set")),
    ]
    return rows + [(name, _version(name)) for name in PACKAGES]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def compiler() -> str:
    """The C++ compiler that would be used: $CXX, or the first usual one on the path."""
    named = os.environ.get("CXX", "").strip()
    if named:
        return f"{named} (from CXX)" if shutil.which(named.split()[0]) else f"{named} (from CXX) cannot be found"
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path:
            return path
    return "none found: install g++ or clang++ to have the compiled CPU kernels"
