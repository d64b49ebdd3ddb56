"""The table of pose codes: 7 kinds of measurement, 70 categories, 392 codes.

A category is one measurement of the body (an angle, a distance, how two points lie to each other), cut into bins by
the thresholds of its kind. Every bin of every category is a code; codes are numbered through the categories in
order, so that a frame has exactly one active code in each of 70 runs of numbers, and 70 of 392 altogether.

    kind        value                                              categories   bins   codes
    angle       at the middle of three joints, degrees, 0..180              4     18    0..71
    distance    between two points, metres                                 18     10   72..251
    sideways    x of the first point minus the second's, metres             6      3  252..269
    height      the same of y                                              16      3  270..317
    depth       the same of z                                               9      3  318..344
    slope       angle of a line to the vertical, degrees, 0..90            13      3  345..383
    ground      height over the frame's lowest point, metres                4      2  384..391

+x is the body's left and +z its front where headings are removed (``measurement``). A value on a threshold belongs
to the bin below it.

Source: CoMo (Huang et al., ECCV 2024), after PoseScript (Delmas et al., ECCV 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kind:
    """A way to measure a body.

    Attributes:
        name: The module's word for it.
        unit: "degrees" or "metres".
        thresholds: Ascending, in the unit; bin i holds values above i of them.
        bins: Published name of every bin, one more than thresholds.
        noise: Half-width of the uniform noise that the published parser adds to a value, in the unit.
    """

    name: str
    unit: str
    thresholds: tuple[float, ...]
    bins: tuple[str, ...]
    noise: float


@dataclass(frozen=True)
class Category:
    """One measurement, and its run of codes.

    Attributes:
        index: Its place among the 70.
        kind: How it is measured.
        points: Names of the points (``points.POINT_NAMES``) that it is taken from, in the order of the formula.
        start: Its first code.
    """

    index: int
    kind: Kind
    points: tuple[str, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of its codes."""
        return len(self.kind.bins)

    @property
    def codes(self) -> slice:
        """Where its codes lie among the 392."""
        return slice(self.start, self.start + self.size)

    @property
    def name(self) -> str:
        """Published name: "L-hand vs R-knee", and of an angle the joint at which it lies, "L-knee".

        Kinds share names (there is an angle, a slope and a height "L-hip vs L-knee"); codes do not.
        """
        named = self.points[1:2] if self.kind.name == "angle" else self.points
        return " vs ".join(_label(point) for point in named)

    def bin_of(self, value: float) -> int:
        """The bin in which a value lies, in the kind's unit."""
        return sum(value > threshold for threshold in self.kind.thresholds)


def _label(point: str) -> str:
    return point.replace("left_", "L-").replace("right_", "R-")


ANGLE = Kind("angle", "degrees", tuple(10.0 * i for i in range(1, 18)), tuple(str(i) for i in range(18)), 5.0)
DISTANCE = Kind("distance", "metres", tuple(i / 10 for i in range(1, 10)), tuple(str(i) for i in range(10)), 0.05)
SIDEWAYS = Kind("sideways", "metres", (-0.15, 0.15), ("at the right of", "x-ignored", "at the left of"), 0.05)
HEIGHT = Kind("height", "metres", (-0.15, 0.15), ("below", "y-ignored", "above"), 0.05)
DEPTH = Kind("depth", "metres", (-0.15, 0.15), ("behind", "z-ignored", "in front of"), 0.05)
SLOPE = Kind("slope", "degrees", (10.0, 80.0), ("vertical", "ignored", "horizontal"), 5.0)
GROUND = Kind("ground", "metres", (0.10,), ("on the ground", "ground-ignored"), 0.05)

