"""Pose codes by name and by words, for edits and questions."""

from __future__ import annotations

import difflib
import re

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes.categories import ANGLE, CODE_NAMES, DISTANCE
from fastvq.models.motion.pose_codes.wording import (
    ALL_PHRASES,
    PHRASES,
    angle_relation,
    distance_relation,
    spoken_name,
)

_ARTICLES = {"a", "an", "the"}
_DEGREES = re.compile(r"\bbent at (\d+(?:\.\d+)?) degrees\b")
_METRES = re.compile(r"(?<!to )(?<!than )(?<![\d.])(\d+(?:\.\d+)?) m from\b")


def _words(text: str) -> str:
    """Lower case, no articles, single spaces, and a space at both ends, so that whole words are compared."""
    return " ".join(["", *(word for word in text.lower().split() if word not in _ARTICLES), ""])


def _said(pattern: str) -> str:
    """A pattern in the words of the codes: one number becomes the bin in which it lies."""
    text = " ".join(pattern.lower().replace("°", " degrees").split())
    text = _DEGREES.sub(lambda match: angle_relation(_bin(ANGLE.thresholds, match[1])), text)
    return _words(_METRES.sub(lambda match: distance_relation(_bin(DISTANCE.thresholds, match[1])), text))


def _bin(thresholds: tuple[float, ...], number: str) -> int:
    return sum(float(number) > threshold for threshold in thresholds)


_TEXTS: tuple[tuple[str, ...], ...] = tuple(
    tuple(_words(text) for text in (CODE_NAMES[code], spoken_name(code), *map(str, said)))
    for code, said in enumerate(ALL_PHRASES)
)
_BY_TEXT = {text: code for code, texts in enumerate(_TEXTS) for text in texts}


def code_named(name: str) -> int:
    """The one code of a name.

    Args:
        name: Published ("L-hand vs R-hand above") or in words ("left hand above the right hand", "right knee bent
            at 90 degrees"); case and articles do not matter.

    Raises:
        UserError: No code is called that.
    """
    code = _BY_TEXT.get(_said(name))
    if code is None:
        raise UserError(f"no pose code is named {name!r}{_nearest(name)}; find_codes takes parts of names")
    return code


def find_codes(*patterns: str) -> np.ndarray:
    """All codes that are called by some words.

    Args:
        patterns: Runs of whole words, all of which a code's name or one of its phrases must hold: ``"left hand"``,
            ``"above neck"``, or both. Case and articles do not matter. "bent at 90 degrees" and "0.25 m from" mean
            the bin in which the number lies.

    Returns:
        (codes,) int64, ascending.

    Raises:
        UserError: No pattern, or no code for which all hold.
    """
    wanted = [_said(pattern) for pattern in patterns]
    if not any(word.strip() for word in wanted):
        raise UserError("find_codes needs words to look for, such as 'left hand' or 'above neck'")
    found = [
        code for code, texts in enumerate(_TEXTS) if any(all(words in text for words in wanted) for text in texts)
    ]
    if not found:
        sought = " and ".join(repr(pattern) for pattern in patterns)
        raise UserError(f"no pose code is called by {sought}{_nearest(' '.join(patterns))}")
    return np.array(found, dtype=np.int64)


def _nearest(text: str) -> str:
    close = difflib.get_close_matches(text, [str(phrase) for phrase in PHRASES], n=1, cutoff=0.0)
    return f": the nearest is {close[0]!r}"
