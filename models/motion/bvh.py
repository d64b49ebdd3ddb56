"""BVH files, read and written.

What reading assumes. A joint's position channels replace its OFFSET, as every current exporter means
them; where the channels of a file are near zero while the OFFSETs are not, they are added (``_additive``).
Rotation channels turn about the joint's own moving axes in the order in which they are listed, in degrees.
A frame time that is a rounded 1/n is taken as n frames per second.

What writing does. Rotations are the given ones, or those of ``features272.joints_to_rotations``. OFFSETs are
the mean bones. Down the tree, a joint whose place cannot be reached by its parent's rotation and its OFFSET
to within ``tolerance`` gets position channels; so no joint is ever further from where it should be than that,
whatever the bones do, and a body of rigid bones gets none but the root's.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.files import read_text, replacing
from fastvq.models.motion.features272 import joints_to_rotations, rest_offsets
from fastvq.models.motion.placement import check_finite
from fastvq.models.motion.skeleton import CHILDREN, JOINT_NAMES, NUM_JOINTS, PARENTS, global_rotations
from fastvq.models.motion.source import SourceMotion, SourceSkeleton

_AXES = "XYZ"
_CHANNELS = {f"{axis}{kind}" for axis in _AXES for kind in ("position", "rotation")}


@dataclass
class _Hierarchy:
    """The upper half of a BVH file; ``channels`` are (joint, name) in the order of a frame's numbers."""

    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    offsets: list[list[float]] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    channels: list[tuple[int, str]] = field(default_factory=list)

    def skeleton(self) -> SourceSkeleton:
        return SourceSkeleton(
            tuple(self.names), tuple(self.parents), np.array(self.offsets, dtype=np.float64), tuple(self.ends)
        )


@np.errstate(over="ignore", invalid="ignore")  # place refuses what overflows
def read_bvh(path: Path) -> SourceMotion:
    """Reads a BVH file.

    Args:
        path: The file: one ROOT, any channels in any order on any joint.

    Returns:
        The motion in the file's units and axes.

    Raises:
        UserError: The file cannot be read, is no BVH, is cut off, or holds something else than finite
            numbers where numbers belong.
    """
    path = Path(path)
    text = read_text(path, what="a BVH file")
    if not text.lstrip().upper().startswith("HIERARCHY"):
        raise UserError(f"{path}: not a BVH file: expected HIERARCHY at its start, got {text.lstrip()[:20]!r}")
    parts = re.split(r"^[ \t]*MOTION[ \t]*$", text, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)
    if len(parts) < 2:
        raise UserError(f"{path}: the BVH file has no MOTION section: it is cut off, so export it again")
    hierarchy = _parse_hierarchy(parts[0], path)
    skeleton = hierarchy.skeleton()
    values, fps = _parse_motion(parts[1], len(hierarchy.channels), path)
    check_finite(values, str(path))
    translations, rotations = _local_frames(hierarchy, skeleton, values, path)
    positions = np.empty_like(translations)
    turned = np.empty_like(rotations)
    for joint, parent in enumerate(skeleton.parents):
        if parent < 0:
            positions[:, joint], turned[:, joint] = translations[:, joint], rotations[:, joint]
            continue
        positions[:, joint] = positions[:, parent] + np.einsum(
            "tij,tj->ti", turned[:, parent], translations[:, joint]
        )
        turned[:, joint] = turned[:, parent] @ rotations[:, joint]
    return SourceMotion(skeleton, positions, rotations, fps)


