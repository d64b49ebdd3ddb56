"""A body to put into poses, and clips."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fastvq.models.motion.procedural import generate_motions
from fastvq.models.motion.skeleton import JOINT_NAMES

Position = tuple[float, float, float]

# Standing straight with hanging arms, facing +z: x of the left side, y and z.
_MIDDLE = {"pelvis": (0.95, 0), "spine1": (1.06, 0), "spine2": (1.18, 0), "spine3": (1.25, 0), "neck": (1.45, 0)}
_SIDES = {
    "hip": (0.1, 0.87, 0),
    "knee": (0.1, 0.45, 0),
    "ankle": (0.1, 0.05, -0.02),
    "foot": (0.1, 0, 0.1),
    "collar": (0.08, 1.38, 0),
    "shoulder": (0.18, 1.4, 0),
    "elbow": (0.2, 1.13, 0),
    "wrist": (0.22, 0.88, 0),
}
# From the wrist to the middle of the hand: half of what lies between wrist and knuckle.
HAND = 0.1367 / 2
FOREARM = 0.25


def _stand(moves: Mapping[str, Position]) -> np.ndarray:
    places = {name: (0, *place) for name, place in _MIDDLE.items()} | {"head": (0, 1.6, 0.03)}
    for joint, (x, y, z) in _SIDES.items():
        places |= {f"left_{joint}": (x, y, z), f"right_{joint}": (-x, y, z)}
    for point, (x, y, z) in moves.items():
        side, _, joint = point.partition("_")
        if joint == "hand":
            # With the forearm hanging over it.
            places |= {f"{side}_wrist": (x, y + HAND, z), f"{side}_elbow": (x, y + HAND + FOREARM, z)}
        else:
            places[point] = (x, y, z)
    return np.array([places[name] for name in JOINT_NAMES], dtype=np.float64)


@pytest.fixture(scope="session")
def stand():
    """``stand(moves)``: (22, 3) a standing body of which some joints, or hands, were put elsewhere."""
    return _stand


@pytest.fixture(scope="session")
def procedural():
    """Two of every action."""
    return generate_motions(14, seed=6)


@pytest.fixture(scope="session")
def recordings(mocap: Path) -> dict[str, np.ndarray]:
    """All shared recordings by name."""
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="session")
def labels(mocap: Path) -> dict[str, list[str]]:
    """Names of the recordings by what is done in them."""
    found: dict[str, list[str]] = {}
    for row in json.loads((mocap / "mocap_cmu_hdm05_22j_60fps.json").read_text()):
        found.setdefault(row["label"], []).append(row["name"])
    return found
