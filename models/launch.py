"""Which of several processes this is, by the variables that ``torchrun`` and ``accelerate launch`` set."""

from __future__ import annotations

import os


def number_of_processes() -> int:
    """How many were launched together; 1 where there was no launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this is the first of them, which alone talks and writes files."""
    return number_of_processes() == 1 or int(os.environ.get("RANK") or 0) == 0
