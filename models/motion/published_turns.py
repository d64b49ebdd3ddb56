"""Finds and corrects the turns that published HumanML3D and KIT-ML files hold with the wrong sign.

Their [0] is the arcsine of a quaternion's component, which has the wrong sign in the one frame in which the
heading passes half a turn from where the clip began. What is decoded walks elsewhere from there on. The heading
is smoothed over some 20 frames, so a single frame that turns as fast as its neighbours but the other way, just
where the heading reaches half a turn, is such a frame and no motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastvq.models.motion.features263 import check_features
from fastvq.models.motion.layout263 import HUMANML3D, Layout


def turns_note(changed: Sequence[int]) -> list[str]:
    """A sentence on what was corrected, or none; ``changed`` holds the signs changed in each clip that had some."""
    if not changed:
        return []
    return [
        f"in {len(changed)} clips {sum(changed)} turns had the wrong sign, as published files have where the body "
        "passes half a turn, and were corrected"
    ]


def correct_turns(features: np.ndarray, layout: Layout = HUMANML3D) -> tuple[np.ndarray, int]:
    """Features whose turns all have the right sign.

    Files that hold them so already, as ours do, are returned as they are.

    Args:
        features: (T, 12 J - 1) array or nested lists, not normalised; whole clips, since only they begin at
            heading zero.
        layout: What they are.

    Returns:
        A new array of the same dtype, float32 for integers, and the number of signs that were changed.

    Raises:
        UserError: The shape is another, or a value is not finite.
    """
    turns = check_features(features, layout)[:, 0]
    corrected = np.array(features)
    if corrected.dtype.kind != "f":
        corrected = corrected.astype(np.float32)
    if len(turns) < 2:
        return corrected, 0
    # What the frames beside say; one of them at the ends.
    padded = np.concatenate([turns[1:2], turns, turns[-2:-1]])
    expected = (padded[:-2] + padded[2:]) / 2
    count = 0
    for frame in np.flatnonzero(np.abs(turns + expected) < 0.5 * np.abs(turns - expected)):
        half = turns[:frame].sum()
        half -= np.pi * np.round(half / np.pi)
        # The step the other way must lead past half a turn, a quarter in half angles.
        if abs(half - turns[frame]) >= np.pi / 2 - 1e-4:
            turns[frame] *= -1
            count += 1
    corrected[:, 0] = turns
    return corrected, count
