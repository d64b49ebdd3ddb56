"""Mirroring of joints, rotations, features, descriptions and clips."""

from pathlib import Path

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import joints_to_features, joints_to_rotations
from fastvq.models.motion.kit_skeleton import KIT_CHAINS, KIT_JOINT_NAMES, KIT_MIRROR_ORDER, KIT_RAW_DIRECTIONS
from fastvq.models.motion.mirror import (
    mirror,
    mirror_clip,
    mirror_features,
    mirror_order,
    mirror_rotations,
    mirror_text,
)
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.skeleton import JOINT_NAMES, RAW_DIRECTIONS


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return generate_clips(7, seed=2)


@pytest.mark.parametrize(
    ("names", "directions"), [(JOINT_NAMES, RAW_DIRECTIONS), (KIT_JOINT_NAMES, KIT_RAW_DIRECTIONS)]
)
def test_the_order_exchanges_sides_by_name_and_leaves_the_middle(names: tuple[str, ...], directions: np.ndarray):
    for joint, other in enumerate(mirror_order(len(names))):
        assert mirror_text(names[joint].replace("_", " ")) == names[other].replace("_", " ")
    np.testing.assert_array_equal(mirror(directions), directions)


def test_kit_chains_exchange_as_wholes():
    mirrored = {tuple(KIT_MIRROR_ORDER[joint] for joint in chain) for chain in KIT_CHAINS}
    assert mirrored == set(KIT_CHAINS)


def test_another_skeleton_is_refused():
    with pytest.raises(UserError, match=r"22 joints .* and 21 joints .* got 24 joints: map the motion"):
        mirror(np.zeros((2, 24, 3)))


def test_kit_joints_are_mirrored_too():
    joints = np.random.default_rng(0).normal(size=(5, 21, 3)).astype(np.float32)
    mirrored = mirror(joints)
    np.testing.assert_array_equal(mirrored[:, 5], joints[:, 8] * np.float32([-1, 1, 1]))
    np.testing.assert_array_equal(mirror(mirrored), joints)
    assert mirrored.dtype == np.float32


def test_mirroring_twice_changes_nothing(clips: list[Clip]):
    for clip in clips:
        features = joints_to_features(clip.joints)
        np.testing.assert_array_equal(mirror(mirror(clip.joints)), clip.joints)
        np.testing.assert_array_equal(mirror_rotations(mirror_rotations(clip.rotations)), clip.rotations)
        np.testing.assert_array_equal(mirror_features(mirror_features(features)), features)


@pytest.mark.parametrize("heading", ["absolute", "difference"])
@pytest.mark.parametrize("true_rotations", [False, True])
def test_mirrored_features_are_those_of_the_mirrored_motion(clips: list[Clip], heading: str, true_rotations: bool):
    for clip in clips:
        rotations = clip.rotations if true_rotations else None
        mirrored = mirror_rotations(rotations) if true_rotations else None
        features = joints_to_features(clip.joints, rotations=rotations, heading=heading)
        expected = joints_to_features(mirror(clip.joints), rotations=mirrored, heading=heading)
        # Negation and exchange round nothing; the two sides are summed in different orders here and there.
        np.testing.assert_allclose(mirror_features(features), expected, atol=1e-6)


def test_mirrored_recordings_have_mirrored_features(mocap: Path):
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        for name in archive.files[::12]:
            joints = archive[name][::2]
            expected = joints_to_features(mirror(joints))
            np.testing.assert_allclose(mirror_features(joints_to_features(joints)), expected, atol=1e-5)


def test_mirrored_rotations_are_those_of_the_mirrored_joints(clips: list[Clip]):
    rotations = joints_to_rotations(clips[4].joints)
    expected = joints_to_rotations(mirror(clips[4].joints))
    np.testing.assert_allclose(mirror_rotations(rotations), expected, atol=1e-12)


def test_descriptions_change_sides():
    text = "Left hand up, turns right (clockwise), leftover bright copyright"
    assert mirror_text(text) == "Right hand up, turns left (counterclockwise), leftover bright copyright"
    assert mirror_text(mirror_text(text)) == text


def test_a_mirrored_clip_is_mirrored_throughout(clips: list[Clip]):
    clip = clips[5]
    clip.features = joints_to_features(clip.joints, rotations=clip.rotations)
    result = mirror_clip(clip)
    assert result.name == clip.name + "_mirrored"
    assert {"left", "right"} & set(clip.text.split())
    assert result.text == mirror_text(clip.text) != clip.text
    np.testing.assert_array_equal(result.joints, mirror(clip.joints))
    expected = joints_to_features(result.joints, rotations=result.rotations)
    np.testing.assert_allclose(result.features, expected, atol=1e-6)
