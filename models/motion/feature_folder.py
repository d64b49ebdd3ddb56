"""Folders of 272-dimensional features: ``*.npy`` of shape (T, 272) at 30 frames per second.

Beside them may lie ``mean.npy`` and ``std.npy``, ``texts/<name>.txt`` with a description per line, and
``train.txt``, ``val.txt``, ``test.txt`` with a name per line, as in the public data sets.

Two variants of [2:8] exist and no file says which it holds: the absolute heading, or its difference from
frame to frame. ``detect_heading`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.files import find_files, read_text
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import SLICES, WIDTH, Heading, convert_heading, features_to_joints
from fastvq.models.motion.joint_arrays import read_array
from fastvq.models.motion.placement import check_finite

FEATURE_FPS = 30.0
_STATISTICS = {"mean", "std"}
_SPLITS = ("train", "val", "test")
# Ankles and balls of the feet.
_FEET = (7, 8, 10, 11)
# Largest deviation from 1 of the median length of a rotation's rows that rounding to 16 bits explains.
_UNIT_LENGTH = 0.05
_CLIPS_TO_ASK = 64


def is_statistics(path: Path) -> bool:
    """Whether a ``.npy`` file is a data set's mean or standard deviation rather than a motion."""
    return path.suffix == ".npy" and path.stem.lower() in _STATISTICS


def check_features(array: np.ndarray, path: Path) -> np.ndarray:
    """(T, 272) float32 features, not normalised.

    Normalised ones are recognised by rotations whose rows are not of length 1, and de-normalised by the
    ``mean.npy`` and ``std.npy`` beside them or in a folder above.

    Raises:
        UserError: Another width, no frames, NaN or infinity, or rows that are no such features.
    """
    if array.ndim != 2 or array.shape[1] != WIDTH or not len(array):
        known = {263: " (HumanML3D's layout)", 251: " (KIT-ML's layout)", 66: " (22 joints in a row?)"}
        hint = known.get(array.shape[1], "") if array.ndim == 2 else ""
        raise UserError(
            f"{path}: expected features of the shape (frames, {WIDTH}) or joints of the shape (frames, 22, 3), got "
            f"{array.shape}{hint}: convert the motion to joints first"
        )
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(features, str(path))
    return raw_features(features, path, SLICES["joint_rotation"])


def raw_features(features: np.ndarray, path: Path, rotations: slice) -> np.ndarray:
    """Features as they are or, where they are normalised, as ``mean.npy`` and ``std.npy`` restore them.

    Args:
        features: (T, width) float32.
        path: Their file; statistics lie beside it or in a folder above.
        rotations: The columns that hold 6D rotations, by which raw features are known.

    Raises:
        UserError: The columns are no rotations either way.
    """
    if _has_rotations(features[:, rotations]):
        return features
    statistics = find_statistics(path.parent, features.shape[1])
    if statistics is not None:
        mean, std = statistics
        restored = features * std + mean
        if _has_rotations(restored[:, rotations]):
            return restored
    raise UserError(
        f"{path}: columns {rotations.start} to {rotations.stop - 1} are no rotations, whose rows have length "
        "1: these are other features, or normalised ones without their mean.npy and std.npy: give the raw ones"
    )


def find_statistics(folder: Path, width: int = WIDTH, *, above: int = 3) -> tuple[np.ndarray, np.ndarray] | None:
    """The (width,) mean and standard deviation in this folder or the nearest one above that has both.

    Args:
        folder: Where to begin.
        width: Of the features.
        above: How many folders above to look in.

    Raises:
        UserError: They are there but damaged, of another shape, or hold what no mean or standard deviation is.
    """
    for place in (folder, *list(folder.parents)[:above]):
        found = {path.stem.lower(): path for path in sorted(place.glob("*.npy")) if is_statistics(path)}
        if set(found) == _STATISTICS:
            mean = check_mean(read_array(found["mean"]), str(found["mean"]), width)
            return mean, check_std(read_array(found["std"]), str(found["std"]), width)
    return None


def check_mean(values: np.ndarray, where: str, width: int) -> np.ndarray:
    """(width,) float32, or a ``UserError`` where the shape is another or a value is not finite."""
    if values.shape != (width,):
        raise UserError(f"{where}: expected the shape ({width},), got {values.shape}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        raise UserError(
            f"{where}: {int(bad.sum())} of {width} values are NaN or infinity, first in column {int(bad.argmax())}: "
            "compute the statistics again"
        )
    return values


