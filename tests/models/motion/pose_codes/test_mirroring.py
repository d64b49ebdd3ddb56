"""Mirrored clips have mirrored codes, bit for bit."""

import numpy as np
import pytest

from fastvq.models.motion.mirror import mirror, mirror_text
from fastvq.models.motion.pose_codes import (
    CATEGORIES,
    CODE_NAMES,
    MIRRORED_CATEGORIES,
    MIRRORED_CODES,
    PHRASES,
    PoseParser,
    code_named,
    mirror_codes,
)


def test_mirroring_twice_changes_nothing():
    np.testing.assert_array_equal(MIRRORED_CODES[MIRRORED_CODES], np.arange(392))
    np.testing.assert_array_equal(MIRRORED_CATEGORIES[MIRRORED_CATEGORIES], np.arange(70))
    assert all(CATEGORIES[m].kind is c.kind for m, c in zip(MIRRORED_CATEGORIES, CATEGORIES, strict=True))


def test_the_mirror_image_of_a_code_says_the_same_of_the_other_side():
    for code, phrase in enumerate(PHRASES):
        assert code_named(mirror_text(str(phrase))) == MIRRORED_CODES[code]


def test_a_few_by_name():
    pairs = {
        "L-knee 9": "R-knee 9",
        "L-hand vs R-knee 0": "R-hand vs L-knee 0",
        "L-hand vs R-hand at the left of": "L-hand vs R-hand at the left of",
        "L-hand vs L-shoulder at the left of": "R-hand vs R-shoulder at the right of",
        "neck vs pelvis at the left of": "neck vs pelvis at the right of",
        "neck vs pelvis in front of": "neck vs pelvis in front of",
        "L-hand vs R-hand above": "L-hand vs R-hand below",
        "L-ankle vs neck above": "R-ankle vs neck above",
        "L-knee vs R-knee behind": "L-knee vs R-knee in front of",
        "L-hand vs R-hand vertical": "L-hand vs R-hand vertical",
        "L-foot on the ground": "R-foot on the ground",
    }
    for name, other in pairs.items():
        assert CODE_NAMES[MIRRORED_CODES[CODE_NAMES.index(name)]] == other


@pytest.mark.parametrize("compat", [False, True])
def test_mirrored_procedural_clips_have_mirrored_codes(procedural, compat: bool):
    parser = PoseParser(como_compat=compat)
    for motion in procedural:
        codes = parser.parse(motion.clip.joints)
        other = parser.parse(mirror(motion.clip.joints))
        np.testing.assert_array_equal(mirror_codes(codes).indices, other.indices)
        np.testing.assert_array_equal(codes.k_hot[:, MIRRORED_CODES], other.k_hot)
        assert (codes.indices != other.indices).any()


@pytest.mark.parametrize("compat", [False, True])
def test_mirrored_recordings_have_mirrored_codes(recordings, compat: bool):
    parser = PoseParser(como_compat=compat)
    for joints in recordings.values():
        codes, other = parser.parse(joints), parser.parse(mirror(joints))
        np.testing.assert_array_equal(mirror_codes(codes).indices, other.indices)
