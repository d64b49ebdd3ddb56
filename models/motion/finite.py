"""Numbers of a motion that must all be there."""

from __future__ import annotations

import numpy as np

from fastvq.models.errors import UserError


def check_finite(name: str, values: np.ndarray) -> None:
    """Refuses NaN and infinity.

    Args:
        name: What the values are, for the message.
        values: (T, ...), a row for each frame.

    Raises:
        UserError: A value is not finite; the message counts the frames and names the first.
    """
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise UserError(
            f"{name} must be finite, got NaN or infinity in {int(bad.sum())} of {len(bad)} frames, first in "
            f"frame {int(bad.argmax())}: cut these frames out"
        )
