"""Windows of joints that heatmaps are rendered from, drawn from clips."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.heatmaps.limbs import SCORE_MEAN, SCORE_STD
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.transform import resample_clip, smooth_runs
from fastvq.models.training.data import distinct_names


class JointWindows(NamedTuple):
    """A batch: joints (B, T, J, 3) metres, and scores (B, T, J) or None where all are 1."""

    joints: Tensor
    scores: Tensor | None


def prepare_joints(clips: Sequence[Clip], *, fps: float, least: int, notes: list[str] | None = None) -> list[Clip]:
    """Clips at one frame rate, cut wherever a body could not have moved so fast.

    Args:
        clips: at any frame rate.
        fps: of the result.
        least: frames; shorter clips and parts are left out.
        notes: gets a sentence on what was cut and left out, if anything was.

    Returns:
        Clips with joints only; a part of one that was cut is called ``name_part1`` and so on.
    """
    prepared, cut, faults, short = [], 0, 0, 0
    for original in clips:
        clip = resample_clip(original, fps)
        runs = smooth_runs(clip.joints, fps)
        ranges = runs.ranges
        cut += runs.faults > 0
        faults += runs.faults
        short += sum(stop - start < least for start, stop in ranges)
        for number, (start, stop) in enumerate(ranges, start=1):
            if stop - start >= least:
                name = clip.name if len(ranges) == 1 else f"{clip.name}_part{number}"
                joints = np.ascontiguousarray(clip.joints[start:stop], dtype=np.float32)
                prepared.append(replace(clip, name=name, joints=joints, rotations=None, features=None))
    if notes is not None and cut:
        notes.append(f"{cut} of {len(clips)} clips were cut at {faults} jumps that no body makes")
    if notes is not None and short:
        notes.append(f"{short} clips or parts of clips have fewer than {least} frames and were left out")
    names = distinct_names([clip.name for clip in prepared])
    return [replace(clip, name=name) for clip, name in zip(prepared, names, strict=True)]


def fingerprint_joints(clips: Sequence[Clip]) -> str:
    """A SHA-256 over names, splits and joints, by which a resumed run knows its data again."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name}\0{clip.split}\0{clip.joints.shape}\0".encode())
        digest.update(clip.joints.tobytes())
    return digest.hexdigest()


class JointWindowSampler:
    """Batches of windows; which ones depends on the seed and the step alone, so a resumed run sees the same.

    A window is a stretch of a clip, of a random number of frames, of which ``frames`` are shown at even distances; so
    the paper varies the speed. It begins its stretches with the clip; here they begin anywhere, every start equally
    likely, since recordings are longer than the paper's clips.

    Args:
        clips: of the train split, of at least the first of ``stretch`` frames each.
        frames: of a window.
        batch_size: windows in a batch.
        seed: of the draw.
        stretch: fewest and most frames of a stretch.
        random_scores: draw joints' scores as the paper does (:func:`fastvq.models.heatmaps.limbs.draw_scores`).
        part: which windows of a batch are wanted; the others are drawn, too, but not gathered.

    Raises:
        UserError: no clip is long enough.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        frames: int,
        batch_size: int,
        seed: int,
        stretch: tuple[int, int],
        random_scores: bool,
        part: slice = slice(None),
    ) -> None:
        self.clips = [clip.joints for clip in clips if clip.frames >= stretch[0]]
        if not self.clips:
            longest = max((clip.frames for clip in clips), default=0)
            raise UserError(
                f"training needs clips of at least {stretch[0]} frames, and none of the {len(clips)} clips of the "
                f"train split is that long (the longest has {longest}): give longer clips, or shorter stretches"
            )
        self.frames, self.batch_size, self.seed = frames, batch_size, seed
        self.stretch, self.random_scores, self.part = stretch, random_scores, part
        starts = np.array([len(joints) - stretch[0] + 1 for joints in self.clips])
        self._ends = starts.cumsum()

    def batch(self, step: int) -> JointWindows:
        """The windows of a step."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        stretches = []
        for place in draw.integers(self._ends[-1], size=self.batch_size):
            number = int(np.searchsorted(self._ends, place, side="right"))
            joints, start = self.clips[number], int(place - (self._ends[number - 1] if number else 0))
            most = min(self.stretch[1], len(joints) - start)
            length = int(draw.integers(self.stretch[0], most + 1))
            stretches.append((joints, start, length))
        windows = []
        for joints, start, length in stretches[self.part]:
            shown = start + np.linspace(0, length - 1, self.frames).round().astype(np.int64)
            windows.append(torch.from_numpy(joints[shown]))
        batch = torch.stack(windows)
        if not self.random_scores:
            return JointWindows(batch, None)
        drawn = SCORE_MEAN + SCORE_STD * draw.standard_normal((self.batch_size, *batch.shape[1:3]))[self.part]
        return JointWindows(batch, torch.from_numpy(drawn.clip(0, 1)).float())
