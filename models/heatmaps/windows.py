"""Clips as the windows that a heatmap model takes, and put together again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastvq.models.tokenizers.config import check_integer


def cut(joints: Tensor | np.ndarray, frames: int) -> Tensor:
    """Windows one after the other; the last is continued with the clip's last frame.

    Args:
        joints: (T, J, 3), T at least 1.
        frames: of a window.

    Returns:
        (ceil(T / frames), frames, J, 3).
    """
    check_integer("frames", frames, 1)
    clip = joints if isinstance(joints, Tensor) else torch.from_numpy(np.ascontiguousarray(joints))
    missing = -len(clip) % frames
    if missing:
        clip = torch.cat([clip, clip[-1:].expand(missing, *clip.shape[1:])])
    return clip.unflatten(0, (-1, frames))


def join(windows: Tensor, frames: int) -> Tensor:
    """The inverse of :func:`cut` along the third axis.

    Args:
        windows: (W, C, T, ...), such as heatmaps or places in them.
        frames: of the clip.

    Returns:
        (frames, C, ...).
    """
    return windows.transpose(1, 2).flatten(0, 1)[:frames]
