"""Folders of 272 features: their checks, and telling the two heading variants apart."""

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.feature_folder import (
    check_features,
    detect_heading,
    feature_clip,
    read_description,
    read_split_files,
)
from fastvq.models.motion.features272 import convert_heading, joints_to_features
from fastvq.models.motion.joint_arrays import read_joint_npz
from fastvq.models.motion.rotation import yaw_matrix
from fastvq.models.motion.skeleton import REST_DIRECTIONS, forward_kinematics

HEADINGS = ("absolute", "difference")


def turning_walk(frames=60, turn=1.5):
    """(T, 22, 3): a body that turns about its left foot, which stays where it is."""
    angle = np.linspace(0, turn, frames)
    rotations = np.broadcast_to(np.eye(3), (frames, 22, 3, 3)).copy()
    rotations[:, 0] = yaw_matrix(angle)
    joints = forward_kinematics(REST_DIRECTIONS * 0.2, rotations, np.zeros((frames, 3)))
    return joints - joints[:, [10]] * [1, 0, 1]


def as_variant(features, heading):
    return convert_heading(features, source="absolute", target=heading)


@pytest.mark.parametrize("heading", HEADINGS)
@pytest.mark.parametrize("turn", [1.5, -0.4, 6.0])
def test_a_planted_foot_tells_the_variant(heading, turn):
    assert detect_heading([as_variant(joints_to_features(turning_walk(turn=turn)), heading)]) == heading


def test_one_clip_that_does_not_begin_at_heading_zero_is_enough():
    features = joints_to_features(turning_walk(turn=0.2))
    assert detect_heading([as_variant(features, "difference"), features[10:]]) == "absolute"


def test_clips_that_never_turn_count_as_absolute():
    assert detect_heading([joints_to_features(turning_walk(turn=0.0))]) == "absolute"


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_variant_of_real_motion_is_told(mocap, heading):
    clips, _ = read_joint_npz(mocap / "mocap_cmu_hdm05_22j_60fps.npz")
    features = [as_variant(joints_to_features(clip.joints[::2]), heading) for clip in clips[::10]]
    assert len(features) == 41
    assert detect_heading(features) == heading
    # Alone, clips that turn by more than a quarter of a circle are told as well.
    absolute = [convert_heading(values, source=heading, target="absolute") for values in features]
    turning = [i for i, values in enumerate(absolute) if values[:, 2].min() < 0]
    assert len(turning) == 5
    assert [detect_heading([features[i]]) for i in turning] == [heading] * len(turning)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_clip_holds_joints_and_absolute_features(heading):
    joints = turning_walk()
    features = joints_to_features(joints)
    clip = feature_clip("turn", as_variant(features, heading), heading)
    assert (clip.name, clip.fps, clip.split) == ("turn", 30.0, "")
    # Differences are rounded to float32 and added up over 60 frames.
    np.testing.assert_allclose(clip.features, features, atol=1e-5)
    steps = np.linalg.norm(np.diff(clip.joints[:, 10], axis=0), axis=-1)
    assert steps.max() < 1e-5


def test_normalised_features_are_restored_by_the_statistics_above(tmp_path):
    features = joints_to_features(turning_walk())
    mean, std = features.mean(axis=0), np.full(272, 0.3, dtype=np.float32)
    path = tmp_path / "motions" / "deep" / "turn.npy"
    normalised = (features - mean) / std
    with pytest.raises(UserError, match="columns 140 to 271 are no rotations"):
        check_features(normalised, path)
    np.save(tmp_path / "Mean.npy", mean)
    np.save(tmp_path / "Std.npy", std)
    np.testing.assert_allclose(check_features(normalised, path), features, atol=1e-5)
    np.testing.assert_array_equal(check_features(features, path), features)
    np.save(tmp_path / "Std.npy", std[:263])
    with pytest.raises(UserError, match=r"Std\.npy: expected the shape \(272,\), got \(263,\)"):
        check_features(normalised, path)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((7, 263), "HumanML3D"), ((7, 251), "KIT-ML"), ((7, 66), "22 joints in a row"), ((7, 100), ""), ((272,), "")],
)
def test_another_width_is_refused(tmp_path, shape, hint):
    with pytest.raises(UserError, match=rf"expected features of the shape \(frames, 272\).*{hint}"):
        check_features(np.zeros(shape), tmp_path / "x.npy")


def test_frames_that_are_nan_are_named(tmp_path):
    features = joints_to_features(turning_walk())
    features[17, 5] = np.nan
    with pytest.raises(UserError, match=r"x\.npy: 1 of 60 frames hold NaN or infinity, first frame 17"):
        check_features(features, tmp_path / "x.npy")
    features = features.astype(np.float64)
    features[17, 5] = 1e39  # infinity once it is float32
    with pytest.raises(UserError, match=r"x\.npy: 1 of 60 frames hold NaN or infinity, first frame 17"):
        check_features(features, tmp_path / "x.npy")


def test_descriptions_are_found_beside_and_in_texts(tmp_path):
    motion = tmp_path / "motions" / "a.npy"
    motion.parent.mkdir()
    assert read_description(motion) == ""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(
        "\na man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\nsomebody walks#x#0#0\n"
    )
    assert read_description(motion) == "a man walks."
    (motion.parent / "a.txt").write_text("he strolls\n")
    assert read_description(motion) == "he strolls"


def test_split_files_are_read_here_below_or_just_above(tmp_path):
    motions = tmp_path / "motions"
    motions.mkdir()
    assert read_split_files(tmp_path) is None
    (tmp_path / "train.txt").write_text("a\nsub/b.npy\n\n")
    (tmp_path / "test.txt").write_text("c\n")
    expected = {"a": "train", "sub/b": "train", "c": "test"}
    assert read_split_files(tmp_path) == expected
    assert read_split_files(motions) == expected
    (tmp_path / "val.txt").write_text("c\n")
    with pytest.raises(UserError, match=r"'c' is in val\.txt too"):
        read_split_files(tmp_path)