def check_std(values: np.ndarray, where: str, width: int) -> np.ndarray:
    """As ``check_mean``; every value must be positive too, since features are divided by it."""
    values = check_mean(values, where, width)
    bad = values <= 0
    if bad.any():
        raise UserError(
            f"{where}: {int(bad.sum())} of {width} standard deviations are not positive, first {values[bad][0]:g} in "
            f"column {int(bad.argmax())}: compute them again, with 1 for a feature that does not vary"
        )
    return values


@np.errstate(over="ignore", invalid="ignore")  # absurd values are no rotations
def _has_rotations(columns: np.ndarray) -> bool:
    rows = columns.reshape(-1, 3)
    return abs(float(np.median(np.linalg.norm(rows, axis=-1))) - 1.0) <= _UNIT_LENGTH


def detect_heading(clips: Sequence[np.ndarray]) -> Heading:
    """Which of the two variants of [2:8] a data set holds.

    Differences begin with the identity in row 0 by definition; one clip that does not is enough for
    "absolute". Otherwise the motion itself decides. Somebody who stands on a foot does not slide: each
    clip is decoded both ways, and the variant wins under which the slower foot travels less in all clips
    together. Clips that never turn are the same in both, and count as absolute; a single short clip that
    hardly turns can be taken for the wrong one, and hardly differs.

    Args:
        clips: (T, 272) features, not normalised; at most 64, evenly spaced, are looked at.
    """
    step = max(1, -(-len(clips) // _CLIPS_TO_ASK))
    asked = clips[::step]
    identity = np.array([1, 0, 0, 0, 1, 0], dtype=np.float32)
    if any(np.abs(features[0, SLICES["root_heading"]] - identity).max() > 1e-3 for features in asked):
        return "absolute"
    slides = {heading: sum(_slide(features, heading) for features in asked) for heading in ("absolute", "difference")}
    return "difference" if slides["difference"] < slides["absolute"] else "absolute"


def _slide(features: np.ndarray, heading: Heading) -> float:
    """Metres that the slower of the feet travels along the floor, all frames together."""
    feet = features_to_joints(features, heading=heading)[:, list(_FEET)][..., [0, 2]]
    return float(np.linalg.norm(np.diff(feet, axis=0), axis=-1).min(axis=1).sum())


def feature_clip(name: str, features: np.ndarray, heading: Heading) -> Clip:
    """A clip from features; its ``features`` hold the absolute heading whatever the source did."""
    return Clip(
        name=name,
        fps=FEATURE_FPS,
        joints=features_to_joints(features, heading=heading),
        split="",
        features=convert_heading(features, source=heading, target="absolute"),
    )


def read_description(motion: Path) -> str:
    """The first description of a motion file: ``<name>.txt`` beside it or in a folder ``texts`` near it.

    Of a line ``text#words with tags#start#end``, as HumanML3D writes them, the text is taken.
    """
    for folder in (motion.parent, motion.parent / "texts", motion.parent.parent / "texts"):
        path = folder / f"{motion.stem}.txt"
        if path.is_file() and path.stem not in _SPLITS:
            for line in read_text(path, what="descriptions").splitlines():
                if line.strip():
                    return line.partition("#")[0].strip()
    return ""


def read_split_files(root: Path) -> dict[str, str] | None:
    """{name: split} from the ``train.txt``, ``val.txt`` and ``test.txt`` in a folder and its subfolders.

    Where there are none, those directly in the folder above count: ``data/new_joints`` is often given alone.

    Returns:
        None where there is no such file either.

    Raises:
        UserError: A name stands in two of them.
    """
    inside = find_files(root)[0]
    files = [path for split in _SPLITS for path in inside if path.name == f"{split}.txt"]
    files = files or [path for split in _SPLITS if (path := root.resolve().parent / f"{split}.txt").is_file()]
    if not files:
        return None
    splits: dict[str, str] = {}
    for path in files:
        for line in read_text(path, what="a list of names").splitlines():
            name = line.strip().removesuffix(".npy")
            if name and splits.setdefault(name, path.stem) != path.stem:
                raise UserError(f"{path}: {name!r} is in {splits[name]}.txt too: keep it in one split")
    return splits
