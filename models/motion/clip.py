"""The one form in which motions travel between loaders, features, training and rendering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Clip:
    """One motion of one person.

    Attributes:
        name: Unique within a data set; becomes the name in token files and of exported files.
        fps: Frames per second, > 0.
        joints: (T, 22, 3) float32, global joint positions in metres, Y up, in the order of
            ``skeleton.JOINT_NAMES``.
        text: What the person does; empty where nobody said.
        split: ``"train"`` or ``"test"``.
        rotations: (T, 22, 3, 3) local joint rotations (a joint's rotation relative to its parent's; the
            pelvis' is global), present only where the source holds true ones, twist included.
        features: (T, 272), (T, 263) or (T, 251) float32, metres, present only where the source held such.
    """

    name: str
    fps: float
    joints: np.ndarray
    text: str = ""
    split: str = "train"
    rotations: np.ndarray | None = None
    features: np.ndarray | None = None

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.joints)

    @property
    def seconds(self) -> float:
        """Duration in seconds, T / fps."""
        return len(self.joints) / self.fps
