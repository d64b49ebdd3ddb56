"""Which code becomes which when a body is seen in a mirror.

Sides are exchanged and x is negated. A category becomes the one of the same kind between the exchanged points.
Where the table holds that one with its points the other way round ("L-hand vs R-hand" becomes "R-hand vs L-hand"),
differences change their sign and the bins their order; a sideways difference changes its sign once more. A value
exactly on a threshold is the exception: it belongs to the bin below, as does its negative.
"""

from __future__ import annotations

import numpy as np

from fastvq.models.motion.pose_codes.categories import CATEGORIES, DEPTH, HEIGHT, NUM_CODES, SIDEWAYS, Category
from fastvq.models.motion.pose_codes.codes import PoseCodes


def _partner(category: Category) -> tuple[Category, bool]:
    """The category's mirror image, and whether the order of its bins is reversed."""
    points = tuple(_other_side(point) for point in category.points)
    table = {other.points: other for other in CATEGORIES if other.kind is category.kind}
    turned = points not in table
    signed = category.kind in (SIDEWAYS, HEIGHT, DEPTH)
    return table[points[::-1] if turned else points], signed and turned != (category.kind is SIDEWAYS)


def _other_side(point: str) -> str:
    if point.startswith("left_"):
        return point.replace("left_", "right_")
    return point.replace("right_", "left_")


def _tables() -> tuple[np.ndarray, np.ndarray]:
    codes, categories = np.empty(NUM_CODES, dtype=np.int64), np.empty(len(CATEGORIES), dtype=np.int64)
    for category in CATEGORIES:
        partner, reversed_bins = _partner(category)
        numbers = np.arange(partner.codes.start, partner.codes.stop)
        codes[category.codes] = numbers[::-1] if reversed_bins else numbers
        categories[category.index] = partner.index
    codes.setflags(write=False)
    categories.setflags(write=False)
    return codes, categories


# (392,) the code that each becomes, and (70,) the same of categories; both are their own inverse, so that
# k_hot[:, MIRRORED_CODES] is the K-hot array of the mirrored clip.
MIRRORED_CODES, MIRRORED_CATEGORIES = _tables()


def mirror_codes(codes: PoseCodes) -> PoseCodes:
    """The codes of the mirrored clip, as parsing ``mirror.mirror`` of its joints would give them."""
    return PoseCodes(MIRRORED_CODES[codes.indices][:, MIRRORED_CATEGORIES])
