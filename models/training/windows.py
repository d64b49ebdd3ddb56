"""The windows that training draws from clips, and how they are varied: mirrored, faster or slower, turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.motion.features272 import SLICES
from fastvq.models.motion.transform import change_speed, mirror_features
from fastvq.models.training.data import FeatureClip


@dataclass(frozen=True)
class _Pool:
    """All clips at one speed, joined; where mirrored ones are wanted, a second time."""

    frames: Tensor
    starts: np.ndarray
    length: int


class WindowSampler:
    """Batches of windows, each position of each clip equally likely.

    The windows of a step depend on the seed and the step alone, so a resumed run sees the same ones.

    Args:
        clips: clips of the train split; those shorter than the window at every speed are skipped.
        window: frames.
        batch_size: windows in a batch.
        seed: of the draw.
        mirror: mirror each window with probability one half.
        speeds: each window is played at one of these, drawn at random; 2 is twice as fast.
        turn: turn each window about the vertical by an angle drawn at random.

    Attributes:
        used, skipped: number of clips that are long enough at one speed at least, and that are not.
        frames: number of frames in the used ones.

    Raises:
        UserError: no clip is long enough.
    """

    def __init__(
        self,
        clips: Sequence[FeatureClip],
        *,
        window: int,
        batch_size: int,
        seed: int,
        mirror: bool = False,
        speeds: Sequence[float] = (1.0,),
        turn: bool = False,
    ) -> None:
        played = {speed: [change_speed(clip.features, speed) for clip in clips] for speed in speeds}
        longest = [max(len(played[speed][i]) for speed in speeds) for i in range(len(clips))]
        used = [clip for clip, length in zip(clips, longest, strict=True) if length >= window]
        if not used:
            raise UserError(
                f"training needs clips of at least {window} frames, and none of the {len(clips)} clips of the train "
                f"split is that long (the longest has {max(longest, default=0)}): give longer clips or a smaller "
                "window"
            )
        self.used, self.skipped = len(used), len(clips) - len(used)
        self.frames = sum(len(clip.features) for clip in used)
        self.window, self.batch_size, self.seed, self.turn = window, batch_size, seed, turn
        self._mirror = mirror
        long = [[features for features in played[speed] if len(features) >= window] for speed in speeds]
        self._pools = [self._pool(features) for features in long if features]

    def _pool(self, clips: Sequence[np.ndarray]) -> _Pool:
        joined = np.concatenate(clips)
        ends = np.cumsum([len(features) for features in clips])
        starts = [
            np.arange(end - len(features), end - self.window + 1) for end, features in zip(ends, clips, strict=True)
        ]
        frames = np.concatenate([joined, mirror_features(joined)]) if self._mirror else joined
        return _Pool(torch.from_numpy(frames), np.concatenate(starts), len(joined))

    def batch(self, step: int) -> Tensor:
        """The windows of a step: (batch_size, window, 272) float32, not normalised."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        windows = torch.empty(self.batch_size, self.window, self._pools[0].frames.shape[1])
        chosen = draw.integers(len(self._pools), size=self.batch_size)
        for number, pool in enumerate(self._pools):
            at = np.flatnonzero(chosen == number)
            starts = pool.starts[draw.integers(len(pool.starts), size=len(at))]
            if self._mirror:
                starts = starts + pool.length * draw.integers(2, size=len(at))
            windows[torch.from_numpy(at)] = pool.frames[torch.from_numpy(starts)[:, None] + torch.arange(self.window)]
        if self.turn:
            turn_(windows, torch.from_numpy(draw.uniform(-math.pi, math.pi, self.batch_size)))
        return windows


def turn_(windows: Tensor, angles: Tensor) -> None:
    """Turns motions about the vertical, in place. Of the features only the absolute heading knows of it.

    With Y(h) the heading's rotation, whose first two rows the features hold, a turn by a makes it Y(h) Y(a).

    Args:
        windows: (B, T, 272), absolute heading.
        angles: (B,) radians.
    """
    cosine, sine = angles.cos(), angles.sin()
    turn = torch.zeros(len(angles), 3, 3, dtype=angles.dtype)
    turn[:, 0, 0] = turn[:, 2, 2] = cosine
    turn[:, 0, 2], turn[:, 2, 0] = sine, -sine
    turn[:, 1, 1] = 1
    block = SLICES["root_heading"]
    rows = windows[..., block].unflatten(-1, (2, 3))
    windows[..., block] = (rows.to(turn.dtype) @ turn[:, None]).flatten(-2).to(windows.dtype)
