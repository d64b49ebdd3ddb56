"""HumanML3D and KIT-ML folders as users hold them, read as features.

    new_joint_vecs/<name>.npy   (frames, 263) or (frames, 251) features
    new_joints/<name>.npy       (frames, 22, 3) or (frames, 21, 3) joints of the same frames
    texts/<name>.txt            descriptions (``humanml3d_texts``)
    train.txt val.txt test.txt  a name in a line; any other ``<split>.txt`` is a split too
    Mean.npy Std.npy            (263,) or (251,)

Turns that published files hold with the wrong sign are corrected (``published_turns``). Files hold no unit of
length. It is told from the leg (``leg_units``), and features, mean and standard
deviation are returned in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.files import read_text
from fastvq.models.motion import feature_folder
from fastvq.models.motion.features263 import joints_from_ric, joints_to_features
from fastvq.models.motion.humanml3d_texts import Caption, read_captions
from fastvq.models.motion.joint_arrays import read_array
from fastvq.models.motion.layout263 import LAYOUTS, Layout
from fastvq.models.motion.leg_units import leg_length, metres_per_unit, scale_features
from fastvq.models.motion.placement import check_finite
from fastvq.models.motion.published_turns import correct_turns, turns_note

VECTORS, JOINTS, TEXTS = "new_joint_vecs", "new_joints", "texts"
# As in any other folder of motions.
MIN_FRAMES = 4


@dataclass(frozen=True)
class VectorClip:
    """A motion as 263 or 251 features.

    Attributes:
        name: Of its files.
        features: (T, 12 J - 1) float32, not normalised, metres.
        captions: Its descriptions.
        split: Empty where none names it.
    """

    name: str
    features: np.ndarray
    captions: tuple[Caption, ...] = ()
    split: str = ""


@dataclass(frozen=True)
class VectorFolder:
    """What was read.

    Attributes:
        layout: Which data set's columns the features have.
        clips: In the order of their names.
        mean, std: (12 J - 1,) float32 of ``Mean.npy`` and ``Std.npy``, metres; None where there are none.
        metres_per_unit: Of the files.
        notes: What was skipped or assumed, a sentence each.
    """

    layout: Layout
    clips: list[VectorClip]
    mean: np.ndarray | None
    std: np.ndarray | None
    metres_per_unit: float
    notes: list[str] = field(default_factory=list)


def read_folder(
    folder: Path | str,
    *,
    split: str | None = None,
    scale: float | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> VectorFolder:
    """Reads a HumanML3D or KIT-ML folder; which of them is told by the width of its arrays.

    Without ``new_joint_vecs``, features are computed from ``new_joints``. What a file holds is told by its shape.

    Args:
        folder: The data set's folder, or its ``new_joint_vecs``.
        split: Only the clips named in ``<split>.txt``; None takes all.
        scale: Metres per unit of the files; told from the leg when None.
        on_error: ``"skip"`` leaves clips out that cannot be used, with a note, instead of raising.

    Raises:
        UserError: A file or folder is missing, damaged, of another layout or with other frames than its
            partner, a description or the statistics are wrong, no clip remains, or the legs fit no unit.
    """
    root = Path(folder)
    root = root.parent if root.name in (VECTORS, JOINTS) else root
    source = next((root / name for name in (VECTORS, JOINTS) if (root / name).is_dir()), None)
    if source is None:
        what = f"has no folder {VECTORS}" if root.is_dir() else "no such folder"
        raise UserError(f"{root}: {what}: expected HumanML3D's or KIT-ML's {VECTORS}, {TEXTS} and split files in it")
    notes: list[str] = []
    files = _files(root, source, split, notes)
    splits = feature_folder.read_split_files(root) or {}
    read: dict[Path, tuple[np.ndarray, tuple[Caption, ...]]] = {}
    layout: Layout | None = None
    short = 0
    corrected: list[int] = []
    for file in files:
        try:
            array = read_array(file)
            found = _same_layout(array, file, layout)
            if source.name == VECTORS:
                _check_partner(root / JOINTS / file.name, len(array), found)
            signs = 0
            if array.ndim == 2:
                array, signs = correct_turns(check_vectors(array, file, found), found)
            else:
                _check_positions(array, file, found)
            layout = found
            if len(array) < MIN_FRAMES:
                short += 1
                continue
            text = root / TEXTS / f"{file.stem}.txt"
            read[file] = array, read_captions(text) if text.is_file() else ()
            corrected += [signs] if signs else []
        except UserError as error:
            if on_error == "raise":
                raise
            notes.append(f"skipped: {error}")
    computed = sum(array.ndim == 3 for array, _ in read.values())
    if computed:
        notes.insert(0, f"{source}: features were computed from joints in {computed} of {len(read)} clips")
    notes += turns_note(corrected)
    if short:
        notes.append(f"skipped {short} clips of fewer than {MIN_FRAMES} frames")
    if layout is None or not read:
        raise UserError(f"{source}: no clip remains ({'; '.join(notes[:3])}): give other motions")
    legs = [leg_length(joints_from_ric(one, layout) if one.ndim == 2 else one, layout) for one, _ in read.values()]
    unit, told = metres_per_unit(legs, layout, scale=scale)
    if told:
        notes.append(told)
    clips = []
    for file, (one, captions) in read.items():
        known = one.ndim == 2
        features = scale_features(one, unit, layout) if known else joints_to_features(one * unit, layout)
        clips.append(VectorClip(file.stem, features, captions, split or splits.get(file.stem, "")))
    silent = sum(not clip.captions for clip in clips)
    if silent:
        notes.append(f"{silent} of {len(clips)} clips have no description in {TEXTS}")
    statistics = feature_folder.find_statistics(root, layout.width, above=0)
    if statistics is None:
        notes.append(f"{root}: has no Mean.npy and Std.npy together")
    mean, std = (None, None) if statistics is None else (scale_features(one, unit, layout) for one in statistics)
    return VectorFolder(layout, clips, mean, std, unit, notes)


def layout_of(array: np.ndarray) -> Layout | None:
    """Which layout an array's shape is of, (T, 12 J - 1) features or (T, J, 3) joints; None for no other's."""
    for layout in LAYOUTS:
        if array.shape[1:] in ((layout.width,), (layout.joints, 3)):
            return layout
    return None


def check_vectors(array: np.ndarray, path: Path, layout: Layout) -> np.ndarray:
    """(T, 12 J - 1) float32 features, not normalised.

    Normalised ones are recognised by rotations whose columns are not of length 1, and de-normalised by the
    ``Mean.npy`` and ``Std.npy`` beside them or in a folder above.

    Raises:
        UserError: No frames, NaN or infinity, or columns that are no such features.
    """
    if not len(array):
        raise UserError(f"{path}: holds no frames: expected {layout.name}'s features (frames, {layout.width})")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(features, str(path))
    return feature_folder.raw_features(features, path, layout.slices["joint_rotation"])


def _files(root: Path, source: Path, split: str | None, notes: list[str]) -> list[Path]:
    there = {path.stem: path for path in sorted(source.glob("*.npy")) if not feature_folder.is_statistics(path)}
    if not there:
        raise UserError(f"{source}: holds no .npy files: expected a clip in each")
    if split is None:
        return list(there.values())
    listing = root / f"{split}.txt"
    if not listing.is_file():
        others = ", ".join(sorted(path.stem for path in root.glob("*.txt"))) or "none"
        raise UserError(f"{listing}: no such split file: the splits there are: {others}")
    names = [name for line in read_text(listing, what="a list of names").splitlines() if (name := line.strip())]
    if not names:
        raise UserError(f"{listing}: is empty: expected a clip's name in every line")
    missing = [name for name in names if name not in there]
    if len(missing) == len(names):
        raise UserError(f"{listing}: none of its {len(names)} names has a file in {source}: check the folder")
    if missing:
        notes.append(f"{listing}: {len(missing)} of {len(names)} names have no file, first {missing[0]!r}")
    return [there[name] for name in sorted(set(names)) if name in there]


def _same_layout(array: np.ndarray, path: Path, layout: Layout | None) -> Layout:
    found = layout_of(array)
    if found is None or (layout is not None and found is not layout):
        expected = " or ".join(f"{one.width} ({one.name})" for one in ([layout] if layout else LAYOUTS))
        joints = " or ".join(str(one.joints) for one in ([layout] if layout else LAYOUTS))
        raise UserError(
            f"{path}: expected features of width {expected} or joints (frames, {joints}, 3), got {array.shape}: "
            "keep each data set in a folder of its own"
        )
    return found


def _check_positions(array: np.ndarray, path: Path, layout: Layout) -> None:
    """Joints must have frames and be finite."""
    if not len(array):
        raise UserError(f"{path}: holds no frames: expected {layout.name}'s joints (frames, {layout.joints}, 3)")
    check_finite(array, str(path))


def _check_partner(path: Path, frames: int, layout: Layout) -> None:
    """The joints of the same clip must have the same frames."""
    if not path.is_file():
        return
    joints = read_array(path)
    if joints.shape != (frames, layout.joints, 3):
        raise UserError(
            f"{path}: has the shape {joints.shape}, but the clip's features in {VECTORS} say "
            f"{(frames, layout.joints, 3)}: export both again, or remove the joints"
        )
