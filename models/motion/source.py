"""What a motion file holds before it is mapped: any skeleton, in the file's own units and axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SourceSkeleton:
    """A tree of named joints; parents come before their children.

    Attributes:
        names: (J) as in the file. An End Site, which has no name there, is called ``end site of <parent>``.
        parents: (J) index of every joint's parent, -1 for a root.
        offsets: (J, 3) float64, vector from the parent to the joint in the rest pose, file units.
        end_sites: (J) whether the point only ends a bone.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: np.ndarray
    end_sites: tuple[bool, ...]

    def rest_positions(self) -> np.ndarray:
        """(J, 3) positions of all joints with every rotation zero and the root at its offset."""
        positions = np.array(self.offsets, dtype=np.float64)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                positions[joint] += positions[parent]
        return positions

    def ancestors(self, joint: int) -> list[int]:
        """The joint's parent, its parent's parent, and so on up to the root."""
        found = []
        while (joint := self.parents[joint]) >= 0:
            found.append(joint)
        return found

    def children(self, joint: int) -> list[int]:
        """The joints whose parent this is, in file order."""
        return [child for child, parent in enumerate(self.parents) if parent == joint]


@dataclass(frozen=True)
class SourceMotion:
    """A motion of a ``SourceSkeleton``.

    Attributes:
        skeleton: The skeleton.
        positions: (T, J, 3) float64, global positions in file units and axes.
        rotations: (T, J, 3, 3) float64, rotation of every joint relative to its parent's frame.
        fps: Frames per second.
        unit: Metres per file unit where the file says so, else None.
    """

    skeleton: SourceSkeleton
    positions: np.ndarray
    rotations: np.ndarray
    fps: float
    unit: float | None = None
