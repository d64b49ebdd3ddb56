"""The features that tokenizers take, one class a format: what a row means, from clips and back to joints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion import features263, features272, skeleton
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.kit_to_smpl import kit_to_smpl, toes_side
from fastvq.models.motion.layout263 import KIT_ML, LAYOUTS, Layout
from fastvq.models.motion.transform import change_speed, resample


class FeatureFormat(ABC):
    """What the columns of a row of features mean.

    Attributes:
        name: As people call it.
        width: Number of columns C.
        fps: Frames per second for which the format is made.
        slices: The columns of every kind of feature, in order.
        parents: (J) the joint at which every bone begins; -1 for the root.
        turns: Whether the features know which way the body faced at first.
    """

    name: str
    width: int
    fps: float
    slices: Mapping[str, slice]
    parents: tuple[int, ...]
    turns: bool

    @abstractmethod
    def from_clip(self, clip: Clip, start: int, stop: int) -> np.ndarray:
        """(T, C) float32 features of the frames from start to stop, not normalised; the clip's own where it has them.

        Raises:
            UserError: The format cannot be computed from the clip's joints.
        """

    @abstractmethod
    def to_joints(self, features: np.ndarray) -> np.ndarray:
        """(T, C) features, not normalised -> (T, J, 3) float32 metres, of the format's own skeleton."""

    @abstractmethod
    def posed(self, features: np.ndarray, *, rigid: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """(T, C) features as a body of SMPL's 22 joints.

        Args:
            features: Not normalised.
            rigid: Bones keep the lengths that fit the whole clip best.

        Returns:
            Joints (T, 22, 3) in metres, and local rotations (T, 22, 3, 3), or None where joints say it all.
        """

    @abstractmethod
    def to_smpl(self, features: np.ndarray) -> np.ndarray:
        """(T, C) features -> (T, 22, 3) float32 metres, SMPL's joints."""

    @abstractmethod
    def change_speed(self, features: np.ndarray, speed: float) -> np.ndarray:
        """(T, C) features of the motion played at that speed; 2 is twice as fast."""


class Features272(FeatureFormat):
    """The 272 features with absolute headings (``features272``)."""

    name = "272-dim"
    width = features272.WIDTH
    fps = 30.0
    slices = features272.SLICES
    parents = tuple(skeleton.PARENTS)
    turns = True

    def from_clip(self, clip: Clip, start: int, stop: int) -> np.ndarray:
        if clip.features is not None and clip.features.shape[1] == self.width:
            return np.asarray(clip.features[start:stop], dtype=np.float32)
        rotations = None if clip.rotations is None else clip.rotations[start:stop]
        return features272.joints_to_features(clip.joints[start:stop], rotations=rotations)

    def to_joints(self, features: np.ndarray) -> np.ndarray:
        return features272.features_to_joints(features)

    def to_smpl(self, features: np.ndarray) -> np.ndarray:
        return features272.features_to_joints(features)

    def posed(self, features: np.ndarray, *, rigid: bool) -> tuple[np.ndarray, np.ndarray | None]:
        rotations = features272.features_to_rotations(features)
        joints = features272.features_to_joints(features)
        if rigid:
            offsets = features272.rest_offsets(joints, rotations)
            joints = features272.features_to_joints(features, offsets=offsets)
        return joints, rotations

    def change_speed(self, features: np.ndarray, speed: float) -> np.ndarray:
        return change_speed(features, speed)


class Features263(FeatureFormat):
    """HumanML3D's 263 or KIT-ML's 251 features (``features263``).

    Those that are computed from T frames of joints are T - 1 rows.
    """

    turns = False

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.name, self.width, self.fps = layout.name, layout.width, layout.fps
        self.slices, self.parents = layout.slices, layout.parents

    def from_clip(self, clip: Clip, start: int, stop: int) -> np.ndarray:
        if clip.features is not None and clip.features.shape[1] == self.width:
            return np.asarray(clip.features[start:stop], dtype=np.float32)
        if self.layout is KIT_ML:
            raise UserError(
                f"clip {clip.name!r} has SMPL's joints, and {self.name}'s {self.width} features need {self.name}'s "
                f"own at {self.fps:g} frames per second: give a {self.name} folder, or train with another input_dim"
            )
        return self._features(clip.joints[start:stop])

    def to_joints(self, features: np.ndarray) -> np.ndarray:
        return features263.joints_from_ric(features, self.layout)

    def to_smpl(self, features: np.ndarray) -> np.ndarray:
        return self._smpl(self.to_joints(features))

    def posed(self, features: np.ndarray, *, rigid: bool) -> tuple[np.ndarray, np.ndarray | None]:
        joints = self.to_joints(features)
        if rigid:
            lengths = features263.bone_lengths(joints, self.layout)
            joints = features263.joints_from_rotations(features, lengths, self.layout)
        return self._smpl(joints), None

    def change_speed(self, features: np.ndarray, speed: float) -> np.ndarray:
        """Positions are read at the new times, as ``transform.resample`` does it; all else is that of the result."""
        return features if speed == 1 else self._features(resample(self.to_joints(features), speed, 1))

    def _features(self, joints: np.ndarray) -> np.ndarray:
        if len(joints) < 2:
            return np.empty((0, self.width), dtype=np.float32)
        return features263.joints_to_features(joints, self.layout)

    def _smpl(self, joints: np.ndarray) -> np.ndarray:
        return kit_to_smpl(joints, exchanged=toes_side(joints) < 0) if self.layout is KIT_ML else joints


FEATURES272 = Features272()
FEATURE_FORMATS: dict[int, FeatureFormat] = {
    one.width: one for one in (FEATURES272, *(Features263(layout) for layout in LAYOUTS))
}


def format_of(width: int) -> FeatureFormat:
    """The format of features of a width.

    Raises:
        UserError: No format has it.
    """
    if width not in FEATURE_FORMATS:
        known = ", ".join(f"{one} ({form.name})" for one, form in sorted(FEATURE_FORMATS.items()))
        raise UserError(f"input_dim must be a width of features that is known, {known}; got {width}")
    return FEATURE_FORMATS[width]
