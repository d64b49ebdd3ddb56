"""Clips as features, their statistics, and the windows that training draws from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import SLICES, features_to_joints, joints_to_features
from fastvq.models.motion.transform import mirror_features, resample_clip, smooth_runs
from fastvq.models.tokenizers.checks import MIN_FRAMES


@dataclass(frozen=True)
class FeatureClip:
    """A motion as the tokenizers take it.

    Attributes:
        name: unique in its data set.
        features: (T, 272) float32, not normalised, absolute heading.
        joints: (T, 22, 3) float32 metres, as the features hold them: starting above the origin, facing +z.
        split: "train" or "test".
        text: what the person does.
    """

    name: str
    features: np.ndarray
    joints: np.ndarray
    split: str = "train"
    text: str = ""


def prepare_clips(clips: Sequence[Clip], *, fps: float = 30.0, notes: list[str] | None = None) -> list[FeatureClip]:
    """Clips at one frame rate, cut wherever a body could not have moved so fast, as features.

    A clip that is cut yields ``name_part1``, ``name_part2``, ...; parts below 4 frames are left out.

    Args:
        clips: at any frame rate.
        fps: the model's.
        notes: gets a sentence on what was cut and left out, if anything was.
    """
    prepared, cut, faults, short = [], 0, 0, 0
    for original in clips:
        clip = resample_clip(original, fps)
        runs = smooth_runs(clip.joints, fps)
        cut += runs.faults > 0
        faults += runs.faults
        long = [(start, stop) for start, stop in runs.ranges if stop - start >= MIN_FRAMES]
        short += len(runs.ranges) - len(long)
        for number, (start, stop) in enumerate(long, start=1):
            features = _features(clip, start, stop)
            prepared.append(
                FeatureClip(
                    name=clip.name if len(runs.ranges) == 1 else f"{clip.name}_part{number}",
                    features=features,
                    joints=features_to_joints(features),
                    split=clip.split,
                    text=clip.text,
                )
            )
    if notes is not None and cut:
        notes.append(f"{cut} of {len(clips)} clips were cut at {faults} jumps that no body makes")
    if notes is not None and short:
        notes.append(f"{short} clips or parts of clips have fewer than {MIN_FRAMES} frames and were left out")
    return prepared


def _features(clip: Clip, start: int, stop: int) -> np.ndarray:
    if clip.features is not None:
        return np.asarray(clip.features[start:stop], dtype=np.float32)
    rotations = None if clip.rotations is None else clip.rotations[start:stop]
    return joints_to_features(clip.joints[start:stop], rotations=rotations)


def feature_statistics(clips: Sequence[FeatureClip]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each feature, and one standard deviation for each block of features: the mean over its features.

    One for each block keeps the features of a block comparable, and those that hardly vary from being blown up.
    A block that does not vary at all gets 1.

    Returns:
        mean and std, (272,) float32.

    Raises:
        UserError: no clips.
    """
    if not clips:
        raise UserError("statistics need at least one clip, got none")
    frames = sum(len(clip.features) for clip in clips)
    mean = sum(clip.features.sum(axis=0, dtype=np.float64) for clip in clips) / frames
    square = sum(((clip.features - mean) ** 2).sum(axis=0) for clip in clips) / frames
    deviation = np.sqrt(square)
    std = np.empty_like(deviation)
    for block in SLICES.values():
        spread = deviation[block].mean()
        std[block] = spread if spread > 1e-8 else 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def fingerprint(clips: Sequence[FeatureClip]) -> str:
    """A SHA-256 over names, splits and features, by which a resumed run knows its data again."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name}\0{clip.split}\0{clip.features.shape}\0".encode())
        digest.update(clip.features.tobytes())
    return digest.hexdigest()


class WindowSampler:
    """Batches of windows, each position of each clip equally likely.

    The windows of a step depend on the seed and the step alone, so a resumed run sees the same ones.

    Args:
        clips: clips of the train split; those shorter than the window are skipped.
        window: frames.
        batch_size: windows in a batch.
        seed: of the draw.
        mirror: mirror each window with probability one half.

    Attributes:
        used, skipped: number of clips that are long enough, and that are not.
        frames: number of frames in the used ones.

    Raises:
        UserError: no clip is long enough.
    """

    def __init__(
        self, clips: Sequence[FeatureClip], *, window: int, batch_size: int, seed: int, mirror: bool = False
    ) -> None:
        long = [clip for clip in clips if len(clip.features) >= window]
        if not long:
            longest = max((len(clip.features) for clip in clips), default=0)
            raise UserError(
                f"training needs clips of at least {window} frames, and none of the {len(clips)} clips of the train "
                f"split is that long (the longest has {longest}): give longer clips or a smaller window"
            )
        self.used, self.skipped = len(long), len(clips) - len(long)
        self.frames = sum(len(clip.features) for clip in long)
        self.window, self.batch_size, self.seed = window, batch_size, seed
        copies = [np.concatenate([clip.features for clip in long])]
        if mirror:
            copies.append(mirror_features(copies[0]))
        self._frames = torch.from_numpy(np.concatenate(copies))
        self._copies = len(copies)
        ends = np.cumsum([len(clip.features) for clip in long])
        self._starts = np.concatenate(
            [np.arange(end - len(clip.features), end - window + 1) for end, clip in zip(ends, long, strict=True)]
        )

    def batch(self, step: int) -> Tensor:
        """The windows of a step: (batch_size, window, 272) float32, not normalised."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        starts = self._starts[draw.integers(len(self._starts), size=self.batch_size)]
        starts = starts + self.frames * draw.integers(self._copies, size=self.batch_size)
        return self._frames[torch.from_numpy(starts)[:, None] + torch.arange(self.window)]