# Points of every category, A before B; "L" and "R" stand for the sides. The order fixes the numbers of the codes.
_TUPLES: tuple[tuple[Kind, str], ...] = (
    (ANGLE, "L_hip/L_knee/L_ankle R_hip/R_knee/R_ankle L_shoulder/L_elbow/L_wrist R_shoulder/R_elbow/R_wrist"),
    (DISTANCE, "L_elbow/R_elbow L_hand/R_hand L_knee/R_knee L_foot/R_foot"),
    (DISTANCE, "L_hand/L_shoulder L_hand/R_shoulder R_hand/R_shoulder R_hand/L_shoulder"),
    (DISTANCE, "L_hand/R_elbow R_hand/L_elbow L_hand/L_knee L_hand/R_knee R_hand/R_knee R_hand/L_knee"),
    (DISTANCE, "L_hand/L_foot L_hand/R_foot R_hand/R_foot R_hand/L_foot"),
    (SIDEWAYS, "L_hand/R_hand neck/pelvis L_hand/L_shoulder R_hand/R_shoulder L_foot/L_hip R_foot/R_hip"),
    (HEIGHT, "L_shoulder/R_shoulder L_elbow/R_elbow L_hand/R_hand L_knee/R_knee L_ankle/neck R_ankle/neck"),
    (HEIGHT, "L_hip/L_knee R_hip/R_knee L_hand/L_shoulder R_hand/R_shoulder L_foot/L_hip R_foot/R_hip"),
    (HEIGHT, "L_wrist/neck R_wrist/neck L_hand/L_hip R_hand/R_hip"),
    (DEPTH, "L_shoulder/R_shoulder L_elbow/R_elbow L_hand/R_hand L_knee/R_knee neck/pelvis"),
    (DEPTH, "L_hand/torso R_hand/torso L_foot/torso R_foot/torso"),
    (SLOPE, "L_hip/L_knee R_hip/R_knee L_knee/L_ankle R_knee/R_ankle"),
    (SLOPE, "L_shoulder/L_elbow R_shoulder/R_elbow L_elbow/L_wrist R_elbow/R_wrist"),
    (SLOPE, "pelvis/L_shoulder pelvis/R_shoulder pelvis/neck L_hand/R_hand L_foot/R_foot"),
    (GROUND, "L_knee R_knee L_foot R_foot"),
)


def _build() -> tuple[Category, ...]:
    table: list[Category] = []
    start = 0
    for kind, row in _TUPLES:
        for entry in row.replace("L_", "left_").replace("R_", "right_").split():
            table.append(Category(len(table), kind, tuple(entry.split("/")), start))
            start += table[-1].size
    return tuple(table)


CATEGORIES: tuple[Category, ...] = _build()
NUM_CATEGORIES = len(CATEGORIES)
NUM_CODES = CATEGORIES[-1].codes.stop

# Where the codes of every category lie among the 392.
CATEGORY_SLICES: tuple[slice, ...] = tuple(category.codes for category in CATEGORIES)

# Published name of every code: the category's and the bin's, "L-hand vs R-hand above".
CODE_NAMES: tuple[str, ...] = tuple(
    f"{category.name} {name}" for category in CATEGORIES for name in category.kind.bins
)


def _constant(values: list[int]) -> np.ndarray:
    array = np.array(values, dtype=np.int64)
    array.setflags(write=False)
    return array


# (70,) first code and number of codes of every category; (392,) category of every code.
STARTS: np.ndarray = _constant([category.start for category in CATEGORIES])
SIZES: np.ndarray = _constant([category.size for category in CATEGORIES])
CATEGORY_OF_CODE: np.ndarray = _constant([c.index for c in CATEGORIES for _ in range(c.size)])

# (70, 18) the codes of every category in a row of its own, its last code repeated to the length of the longest:
# a (392, D) codebook taken at these is the (70, 18, D) one in which bin numbers are looked up.
PADDED_CODES: np.ndarray = np.minimum(STARTS[:, None] + np.arange(SIZES.max()), (STARTS + SIZES - 1)[:, None])
PADDED_CODES.setflags(write=False)
