"""How far a call raises the memory of its process; no torch, so that FAISS's process can ask as well."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_growth(call: Callable[[], object]) -> float | None:
    """MiB by which a call's peak of resident memory exceeds what was resident before it.

    What the allocator keeps for later is given back to the system first, and the system's high-water mark is set
    back, so everything that the call touches counts, results included, whoever allocated it. What a library keeps
    from an earlier call does not: call once before. None where the system keeps no such mark (it is Linux's).
    """
    if not _REFERENCES.exists():
        call()
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _REFERENCES.write_text("5")
    except OSError:
        call()
        return None
    before = _kibibytes("VmRSS")
    result = call()
    peak = _kibibytes("VmHWM")
    del result
    return max(0, peak - before) / 1024


def _kibibytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no line {name}")
