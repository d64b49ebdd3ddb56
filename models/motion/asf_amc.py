"""Acclaim skeletons (ASF) and their motions (AMC), as in the CMU and HDM05 libraries.

A bone has a direction d and a length l in the rest pose, an axis frame C (Euler angles, about fixed axes in
the written order) and up to three degrees of freedom, whose angles make a rotation M in the same way. Its
rotation relative to its parent bone is L = C M C^-1; with the parents' product R, it ends at
start + R l d, where its children begin. Here a bone becomes the joint in which it begins, with an End Site
where nothing follows: ``lfemur`` is the left hip, ``ltibia`` the left knee.

Lengths are inches over the ``length`` unit of the file: 0.0254 / 0.45 m for CMU. AMC files carry no frame
rate; CMU's and HDM05's are 120 frames per second.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.files import read_text
from fastvq.models.motion.source import SourceMotion, SourceSkeleton

DEFAULT_FPS = 120.0
_INCH = 0.0254
_AXES = "xyz"


@dataclass(frozen=True)
class _Bone:
    """One bone; the root is one of length zero, with translations among its degrees of freedom."""

    name: str
    vector: np.ndarray  # (3,) from start to end in the rest pose, file units
    axis: Rotation
    order: str  # in which the axes turn, "xyz"
    dof: tuple[str, ...]  # "rx", "tz", ... in the order of an AMC line


@dataclass(frozen=True)
class AcclaimSkeleton:
    """An ASF file: what its AMC files need to become positions.

    Attributes:
        skeleton: Joints at the starts of the bones, End Sites at the ends of the last ones.
        unit: Metres per file unit.
        degrees: Whether angles are degrees; radians otherwise.
    """

    skeleton: SourceSkeleton
    unit: float
    degrees: bool
    bones: tuple[_Bone, ...]
    origin: np.ndarray


def read_asf(path: Path) -> AcclaimSkeleton:
    """Reads a skeleton.

    Raises:
        UserError: The file cannot be read, is no ASF, or is cut off.
    """
    path = Path(path)
    sections = _sections(read_text(path, what="an ASF file"))
    missing = [name for name in ("root", "bonedata", "hierarchy") if name not in sections]
    if missing:
        raise UserError(
            f"{path}: not a whole ASF file: it lacks the section {', '.join(':' + name for name in missing)}"
        )
    try:
        units = _fields(sections.get("units", []))
        degrees = not units.get("angle", ["deg"])[0].lower().startswith("rad")
        root = _fields(sections["root"])
        # Translations and rotations of the root, in the order of its AMC line.
        dof = tuple(word.lower() for word in root["order"])
        order = root.get("axis", ["XYZ"])[0].lower()
        angles = [float(word) for word in root.get("orientation", ["0", "0", "0"])]
        bones = {"root": _Bone("root", np.zeros(3), _turn(order, np.array(angles), degrees), order, dof)}
        for block in _blocks(sections["bonedata"]):
            bone = _bone(block, degrees)
            bones[bone.name] = bone
        parents = {}
        for line in sections["hierarchy"]:
            words = line.split()
            parents.update({child: words[0] for child in words[1:] if words[0] not in ("begin", "end")})
        if sorted(order) != list(_AXES):
            raise ValueError(f"axis {order} of the root")
        unit = _INCH / float(units.get("length", ["1.0"])[0])
        origin = np.array([float(word) for word in root.get("position", ["0", "0", "0"])])
        skeleton, ordered = _joints(bones, parents)
        known = {f"{kind}{axis}" for kind in "rt" for axis in _AXES}
        unknown = {word for bone in ordered for word in bone.dof} - known
        if unknown or not math.isfinite(unit) or unit <= 0:
            raise ValueError(f"degrees of freedom {sorted(unknown)}" if unknown else "length unit")
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{path}: the ASF file is cut off or makes no sense ({error})") from error
    return AcclaimSkeleton(skeleton, unit, degrees, tuple(ordered), origin)


@np.errstate(over="ignore", invalid="ignore")  # place refuses what overflows
def read_amc(path: Path, asf: AcclaimSkeleton, *, fps: float = DEFAULT_FPS) -> SourceMotion:
    """Reads a motion of a skeleton.

    Args:
        path: The AMC file.
        asf: Its skeleton.
        fps: Frames per second, which the file does not say.

    Returns:
        The motion, Y up, with ``unit`` set to the skeleton's.

    Raises:
        UserError: The file cannot be read, is no AMC, is cut off, or does not belong to the skeleton.
    """
    path = Path(path)
    values, degrees = _amc_values(path, asf)
    skeleton, frames = asf.skeleton, len(next(iter(values.values())))
    joints = len(skeleton.names)
    rotations = np.broadcast_to(np.eye(3), (frames, joints, 3, 3)).copy()
    turned = rotations.copy()
    positions = np.zeros((frames, joints, 3))
    for joint, parent in enumerate(skeleton.parents):
        if not skeleton.end_sites[joint]:
            bone = asf.bones[joint]
            given = values.get(bone.name, np.zeros((frames, len(bone.dof))))
            angles = np.zeros((frames, 3))
            for column, word in enumerate(bone.dof):
                if word[0] == "r":
                    angles[:, bone.order.index(word[1])] = given[:, column]
                else:
                    positions[:, joint, _AXES.index(word[1])] += given[:, column]
            turn = _turn(bone.order, angles, degrees)
            rotations[:, joint] = (bone.axis * turn * bone.axis.inv()).as_matrix()
        if parent < 0:
            positions[:, joint] += asf.origin
            turned[:, joint] = rotations[:, joint]
        else:
            # Translations, which only the root has in practice, are along the parent's axes.
            offset = skeleton.offsets[joint] + positions[:, joint]
            positions[:, joint] = positions[:, parent] + np.einsum("tij,tj->ti", turned[:, parent], offset)
            turned[:, joint] = turned[:, parent] @ rotations[:, joint]
    return SourceMotion(skeleton, positions, rotations, float(fps), unit=asf.unit)


def find_asf(amc: Path) -> Path:
    """The skeleton of an AMC file: the ASF file beside it, or else one folder up.

    ``02_01.amc`` finds ``02.asf``, ``HDM_bk_01-01_01_120.amc`` finds ``HDM_bk.asf``. A single ASF file in a
    folder serves every AMC there; of several, the one is taken with whose whole name that of the AMC file begins.

    Raises:
        UserError: There is none, or none fits.
    """
    amc = Path(amc)
    for folder in (amc.parent, amc.parent.parent):
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".asf")
        if len(found) == 1:
            return found[0]
        named = [path for path in found if amc.stem.lower().startswith(path.stem.lower())]
        if named:
            return max(named, key=lambda path: len(path.stem))
        if found:
            raise UserError(
                f"{amc}: several .asf files lie in {folder} and none has a name that begins like this one's: "
                "put each skeleton in a folder with its motions"
            )
    raise UserError(f"{amc}: an AMC file needs its skeleton, and no .asf file lies beside it: put it there")


def _sections(text: str) -> dict[str, list[str]]:
    """Lines under every ``:keyword``; what stands on the keyword's own line comes first."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        bare = line.partition("#")[0].strip()
        if bare.startswith(":"):
            keyword, _, rest = bare[1:].partition(" ")
            current = sections.setdefault(keyword.lower(), [])
            bare = rest.strip()
        if bare:
            current.append(bare)
    return sections


