"""Joint arrays: ``.npz`` files of many clips with a ``.json`` beside them, and ``.npy`` files of one.

``name.npz`` holds one array (T, 22, 3) per clip, its key the clip's name: SMPL-22 positions in metres, Y up.
``name.json`` is a list of rows ``{"name", "fps", "description", "split", ...}``, one per clip; rows may hold
more. Without it, a scalar array ``fps`` in the file gives the rate of all.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.files import parse_json, read_text, replacing
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.placement import body_length, check_finite
from fastvq.models.motion.skeleton import NUM_JOINTS

# What a file that does not say its rate is taken for: the rate of features, tokens and models here.
DEFAULT_FPS = 30.0
_NPY, _ZIP = b"\x93NUMPY", b"PK"
# Slower than a frame in ten seconds is no motion, and would be stretched to more frames than memory holds.
_SLOWEST_FPS, _FASTEST_FPS = 0.1, 1e5


def read_array(path: Path) -> np.ndarray:
    """The numeric array in a ``.npy`` file. Pickled objects, which could run code, are refused.

    Raises:
        UserError: No such file, no ``.npy``, cut off, or its content is no array of real numbers.
    """
    path = Path(path)
    _check_magic(path, _NPY, ".npy")
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header makes numpy raise nearly anything, MemoryError and TokenError too
        raise UserError(_damage(path, error)) from error
    return _real(array, str(path))


def read_joint_npy(path: Path, *, fps: float | None = None) -> tuple[Clip, list[str]]:
    """Reads one clip from a ``.npy`` file of shape (T, 22, 3).

    Args:
        path: The file.
        fps: Its frame rate, which it cannot say; 30 when None.

    Returns:
        The clip, named like the file and without a split (``""``), and notes on what was assumed.

    Raises:
        UserError: As ``read_array``, or the array has another shape, NaN or infinity.
    """
    path = Path(path)
    joints = check_joints(read_array(path), str(path))
    clip = Clip(name=path.stem, fps=fps or DEFAULT_FPS, joints=joints, split="")
    notes = [] if fps else [f"{path}: says no frame rate and is taken as {DEFAULT_FPS:g} frames per second"]
    return clip, notes + _size_notes([clip], path)


def read_joint_npz(path: Path, *, fps: float | None = None) -> tuple[list[Clip], list[str]]:
    """Reads all clips of an ``.npz`` file and what the ``.json`` of the same name says about them.

    Args:
        path: The ``.npz`` file.
        fps: Frame rate of clips for which the files give none; 30 when None.

    Returns:
        The clips in the order of their names, split ``""`` where none is given, and notes.

    Raises:
        UserError: A file is damaged, an array has another shape, NaN or infinity (which clip, which frame),
            or the ``.json`` lacks clips.
    """
    path = Path(path)
    _check_magic(path, _ZIP, ".npz")
    try:
        # Opened here: numpy leaves a file open that it cannot make sense of.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # as in read_array
        raise UserError(_damage(path, error)) from error
    if {"poses", "trans"} <= set(arrays):
        raise UserError(
            f"{path}: holds SMPL pose parameters (AMASS), not joint positions: pose them with a body model "
            f"and save the first {NUM_JOINTS} joints as (frames, {NUM_JOINTS}, 3)"
        )
    common = arrays.pop("fps", None)
    if common is not None and fps is None:
        rates = _real(common, f"{path}: fps").reshape(-1).tolist()
        fps = _rate(rates[0] if len(rates) == 1 else rates, str(path))
    if not arrays:
        raise UserError(f"{path}: holds no clips: expected one array (frames, {NUM_JOINTS}, 3) per clip")
    table = path.with_suffix(".json")
    rows, notes = _read_rows(table, arrays) if table.exists() else ({}, [])
    clips = []
    unknown_rates = 0
    for name in sorted(arrays):
        row = rows.get(name, {})
        unknown_rates += "fps" not in row and not fps
        clips.append(
            Clip(
                name=name,
                fps=_rate(row.get("fps", fps or DEFAULT_FPS), f"{table if row else path}: clip {name!r}"),
                joints=check_joints(_real(arrays[name], f"{path}: clip {name!r}"), f"{path}: clip {name!r}"),
                text=str(row.get("description", "")),
                split=str(row.get("split", "")),
            )
        )
    if unknown_rates:
        notes.append(
            f"{path}: {unknown_rates} clips have no frame rate and are taken as {DEFAULT_FPS:g} frames per second"
        )
    return clips, notes + _size_notes(clips, path)


def write_joint_arrays(path: Path, clips: Sequence[Clip]) -> None:
    """Writes clips as an ``.npz`` and the ``.json`` of the same name, each whole or not at all.

    Args:
        path: The ``.npz`` file.
        clips: What to write; names must differ.

    Raises:
        UserError: Two clips share a name, or the file system refuses.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: joint arrays are written to a file that ends in .npz")
    names = [clip.name for clip in clips]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path}: two clips are called {doubled[0]!r}: rename one")
    rows = [
        {
            "name": clip.name,
            "frames": clip.frames,
            "fps": clip.fps,
            "description": clip.text,
            "split": clip.split,
        }
        for clip in clips
    ]
    with replacing(path) as arrays, replacing(path.with_suffix(".json")) as table:
        with open(arrays, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            # Written member by member: np.savez takes names as keywords, and "file" is one of its own.
            for clip in clips:
                with archive.open(f"{clip.name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(clip.joints, dtype=np.float32))
        table.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_joints(array: np.ndarray, where: str, count: int = NUM_JOINTS) -> np.ndarray:
    """(T, count, 3) float32 positions, or a ``UserError`` that says what is wrong with them."""
    if array.ndim != 3 or array.shape[1:] != (count, 3) or not len(array):
        remedy = "give SMPL's 22 body joints in metres" if count == NUM_JOINTS else "give at least one frame"
        raise UserError(f"{where}: expected joints of the shape (frames, {count}, 3), got {array.shape}: {remedy}")
    with np.errstate(over="ignore"):
        joints = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(joints, where)
    return joints


def _read_rows(path: Path, arrays: dict[str, np.ndarray]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    try:
        content = parse_json(read_text(path, what="a JSON table of clips"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) and "name" in row for row in content):
        raise UserError(f"{path}: expected a list of rows, each an object with at least a 'name'")
    rows = {str(row["name"]): row for row in content}
    missing = sorted(set(arrays) - set(rows))
    if missing:
        raise UserError(
            f"{path}: says nothing of {len(missing)} of the {len(arrays)} clips in the .npz beside it, first "
            f"{missing[0]!r}: add their rows, or remove the file to do without descriptions and splits"
        )
    extra = sorted(set(rows) - set(arrays))
    return rows, [f"{path}: {len(extra)} rows have no clip in the .npz, first {extra[0]!r}"] if extra else []


def _rate(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and _SLOWEST_FPS <= value < _FASTEST_FPS:
        return float(value)
    raise UserError(
        f"{where}: fps must be a positive number of frames per second, {_SLOWEST_FPS:g} to {_FASTEST_FPS:g}, got "
        f"{repr(value)[:40]}"
    )


def _real(array: Any, where: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise UserError(f"{where}: expected an array of numbers, got other data: save it with numpy")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{where}: expected an array of real numbers, got dtype {array.dtype}")
    return array


def _check_magic(path: Path, magic: bytes, kind: str) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(len(magic))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error
    if start != magic:
        raise UserError(
            f"{path}: not a {kind} file of numbers: what is inside is cut off or of another kind; pickled Python "
            f"objects are refused because loading them can run code: save a plain array with numpy.save"
        )


def _damage(path: Path, error: Exception) -> str:
    if "pickle" in str(error) or "Object arrays" in str(error):
        return (
            f"{path}: holds pickled Python objects, which are refused because loading them can run code: "
            "save plain numeric arrays"
        )
    reason = str(error)[:200] or type(error).__name__
    return f"{path}: the file is cut off or damaged ({reason}): copy or export it again"


def _size_notes(clips: Sequence[Clip], path: Path) -> list[str]:
    odd = [clip for clip in clips if not 0.3 < body_length(clip.joints) < 3.0]
    if not odd:
        return []
    return [
        f"{path}: in {len(odd)} of {len(clips)} clips the body is not of human size (ankles to head measure "
        f"{body_length(odd[0].joints):.3g} in {odd[0].name!r}): joints are expected in metres"
    ]
