"""Turns of the wrong sign in published files: found and corrected, and right ones left alone."""

from pathlib import Path

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.features263 import joints_to_features
from fastvq.models.motion.procedural import generate_motions
from fastvq.models.motion.published_turns import correct_turns, turns_note
from fastvq.models.motion.rotation import yaw_matrix


def spinning(angle: np.ndarray) -> np.ndarray:
    """(T, 22, 3) a body on the spot that turns by these (T,) angles."""
    pose = generate_motions(7, seed=0)[6].clip.joints[0].astype(np.float64)
    return (pose - pose[0] * [1, 0, 1]) @ np.swapaxes(yaw_matrix(angle), -1, -2)


def test_recordings_come_back_whole(mocap: Path):
    found = 0
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        for name in archive.files:
            joints = archive[name][::3]
            right = joints_to_features(joints)
            corrected, count = correct_turns(joints_to_features(joints, turns="published"))
            np.testing.assert_allclose(corrected, right, atol=1e-7, err_msg=name)
            same, none = correct_turns(right)
            np.testing.assert_array_equal(same, right, err_msg=name)
            assert none == 0, name
            found += count
    assert found == 39


@pytest.mark.parametrize("turns", [0.6, -0.8, 3.2, -2.7])
def test_several_whole_turns(turns: float):
    joints = spinning(2 * np.pi * turns * np.linspace(0, 1, 240) ** 1.5)
    corrected, count = correct_turns(joints_to_features(joints, turns="published"))
    assert count == int(abs(turns) + 0.5)
    np.testing.assert_allclose(corrected, joints_to_features(joints), atol=1e-7)


def test_turning_back_just_before_half_a_turn_is_left_alone():
    for most in (3.10, 3.14, 3.20):
        features = joints_to_features(spinning(most * np.sin(np.linspace(0, np.pi, 240))))
        corrected, count = correct_turns(features)
        assert count == 0
        np.testing.assert_array_equal(corrected, features)


def test_a_quick_look_the_other_way_is_left_alone():
    features = joints_to_features(spinning(np.linspace(0, 1, 60)))
    features[30, 0] *= -1
    assert correct_turns(features)[1] == 0


def test_one_frame_and_mistakes():
    assert correct_turns(np.zeros((1, 263)))[1] == 0
    with pytest.raises(UserError, match=r"\(frames, 263\)"):
        correct_turns(np.zeros((5, 100)))


def test_the_note_counts():
    assert turns_note([]) == []
    (note,) = turns_note([1, 3])
    assert note.startswith("in 2 clips 4 turns had the wrong sign")


def test_lists_and_integers_are_taken():
    features = joints_to_features(spinning(np.linspace(0, 4, 100)), turns="published")
    expected, count = correct_turns(features)
    corrected, found = correct_turns(features.tolist())
    assert found == count == 1
    np.testing.assert_array_equal(corrected, expected)
    for dtype in (np.int64, np.uint8):
        corrected, found = correct_turns(np.ones((5, 263), dtype=dtype))
        assert (corrected.dtype, found) == (np.float32, 0)
        np.testing.assert_array_equal(corrected, np.ones((5, 263)))
