"""Whether torch.compile can run here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch


def obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot compile for a device, as a clause, or None where nothing stands in its way.

    On a CPU it writes C++, for which it takes $CXX, or g++ (clang++ on macOS); on a GPU it writes Triton.
    """
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "").strip() or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler.split()[0]) is None:
            return f"torch.compile needs a C++ compiler, and {compiler} was not found"
    elif importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton, which is not installed"
    return None
