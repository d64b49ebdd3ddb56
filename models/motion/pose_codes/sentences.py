"""What a frame shows, in a sentence: the codes by which it differs from a person who stands at ease."""

from __future__ import annotations

from functools import cache

import numpy as np

from fastvq.models.motion.pose_codes.categories import (
    ANGLE,
    CATEGORIES,
    DEPTH,
    DISTANCE,
    GROUND,
    HEIGHT,
    SIDEWAYS,
    SLOPE,
    Category,
)
from fastvq.models.motion.pose_codes.codes import PoseCodes
from fastvq.models.motion.pose_codes.parser import PoseParser
from fastvq.models.motion.pose_codes.wording import PHRASES, Phrase
from fastvq.models.motion.procedural_body import hanging_arm, make_body
from fastvq.models.motion.skeleton import NUM_JOINTS, forward_kinematics

AT_EASE = "close to standing at ease"

# What is seen first is said first.
_ORDER = (HEIGHT, ANGLE, DEPTH, SIDEWAYS, SLOPE, DISTANCE, GROUND)
# Bins of 10 degrees by which a joint must differ from the standing one's before it is said to be bent.
_BENT = 3
_MIDDLE_BIN = 1


def standing() -> np.ndarray:
    """(22, 3) metres: a person of 1.75 m who stands straight, arms hanging, and faces +z."""
    body = make_body(1.75)
    rotations = np.broadcast_to(np.eye(3), (1, NUM_JOINTS, 3, 3)).copy()
    for side, shoulder in enumerate((16, 17)):
        rotations[:, shoulder] = hanging_arm(side, np.zeros(1), 0.1)
    return forward_kinematics(body.offsets, rotations, np.array([[0.0, body.stand, 0.0]]))[0]


@cache
def _usual() -> np.ndarray:
    return PoseParser().parse(standing()[None]).bins[0]


def sentences(codes: PoseCodes, *, everything: bool = False) -> list[str]:
    """A sentence for every frame: "left hand above the neck, right knee bent at 80 to 90 degrees".

    Args:
        codes: Codes of T frames, parsed without ``como_compat``, whose sides and fronts are not the body's.
        everything: All 70 facts. By default only what tells the frame from a person standing at ease: points that
            lie above, below, before, behind or beside others and do not so in a stander, joints bent by 30 degrees
            or more, limbs that turned vertical or horizontal, what touches (within 10 cm), hands or feet spread
            wide, knees on and feet off the ground.

    Returns:
        T sentences; ``AT_EASE`` where nothing is worth saying.
    """
    return [_sentence(row, everything) for row in codes.bins]


@cache
def telling_codes() -> tuple[bool, ...]:
    """Of every code whether it tells a frame from a person standing at ease, by the rule of ``sentences``."""
    return tuple(_worth_saying(category, index) for category in CATEGORIES for index in range(category.size))


def _sentence(bins: np.ndarray, everything: bool) -> str:
    chosen = [
        category
        for kind in _ORDER
        for category in CATEGORIES
        if category.kind is kind and (everything or _worth_saying(category, int(bins[category.index])))
    ]
    phrases = [PHRASES[category.start + bins[category.index]] for category in chosen]
    # Facts keep the order of their kinds; within one, what lies at the body's middle comes first.
    kinds = [_ORDER.index(category.kind) for category in chosen]
    ranked = sorted(range(len(phrases)), key=lambda i: (kinds[i], _one_sided(phrases[i].other)))
    return _joined([phrases[i] for i in ranked]) or AT_EASE


def said_first() -> tuple[int, ...]:
    """The categories in the order in which ``sentences`` tells them."""
    return tuple(category.index for kind in _ORDER for category in CATEGORIES if category.kind is kind)


def _one_sided(point: str) -> bool:
    return point.startswith(("left", "right"))


def _worth_saying(category: Category, index: int) -> bool:
    usual = int(_usual()[category.index])
    if category.kind is ANGLE:
        return abs(index - usual) >= _BENT
    if category.kind is DISTANCE:
        first, second = category.points
        spread = index == category.size - 1 and first.replace("left_", "right_") == second
        return index != usual and (index == 0 or spread)
    if category.kind is GROUND:
        return index != usual
    return index not in (usual, _MIDDLE_BIN)


def _joined(phrases: list[Phrase]) -> str:
    """Phrases of one subject and relation become one: "left hand above the neck and the right hand"."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for phrase in phrases:
        grouped.setdefault((phrase.subject, phrase.relation), []).append(phrase.other)
    return ", ".join(_with_objects(*key, others) for key, others in grouped.items())


def _with_objects(subject: str, relation: str, others: list[str]) -> str:
    # The body's middle orients better than its limbs, and comes first.
    ordered = sorted((other for other in others if other), key=_one_sided)
    objects = [f"the {other}" for other in ordered]
    listed = " and ".join([", ".join(objects[:-1]), objects[-1]] if len(objects) > 1 else objects)
    return f"{subject} {relation} {listed}".rstrip()
