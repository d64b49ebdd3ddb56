"""The two data sets that write motion as HumanML3D does: which skeleton, rate, width and columns.

A row holds, for J joints (columns for J = 22):

    [0]        root_turn        half the step of the heading, radians per frame
    [1:3]      root_velocity    x and z of the root's step, seen from the next frame's heading, metres per frame
    [3]        root_height      metres above the floor
    [4:67]     joint_position   J - 1 joints seen from the heading, relative to the floor below the root, metres
    [67:193]   joint_rotation   J - 1 x 6, first two columns of the local rotations
    [193:259]  joint_velocity   J joints, steps from frame to frame seen from the heading, metres per frame
    [259:263]  contact          1 where a foot stands: two joints of the left, two of the right
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastvq.models.motion import kit_skeleton, skeleton

# Metres per unit of KIT-ML's files: millimetres of the Master Motor Map model, whose legs are 0.48 m where
# SMPL's are 0.75 m. Both figures are those of published conversions between the two.
KIT_UNIT = 0.75 / 480


@dataclass(frozen=True, eq=False)
class Layout:
    """A data set's skeleton and columns.

    Attributes:
        name: Of the data set.
        joints: Number of joints J.
        fps: Frames per second.
        chains: Joints from the trunk outwards; rotations are relative along them.
        directions: (J, 3) unit direction of every bone in the reference pose; zeros for the root.
        hips, shoulders: (right, left) joints that tell where the body faces.
        feet: Joints whose contact is kept: two of the left foot, then two of the right.
        leg: (knee, ankle) of one leg.
        contact_threshold: A foot stands that moves less than the root of this many square metres per frame.
    """

    name: str
    joints: int
    fps: float
    chains: tuple[tuple[int, ...], ...]
    directions: np.ndarray
    hips: tuple[int, int]
    shoulders: tuple[int, int]
    feet: tuple[int, int, int, int]
    leg: tuple[int, int]
    contact_threshold: float

    @property
    def width(self) -> int:
        """Number of columns, 12 J - 1."""
        return 12 * self.joints - 1

    @property
    def slices(self) -> dict[str, slice]:
        """The columns of every kind of feature, in order."""
        sizes = {
            "root_turn": 1,
            "root_velocity": 2,
            "root_height": 1,
            "joint_position": 3 * (self.joints - 1),
            "joint_rotation": 6 * (self.joints - 1),
            "joint_velocity": 3 * self.joints,
            "contact": 4,
        }
        columns, start = {}, 0
        for name, size in sizes.items():
            columns[name] = slice(start, start + size)
            start += size
        return columns

    @property
    def parents(self) -> tuple[int, ...]:
        """(J) the joint at which every bone begins; -1 for the root."""
        parents = [-1] * self.joints
        for chain in self.chains:
            for above, joint in pairwise(chain):
                parents[joint] = above
        return tuple(parents)

    @property
    def turned_by(self) -> tuple[int, ...]:
        """(J) the joint relative to which every rotation is written.

        That is the parent, but for the first bone of every chain, also of those that begin at the chest or
        neck: these are written relative to the root.
        """
        above = list(self.parents)
        for chain in self.chains:
            above[chain[1]] = 0
        return tuple(above)


HUMANML3D = Layout(
    name="HumanML3D",
    joints=skeleton.NUM_JOINTS,
    fps=20.0,
    chains=skeleton.CHAINS,
    directions=skeleton.RAW_DIRECTIONS,
    hips=(2, 1),
    shoulders=(17, 16),
    feet=(7, 10, 8, 11),
    leg=(5, 8),
    contact_threshold=0.002,
)

KIT_ML = Layout(
    name="KIT-ML",
    joints=kit_skeleton.KIT_NUM_JOINTS,
    fps=12.5,
    chains=kit_skeleton.KIT_CHAINS,
    directions=kit_skeleton.KIT_RAW_DIRECTIONS,
    hips=(11, 16),
    shoulders=(5, 8),
    feet=(19, 20, 14, 15),
    leg=(17, 18),
    contact_threshold=0.05 * KIT_UNIT**2,
)

LAYOUTS: tuple[Layout, ...] = (HUMANML3D, KIT_ML)
