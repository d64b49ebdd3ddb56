"""Pose codes: 70 facts about a body in every frame, each one of a few readable codes, 392 in all."""

from __future__ import annotations

from .categories import (
    CATEGORIES,
    CATEGORY_OF_CODE,
    CATEGORY_SLICES,
    CODE_NAMES,
    NUM_CATEGORIES,
    NUM_CODES,
    PADDED_CODES,
    Category,
    Kind,
)
from .codes import PoseCodes
from .features import parse_features, sides_exchanged
from .lookup import code_named, find_codes
from .measurement import measure
from .mirroring import MIRRORED_CATEGORIES, MIRRORED_CODES, mirror_codes
from .parser import PoseParser
from .sentences import sentences
from .wording import PHRASES

__all__ = [
    "CATEGORIES",
    "CATEGORY_OF_CODE",
    "CATEGORY_SLICES",
    "CODE_NAMES",
    "MIRRORED_CATEGORIES",
    "MIRRORED_CODES",
    "NUM_CATEGORIES",
    "NUM_CODES",
    "PADDED_CODES",
    "PHRASES",
    "Category",
    "Kind",
    "PoseCodes",
    "PoseParser",
    "code_named",
    "find_codes",
    "measure",
    "mirror_codes",
    "parse_features",
    "sentences",
    "sides_exchanged",
]
