"""Clips as features, and their statistics."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import SLICES, features_to_joints, joints_to_features
from fastvq.models.motion.transform import resample_clip, smooth_runs
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
    taken = Counter(clip.name for clip in prepared)
    for index, part in enumerate(prepared):
        if taken[part.name] > 1:  # a part beside a clip that is really called so
            name = next(name for number in count(2) if (name := f"{part.name}__{number}") not in taken)
            taken[part.name] -= 1
            taken[name] += 1
            prepared[index] = replace(part, name=name)
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
