"""What an edit asks for: pose codes by name, or by a rule, in a span of frames.

A rule is a set of pose codes that together say what its name says: "raise the right hand" puts the right hand above
neck, shoulder and hip, and far from knees and feet. It says nothing of codes that may go either way.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes import CATEGORIES, CATEGORY_OF_CODE, CODE_NAMES, PHRASES, code_named

_BOTH_SIDES: dict[str, tuple[str, ...]] = {
    "raise the SIDE hand": (
        "SIDE hand above the neck",
        "SIDE hand above the SIDE shoulder",
        "SIDE hand above the SIDE hip",
        "SIDE hand more than 0.9 m from the SIDE knee",
        "SIDE hand more than 0.9 m from the OTHER knee",
        "SIDE hand more than 0.9 m from the SIDE foot",
        "SIDE hand more than 0.9 m from the OTHER foot",
    ),
    "lower the SIDE hand": (
        "SIDE hand below the neck",
        "SIDE hand below the SIDE shoulder",
        "SIDE upper arm vertical",
        "SIDE forearm vertical",
    ),
    "put the SIDE hand forward": ("SIDE hand in front of the torso",),
    "put the SIDE hand back": ("SIDE hand behind the torso",),
    "bend the SIDE elbow": ("SIDE elbow bent at 85 degrees",),
    "straighten the SIDE elbow": ("SIDE elbow straight",),
    "bend the SIDE knee": ("SIDE knee bent at 85 degrees",),
    "straighten the SIDE knee": ("SIDE knee straight",),
    "raise the SIDE knee": (
        "SIDE knee level with the SIDE hip",
        "SIDE thigh horizontal",
        "SIDE foot off the ground",
    ),
    "lift the SIDE foot": ("SIDE foot off the ground",),
    "kneel on the SIDE knee": ("SIDE knee on the ground",),
}
_WHOLE_BODY: dict[str, tuple[str, ...]] = {
    "hands together": (
        "left hand within 0.1 m of the right hand",
        "left hand sideways in line with the right hand",
        "left hand level with the right hand",
        "left hand neither in front of nor behind the right hand",
    ),
    "hands apart": ("left hand more than 0.9 m from the right hand", "left hand to the left of the right hand"),
    "feet together": ("left foot 0.15 m from the right foot",),
    "feet apart": ("left foot 0.65 m from the right foot",),
    "stand upright": ("trunk vertical",),
}


def _rules() -> dict[str, tuple[int, ...]]:
    rules = dict(_WHOLE_BODY)
    for side, other in (("left", "right"), ("right", "left")):
        for name, phrases in _BOTH_SIDES.items():
            rules[name.replace("SIDE", side)] = tuple(
                phrase.replace("SIDE", side).replace("OTHER", other) for phrase in phrases
            )
    return {name: tuple(code_named(phrase) for phrase in phrases) for name, phrases in rules.items()}


# Codes of every rule, among the 392.
RULES: dict[str, tuple[int, ...]] = _rules()

_SPAN = re.compile(r"\s+from\s+(?:frame\s+)?(\d+)\s+to\s+(?:frame\s+)?(\d+)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Edit:
    """Pose codes to put in place of those of their categories.

    Attributes:
        name: As the user said it.
        codes: Among the 392, of different categories.
        frames: From the first frame up to, but without, the second; None for the whole clip.
    """

    name: str
    codes: tuple[int, ...]
    frames: tuple[int, int] | None = None


def rule(text: str, frames: tuple[int, int] | None = None) -> Edit:
    """The edit that a rule asks for.

    Args:
        text: A name in ``RULES``, case and articles as you like; "from frame 20 to 40" may follow.
        frames: The span where the text names none.

    Raises:
        UserError: No rule is called that.
    """
    said, frames = _spanned(text, frames)
    by_words = {_words(name): name for name in RULES}
    name = by_words.get(_words(said))
    if name is None:
        close = difflib.get_close_matches(_words(said), by_words, n=3, cutoff=0.5) or sorted(by_words)
        listed = ", ".join(repr(by_words[words]) for words in close)
        raise UserError(f"there is no rule {said!r}: {'close are' if len(close) <= 3 else 'the rules are'} {listed}")
    return Edit(text, RULES[name], frames)


def named(text: str, frames: tuple[int, int] | None = None) -> Edit:
    """The edit that puts one pose code in.

    Args:
        text: A code's name, published or in words, also as "category=bin": "left knee bent at 90 degrees",
            "L-hand vs R-hand=above", "L-knee=9"; "from frame 20 to 40" may follow.
        frames: As for :func:`rule`.

    Raises:
        UserError: No code is called that.
    """
    said, frames = _spanned(text, frames)
    said = " ".join(said.replace("=", " ").split())
    try:
        return Edit(text, (code_named(said),), frames)
    except UserError as error:
        names = [*map(str, PHRASES), *CODE_NAMES]
        close = difflib.get_close_matches(said, names, n=3, cutoff=0.5)
        listed = f": close are {', '.join(repr(name) for name in close)}" if close else ""
        raise UserError(
            f"no pose code is named {said!r}{listed or ': such as ' + repr(names[0])}; a name is a category and "
            "its bin"
        ) from error


def check_agree(edits: Sequence[Edit], frames: int) -> None:
    """Raises a UserError where two edits ask for different codes of one category in the same frame.

    Args:
        edits: All that are made together.
        frames: Of the clip.
    """
    for place, first in enumerate(edits):
        for second in edits[place + 1 :]:
            (a, b), (c, d) = (edit.frames or (0, frames) for edit in (first, second))
            if max(a, c) >= min(b, d):
                continue
            for one in first.codes:
                for other in second.codes:
                    if one != other and CATEGORY_OF_CODE[one] == CATEGORY_OF_CODE[other]:
                        category = CATEGORIES[int(CATEGORY_OF_CODE[one])]
                        raise UserError(
                            f"{first.name!r} and {second.name!r} want different {category.kind.name} codes of "
                            f"{category.name!r} in frames {max(a, c)} to {min(b, d)}: {str(PHRASES[one])!r} and "
                            f"{str(PHRASES[other])!r}; give one of them"
                        )


def _spanned(text: str, frames: tuple[int, int] | None) -> tuple[str, tuple[int, int] | None]:
    match = _SPAN.search(text)
    if match is None:
        return " ".join(text.split()), frames
    return " ".join(text[: match.start()].split()), (int(match[1]), int(match[2]))


def _words(text: str) -> str:
    return " ".join(word for word in text.lower().split() if word not in ("a", "an", "the"))