def _fields(lines: list[str]) -> dict[str, list[str]]:
    return {words[0].lower(): words[1:] for words in (line.split() for line in lines)}


def _blocks(lines: list[str]) -> list[list[str]]:
    """The lines between every begin and end."""
    blocks: list[list[str]] = []
    inside = False
    for line in lines:
        if line == "begin":
            blocks.append([])
            inside = True
        elif line == "end":
            inside = False
        elif inside:
            blocks[-1].append(line)
    if inside:
        raise ValueError("a bone without its 'end'")
    return blocks


def _bone(block: list[str], degrees: bool) -> _Bone:
    fields = _fields(block)
    order = fields["axis"][3].lower()
    direction = np.array([float(word) for word in fields["direction"][:3]])
    if sorted(order) != list(_AXES) or direction.shape != (3,):
        raise ValueError(f"axis or direction of bone {fields['name'][0]}")
    return _Bone(
        name=fields["name"][0],
        vector=direction / max(float(np.linalg.norm(direction)), 1e-12) * float(fields["length"][0]),
        axis=_turn(order, np.array([float(word) for word in fields["axis"][:3]]), degrees),
        order=order,
        dof=tuple(word.lower() for word in fields.get("dof", [])),
    )


def _turn(order: str, angles: np.ndarray, degrees: bool) -> Rotation:
    """Rotation about fixed axes, the first of ``order`` first."""
    return Rotation.from_euler(order, angles, degrees=degrees)


