"""Runs the tree without installing it: maps the import names on the folders as ``pyproject.toml`` does."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

FOLDERS = {"fastvq.kernels": "kernels", "fastvq.models": "models", "fastvq.benchmarks": "benchmarks"}


class CheckoutFinder(MetaPathFinder):
    """Finds the three packages whose folders lie beside ``fastvq`` in a checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        folder = FOLDERS.get(fullname)
        if folder is None:
            return None
        package = self.root / folder
        return importlib.util.spec_from_file_location(
            fullname, package / "__init__.py", submodule_search_locations=[str(package)]
        )


def install(root: Path) -> None:
    """Puts the finder first, so that a checkout's own files win over an installed copy."""
    if not any(isinstance(finder, CheckoutFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, CheckoutFinder(root))
