"""The systems whose claims can be tested: each is a module of this folder with a ``STUDY``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fastvq.models.errors import UserError

if TYPE_CHECKING:  # the command's options read the names, and load no torch for it
    from fastvq.models.claims.generator_study import GeneratorStudy
    from fastvq.models.claims.study import Study

# A module here, claims/<name>.py, that holds STUDY = Study("<name>", ...), is added by its name.
# "s3-gen" is claims/s3_gen.py with a STUDY = GeneratorStudy("s3-gen", ...).
NAMES = ("s0", "s1", "s2", "s3", "s3-gen", "s1-gen")


def study(name: str) -> Study | GeneratorStudy:
    """The study of a system.

    Raises:
        UserError: there is none.
    """
    if name not in NAMES:
        raise UserError(f"there are no claims of {name!r} to test: the systems are {', '.join(NAMES)}")
    module = importlib.import_module(f"fastvq.models.claims.{name.replace('-', '_')}")
    found: Study | GeneratorStudy = module.STUDY
    return found
