"""Where fastvq keeps what it makes on a machine: compiled kernels, and launch configurations measured there."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """``FASTVQ_CACHE_DIR``, else the user's cache directory.

    Raises:
        OSError: there is no home directory to have one in.
    """
    named = os.environ.get("FASTVQ_CACHE_DIR")
    if named:
        return Path(named).expanduser()
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error)) from error
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fastvq"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fastvq"
