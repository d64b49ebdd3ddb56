"""The table against the published list, written out here a second time."""

import re

from fastvq.models.motion.pose_codes import (
    CATEGORIES,
    CATEGORY_OF_CODE,
    CATEGORY_SLICES,
    CODE_NAMES,
    NUM_CATEGORIES,
    NUM_CODES,
)

# Kind: first and last code, thresholds, noise, and the pairs as the publication writes them, A first.
PUBLISHED = {
    "angle": (0, 71, range(10, 180, 10), 5, "L-knee, R-knee, L-elbow, R-elbow"),
    "distance": (
        72,
        251,
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        0.05,
        "L-elbow/R-elbow, L-hand/R-hand, L-knee/R-knee, L-foot/R-foot, L-hand/L-shoulder, L-hand/R-shoulder, "
        "R-hand/R-shoulder, R-hand/L-shoulder, L-hand/R-elbow, R-hand/L-elbow, L-hand/L-knee, L-hand/R-knee, "
        "R-hand/R-knee, R-hand/L-knee, L-hand/L-foot, L-hand/R-foot, R-hand/R-foot, R-hand/L-foot",
    ),
    "sideways": (
        252,
        269,
        [-0.15, 0.15],
        0.05,
        "L-hand/R-hand, neck/pelvis, L-hand/L-shoulder, R-hand/R-shoulder, L-foot/L-hip, R-foot/R-hip",
    ),
    "height": (
        270,
        317,
        [-0.15, 0.15],
        0.05,
        "L-shoulder/R-shoulder, L-elbow/R-elbow, L-hand/R-hand, L-knee/R-knee, L-ankle/neck, R-ankle/neck, "
        "L-hip/L-knee, R-hip/R-knee, L-hand/L-shoulder, R-hand/R-shoulder, L-foot/L-hip, R-foot/R-hip, "
        "L-wrist/neck, R-wrist/neck, L-hand/L-hip, R-hand/R-hip",
    ),
    "depth": (
        318,
        344,
        [-0.15, 0.15],
        0.05,
        "L-shoulder/R-shoulder, L-elbow/R-elbow, L-hand/R-hand, L-knee/R-knee, neck/pelvis, L-hand/torso, "
        "R-hand/torso, L-foot/torso, R-foot/torso",
    ),
    "slope": (
        345,
        383,
        [10, 80],
        5,
        "L-hip/L-knee, R-hip/R-knee, L-knee/L-ankle, R-knee/R-ankle, L-shoulder/L-elbow, R-shoulder/R-elbow, "
        "L-elbow/L-wrist, R-elbow/R-wrist, pelvis/L-shoulder, pelvis/R-shoulder, pelvis/neck, L-hand/R-hand, "
        "L-foot/R-foot",
    ),
    "ground": (384, 391, [0.1], 0.05, "L-knee, R-knee, L-foot, R-foot"),
}


def test_the_table_is_the_published_one():
    expected = [
        (kind, name.replace("/", " vs "), list(thresholds), noise)
        for kind, (_, _, thresholds, noise, names) in PUBLISHED.items()
        for name in names.split(", ")
    ]
    found = [(c.kind.name, c.name, list(c.kind.thresholds), c.kind.noise) for c in CATEGORIES]
    assert found == expected
    assert (NUM_CATEGORIES, NUM_CODES) == (70, 392)


def test_codes_are_numbered_through():
    for kind, (first, last, *_) in PUBLISHED.items():
        codes = [code for c in CATEGORIES if c.kind.name == kind for code in range(c.codes.start, c.codes.stop)]
        assert codes == list(range(first, last + 1))
    for category, codes in zip(CATEGORIES, CATEGORY_SLICES, strict=True):
        assert set(CATEGORY_OF_CODE[codes].tolist()) == {category.index}
        assert category.size == len(category.kind.thresholds) + 1 == codes.stop - codes.start


def test_every_code_has_a_published_name_of_its_own():
    assert len(set(CODE_NAMES)) == len(CODE_NAMES) == NUM_CODES
    assert CODE_NAMES[0] == "L-knee 0"
    assert CODE_NAMES[71] == "R-elbow 17"
    assert CODE_NAMES[72] == "L-elbow vs R-elbow 0"
    assert [CODE_NAMES[i] for i in range(252, 255)] == [
        "L-hand vs R-hand at the right of",
        "L-hand vs R-hand x-ignored",
        "L-hand vs R-hand at the left of",
    ]
    assert CODE_NAMES[317] == "R-hand vs R-hip above"
    assert CODE_NAMES[318] == "L-shoulder vs R-shoulder behind"
    assert [CODE_NAMES[i] for i in range(381, 386)] == [
        "L-foot vs R-foot vertical",
        "L-foot vs R-foot ignored",
        "L-foot vs R-foot horizontal",
        "L-knee on the ground",
        "L-knee ground-ignored",
    ]
    assert all(re.fullmatch(r"[-a-zLR 0-9]+", name) for name in CODE_NAMES)


def test_a_value_on_a_threshold_belongs_below():
    for category in CATEGORIES:
        for index, threshold in enumerate(category.kind.thresholds):
            assert category.bin_of(threshold) == index
            assert category.bin_of(threshold + 1e-9) == index + 1
