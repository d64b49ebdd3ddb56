"""The 272 features: their formula, the way back, both heading variants, and awkward poses."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.motion.features272 import (
    SLICES,
    WIDTH,
    Heading,
    canonicalise,
    convert_heading,
    features_to_joints,
    features_to_rotations,
    joints_to_features,
    joints_to_rotations,
    rest_offsets,
)
from fastvq.models.motion.procedural import generate_motions
from fastvq.models.motion.rotation import yaw_angle, yaw_matrix
from fastvq.models.motion.skeleton import NUM_JOINTS, forward_kinematics, global_rotations

# float32 steps of 1e-6 between 8 and 16 m, and some hundred of them added up along the root's path.
JOINT_TOLERANCE = 5e-6
# The project's promise for joints -> features -> joints and for features -> joints -> features.
PROMISE = 1e-4

HEADINGS: tuple[Heading, ...] = ("absolute", "difference")


@pytest.fixture(scope="module")
def motions() -> list:
    return generate_motions(14, seed=5)


@pytest.fixture(scope="module")
def recordings(mocap: Path) -> dict[str, np.ndarray]:
    """Every clip of the shared data, at 30 frames per second."""
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        return {name: archive[name][::2] for name in archive.files}


def standing() -> np.ndarray:
    """(1, 22, 3) a person who stands and faces +z."""
    return generate_motions(7, seed=0)[6].clip.joints[:1].astype(np.float64)


def test_the_slices_cover_the_width_in_order():
    bounds = [(part.start, part.stop) for part in SLICES.values()]
    assert bounds == [(0, 2), (2, 8), (8, 74), (74, 140), (140, 272)]
    assert WIDTH == 272


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_formula_frame_by_frame(motions: list, heading: Heading):
    """Against the definition written out for one frame at a time, on true rotations."""
    clip = motions[0].clip
    joints, rotations = clip.joints.astype(np.float64), clip.rotations.astype(np.float64)
    # Anywhere and facing anywhere: the features begin at the origin all the same.
    away = yaw_matrix(2.0)
    joints = joints @ away.T + [3.0, 0.7, -5.0]
    rotations[:, 0] = away @ rotations[:, 0]
    features = joints_to_features(joints, rotations=rotations, heading=heading)

    points = joints - [joints[0, 0, 0], joints[..., 1].min(), joints[0, 0, 2]]
    first = np.arctan2(rotations[0, 0, 0, 2], rotations[0, 0, 2, 2])
    for t in (0, 1, 17, len(points) - 1):
        h, before = (-np.arctan2(rotations[i, 0, 0, 2], rotations[i, 0, 2, 2]) for i in (t, max(t - 1, 0)))
        turn = yaw_matrix(h)
        step = yaw_matrix(before) @ (points[t, 0] - points[max(t - 1, 0), 0])
        local = (points[t] - points[t, 0] * [1, 0, 1]) @ turn.T
        previous = (points[max(t - 1, 0)] - points[max(t - 1, 0), 0] * [1, 0, 1]) @ yaw_matrix(before).T
        written = yaw_matrix(h + first if heading == "absolute" else h - before)
        turned = rotations[t].copy()
        turned[0] = turn @ turned[0]
        expected = np.concatenate(
            [
                step[[0, 2]],
                written[:2].ravel(),
                local.ravel(),
                (local - previous).ravel(),
                turned[:, :2].ravel(),
            ]
        )
        # Values below 2, rounded to float32 once.
        np.testing.assert_allclose(features[t], expected, atol=2e-7)


def test_true_rotations_give_a_pelvis_that_faces_ahead(motions: list):
    clip = motions[2].clip
    features = joints_to_features(clip.joints, rotations=clip.rotations)
    pelvis = features[:, 140:146]
    # The third column of Y(h) R has no x: from the first two rows it is their cross product.
    third = np.cross(pelvis[:, :3], pelvis[:, 3:])
    assert np.abs(pelvis[:, 2]).max() < 1e-6
    assert third[:, 2].min() > 0.5


@pytest.mark.parametrize("heading", HEADINGS)
def test_procedural_joints_come_back(motions: list, heading: Heading):
    for motion in motions:
        for rotations in (None, motion.clip.rotations):
            features = joints_to_features(motion.clip.joints, rotations=rotations, heading=heading)
            expected, turned = canonicalise(motion.clip.joints, rotations)
            back = features_to_joints(features, heading=heading)
            assert back.dtype == np.float32
            np.testing.assert_allclose(back, expected, atol=JOINT_TOLERANCE)
            if turned is not None:
                again = features_to_rotations(features, heading=heading)
                np.testing.assert_allclose(again, turned, atol=2e-6)


def test_recorded_joints_and_their_features_come_back(recordings: dict[str, np.ndarray]):
    for name, joints in recordings.items():
        features = joints_to_features(joints)
        back = features_to_joints(features)
        expected, _ = canonicalise(joints)
        np.testing.assert_allclose(back, expected, atol=JOINT_TOLERANCE, err_msg=name)
        np.testing.assert_allclose(joints_to_features(back), features, atol=PROMISE, err_msg=name)


def test_recorded_clips_in_the_difference_variant(recordings: dict[str, np.ndarray]):
    for name in list(recordings)[::8]:
        joints = recordings[name]
        absolute, difference = (joints_to_features(joints, heading=heading) for heading in HEADINGS)
        back = features_to_joints(difference, heading="difference")
        np.testing.assert_allclose(back, canonicalise(joints)[0], atol=PROMISE, err_msg=name)
        for features, source, other, target in (
            (absolute, "absolute", difference, "difference"),
            (difference, "difference", absolute, "absolute"),
        ):
            converted = convert_heading(features, source=source, target=target)
            np.testing.assert_allclose(converted, other, atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(convert_heading(features, source=source, target=source), features)


def test_recorded_bodies_posed_by_their_rotations(recordings: dict[str, np.ndarray]):
    """Bones keep their lengths, and what is lost is how far pelvis and chest are not rigid."""
    errors = []
    for name in list(recordings)[::8]:
        joints, _ = canonicalise(recordings[name])
        features = joints_to_features(joints)
        offsets = rest_offsets(joints, joints_to_rotations(joints))
        posed = features_to_joints(features, offsets=offsets)
        expected = forward_kinematics(offsets, features_to_rotations(features), joints[:, 0])
        np.testing.assert_allclose(posed, expected, atol=JOINT_TOLERANCE)
        errors.append(np.linalg.norm(posed - joints, axis=-1).mean())
    # 11 mm were measured over all 410 clips; swing alone loses nothing.
    assert np.mean(errors) < 0.02


def test_swing_poses_a_body_without_branches_exactly(motions: list):
    """With rigid pelvis and chest, which procedural bodies have, joints fix every visible rotation."""
    for motion in motions[:7]:
        joints = motion.clip.joints.astype(np.float64)
        rotations = joints_to_rotations(joints)
        posed = forward_kinematics(rest_offsets(joints, rotations), rotations, joints[:, 0])
        np.testing.assert_allclose(posed, joints, atol=JOINT_TOLERANCE)
        # Nothing is known about the turn of the ends, so they do not turn.
        ends = rotations[:, [10, 11, 15, 20, 21]]
        np.testing.assert_array_equal(ends, np.broadcast_to(np.eye(3), ends.shape))


def test_only_twist_is_missing_from_inferred_rotations(motions: list):
    """Every bone points where it did with the true rotations."""
    motion = motions[4]
    joints = motion.clip.joints.astype(np.float64)
    true = global_rotations(motion.clip.rotations.astype(np.float64))
    inferred = global_rotations(joints_to_rotations(joints))
    for parent, child in ((1, 4), (4, 7), (3, 6), (12, 15), (16, 18), (18, 20)):
        bone = motion.offsets[child]
        np.testing.assert_allclose(inferred[:, parent] @ bone, true[:, parent] @ bone, atol=JOINT_TOLERANCE)


@pytest.mark.parametrize("axis", ["x", "z"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_heading_stays_while_falling_over(axis: str, sign: int):
    """Forward, backward and on either side, down to lying and on to nearly the handstand."""
    angles = sign * np.radians(np.arange(0.0, 176.0, 5.0))
    fall = Rotation.from_euler(axis, angles[:, None]).as_matrix()
    pose = standing()
    # The pelvis' own inclination in this pose keeps the turn from being a pure one.
    upright = joints_to_rotations(pose)[0, 0]
    pelvis = fall @ yaw_matrix(-yaw_angle(upright)) @ upright
    joints = (pose - pose[:, :1]) @ upright @ np.swapaxes(pelvis, -1, -2)
    features = joints_to_features(joints)
    heading = np.unwrap(yaw_angle(_matrix(features[:, 2:8])))
    assert np.abs(np.diff(heading[:19])).max() < np.radians(5)
    assert np.isfinite(features).all()
    back = features_to_joints(features)
    np.testing.assert_allclose(back, canonicalise(joints)[0], atol=JOINT_TOLERANCE)


def _matrix(rows: np.ndarray) -> np.ndarray:
    first, second = rows[:, :3], rows[:, 3:]
    return np.stack([first, second, np.cross(first, second)], axis=1)


def test_upside_down_and_collapsed_bodies_give_numbers():
    pose = standing()
    turned = pose * [1, -1, -1]
    collapsed = np.zeros((3, NUM_JOINTS, 3))
    flat = pose * [1, 0, 0]
    for joints in (turned, collapsed, flat, np.repeat(collapsed[:1], 1, axis=0)):
        features = joints_to_features(joints)
        assert np.isfinite(features).all()
        np.testing.assert_allclose(features_to_joints(features), canonicalise(joints)[0], atol=1e-6)


def test_noisy_features_decode_to_rotations(motions: list):
    features = joints_to_features(motions[0].clip.joints)
    noisy = features + np.random.default_rng(0).normal(scale=0.2, size=features.shape)
    rotations = features_to_rotations(noisy)
    identity = rotations @ np.swapaxes(rotations, -1, -2)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), atol=1e-12)
    assert np.isfinite(features_to_joints(noisy)).all()


def test_a_window_of_absolute_features_keeps_its_first_heading(motions: list):
    features = joints_to_features(motions[1].clip.joints)
    turning = np.abs(yaw_angle(_matrix(features[:, 2:8]))) > 0.3
    features = features[turning.argmax() :]
    there = convert_heading(features, source="absolute", target="difference")
    back = convert_heading(there, source="difference", target="absolute")
    first = yaw_angle(_matrix(features[:1, 2:8]))[0]
    assert abs(first) > 0.3
    np.testing.assert_allclose(back[0, 2:8], [1, 0, 0, 0, 1, 0], atol=1e-7)
    turned = features_to_joints(back) @ yaw_matrix(first)
    np.testing.assert_allclose(turned, features_to_joints(features), atol=JOINT_TOLERANCE)


def test_one_frame_is_enough():
    features = joints_to_features(standing())
    assert features.shape == (1, WIDTH)
    assert features.dtype == np.float32
    assert not features[:, SLICES["joint_velocity"]].any()
    np.testing.assert_allclose(features[0, 2:8], [1, 0, 0, 0, 1, 0], atol=0)


def test_the_input_is_left_alone(motions: list):
    clip = motions[0].clip
    joints, rotations = clip.joints.copy(), clip.rotations.copy()
    features = joints_to_features(joints, rotations=rotations)
    kept = features.copy()
    canonicalise(joints, rotations)
    features_to_joints(features)
    features_to_rotations(features)
    convert_heading(features, source="absolute", target="difference")
    np.testing.assert_array_equal(joints, clip.joints)
    np.testing.assert_array_equal(rotations, clip.rotations)
    np.testing.assert_array_equal(features, kept)


def test_mistakes_are_named():
    pose = standing()
    with pytest.raises(UserError, match=r"joints must have the shape \(frames, 22, 3\).*got \(1, 21, 3\)"):
        joints_to_features(pose[:, :21])
    with pytest.raises(UserError, match=r"at least one frame, got \(0, 22, 3\)"):
        joints_to_features(pose[:0])
    with pytest.raises(UserError, match=r"rotations must have the shape \(1, 22, 3, 3\).*got \(2, 22, 3, 3\)"):
        joints_to_features(pose, rotations=np.zeros((2, 22, 3, 3)))
    with pytest.raises(UserError, match="heading must be 'absolute' or 'difference', got 'relative'"):
        joints_to_features(pose, heading="relative")
    broken = np.repeat(pose, 4, axis=0)
    broken[2, 5, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinity in 1 of 4 frames, first in frame 2"):
        joints_to_features(broken)
    with pytest.raises(UserError, match=r"features must have the shape \(frames, 272\).*got \(5, 263\)"):
        features_to_joints(np.zeros((5, 263)))
    with pytest.raises(UserError, match="heading must be 'absolute' or 'difference'"):
        features_to_rotations(np.zeros((5, 272)), heading="")
    with pytest.raises(UserError, match="features must be finite"):
        convert_heading(np.full((2, 272), np.inf), source="absolute", target="difference")
