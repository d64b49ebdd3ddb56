"""Memory that a step frees stays with the process, so that the next step need not ask the system for it again.

The C library gives the top of its heap back to the system when enough of it is free, and large blocks as soon as they
are freed. The next step gets them back as pages that have to be zeroed one by one: some 8,000 pages. Kept,
they made a step of a motion tokenizer (width 512, 16 windows, two cores) 3 % faster in float32, 9 % in bfloat16.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's numbers for them in the GNU C library
_MOST = 2**31 - 1  # mallopt takes an int
_LARGEST_BLOCK = 32 * 2**20  # the largest threshold that it accepts; blocks from there on are the system's as before
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


@contextlib.contextmanager
def kept_heap() -> Iterator[bool]:
    """Lets the GNU C library keep what is freed while the context lasts; afterwards the system gets it back.

    For steps that ask for blocks of the same sizes again and again, on the main thread: their peak does not grow by
    it. Blocks that grow from step to step would leave holes behind that nothing else fits. It is a setting of the
    whole process, so contexts are not nested. Whoever set the C library's thresholds keeps those.

    Yields:
        Whether it does; other C libraries keep their own ways.
    """
    mallopt, trim = _functions()
    if mallopt is None or trim is None or _is_set():
        yield False
        return
    kept = bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))
    try:
        yield kept
    finally:
        # Where the library's own adaptation ends once blocks of that size were freed.
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK)
        trim(0)


def _functions() -> tuple[Callable[[int, int], int] | None, Callable[[int], int] | None]:
    """mallopt and malloc_trim, None where the C library has none."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # a TypeError is what Windows makes of it
        return None, None
    return getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)


def _is_set() -> bool:
    """Whether the environment tunes the allocator."""
    return any(name in os.environ for name in _OWN_SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
