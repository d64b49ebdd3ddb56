"""The windows that training draws from clips, and how they are varied: mirrored, faster or slower, turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.motion.feature_formats import FEATURES272, format_of
from fastvq.models.motion.mirror import mirror_features
from fastvq.models.training.data import FeatureClip


class Windows(NamedTuple):
    """A batch: motion (B, T, C), and mask (B, T), True where a frame is real, or None where all are."""

    motion: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Pool:
    """All clips at one speed, joined; where mirrored ones are wanted, a second time, ``length`` frames later.

    ``starts`` and ``real`` are where a window may begin and how many of its frames are real.
    """

    frames: Tensor
    starts: np.ndarray
    real: np.ndarray
    length: int


class WindowSampler:
    """Batches of windows, each position of each clip equally likely.

    The windows of a step depend on the seed and the step alone, so a resumed run sees the same ones.

    Args:
        clips: clips of the train split; those shorter than the window at every speed are skipped, or padded.
        window: frames.
        batch_size: windows in a batch.
        seed: of the draw.
        mirror: mirror each window with probability one half.
        speeds: each window is played at one of these, drawn at random; 2 is twice as fast.
        turn: turn each window about the vertical by an angle drawn at random.
        pad_to: instead of skipping shorter clips, continue them with their last frame to a multiple of this many
            frames and with masked zeros to the window's end. Each is as likely as a clip with as many positions as it
            has frames.
        part: which windows of a batch are wanted; the others are drawn, too, but not gathered.

    Attributes:
        used, skipped: number of clips that are shown, and that are not.
        frames: number of frames in the used ones.

    Raises:
        UserError: no clip is long enough, or ``turn`` is asked of features that do not know where a body faces.
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
        pad_to: int | None = None,
        part: slice = slice(None),
    ) -> None:
        played = {speed: [_played(clip.features, speed) for clip in clips] for speed in speeds}
        longest = [max(len(played[speed][i]) for speed in speeds) for i in range(len(clips))]
        least = window if pad_to is None else 1
        used = [clip for clip, length in zip(clips, longest, strict=True) if length >= least]
        if not used:
            raise UserError(
                f"training needs clips of at least {window} frames, and none of the {len(clips)} clips of the train "
                f"split is that long (the longest has {max(longest, default=0)}): give longer clips or a smaller "
                "window"
            )
        if turn and not (form := format_of(used[0].features.shape[1])).turns:
            raise UserError(
                f"turn has nothing to turn: {form.name}'s {form.width} features do not say where a body faces; "
                "leave it out"
            )
        self.used, self.skipped = len(used), len(clips) - len(used)
        self.frames = sum(len(clip.features) for clip in used)
        self.window, self.batch_size, self.seed, self.turn = window, batch_size, seed, turn
        self._mirror, self._pad_to = mirror, pad_to
        self._own = np.zeros(batch_size, dtype=bool)
        self._own[part] = True
        shown = [[features for features in played[speed] if len(features) >= least] for speed in speeds]
        self._pools = [self._pool(features) for features in shown if features]

    def _pool(self, clips: Sequence[np.ndarray]) -> _Pool:
        frames, starts, real, length = [], [], [], 0
        for features in clips:
            if len(features) >= self.window:
                count = len(features) - self.window + 1
                starts.append(length + np.arange(count))
                real.append(np.full(count, self.window))
            else:
                count, features = len(features), self._padded(features)
                starts.append(np.full(count, length))
                real.append(np.full(count, len(features)))
                features = np.pad(features, ((0, self.window - len(features)), (0, 0)))
            frames.append(features)
            length += len(features)
        joined = np.concatenate(frames)
        joined = np.concatenate([joined, mirror_features(joined)]) if self._mirror else joined
        return _Pool(torch.from_numpy(joined), np.concatenate(starts), np.concatenate(real), length)

    def _padded(self, features: np.ndarray) -> np.ndarray:
        assert self._pad_to is not None
        return np.pad(features, ((0, -len(features) % self._pad_to), (0, 0)), mode="edge")

    def batch(self, step: int) -> Windows:
        """The windows of a step: motion (B, window, C) float32, not normalised, and mask; B is ``batch_size``, or the
        number of wanted ones."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        chosen = draw.integers(len(self._pools), size=self.batch_size)
        starts, real = np.empty((2, self.batch_size), dtype=np.int64)
        for number, pool in enumerate(self._pools):
            at = np.flatnonzero(chosen == number)
            place = draw.integers(len(pool.starts), size=len(at))
            starts[at], real[at] = pool.starts[place], pool.real[place]
            if self._mirror:
                starts[at] += pool.length * draw.integers(2, size=len(at))
        angles = draw.uniform(-math.pi, math.pi, self.batch_size) if self.turn else None
        own = self._own
        chosen, starts, real = chosen[own], starts[own], real[own]
        windows = torch.empty(len(chosen), self.window, self._pools[0].frames.shape[1])
        for number, pool in enumerate(self._pools):
            at = np.flatnonzero(chosen == number)
            rows = torch.from_numpy(starts[at])[:, None] + torch.arange(self.window)
            windows[torch.from_numpy(at)] = pool.frames[rows]
        if angles is not None:
            turn_(windows, torch.from_numpy(angles[own]))
        if self._pad_to is None:
            return Windows(windows, None)
        return Windows(windows, torch.arange(self.window) < torch.from_numpy(real)[:, None])


def _played(features: np.ndarray, speed: float) -> np.ndarray:
    return features if speed == 1 else format_of(features.shape[1]).change_speed(features, speed)


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
    block = FEATURES272.slices["root_heading"]
    rows = windows[..., block].unflatten(-1, (2, 3))
    windows[..., block] = (rows.to(turn.dtype) @ turn[:, None]).flatten(-2).to(windows.dtype)
