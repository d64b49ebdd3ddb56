"""Any skeleton onto the 22 joints of SMPL, by the names of its joints.

A name is taken apart into a side (left, right or none) and a core without prefixes, case and punctuation:
``mixamorig:LeftArm``, ``upper_arm.L``, ``Bip01 L UpperArm`` and ``lhumerus`` are the left ``arm``,
``upperarm``, ``upperarm`` and ``humerus``. The core is looked up in a table of aliases in which the first
hit wins, so that a ``foot`` is the ball of the foot beside an ``ankle`` and the ankle otherwise. Where a
skeleton ends at the elbow or the ankle, its End Site stands for wrist or toes. Joints of the spine are
chosen along the chain from pelvis to neck by where they lie, not by name, and interpolated where the
chain has fewer than three.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.files import parse_json, read_text
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.motion.source import SourceSkeleton

# Aliases of the joints that come in pairs, in the order in which they are looked for: a joint found once
# is not taken again. The rows before decide what "foot", "shoulder" and "leg" can still mean.
_PAIRED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hip", ("upleg", "upperleg", "thigh", "femur", "hip")),
    ("knee", ("knee", "lowerleg", "lowleg", "shin", "calf", "tibia", "leg")),
    ("ankle", ("ankle", "foot")),
    ("foot", ("toebase", "toe", "toes", "toe0", "ball", "toesbase", "foot")),
    ("shoulder", ("upperarm", "uparm", "uarm", "humerus", "arm", "shoulder", "shldr")),
    ("elbow", ("elbow", "forearm", "lowerarm", "lowarm", "farm", "radius")),
    ("wrist", ("wrist", "hand")),
    ("collar", ("collar", "clavicle", "shoulder", "innershoulder")),
)
_CENTRE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pelvis", ("pelvis", "hips", "hip")),
    ("head", ("head", "skull", "face")),
    ("neck", ("upperneck", "neck", "neck1")),
)
_LEFT, _RIGHT = {"left", "l", "lft"}, {"right", "r", "rt", "rgt"}
# Words that rigs put before or after the anatomy.
_PREFIXES = {"mixamorig", "bip", "bone", "def", "org", "mch", "j", "c", "avg", "m", "character", "rig", "skel"}
_SUFFIXES = {"jnt", "joint", "jt", "bone"}
_ENDS = {"end", "nub", "tip", "site", "endsite"}
_CORES = {alias for _, aliases in _PAIRED for alias in aliases}
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")

# Where the three spine joints lie between pelvis and neck, and the collars between chest and shoulder.
_SPINE_FRACTIONS = (0.25, 0.5, 0.75)
_COLLAR_FRACTION = 0.4
# Points closer than this, relative to the size of the body, are one point: 2 mm for a grown-up.
_COINCIDENT = 1e-3


@dataclass(frozen=True)
class MappingReport:
    """What became of a skeleton, in words.

    Attributes:
        skeleton: The skeleton: its root and number of joints.
        sources: For every SMPL joint, in order: ``"<name>"``, ``"end site of <name>"`` or
            ``"interpolated between <A> and <B> (<percent> %)"``.
        unused: Joints of the source that no SMPL joint takes, End Sites not counted.
    """

    skeleton: str
    sources: dict[str, str]
    unused: tuple[str, ...]

    @property
    def end_sites(self) -> tuple[str, ...]:
        """SMPL joints that an End Site stands for."""
        return tuple(name for name, source in self.sources.items() if source.startswith("end site of "))

    @property
    def interpolated(self) -> tuple[str, ...]:
        """SMPL joints that lie between two joints of the source."""
        return tuple(name for name, source in self.sources.items() if source.startswith("interpolated "))

    def __str__(self) -> str:
        rows = [f"  {name:<14} {source}" for name, source in self.sources.items()]
        return "\n".join([f"{self.skeleton}:", *rows, f"  unused: {', '.join(self.unused) or 'none'}"])


@dataclass(frozen=True)
class JointMapping:
    """SMPL joint j = (1 - weight[j]) * source[first[j]] + weight[j] * source[second[j]].

    Attributes:
        first, second: (22,) indices of source joints.
        weight: (22,) float64 in [0, 1].
        report: The same in words.
    """

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    report: MappingReport

    def apply(self, positions: np.ndarray) -> np.ndarray:
        """(..., J, 3) positions of the source's joints -> (..., 22, 3)."""
        near, far = positions[..., self.first, :], positions[..., self.second, :]
        return near + self.weight[:, None] * (far - near)


