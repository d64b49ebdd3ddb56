"""Every pose code in English: who, how, and to what.

"left hand above the neck", "right knee bent at 80 to 90 degrees", "left hand 0.2 to 0.3 m from the right knee",
"left thigh horizontal". Angles are those between the bones: a straight knee has 180 degrees. Left, right, front and
behind are the body's own. The height of a wrist over the neck is told of the hand, as people say it.
"""

from __future__ import annotations

from typing import NamedTuple

from fastvq.models.motion.pose_codes.categories import (
    ANGLE,
    CATEGORIES,
    CODE_NAMES,
    DISTANCE,
    GROUND,
    SLOPE,
    Category,
)


class Phrase(NamedTuple):
    """What a code says; ``str`` joins it.

    Attributes:
        subject: "left hand".
        relation: "above", "bent at 80 to 90 degrees".
        other: "right knee", or "" where the relation has no object.
    """

    subject: str
    relation: str
    other: str = ""

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} the {self.other}" if self.other else f"{self.subject} {self.relation}"


# By published bin: the relation of the first point to the second, and of the second to the first.
_RELATIONS = {
    "at the right of": ("to the right of", "to the left of"),
    "x-ignored": ("sideways in line with", "sideways in line with"),
    "at the left of": ("to the left of", "to the right of"),
    "below": ("below", "above"),
    "y-ignored": ("level with", "level with"),
    "above": ("above", "below"),
    "behind": ("behind", "in front of"),
    "z-ignored": ("neither in front of nor behind", "neither in front of nor behind"),
    "in front of": ("in front of", "behind"),
}
_LIMBS = {
    ("hip", "knee"): "thigh",
    ("knee", "ankle"): "shin",
    ("shoulder", "elbow"): "upper arm",
    ("elbow", "wrist"): "forearm",
}


def angle_relation(index: int) -> str:
    """What the bin of an angle says of the joint."""
    thresholds = ANGLE.thresholds
    if index == len(thresholds):
        return "straight"
    return f"bent at {thresholds[index] - 10:g} to {thresholds[index]:g} degrees"


def distance_relation(index: int) -> str:
    """What the bin of a distance says of the first point."""
    thresholds = DISTANCE.thresholds
    if index == 0:
        return f"within {thresholds[0]:g} m of"
    if index == len(thresholds):
        return f"more than {thresholds[-1]:g} m from"
    return f"{thresholds[index - 1]:g} to {thresholds[index]:g} m from"


def _spoken(point: str) -> str:
    return point.replace("_", " ")


def _line(category: Category) -> str:
    """The line of which a slope is taken."""
    first, second = category.points
    side, _, joint = second.partition("_")
    limb = _LIMBS.get((first.partition("_")[2], joint))
    if limb:
        return f"{side} {limb}"
    if (first, second) == ("pelvis", "neck"):
        return "trunk"
    if first == "pelvis":
        return f"line from the pelvis to the {_spoken(second)}"
    return f"line between the {'feet' if joint == 'foot' else joint + 's'}"


def _phrases(category: Category) -> list[tuple[Phrase, ...]]:
    """The ways to say each of a category's codes, the plainest first."""
    kind = category.kind
    if kind is ANGLE:
        return [(Phrase(_spoken(category.points[1]), angle_relation(i)),) for i in range(category.size)]
    if kind is GROUND:
        return [(Phrase(_spoken(category.points[0]), words),) for words in ("on the ground", "off the ground")]
    if kind is SLOPE:
        return [(Phrase(_line(category), words),) for words in ("vertical", "slanted", "horizontal")]
    first, second = (_spoken(point) for point in category.points)
    if kind is DISTANCE:
        relations = [distance_relation(i) for i in range(category.size)]
        return [(Phrase(first, how, second), Phrase(second, how, first)) for how in relations]
    return [_both_ways(first, second, name) for name in kind.bins]


def _both_ways(first: str, second: str, name: str) -> tuple[Phrase, ...]:
    forward, backward = _RELATIONS[name]
    said = (Phrase(first, forward, second), Phrase(second, backward, first))
    if "wrist" in first:
        hand = first.replace("wrist", "hand")
        return (Phrase(hand, forward, second), *said, Phrase(second, backward, hand))
    # Of two hands, people name the one that is raised or put forward.
    if name in ("below", "behind") and first.startswith("left ") and second == first.replace("left ", "right "):
        return said[::-1]
    return said


# Of every code the ways to say it, the plainest first, and that one alone.
ALL_PHRASES: tuple[tuple[Phrase, ...], ...] = tuple(said for category in CATEGORIES for said in _phrases(category))
PHRASES: tuple[Phrase, ...] = tuple(said[0] for said in ALL_PHRASES)


def spoken_name(code: int) -> str:
    """The published name of a code with its sides written out: "left hand vs right knee 3"."""
    return CODE_NAMES[code].replace("L-", "left ").replace("R-", "right ")
