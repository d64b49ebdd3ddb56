"""Motions of HumanML3D and KIT-ML files as clips of SMPL's 22 joints in metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastvq.models.motion.clip import Clip
from fastvq.models.motion.humanml3d_folder import JOINTS, VECTORS
from fastvq.models.motion.kit_to_smpl import kit_to_smpl, toes_side
from fastvq.models.motion.layout263 import HUMANML3D, KIT_ML, LAYOUTS, Layout
from fastvq.models.motion.leg_units import leg_length, metres_per_unit, scale_features
from fastvq.models.motion.published_turns import turns_note


@dataclass(frozen=True)
class LayoutMotion:
    """What a file of a layout holds.

    Attributes:
        path: The file.
        layout: Whose it is.
        joints: (T, J, 3) float32 in the file's unit.
        text: Its description.
        corrected: Number of turns whose sign was wrong (``published_turns``).
        features: (T, 12 J - 1) float32 in the file's unit, None where it holds joints.
    """

    path: Path
    layout: Layout
    joints: np.ndarray
    text: str
    corrected: int = 0
    features: np.ndarray | None = None


def joints_layout(array: np.ndarray, path: Path) -> Layout | None:
    """The layout of a (T, J, 3) array: KIT-ML by its 21 joints, HumanML3D by its folder, else None.

    22 joints alone say no frame rate and may be anybody's.
    """
    if array.shape[1:] == (KIT_ML.joints, 3):
        return KIT_ML
    if array.shape[1:] == (HUMANML3D.joints, 3) and path.parent.name == JOINTS:
        return HUMANML3D
    return None


def doubles(files: Sequence[Path]) -> set[Path]:
    """Those files that hold the joints of clips whose features are among the files too."""
    features = {path for path in files if path.parent.name == VECTORS}
    joints = [path for path in files if path.parent.name == JOINTS]
    return {path for path in joints if path.parent.parent / VECTORS / path.name in features}


def layout_clips(
    motions: Sequence[LayoutMotion], *, scale: float | None = None, fps: float | None = None
) -> tuple[list[Clip], list[str]]:
    """Clips, in the order given, and notes on units, sides and mapping.

    Unit and sides are told from all files of a layout together.

    Args:
        motions: Of any layouts.
        scale: Metres per unit; told from the leg when None.
        fps: Their frame rate; the layout's when None.

    Raises:
        UserError: The legs fit no unit, or the scale is not between 1e-6 and 1000.
    """
    notes = turns_note([motion.corrected for motion in motions if motion.corrected])
    units: dict[str, float] = {}
    exchanged = False
    for layout in LAYOUTS:
        own = [motion for motion in motions if motion.layout is layout]
        if not own:
            continue
        legs = [leg_length(motion.joints, layout) for motion in own]
        units[layout.name], found = metres_per_unit(legs, layout, scale=scale)
        notes.append(f"{len(own)} files are {layout.name}'s, at {fps or layout.fps:g} frames per second")
        notes += [found] if found else []
        if layout is KIT_ML:
            exchanged = sum(toes_side(motion.joints) for motion in own) < 0
            side = "left" if exchanged else "right"
            notes.append(
                f"{layout.name}: mapped onto SMPL's 22 joints; by where the toes point, joints 5 to 7 and 11 to 15 "
                f"are the body's {side}"
            )
    clips = []
    for motion in motions:
        unit = units[motion.layout.name]
        joints = (motion.joints * unit).astype(np.float32)
        features = None if motion.features is None else scale_features(motion.features, unit, motion.layout)
        if motion.layout is KIT_ML:
            joints = kit_to_smpl(joints, exchanged=exchanged)
        rate = fps or motion.layout.fps
        clips.append(
            Clip(name=motion.path.stem, fps=rate, joints=joints, text=motion.text, split="", features=features)
        )
    return clips, notes