def _joints(bones: dict[str, _Bone], parents: dict[str, str]) -> tuple[SourceSkeleton, list[_Bone]]:
    """Joints in an order that puts parents first; ``ordered`` is parallel to them, End Sites excluded."""
    lost = [name for name in parents if name not in bones] + [name for name in parents.values() if name not in bones]
    if lost:
        raise ValueError(f"bone {lost[0]} of the hierarchy is not in :bonedata")
    if "root" in parents:
        raise ValueError(f"the root hangs on bone {parents['root']}")
    names, above, offsets, ends, ordered = ["root"], [-1], [np.zeros(3)], [False], [bones["root"]]
    for joint_name in names:
        children = [child for child, parent in parents.items() if parent == joint_name]
        for child in children:
            names.append(child)
            above.append(names.index(joint_name))
            offsets.append(bones[joint_name].vector)
            ends.append(False)
            ordered.append(bones[child])
    unreached = sorted(set(parents) - set(names))
    if unreached:
        raise ValueError(f"bone {unreached[0]} of the hierarchy does not hang on the root")
    for index, joint_name in enumerate(list(names)):
        if joint_name not in parents.values():
            names.append(f"end site of {joint_name}")
            above.append(index)
            offsets.append(bones[joint_name].vector)
            ends.append(True)
    return SourceSkeleton(tuple(names), tuple(above), np.array(offsets), tuple(ends)), ordered


def _amc_values(path: Path, asf: AcclaimSkeleton) -> tuple[dict[str, np.ndarray], bool]:
    """{bone: (T, its degrees of freedom)}, and whether the angles are degrees."""
    text = read_text(path, what="an AMC file")
    head = re.match(r"(?:[ \t]*(?:[#:].*)?\n)*", text)
    start = head.end() if head else 0
    header, words = text[:start].lower(), text[start:].split()
    degrees = False if ":radians" in header else True if ":degrees" in header else asf.degrees
    known = {bone.name: len(bone.dof) for bone in asf.bones}
    if len(words) < 3 or not words[0].isdigit() or words[1] not in known:
        raise UserError(f"{path}: not an AMC file of this skeleton: expected a frame number and bone names")
    layout: list[tuple[str, int]] = []
    column = 1
    while column < len(words) and not (words[column].isdigit() and words[column] not in known):
        name = words[column]
        if name not in known:
            raise UserError(f"{path}: bone {name!r} is not in the skeleton: give the ASF file that belongs to it")
        layout.append((name, column))
        column += 1 + known[name]
    frames, rest = divmod(len(words), column)
    if rest:
        raise UserError(
            f"{path}: the AMC file is cut off in frame {frames + 1} or does not fit its ASF file: "
            f"expected {column} words a frame"
        )
    table = np.array(words, dtype=np.str_).reshape(frames, column)
    values = {}
    for name, first in layout:
        try:
            values[name] = table[:, first + 1 : first + 1 + known[name]].astype(np.float64)
        except ValueError as error:
            raise UserError(f"{path}: the AMC file does not fit its ASF file or is damaged ({error})") from error
        if (table[:, first] != name).any():
            frame = int((table[:, first] != name).argmax()) + 1
            raise UserError(f"{path}: frame {frame} of the AMC file is not laid out like the first: it is damaged")
    return values, degrees
