"""Mean and standard deviation of 263 (251) features by the rule of the data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.features263 import check_features
from fastvq.models.motion.layout263 import HUMANML3D, Layout

# What the published evaluators weigh up, by dividing its standard deviation.
_BIASED = ("root_turn", "root_velocity", "root_height", "contact")


def feature_statistics(clips: Sequence[np.ndarray], layout: Layout = HUMANML3D) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every feature; standard deviations averaged within every kind of feature (``Layout.slices``).

    Args:
        clips: (T, 12 J - 1) each, not normalised.
        layout: What they are.

    Returns:
        mean and std, (12 J - 1,) float32. A kind that does not vary at all gets 1.

    Raises:
        UserError: No clips, or one that is no such features.
    """
    if not clips:
        raise UserError("statistics need at least one clip, got none")
    return mean_and_std([check_features(clip, layout) for clip in clips], layout.slices)


def mean_and_std(clips: Sequence[np.ndarray], slices: Mapping[str, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every feature; standard deviations averaged within every slice, 1 where nothing in it varies.

    One for each slice keeps its features comparable, and those that hardly vary from being blown up.

    Args:
        clips: (T, C) each, at least one.
        slices: Columns that belong together.

    Returns:
        mean and std, (C,) float32.
    """
    frames = sum(map(len, clips))
    mean = sum(clip.sum(axis=0, dtype=np.float64) for clip in clips) / frames
    deviation = np.sqrt(sum(((clip - mean) ** 2).sum(axis=0) for clip in clips) / frames)
    std = np.empty_like(deviation)
    for columns in slices.values():
        spread = deviation[columns].mean()
        std[columns] = spread if spread > 1e-8 else 1.0
    return np.asarray(mean, dtype=np.float32), std.astype(np.float32)


def evaluator_std(std: np.ndarray, layout: Layout = HUMANML3D, *, bias: float = 5.0) -> np.ndarray:
    """The standard deviations with which the published evaluators were trained.

    Those of the root's turn, velocity and height and of the contacts are divided by the bias, so that these
    few features weigh more.

    Args:
        std: (12 J - 1,).
        layout: What they are.
        bias: > 0.

    Raises:
        UserError: The bias is not positive.
    """
    if not bias > 0:
        raise UserError(f"bias must be positive, got {bias}")
    out = np.array(std)
    for name in _BIASED:
        out[layout.slices[name]] /= bias
    return out
