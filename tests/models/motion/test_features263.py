"""HumanML3D's 263 and KIT-ML's 251 features: their formula, the ways back, and awkward motions."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.motion.features263 import (
    bone_lengths,
    canonicalise,
    check_features,
    joints_from_ric,
    joints_from_rotations,
    joints_to_features,
    retarget,
)
from fastvq.models.motion.layout263 import HUMANML3D, KIT_ML, LAYOUTS, Layout
from fastvq.models.motion.mirror import mirror, mirror_features
from fastvq.models.motion.procedural import generate_motions
from fastvq.models.motion.rotation import normalise, yaw_matrix
from fastvq.models.motion.skeleton import bone_vectors
from fastvq.models.motion.transform import resample

# Asked for; float32 features of bodies that walk some metres keep them to 3e-7.
PROMISE = 1e-5

# SMPL joints that stand for KIT-ML's: enough to move a body of its shape.
KIT_FROM_SMPL = (0, 3, 6, 12, 15, 17, 19, 21, 16, 18, 20, 2, 5, 8, 11, 11, 1, 4, 7, 10, 10)


def kit_body(joints: np.ndarray) -> np.ndarray:
    """(T, 21, 3) a body of KIT-ML's shape; its outermost foot joint lies 5 cm ahead of the one before it."""
    out = joints[:, list(KIT_FROM_SMPL)].astype(np.float64)
    for ankle, foot in ((13, 15), (18, 20)):
        ahead = out[:, foot] - out[:, ankle]
        out[:, foot] += 0.05 * ahead / np.linalg.norm(ahead, axis=-1, keepdims=True)
    return out


@pytest.fixture(scope="module")
def motions() -> list[np.ndarray]:
    return [resample(motion.clip.joints, 30, 20) for motion in generate_motions(14, seed=5)]


@pytest.fixture(scope="module")
def recordings(mocap: Path) -> dict[str, np.ndarray]:
    """Every clip of the shared data, at 20 frames per second."""
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        return {name: archive[name][::3] for name in archive.files}


def of_layout(joints: np.ndarray, layout: Layout) -> np.ndarray:
    return joints if layout is HUMANML3D else kit_body(joints)


def turning(turns: float, frames: int = 200) -> np.ndarray:
    """(frames, 22, 3) a body that walks a curve and turns by so many whole turns."""
    pose = generate_motions(7, seed=0)[6].clip.joints[0].astype(np.float64)
    angle = np.linspace(0, 2 * np.pi * turns, frames)
    turned = (pose - pose[0] * [1, 0, 1]) @ np.swapaxes(yaw_matrix(angle), -1, -2)
    path = np.cumsum(np.stack([np.sin(angle), 0 * angle, np.cos(angle)], axis=-1) * 0.05, axis=0)
    return turned + path[:, None]


