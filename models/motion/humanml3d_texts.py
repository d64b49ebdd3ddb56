"""Descriptions as HumanML3D keeps them: ``texts/<name>.txt``, a line ``text#tokens#start#end`` for each.

Tokens are ``word/PART-OF-SPEECH``, split by blanks. Start and end are seconds into the clip; both 0 mean all
of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastvq.models.errors import UserError
from fastvq.models.files import read_text


class Caption(NamedTuple):
    """A description of a clip or a part of it.

    Attributes:
        text: What the person does.
        tokens: ``word/PART-OF-SPEECH`` each; empty where nobody tagged them.
        start, end: Seconds; both 0 for the whole clip.
    """

    text: str
    tokens: tuple[str, ...] = ()
    start: float = 0.0
    end: float = 0.0

    def frames(self, fps: float, length: int) -> slice:
        """The described frames of a clip of so many frames at this rate."""
        if not (self.start or self.end):
            return slice(0, length)
        return slice(min(int(self.start * fps), length), min(int(self.end * fps), length))


def read_captions(path: Path) -> tuple[Caption, ...]:
    """All descriptions of a clip; lines without ``#`` are texts of the whole clip.

    Raises:
        UserError: The file cannot be read, or a line's start or end is no time.
    """
    captions = []
    for number, line in enumerate(read_text(path, what="descriptions").splitlines(), start=1):
        text, *rest = line.split("#")
        if not text.strip():
            continue
        tokens = tuple(rest[0].split()) if rest else ()
        start, end = (_seconds(word, f"{path}: line {number}") for word in ([*rest[1:], "0", "0"])[:2])
        if end < start:
            raise UserError(f"{path}: line {number}: a part from {start:g} s cannot end at {end:g} s: correct it")
        captions.append(Caption(text.strip(), tokens, start, end))
    return tuple(captions)


def caption_lines(captions: Sequence[Caption], where: str) -> str:
    """The content of a ``texts/<name>.txt``. Words that nobody tagged get the tag ``OTHER``.

    Raises:
        UserError: A text holds ``#``, which separates a line's parts.
    """
    lines = []
    for caption in captions:
        text = " ".join(caption.text.split())
        if "#" in text:
            raise UserError(f"{where}: the description {text[:40]!r} holds '#', which ends a description: reword it")
        words = re.findall(r"[^\W_]+", text.lower())
        tokens = " ".join(caption.tokens or [f"{word}/OTHER" for word in words])
        lines.append(f"{text}#{tokens}#{float(caption.start)}#{float(caption.end)}\n")
    return "".join(lines)


def _seconds(word: str, where: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = -1.0
    # The published files hold "nan" where a description is of the whole clip.
    if math.isnan(seconds):
        return 0.0
    if not 0 <= seconds < math.inf:
        raise UserError(f"{where}: {word[:20]!r} is no time in seconds: expected text#tokens#start#end")
    return seconds
