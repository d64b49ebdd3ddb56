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
from fastvq.models.motion.feature_formats import FEATURES272, FeatureFormat, format_of
from fastvq.models.motion.statistics263 import mean_and_std
from fastvq.models.motion.transform import resample_clip, smooth_runs
from fastvq.models.tokenizers.checks import MIN_FRAMES


@dataclass(frozen=True)
class FeatureClip:
    """A motion as the tokenizers take it.

    Attributes:
        name: unique in its data set.
        features: (T, C) float32 of one format, not normalised.
        joints: (T, 22, 3) float32 metres, as the features hold them: starting above the origin, facing +z.
        split: "train" or "test".
        text: what the person does.
    """

    name: str
    features: np.ndarray
    joints: np.ndarray
    split: str = "train"
    text: str = ""


def prepare_clips(
    clips: Sequence[Clip],
    *,
    fps: float = 30.0,
    form: FeatureFormat = FEATURES272,
    notes: list[str] | None = None,
) -> list[FeatureClip]:
    """Clips at one frame rate, cut wherever a body could not have moved so fast, as features.

    A clip that is cut yields ``name_part1``, ``name_part2``, ...; parts below 4 frames are left out.

    Args:
        clips: at any frame rate.
        fps: the model's.
        form: of the features to make.
        notes: gets a sentence on what was cut and left out, if anything was.

    Raises:
        UserError: the features cannot be made from these clips.
    """
    prepared, cut, faults, short = [], 0, 0, 0
    for original in clips:
        clip = resample_clip(original, fps)
        runs = smooth_runs(clip.joints, fps)
        cut += runs.faults > 0
        faults += runs.faults
        made = [form.from_clip(clip, start, stop) for start, stop in runs.ranges]
        long = [rows for rows in made if len(rows) >= MIN_FRAMES]
        short += len(made) - len(long)
        for number, features in enumerate(long, start=1):
            prepared.append(
                FeatureClip(
                    name=clip.name if len(runs.ranges) == 1 else f"{clip.name}_part{number}",
                    features=features,
                    joints=form.to_smpl(features),
                    split=clip.split,
                    text=clip.text,
                )
            )
    names = distinct_names([clip.name for clip in prepared])
    prepared = [replace(clip, name=name) for clip, name in zip(prepared, names, strict=True)]
    if notes is not None and cut:
        notes.append(f"{cut} of {len(clips)} clips were cut at {faults} jumps that no body makes")
    if notes is not None and short:
        notes.append(f"{short} clips or parts of clips have fewer than {MIN_FRAMES} frames and were left out")
    return prepared


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names of clips; what occurs twice, such as that of a part beside a clip that is really called so, is numbered.

    >>> distinct_names(["walk_part1", "run", "walk_part1"])
    ['walk_part1__2', 'run', 'walk_part1']
    """
    taken, found = Counter(names), []
    for given in names:
        name = given
        if taken[given] > 1:
            name = next(other for number in count(2) if (other := f"{given}__{number}") not in taken)
            taken[given] -= 1
            taken[name] += 1
        found.append(name)
    return found


def feature_statistics(clips: Sequence[FeatureClip]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each feature, and one standard deviation for each kind of features, by the rule of the data sets.

    Returns:
        mean and std, (C,) float32.

    Raises:
        UserError: no clips.
    """
    if not clips:
        raise UserError("statistics need at least one clip, got none")
    features = [clip.features for clip in clips]
    return mean_and_std(features, format_of(features[0].shape[1]).slices)


def fingerprint(clips: Sequence[FeatureClip]) -> str:
    """A SHA-256 over names, splits and features, by which a resumed run knows its data again."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name}\0{clip.split}\0{clip.features.shape}\0".encode())
        digest.update(clip.features.tobytes())
    return digest.hexdigest()
