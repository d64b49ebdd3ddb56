"""The parts of a body that an edit may change: which pose codes each has, and which of them a text names."""

from __future__ import annotations

import difflib
import re

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import CATEGORIES, NUM_CATEGORIES

_SIDES = ("left", "right")
_LIMBS = {
    f"{side} {limb}": tuple(f"{side}_{joint}" for joint in joints)
    for limb, joints in (("arm", ("elbow", "wrist", "hand")), ("leg", ("knee", "ankle", "foot")))
    for side in _SIDES
}
_OF_LIMBS = {point for points in _LIMBS.values() for point in points}

_ARM = r"(?:hand|arm|elbow|wrist|fist|palm|finger|forearm)s?"
_LEG = r"(?:foot|feet|(?:leg|knee|ankle|thigh|shin|toe|heel)s?)"
_TRUNK = r"(?:torso|trunk|waist|chest|spine|shoulders?|upper body)"


def _parts() -> dict[str, np.ndarray]:
    """A category is a limb's if one of its points is, and the trunk's if none is any limb's."""
    points = [set(category.points) for category in CATEGORIES]
    parts = {name: np.array([bool(own & set(joints)) for own in points]) for name, joints in _LIMBS.items()}
    parts["trunk"] = np.array([not own & _OF_LIMBS for own in points])
    parts["arms"] = parts["left arm"] | parts["right arm"]
    parts["legs"] = parts["left leg"] | parts["right leg"]
    parts["body"] = np.ones(NUM_CATEGORIES, dtype=bool)
    for categories in parts.values():
        categories.setflags(write=False)
    return parts


# (70,) bool of every part: the categories that change with it.
PARTS: dict[str, np.ndarray] = _parts()


def part(name: str) -> np.ndarray:
    """(70,) bool: the categories of a part.

    Raises:
        UserError: no part is called that.
    """
    found = PARTS.get(" ".join(name.lower().split()))
    if found is None:
        close = difflib.get_close_matches(name.lower(), PARTS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"there is no part {name!r}: {hint}The parts are {', '.join(PARTS)}")
    return found


def named_parts(text: str) -> list[str]:
    """The parts that a description is about, in the order of ``PARTS``; the whole body where it names none.

    "waves with the left hand" is about the left arm, "raises both hands" about the arms, "walks in a circle" about
    the body. A side is that of the limb it stands before: "turns left and lifts the right foot" is about one leg.
    """
    words = " ".join(text.lower().split())
    found: set[str] = set()
    for limb, pattern in (("arm", _ARM), ("leg", _LEG)):
        for match in re.finditer(rf"\b{pattern}\b", words):
            found |= {f"{side} {limb}" for side in _sides_before(words[: match.start()]) or _SIDES}
        both = {f"{side} {limb}" for side in _SIDES}
        if both <= found:
            found = found - both | {f"{limb}s"}
    if re.search(rf"\b{_TRUNK}\b", words):
        found.add("trunk")
    return [name for name in PARTS if name in found] or ["body"]


def _sides_before(words: str) -> list[str]:
    """The sides among the last words, which must be "left" or "right", "and", "or", an article or a possessive."""
    found = []
    for word in reversed(re.findall(r"[a-z']+", words)):
        if word in _SIDES:
            found.append(word)
        elif word not in ("and", "or", "upper", "lower", "the", "a", "his", "her", "their", "its"):
            break
    return found