@pytest.mark.parametrize(
    ("layout", "width", "bounds"),
    [
        (HUMANML3D, 263, [0, 1, 3, 4, 67, 193, 259, 263]),
        (KIT_ML, 251, [0, 1, 3, 4, 64, 184, 247, 251]),
    ],
)
def test_the_columns(layout: Layout, width: int, bounds: list[int]):
    parts = list(layout.slices.values())
    assert [part.start for part in parts] + [parts[-1].stop] == bounds
    assert layout.width == width
    assert set(layout.parents[1:]) | set(range(1, layout.joints)) == set(range(layout.joints))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_formula_joint_by_joint(motions: list[np.ndarray], layout: Layout):
    """Against the definition, written out with quaternions for one frame at a time."""
    joints = of_layout(motions[0], layout)
    features = joints_to_features(joints @ yaw_matrix(2.0).T + [3.0, 0.7, -5.0], layout)
    points = canonicalise(joints, layout)
    (r_hip, l_hip), (r_arm, l_arm) = layout.hips, layout.shoulders
    across = points[:, l_hip] - points[:, r_hip] + points[:, r_arm] - points[:, l_arm]
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    forward = gaussian_filter1d(np.cross([0, 1, 0], across), 20, axis=0, mode="nearest")
    headings = []
    for t, ahead in enumerate(forward):
        angle = np.arctan2(np.linalg.norm(np.cross(ahead, [0, 0, 1])), ahead[2])
        axis = np.cross(ahead, [0, 0, 1])
        axis /= max(np.linalg.norm(axis), 1e-12)
        headings.append(Rotation.from_rotvec(angle * axis if t else np.zeros(3)))
    columns = layout.slices
    for t in (0, 1, 17, len(features) - 1):
        now, later = headings[t], headings[t + 1]
        step = later * now.inv()
        row, ground = features[t], points[t, 0] * [1, 0, 1]
        # Values below 2, rounded to float32 once.
        close = {"atol": 2e-7, "rtol": 0}
        np.testing.assert_allclose(row[0], np.arcsin(step.as_quat(canonical=True)[1]), **close)
        velocity = later.apply(points[t + 1, 0] - points[t, 0])
        np.testing.assert_allclose(row[columns["root_velocity"]], velocity[[0, 2]], **close)
        np.testing.assert_allclose(row[columns["root_height"]], points[t, 0, 1], **close)
        local = now.apply(points[t] - ground)[1:]
        np.testing.assert_allclose(row[columns["joint_position"]], local.ravel(), **close)
        speed = now.apply(points[t + 1] - points[t])
        np.testing.assert_allclose(row[columns["joint_velocity"]], speed.ravel(), **close)
        six = row[columns["joint_rotation"]].reshape(-1, 2, 3)
        for chain in layout.chains:
            above = now
            for start, end in pairwise(chain):
                bone = points[t, end] - points[t, start]
                # Turned from the reference direction by the shortest way, seen from the bone before.
                reference, length = layout.directions[end].copy(), np.linalg.norm(bone)
                swing, _ = Rotation.align_vectors(bone, reference)
                np.testing.assert_allclose(swing.apply(reference) * length, bone, atol=1e-7)
                np.testing.assert_allclose(np.cos(swing.magnitude()), reference @ bone / length, atol=1e-7)
                expected = (above.inv() * swing).as_matrix()
                np.testing.assert_allclose(six[end - 1], expected[:, :2].T, atol=1e-6)
                above = swing
        moved = ((points[t + 1] - points[t])[list(layout.feet)] ** 2).sum(axis=-1)
        np.testing.assert_array_equal(row[columns["contact"]], moved < layout.contact_threshold)