def split_name(name: str) -> tuple[str, str]:
    """(side, core) of a joint's name: side is ``"l"``, ``"r"`` or ``""``, core is lower case.

    ``"mixamorig:LeftForeArm"`` -> ``("l", "forearm")``, ``"spine.001"`` -> ``("", "spine1")``.
    """
    words = [word.lower() for word in _WORDS.findall(re.split(r"[:|]", name)[-1])]
    words = [str(int(word)) if word.isdigit() else word for word in words]
    side = ""
    while len(words) > 1 and (words[0] in _PREFIXES or words[0].isdigit()):
        words.pop(0)
    while len(words) > 1 and words[-1] in _SUFFIXES:
        words.pop()
    for index, word in enumerate(words):
        if word in _LEFT | _RIGHT and len(words) > 1:
            side = "l" if word in _LEFT else "r"
            words.pop(index)
            break
    while len(words) > 1 and words[0] in _PREFIXES:
        words.pop(0)
    core = "".join(words)
    if not side:
        for prefix, found in (("left", "l"), ("right", "r"), ("l", "l"), ("r", "r")):
            if core.startswith(prefix) and core[len(prefix) :] in _CORES:
                return found, core[len(prefix) :]
    return side, core


def read_mapping_file(path: Path) -> dict[str, str]:
    """A mapping file, JSON of {SMPL name: source name}, which overrides what the names suggest.

    SMPL names are those of ``skeleton.JOINT_NAMES``; ``L_hip`` and the like are understood. Source names are
    written as in the motion file, an End Site as ``end site of <joint>``.

    Raises:
        UserError: No such file, no JSON object of strings, or a key that is no SMPL joint.
    """
    try:
        rows = parse_json(read_text(path, what="a mapping file"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: a mapping file must be JSON, and this one is not: {error}") from error
    if not isinstance(rows, dict) or not all(isinstance(value, str) for value in rows.values()):
        raise UserError(f"{path}: a mapping file must be a JSON object of {{SMPL name: source name}}, both strings")
    smpl = {split_name(name): name for name in JOINT_NAMES}
    unknown = [key for key in rows if split_name(key) not in smpl]
    if unknown:
        raise UserError(f"{path}: {', '.join(unknown)} is no SMPL joint: the names are {', '.join(JOINT_NAMES)}")
    return {smpl[split_name(key)]: value for key, value in rows.items()}


def map_skeleton(
    skeleton: SourceSkeleton,
    *,
    overrides: Mapping[str, str] | None = None,
    poses: np.ndarray | None = None,
    where: str = "the file",
) -> JointMapping:
    """Finds a source for each of SMPL's 22 joints.

    Args:
        skeleton: The source.
        overrides: {SMPL name: source name} that win over the names (``read_mapping_file``).
        poses: (P, J, 3) some poses of the motion, by which helper joints that coincide with others are
            told; the rest pose when None.
        where: What to call the source in messages.

    Returns:
        The mapping, with its report.

    Raises:
        UserError: Joints that cannot be found or interpolated (all are named), or overrides that name
            joints the skeleton does not have.
    """
    return _Matcher(
        skeleton, overrides or {}, skeleton.rest_positions()[None] if poses is None else poses, where
    ).run()


class _Matcher:
    """One run of ``map_skeleton``; ``found`` fills with SMPL name -> (first, second, weight)."""

    def __init__(self, skeleton: SourceSkeleton, overrides: Mapping[str, str], poses: np.ndarray, where: str) -> None:
        self.skeleton, self.poses, self.where = skeleton, poses, where
        self.found: dict[str, tuple[int, int, float]] = {}
        self.keys = [split_name(name) for name in skeleton.names]
        leaves = set(range(len(skeleton.names))) - set(skeleton.parents)
        # Some exporters turn End Sites into joints of their own: "LeftToe_End", "Bip01 HeadNub".
        self.ends = {
            joint
            for joint, name in enumerate(skeleton.names)
            if skeleton.end_sites[joint] or (joint in leaves and _names_an_end(name))
        }
        spread = self.poses.max(axis=1) - self.poses.min(axis=1)
        self.tolerance = _COINCIDENT * float(np.linalg.norm(spread, axis=-1).max(initial=0.0))
        self.fixed = frozenset(overrides)
        for smpl, source in overrides.items():
            if source not in skeleton.names:
                raise UserError(
                    f"{where}: the mapping file takes {smpl} from {source!r}, which the skeleton lacks: "
                    f"it has {_listed(skeleton.names)}"
                )
            self._take(smpl, skeleton.names.index(source))

    def run(self) -> JointMapping:
        if not self._smpl_itself():
            self._named()
            self._structural()
            self._end_sites()
            self._spine()
            self._collars()
        missing = [name for name in JOINT_NAMES if name not in self.found]
        if missing:
            raise UserError(
                f"{self.where}: the skeleton lacks {', '.join(missing)} (it has {_listed(self.skeleton.names)}): "
                "give a mapping file (JSON: {SMPL name: source name})"
            )
        rows = [self.found[name] for name in JOINT_NAMES]
        first, second = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        used = set(first) | set(second)
        names = self.skeleton.names
        joints = [joint for joint in range(len(names)) if not self.skeleton.end_sites[joint]]
        report = MappingReport(
            skeleton=f"skeleton {names[0]!r} of {len(joints)} joints",
            sources={name: self._words(*row) for name, row in zip(JOINT_NAMES, rows, strict=True)},
            unused=tuple(names[joint] for joint in joints if joint not in used),
        )
        return JointMapping(first, second, np.array([row[2] for row in rows]), report)

    def _words(self, first: int, second: int, weight: float) -> str:
        names = self.skeleton.names
        if first != second:
            return f"interpolated between {names[first]} and {names[second]} ({100 * weight:.0f} %)"
        if first in self.ends and not self.skeleton.end_sites[first]:
            return f"end site of {names[self.skeleton.parents[first]]}"
        return names[first]

    def _take(self, smpl: str, first: int | None, second: int | None = None, weight: float = 0.0) -> None:
        if first is not None and smpl not in self.found:
            self.found[smpl] = (first, first if second is None else second, weight)

    def _joint(self, smpl: str) -> int | None:
        """The single source joint that stands for an SMPL joint."""
        row = self.found.get(smpl)
        return row[0] if row is not None and row[0] == row[1] else None

    def _lookup(self, side: str, aliases: Iterable[str]) -> int | None:
        taken = {row[0] for row in self.found.values()}
        for alias in aliases:
            for joint, key in enumerate(self.keys):
                if key == (side, alias) and joint not in taken and joint not in self.ends:
                    return joint
        return None

    def _same_place(self, first: int, second: int) -> bool:
        distance = np.linalg.norm(self.poses[:, first] - self.poses[:, second], axis=-1)
        return bool(distance.max() <= self.tolerance)

    def _smpl_itself(self) -> bool:
        """SMPL's own names are taken as they are, wherever the joints lie."""
        if self.found or not all(split_name(name) in self.keys for name in JOINT_NAMES):
            return False
        for name in JOINT_NAMES:
            self._take(name, self.keys.index(split_name(name)))
        return True

    def _named(self) -> None:
        for side, word in (("l", "left"), ("r", "right")):
            for part, aliases in _PAIRED:
                if f"{word}_{part}" not in self.found:
                    self._take(f"{word}_{part}", self._lookup(side, aliases))
        for name, aliases in _CENTRE:
            if name not in self.found:
                self._take(name, self._lookup("", aliases))

    def _common_ancestor(self, first: int | None, second: int | None) -> int | None:
        if first is None or second is None:
            return None
        above = set(self.skeleton.ancestors(first))
        return next((joint for joint in self.skeleton.ancestors(second) if joint in above), None)

    def _structural(self) -> None:
        """Pelvis, head and neck of skeletons that number their trunk: by where the limbs branch off."""
        self._take("pelvis", self._common_ancestor(self._joint("left_hip"), self._joint("right_hip")))
        arms = self._joint("left_shoulder"), self._joint("right_shoulder")
        chest = self._common_ancestor(*arms)
        if chest is None:
            return
        if "head" not in self.found and "neck" not in self.found:
            limbs = {joint for arm in arms if arm is not None for joint in (arm, *self.skeleton.ancestors(arm))}
            upward: list[int] = []
            branches = [joint for joint in self.skeleton.children(chest) if joint not in limbs | self.ends]
            while len(branches) == 1:
                upward.append(branches[0])
                branches = [joint for joint in self.skeleton.children(branches[0]) if joint not in self.ends]
            if upward and not branches:
                self._take("head", upward[-1])
                self._take("neck", upward[0] if len(upward) > 1 else None)
        neck, head = self._joint("neck"), self._joint("head")
        # A neck in two parts that begins where the collars do, as in conversions of CMU's skeleton: SMPL's
        # chest is there, and its neck where the second part begins.
        collar = self._joint("left_collar")
        if neck is not None and head is not None and collar is not None and self._same_place(neck, collar):
            upper = self._lookup("", ("neck1",))
            if upper is not None and neck in self.skeleton.ancestors(upper):
                self.found["neck"] = (upper, upper, 0.0)
        if neck is None and head is not None and head != chest:
            self._take("neck", chest, head, 0.5)

    def _end_sites(self) -> None:
        for end, start in (
            ("left_wrist", "left_elbow"),
            ("right_wrist", "right_elbow"),
            ("left_foot", "left_ankle"),
            ("right_foot", "right_ankle"),
            ("head", "neck"),
        ):
            joint = self._joint(start)
            if joint is not None and end not in self.found:
                sites = [child for child in self.skeleton.children(joint) if child in self.ends]
                self._take(end, sites[0] if sites else None)

    def _spine(self) -> None:
        pelvis, neck = self._joint("pelvis"), self.found.get("neck")
        if pelvis is None or neck is None:
            return
        lower = [pelvis, *self.skeleton.ancestors(pelvis)]
        upward = [neck[0]] if neck[0] != neck[1] else []
        upward += list(itertools.takewhile(lambda joint: joint not in lower, self.skeleton.ancestors(neck[0])))
        chain: list[int] = []
        for joint in reversed(upward):
            if not self._same_place(joint, chain[-1] if chain else pelvis):
                chain.append(joint)
        top = neck[0] if neck[0] == neck[1] else neck[1]
        names = ("spine1", "spine2", "spine3")
        if len(chain) >= 3:
            for name, joint in zip(names, self._spread(pelvis, chain, top), strict=True):
                self._take(name, joint)
        elif len(chain) == 2:
            self._take("spine1", chain[0])
            self._take("spine2", chain[0], chain[1], 0.5)
            self._take("spine3", chain[1])
        elif len(chain) == 1:
            self._take("spine1", pelvis, chain[0], 0.5)
            self._take("spine2", chain[0])
            self._take("spine3", chain[0], top, 0.5 if top == neck[0] else 0.25)
        else:
            for name, fraction in zip(names, _SPINE_FRACTIONS, strict=True):
                self._take(name, pelvis, top, fraction)

    def _spread(self, pelvis: int, chain: list[int], top: int) -> tuple[int, ...]:
        """The three joints of the chain that lie nearest to 1/4, 1/2 and 3/4 of the way up."""
        path = self.poses[:, [pelvis, *chain, top]]
        along = np.cumsum(np.linalg.norm(np.diff(path, axis=1), axis=-1).mean(axis=0))
        fraction = along[:-1] / max(along[-1], 1e-12)
        picks = itertools.combinations(range(len(chain)), 3)
        best = min(picks, key=lambda pick: float(np.abs(fraction[list(pick)] - _SPINE_FRACTIONS).sum()))
        return tuple(chain[index] for index in best)

    def _collars(self) -> None:
        """Collars that are missing, or sit on the chest itself, go part of the way to the shoulder."""
        if "spine3" not in self.found:
            return
        below, above, weight = self.found["spine3"]
        chest = above if weight >= 0.5 else below
        for word in ("left", "right"):
            shoulder, collar = self._joint(f"{word}_shoulder"), self._joint(f"{word}_collar")
            if shoulder is None or f"{word}_collar" in self.fixed:
                continue
            if collar is None or (below == above and self._same_place(collar, chest)):
                self.found[f"{word}_collar"] = (chest, shoulder, _COLLAR_FRACTION)


def _names_an_end(name: str) -> bool:
    words = _WORDS.findall(name)
    return bool(words) and words[-1].lower() in _ENDS


def _listed(names: tuple[str, ...], limit: int = 30) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
