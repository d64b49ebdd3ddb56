"""Resampling, other speeds and the fault filter."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import joints_to_features
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.skeleton import NUM_JOINTS, bone_lengths
from fastvq.models.motion.transform import (
    change_speed,
    resample,
    resample_clip,
    resample_rotations,
    smooth_runs,
)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return generate_clips(7, seed=2)


def curve(times: np.ndarray) -> np.ndarray:
    """(T, 22, 3) a path with known values at any time, as fast as hands are: 1 Hz, 0.5 m."""
    phase = np.arange(NUM_JOINTS * 3).reshape(NUM_JOINTS, 3)
    return 0.5 * np.sin(2 * np.pi * times[:, None, None] + phase)


def test_whole_multiples_take_every_nth_frame_bit_for_bit(clips: list[Clip]):
    joints = clips[0].joints
    np.testing.assert_array_equal(resample(joints, 60, 30), joints[::2])
    np.testing.assert_array_equal(resample(joints, 120, 30), joints[::4])
    np.testing.assert_array_equal(resample(joints, 30, 30), joints)
    # As files write 120 frames per second.
    np.testing.assert_array_equal(resample(joints, 1 / 0.0083333, 30), joints[::4])
    rotations = clips[0].rotations
    np.testing.assert_array_equal(resample_rotations(rotations, 60, 30), rotations[::2])


@pytest.mark.parametrize(("source", "target"), [(24, 30), (25, 30), (20, 30), (50, 30), (120, 50)])
def test_other_rates_follow_the_path(source: float, target: float):
    times = np.arange(97) / source
    result = resample(curve(times), source, target)
    new = np.arange(len(result)) / target
    assert new[-1] <= times[-1] < new[-1] + 1 / target + 1e-9
    # A cubic through samples of a 1 Hz sine errs by (2 pi / rate)^4 of its size inside; its ends, where no
    # neighbour helps, by a few times that.
    tolerance = 0.5 * (2 * np.pi / source) ** 4
    inside = slice(4, -4)
    np.testing.assert_allclose(result[inside], curve(new)[inside], atol=tolerance)
    np.testing.assert_allclose(result, curve(new), atol=8 * tolerance)


def test_resampling_hardly_stretches_bones(clips: list[Clip]):
    lengths = bone_lengths(resample(clips[2].joints, 30, 24))
    assert np.abs(lengths - lengths.mean(axis=0)).max() < 0.01


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_short_clips_are_resampled_too(frames: int):
    joints = np.linspace(0, 1, frames)[:, None, None] * np.ones((1, NUM_JOINTS, 3))
    result = resample(joints, 24, 30)
    assert len(result) == int((frames - 1) * 30 / 24) + 1
    # Straight lines stay straight whatever the degree.
    expected = np.arange(len(result)) * (24 / 30) / max(frames - 1, 1)
    np.testing.assert_allclose(result[:, 3, 1], expected, atol=1e-12)


def test_rotations_turn_evenly_between_frames():
    angles = np.arange(25) * 0.1
    rotations = Rotation.from_euler("y", angles[:, None]).as_matrix()[:, None]
    result = resample_rotations(np.repeat(rotations, 22, axis=1), 24, 30)
    expected = Rotation.from_euler("y", np.arange(len(result))[:, None] * 0.1 * 24 / 30).as_matrix()
    np.testing.assert_allclose(result[:, 7], expected, atol=1e-12)


def test_one_rotation_is_resampled_too():
    single = np.broadcast_to(np.eye(3), (1, 22, 3, 3))
    np.testing.assert_array_equal(resample_rotations(single, 24, 30), single)


def test_a_clip_is_resampled_with_its_rotations_and_without_its_features(clips: list[Clip]):
    source = clips[1]
    source.features = joints_to_features(source.joints)
    assert resample_clip(source, source.fps) is source
    result = resample_clip(source, 24.0)
    assert (result.fps, result.name, result.text) == (24.0, source.name, source.text)
    assert result.features is None
    assert len(result.rotations) == len(result.joints) == int((source.frames - 1) * 24 / 30) + 1


@pytest.mark.parametrize(("source", "target"), [(0, 30), (30, -1), (float("nan"), 30), (30, float("inf"))])
def test_impossible_rates_are_refused(source: float, target: float):
    with pytest.raises(UserError, match="frame rate must be a positive number"):
        resample(np.zeros((3, 22, 3)), source, target)


def still(frames: int) -> np.ndarray:
    return np.zeros((frames, NUM_JOINTS, 3), dtype=np.float32)


def test_slow_clips_stay_whole(clips: list[Clip]):
    for clip in clips:
        runs = smooth_runs(clip.joints, clip.fps)
        assert runs.ranges == ((0, clip.frames),)
        assert runs.faults == 0


def test_a_jump_of_the_pelvis_cuts_between_its_two_frames():
    joints = still(20)
    joints[7:, :, 0] += 0.21
    runs = smooth_runs(joints, 30)
    assert runs.ranges == ((0, 7), (7, 20))
    assert runs.faults == 1
    joints[7:, :, 0] -= 0.02
    # 0.19 m in a thirtieth of a second is 5.7 m/s: fast, but allowed.
    assert smooth_runs(joints, 30).faults == 0


def test_one_misplaced_frame_stands_alone():
    joints = still(20)
    joints[7, :, 1] = 1.0
    assert smooth_runs(joints, 30).ranges == ((0, 7), (7, 8), (8, 20))


def test_a_tumbling_body_is_found_by_its_limbs():
    joints = still(10)
    joints[4:, 15, 0] = 0.6
    assert smooth_runs(joints, 30).ranges == ((0, 4), (4, 10))
    assert smooth_runs(joints, 30, max_joint_speed=float("inf")).faults == 0


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_the_shortest_clips_have_at_most_one_run(frames: int):
    assert smooth_runs(still(frames), 30).ranges == (((0, frames),) if frames else ())


def test_known_faults_of_the_recordings_are_cut_out(mocap: Path):
    """The data's own notes name jumps in CMU 01 and 03; the test split of CMU's walks has none."""
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        faults = {
            name: smooth_runs(archive[name], 60, max_joint_speed=float("inf")).faults
            for name in ("cmu_01_07", "cmu_03_02", "cmu_02_01")
        }
        assert faults == {"cmu_01_07": 1, "cmu_03_02": 1, "cmu_02_01": 0}
        tumbling = archive["cmux_train_walking_extra_49"]
    runs = smooth_runs(tumbling, 60)
    assert runs.faults > 0
    for start, stop in runs.ranges:
        speed = np.linalg.norm(np.diff(tumbling[start:stop], axis=0), axis=-1) * 60
        assert speed.size == 0 or speed.max() <= 15.0


def test_twice_the_speed_keeps_every_second_frame():
    clip = generate_clips(1, seed=3, fps=30)[0]
    features = joints_to_features(clip.joints)
    fast = change_speed(features, 2.0)
    expected = joints_to_features(clip.joints[::2])
    assert len(fast) == (len(features) + 1) // 2
    np.testing.assert_allclose(fast, expected, atol=2e-5)
    assert change_speed(features, 1.0) is features


def test_slowed_down_and_back_is_the_same_motion():
    clip = generate_clips(1, seed=4, fps=30)[0]
    features = joints_to_features(clip.joints)
    slow = change_speed(features, 0.5)
    assert len(slow) == 2 * len(features) - 1
    np.testing.assert_allclose(change_speed(slow, 2.0), features, atol=2e-5)
    np.testing.assert_allclose(slow[1:, 74:140], np.diff(slow[:, 8:74], axis=0), atol=1e-6)


@pytest.mark.parametrize("speed", [0.0, -1.0])
def test_a_speed_that_is_not_positive_is_an_error(speed):
    with pytest.raises(UserError, match="rate"):
        change_speed(joints_to_features(generate_clips(1, seed=3)[0].joints), speed)