def test_standing_and_stepping_feet():
    joints = np.repeat(turning(0, 2)[:1], 5, axis=0)
    # HumanML3D: below the root of 0.002 square metres, 4.47 cm, in a frame. The right foot takes longer steps.
    joints[:, [7, 10], 0] += np.arange(5)[:, None] * 0.044
    joints[:, [8, 11], 0] += np.arange(5)[:, None] * 0.045
    np.testing.assert_array_equal(joints_to_features(joints)[:, 259:], [[1, 1, 0, 0]] * 4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_procedural_joints_come_back_by_both_ways(motions: list[np.ndarray], layout: Layout):
    for motion in motions:
        joints = of_layout(motion, layout)
        features = joints_to_features(joints, layout)
        expected = canonicalise(joints, layout)[:-1]
        back = joints_from_ric(features, layout)
        assert (features.dtype, back.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(back, expected, atol=PROMISE)
        # Bones that the made-up body of 21 joints changes in length are off by what they change.
        lengths = np.linalg.norm(joints[:, 1:] - joints[:, list(layout.parents[1:])], axis=-1)
        loose = np.abs(lengths - bone_lengths(joints, layout)[1:]).sum(axis=-1).max()
        posed = joints_from_rotations(features, bone_lengths(joints, layout), layout)
        assert np.linalg.norm(posed - expected, axis=-1).max() < loose + PROMISE


def test_recorded_joints_come_back_by_both_ways(recordings: dict[str, np.ndarray]):
    for name, joints in recordings.items():
        features = joints_to_features(joints)
        expected = canonicalise(joints)[:-1]
        np.testing.assert_allclose(joints_from_ric(features), expected, atol=PROMISE, err_msg=name)
        # All recordings have rigid bones.
        posed = joints_from_rotations(features, bone_lengths(joints))
        np.testing.assert_allclose(posed, expected, atol=PROMISE, err_msg=name)


def test_recorded_joints_of_kit_come_back(recordings: dict[str, np.ndarray]):
    for name in list(recordings)[::8]:
        joints = kit_body(recordings[name])
        back = joints_from_ric(joints_to_features(joints, KIT_ML), KIT_ML)
        np.testing.assert_allclose(back, canonicalise(joints, KIT_ML)[:-1], atol=PROMISE, err_msg=name)


@pytest.mark.parametrize("turns", [0.7, 1.0, -2.3])
def test_whole_turns_come_back_and_the_published_sign_does_not(turns: float):
    joints = turning(turns)
    expected = canonicalise(joints)[:-1]
    features = joints_to_features(joints)
    np.testing.assert_allclose(joints_from_ric(features), expected, atol=PROMISE)
    published = joints_to_features(joints, turns="published")
    other = np.flatnonzero(np.abs(published[:, 0] - features[:, 0]) > 1e-6)
    # Once for every passage through half a turn: 0.5, 1.5, ...
    assert len(other) == int(abs(turns) + 0.5)
    np.testing.assert_allclose(published[other, 0], -features[other, 0], atol=1e-6)
    np.testing.assert_array_equal(published[:, 1:], features[:, 1:])
    assert np.abs(joints_from_ric(published) - expected).max() > 0.05


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_mirrored_motions_have_mirrored_features(motions: list[np.ndarray], layout: Layout):
    for motion in motions:
        joints = of_layout(motion, layout)
        features = joints_to_features(joints, layout)
        np.testing.assert_array_equal(mirror_features(mirror_features(features)), features)
        mirrored = mirror_features(features)
        # Sides are summed in another order; bones that point nearly backwards turn that into 1e-6.
        np.testing.assert_allclose(mirrored, joints_to_features(mirror(joints), layout), atol=5e-6)
        np.testing.assert_allclose(
            joints_from_ric(mirrored, layout), mirror(joints_from_ric(features, layout)), atol=1e-6
        )


def test_mirrored_recordings_have_mirrored_features(recordings: dict[str, np.ndarray]):
    for name in list(recordings)[::8]:
        joints = recordings[name]
        expected = joints_to_features(mirror(joints))
        np.testing.assert_allclose(mirror_features(joints_to_features(joints)), expected, atol=PROMISE, err_msg=name)


def test_features_do_not_know_where_the_clip_stood_and_faced(motions: list[np.ndarray]):
    joints = motions[3].astype(np.float64)
    moved = joints @ yaw_matrix(-1.3).T + [4.0, 2.0, 1.0]
    np.testing.assert_allclose(joints_to_features(moved), joints_to_features(joints), atol=1e-6)
    first = canonicalise(moved)[0]
    np.testing.assert_allclose(first[0, [0, 2]], 0, atol=1e-12)
    assert canonicalise(moved)[..., 1].min() == 0
    # Left is +x.
    assert first[1, 0] > first[2, 0]
    assert first[16, 0] > first[17, 0]


def test_retargeted_bodies_have_the_other_bones_and_the_same_directions(motions: list[np.ndarray]):
    tall, rigid = motions[0].astype(np.float64), generate_motions(7, seed=0)[4].clip.joints
    lengths = bone_lengths(tall) * np.linspace(0.8, 1.2, 22)
    moved = retarget(tall, lengths)
    np.testing.assert_allclose(bone_lengths(moved), lengths, atol=1e-6)
    ratio = (lengths[5] + lengths[8]) / (bone_lengths(tall)[5] + bone_lengths(tall)[8])
    np.testing.assert_allclose(moved[:, 0], tall[:, 0] * ratio, atol=1e-6)
    np.testing.assert_allclose(normalise(bone_vectors(moved)), normalise(bone_vectors(tall)), atol=1e-12)
    np.testing.assert_allclose(retarget(rigid, bone_lengths(rigid)), rigid, atol=PROMISE)


def test_awkward_bodies_give_numbers(motions: list[np.ndarray]):
    pose = np.repeat(motions[6][:1].astype(np.float64), 3, axis=0)
    for joints in (pose * [1, -1, -1], np.zeros((3, 22, 3)), pose * [1, 0, 0], pose[:2]):
        features = joints_to_features(joints)
        assert np.isfinite(features).all()
        np.testing.assert_allclose(joints_from_ric(features), canonicalise(joints)[:-1], atol=PROMISE)
    # Bones exactly opposite to their reference direction.
    lengths = bone_lengths(pose)
    opposite = retarget(pose, lengths)
    for chain in HUMANML3D.chains:
        for start, end in pairwise(chain):
            opposite[:, end] = opposite[:, start] - HUMANML3D.directions[end] * lengths[end]
    features = joints_to_features(opposite)
    expected = canonicalise(opposite)[:-1]
    np.testing.assert_allclose(joints_from_rotations(features, lengths), expected, atol=PROMISE)


def test_noisy_features_decode_to_fixed_bones(motions: list[np.ndarray]):
    features = joints_to_features(motions[0])
    noisy = features + np.random.default_rng(0).normal(scale=0.2, size=features.shape)
    lengths = bone_lengths(motions[0])
    np.testing.assert_allclose(bone_lengths(joints_from_rotations(noisy, lengths)), lengths, atol=PROMISE)
    assert np.isfinite(joints_from_ric(noisy)).all()


def test_the_input_is_left_alone(motions: list[np.ndarray]):
    joints = motions[0].copy()
    features = joints_to_features(joints)
    kept = features.copy()
    canonicalise(joints)
    retarget(joints, bone_lengths(joints))
    joints_from_ric(features)
    joints_from_rotations(features, bone_lengths(joints))
    mirror_features(features)
    np.testing.assert_array_equal(joints, motions[0])
    np.testing.assert_array_equal(features, kept)


def test_mistakes_are_named(motions: list[np.ndarray]):
    joints = motions[0]
    with pytest.raises(UserError, match=r"HumanML3D's joints must have the shape \(frames, 22, 3\).*\(5, 21, 3\)"):
        joints_to_features(np.zeros((5, 21, 3)))
    with pytest.raises(UserError, match=r"KIT-ML's joints must have the shape \(frames, 21, 3\).*22, 3\)"):
        joints_to_features(joints, KIT_ML)
    with pytest.raises(UserError, match=r"with at least 2 frames, got \(1, 22, 3\)"):
        joints_to_features(joints[:1])
    with pytest.raises(UserError, match=r"with at least one frame, got \(0, 22, 3\)"):
        canonicalise(joints[:0])
    with pytest.raises(UserError, match="turns must be 'continuous' or 'published', got 'official'"):
        joints_to_features(joints, turns="official")
    broken = joints.copy()
    broken[2, 5, 1] = np.nan
    with pytest.raises(UserError, match=rf"joints must be finite.* in 1 of {len(joints)} frames, first in frame 2"):
        joints_to_features(broken)
    with pytest.raises(UserError, match=r"HumanML3D's features must have the shape \(frames, 263\).*\(5, 251\)"):
        joints_from_ric(np.zeros((5, 251)))
    with pytest.raises(UserError, match=r"KIT-ML's features must have the shape \(frames, 251\).*\(0, 251\)"):
        check_features(np.zeros((0, 251)), KIT_ML)
    with pytest.raises(UserError, match="features must be finite"):
        joints_from_ric(np.full((2, 263), np.inf))
    features = joints_to_features(joints)
    for lengths in (np.ones(21), np.full(22, np.nan), -np.ones(22)):
        with pytest.raises(UserError, match="lengths must hold 22 bone lengths in metres"):
            joints_from_rotations(features, lengths)
    with pytest.raises(UserError, match="joints have no leg"):
        retarget(np.zeros((2, 22, 3)), np.ones(22))