def _parse_hierarchy(text: str, path: Path) -> _Hierarchy:
    found = _Hierarchy()
    open_joints: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        keyword = words[0].upper()
        try:
            if keyword in ("ROOT", "JOINT"):
                if keyword == "ROOT" and found.names:
                    raise UserError(f"{path}: holds more than one ROOT: split it into one file per person")
                # Names may hold blanks ("Bip01 L Thigh").
                name = line.strip()[len(keyword) :].strip().rstrip("{").strip()
                _add_joint(found, name, open_joints, end=False)
            elif keyword == "END":
                _add_joint(found, f"end site of {found.names[open_joints[-1]]}", open_joints, end=True)
            elif keyword == "OFFSET":
                found.offsets[open_joints[-1]] = [float(word) for word in words[1:4]]
                if len(words) < 4 or not np.isfinite(found.offsets[open_joints[-1]]).all():
                    raise ValueError
            elif keyword == "CHANNELS":
                names = [word[0].upper() + word[1:].lower() for word in words[2:]]
                if len(names) != int(words[1]) or not _CHANNELS.issuperset(names):
                    raise ValueError
                found.channels += [(open_joints[-1], name) for name in names]
            elif keyword == "}":
                open_joints.pop()
            elif keyword not in ("HIERARCHY", "{"):
                raise ValueError
        except (ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: line {number} of the BVH file makes no sense: {line.strip()[:60]!r}") from error
    if open_joints or not found.names:
        raise UserError(f"{path}: the BVH file's HIERARCHY is cut off or lacks a brace: export it again")
    return found


def _add_joint(found: _Hierarchy, name: str, open_joints: list[int], *, end: bool) -> None:
    found.names.append(name)
    found.parents.append(open_joints[-1] if open_joints else -1)
    found.offsets.append([0.0, 0.0, 0.0])
    found.ends.append(end)
    open_joints.append(len(found.names) - 1)


def _parse_motion(text: str, width: int, path: Path) -> tuple[np.ndarray, float]:
    """(T, channels) numbers and frames per second."""
    if not width:
        raise UserError(f"{path}: no joint of the BVH file has CHANNELS, so nothing moves: export it again")
    head = re.match(r"\s*Frames:\s*(\S+)\s+Frame Time:\s*(\S+)[ \t]*(?:\n|$)", text, flags=re.IGNORECASE)
    if head is None:
        raise UserError(f"{path}: expected 'Frames:' and 'Frame Time:' after MOTION: the file is cut off or no BVH")
    try:
        frames, seconds = int(head[1]), float(head[2])
    except ValueError as error:
        raise UserError(
            f"{path}: 'Frames:' or 'Frame Time:' is no number, got {head[1][:20]!r} and {head[2][:20]!r}"
        ) from error
    if frames < 1 or not 1e-5 < seconds < 10:
        raise UserError(
            f"{path}: expected at least 1 frame and a frame time in seconds, got {frames} frames of {seconds} s"
        )
    words = text[head.end() :].split()
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: the MOTION section holds something that is no number ({error})") from error
    if len(values) != frames * width:
        raise UserError(
            f"{path}: expected {frames} frames of {width} numbers as its headers say, got {len(values) / width:.6g} "
            f"frames: the file is cut off, or its 'Frames:' line is wrong"
        )
    return values.reshape(frames, width), _frame_rate(head[2])


def _frame_rate(written: str) -> float:
    """Frames per second of a written frame time: n where the digits are those of a rounded 1/n."""
    seconds = float(written)
    whole = round(1.0 / seconds)
    digits = len(written.partition(".")[2]) if re.fullmatch(r"\d*\.\d+", written) else 12
    return float(whole) if whole and abs(1.0 / whole - seconds) <= 0.501 * 10.0**-digits else 1.0 / seconds


def _local_frames(
    hierarchy: _Hierarchy, skeleton: SourceSkeleton, values: np.ndarray, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(T, J, 3) translations and (T, J, 3, 3) rotations of every joint in its parent's frame."""
    frames, joints = len(values), len(skeleton.names)
    columns: list[list[tuple[str, int]]] = [[] for _ in range(joints)]
    for column, (joint, name) in enumerate(hierarchy.channels):
        columns[joint].append((name, column))
    translations = np.broadcast_to(skeleton.offsets, (frames, joints, 3)).copy()
    rotations = np.broadcast_to(np.eye(3), (frames, joints, 3, 3)).copy()
    moved = [
        (joint, _AXES.index(name[0]), column)
        for joint in range(joints)
        for name, column in columns[joint]
        if name.endswith("position")
    ]
    additive = _additive(moved, skeleton, values)
    for joint, axis, column in moved:
        translations[:, joint, axis] = values[:, column] + (skeleton.offsets[joint, axis] if additive else 0.0)
    for joint in range(joints):
        turns = [(name[0], column) for name, column in columns[joint] if name.endswith("rotation")]
        if turns:
            order = "".join(axis for axis, _ in turns)
            try:
                turn = Rotation.from_euler(order, values[:, [column for _, column in turns]], degrees=True)
            except ValueError as error:
                raise UserError(
                    f"{path}: joint {skeleton.names[joint]!r} turns about {order}, which is no Euler order of up to "
                    "three axes: export it with three different rotation channels"
                ) from error
            rotations[:, joint] = turn.as_matrix().reshape(frames, 3, 3)
    return translations, rotations


def _additive(moved: Iterable[tuple[int, int, int]], skeleton: SourceSkeleton, values: np.ndarray) -> bool:
    """Whether position channels count from the OFFSET: those below the root are nearer to 0 than to it."""
    to_offset = to_zero = 0.0
    for joint, axis, column in moved:
        if skeleton.parents[joint] >= 0:
            middle = float(np.median(values[:, column]))
            to_offset += abs(middle - skeleton.offsets[joint, axis])
            to_zero += abs(middle)
    return to_zero < to_offset


def write_bvh(
    path: Path,
    joints: np.ndarray,
    fps: float,
    *,
    rotations: np.ndarray | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Writes SMPL-22 joints as a BVH file in metres, Y up.

    Args:
        path: The file; it is replaced in one step, or left alone on an error.
        joints: (T, 22, 3) metres.
        fps: Frames per second.
        rotations: (T, 22, 3, 3) local rotations, the pelvis' global; inferred from the joints when None.
        tolerance: Metres by which a joint may be off before it gets position channels.

    Raises:
        UserError: The arrays have other shapes or are not finite, or the file cannot be written.
    """
    points = np.asarray(joints, dtype=np.float64)
    if points.ndim != 3 or points.shape[1:] != (NUM_JOINTS, 3) or not len(points):
        raise UserError(f"{path}: a BVH needs joints of the shape (frames, {NUM_JOINTS}, 3), got {points.shape}")
    check_finite(points, str(path))
    if not fps > 0:
        raise UserError(f"{path}: frames per second must be positive, got {fps}")
    local = joints_to_rotations(points) if rotations is None else np.asarray(rotations, dtype=np.float64)
    if local.shape != (len(points), NUM_JOINTS, 3, 3):
        raise UserError(f"{path}: rotations must have the shape {(len(points), NUM_JOINTS, 3, 3)}, got {local.shape}")
    check_finite(local, str(path))
    offsets = rest_offsets(points, local)
    moving, translations = _reach(points, local, offsets, tolerance)
    rows = _channel_values(points, local, moving, translations)
    # Metres and degrees to 1e-6: half a micrometre, and a thousandth of that at the end of a limb.
    line = " ".join(["%.6f"] * rows.shape[1])
    lines = _hierarchy_lines(0, offsets, moving, depth=0)
    lines += ["MOTION", f"Frames: {len(points)}", f"Frame Time: {1.0 / fps:.9f}"]
    lines += [line % tuple(row) for row in rows.tolist()]
    with replacing(path) as temporary:
        temporary.write_text("HIERARCHY\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _reach(
    points: np.ndarray, local: np.ndarray, offsets: np.ndarray, tolerance: float
) -> tuple[set[int], np.ndarray]:
    """Which joints need position channels, and (T, 22, 3) every joint's place in its parent's frame.

    Each is measured from where its parent will stand in the file, not from where it should, so that
    deviations do not add up along a limb.
    """
    turned = global_rotations(local)
    reached = points.copy()
    translations = np.zeros_like(points)
    moving = {0}
    for joint in range(1, NUM_JOINTS):
        parent = PARENTS[joint]
        wanted = np.einsum("tji,tj->ti", turned[:, parent], points[:, joint] - reached[:, parent])
        translations[:, joint] = wanted
        if np.linalg.norm(wanted - offsets[joint], axis=-1).max() > tolerance:
            moving.add(joint)
        else:
            reached[:, joint] = reached[:, parent] + turned[:, parent] @ offsets[joint]
    return moving, translations


def _channel_values(points: np.ndarray, local: np.ndarray, moving: set[int], translations: np.ndarray) -> np.ndarray:
    """(T, channels) numbers in the order of ``_hierarchy_lines``."""
    columns = []
    with warnings.catch_warnings():
        # In gimbal lock one of the angles is free; scipy takes 0, says so, and the rotation stays right.
        warnings.filterwarnings("ignore", message="Gimbal lock", category=UserWarning)
        for joint in _file_order(0):
            if joint in moving:
                columns.append(translations[:, joint] if joint else points[:, 0])
            angles = Rotation.from_matrix(local[:, joint]).as_euler("ZXY", degrees=True)
            # Without jumps of a full turn, so that programs may interpolate between frames.
            columns.append(np.unwrap(angles, period=360.0, axis=0))
    return np.concatenate(columns, axis=1)


def _file_order(joint: int) -> list[int]:
    return [joint, *(below for child in CHILDREN[joint] for below in _file_order(child))]


def _hierarchy_lines(joint: int, offsets: np.ndarray, moving: set[int], depth: int) -> list[str]:
    pad, inner = "\t" * depth, "\t" * (depth + 1)
    channels = ["Zrotation", "Xrotation", "Yrotation"]
    if joint in moving:
        channels = ["Xposition", "Yposition", "Zposition", *channels]
    lines = [
        f"{pad}{'JOINT' if joint else 'ROOT'} {JOINT_NAMES[joint]}",
        f"{pad}{{",
        f"{inner}OFFSET {_numbers(offsets[joint])}",
        f"{inner}CHANNELS {len(channels)} {' '.join(channels)}",
    ]
    for child in CHILDREN[joint]:
        lines += _hierarchy_lines(child, offsets, moving, depth + 1)
    if not CHILDREN[joint]:
        # Something for programs to draw: a third of the bone before it, in the same direction.
        tip = [f"{inner}\tOFFSET {_numbers(offsets[joint] / 3)}"]
        lines += [f"{inner}End Site", f"{inner}{{", *tip, f"{inner}}}"]
    return [*lines, f"{pad}}}"]


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values)
