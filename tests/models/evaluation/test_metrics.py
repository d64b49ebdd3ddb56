import numpy as np
import pytest

from fastvq.models.evaluation.metrics import (
    acceleration_errors,
    bone_errors,
    centroid_orthogonality,
    joint_errors,
    procrustes_errors,
    skating,
)


def body(frames=6, seed=0):
    return np.random.default_rng(seed).normal(size=(frames, 22, 3)).astype(np.float32)


def test_joint_errors_are_distances_in_millimetres():
    target = body()
    moved = target.copy()
    moved[:, 5] += np.float32([0.003, 0, 0.004])
    expected = np.zeros((6, 22))
    expected[:, 5] = 5
    # float32 joints of about 1 m are 6e-8 m, 6e-5 mm, apart.
    np.testing.assert_allclose(joint_errors(moved, target), expected, atol=5e-4)


def test_the_place_of_the_pelvis_does_not_count():
    target = body()
    np.testing.assert_allclose(joint_errors(target.astype(np.float64) + 3, target), 0, atol=1e-9)
    drift = np.cumsum(np.ones((6, 1, 3)), axis=0)
    np.testing.assert_allclose(acceleration_errors(target + drift**2, target), 0, atol=1e-9)


def test_acceleration_errors_are_second_differences():
    target = body().astype(np.float64)
    moved = target.copy()
    moved[3, 7, 1] += 0.002
    expected = np.zeros((4, 22))
    expected[1:4, 7] = [2, 4, 2]
    np.testing.assert_allclose(acceleration_errors(moved, target), expected, atol=1e-9)
    assert acceleration_errors(target[:2], target[:2]).shape == (0, 22)


def turned(angle, axis=1):
    """Rotation about an axis of the frame."""
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def test_procrustes_undoes_turns_moves_and_scales_of_every_frame():
    target = body(5).astype(np.float64)
    moved = np.stack(
        [
            scale * frame @ (turned(0.7 * scale, 0) @ turned(scale, 1)) + scale
            for scale, frame in zip((0.5, 1, 2, 3, 7), target, strict=True)
        ]
    )
    assert joint_errors(moved, target).mean() > 100
    np.testing.assert_allclose(procrustes_errors(moved, target), 0, atol=1e-9)


def test_procrustes_keeps_what_no_transform_mends():
    # Four corners of a tetrahedron, mirrored: the best rotation maps x to ±x only, so that with edges along the axes
    # (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1) the mirror image is -1 times it, and the cross-covariance is
    # -4 I. Without reflections its best rotation turns two axes about, and leaves one wrong: scale (1 + 1 - 1) / 3.
    corners = np.array([[[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]], dtype=np.float64)
    fitted = np.array([1, 1, -1]) / 3
    expected = 1000 * np.linalg.norm(1 - fitted)
    np.testing.assert_allclose(procrustes_errors(-corners, corners), np.full((1, 4), expected), atol=1e-9)


def test_procrustes_of_a_square_with_one_corner_out():
    # Both centred; H = given^T target of a unit square and a rectangle of twice the width: scale (2 + 1) / 2.
    square = np.array([[[1, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]], dtype=np.float64)
    wide = square * [2, 1, 1]
    np.testing.assert_allclose(procrustes_errors(square, wide), np.full((1, 4), 1000 * np.hypot(0.5, 0.5)), atol=1e-9)


def test_procrustes_of_a_point_is_the_extent_of_the_target():
    target = body(3).astype(np.float64)
    expected = 1000 * np.linalg.norm(target - target.mean(axis=1, keepdims=True), axis=-1)
    np.testing.assert_allclose(procrustes_errors(np.ones((3, 22, 3)), target), expected)


def test_bones_are_compared_with_their_mean_length():
    target = np.zeros((4, 3, 3))
    target[:, 1, 1], target[:, 2, 1] = 0.5, 0.8
    given = target.copy()
    given[:, 2, 1] += [0.0, 0.01, -0.02, 0.03]
    expected = np.array([[0, 0], [0, 10], [0, 20], [0, 30]])
    np.testing.assert_allclose(bone_errors(given, target, (-1, 0, 1)), expected, atol=1e-9)
    np.testing.assert_allclose(bone_errors(given @ turned(0.4), target, (-1, 0, 1)), expected, atol=1e-9)
    breathing = target.copy()
    breathing[:, 1, 1] += [0.0, 0.02, 0.0, 0.02]
    np.testing.assert_allclose(bone_errors(breathing, breathing, (-1, 0, 1))[:, 0], 10, atol=1e-9)


@pytest.mark.parametrize("foot", [10, 11])
def test_a_foot_skates_that_moves_on_the_floor(foot):
    joints = np.full((7, 22, 3), 1.0)
    joints[:, 10:12, 1] = 0.04
    assert not skating(joints, 20).any()
    joints[:, foot, 0] = [0, 0.026, 0.026, 0.05, 0.05, 0.09, 0.13]
    joints[:, foot, 1] = [0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.06]
    # 26 mm slides; 24 mm is below 0.5 m/s; 40 mm slides; the last step ends above 5 cm.
    assert skating(joints, 20).tolist() == [True, False, False, False, True, False]
    assert skating(joints, 20.9)[[0, 2, 4]].tolist() == [True, True, True]
    assert not skating(joints, 20, floor=-0.02).any()
    landing = joints.copy()
    landing[0, foot, 1] = 0.06
    assert skating(landing, 20).tolist() == [False, False, False, False, True, False]
    raised = joints + np.array([0, 1.0, 0])
    assert not skating(raised, 20).any()
    assert skating(raised, 20, floor=1.0).tolist() == skating(joints, 20).tolist()
    ankles = np.full((7, 22, 3), 1.0)
    ankles[:, 7, 1], ankles[:, 7, 0] = 0, np.arange(7)
    assert not skating(ankles, 20).any()


def test_orthogonal_centroids():
    table = np.zeros((6, 4))
    table[:2, 0], table[2:5, 1], table[5, 2] = [1, 3], [2, 2, 5], 7
    categories = (slice(0, 2), slice(2, 5), slice(5, 6))
    found = centroid_orthogonality(table, categories)
    assert found.mean_cosine == pytest.approx(0, abs=1e-12)
    assert found.gram_error == pytest.approx(0, abs=1e-12)


def test_centroids_at_sixty_degrees_and_their_centred_cosines():
    # Three unit vectors at 60 degrees to each other; about their mean they lie at 120 degrees.
    table = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]]) / np.sqrt(2)
    found = centroid_orthogonality(table, (slice(0, 1), slice(1, 2), slice(2, 3)))
    assert found.mean_cosine == pytest.approx(0.5)
    assert found.gram_error == pytest.approx(6 * 0.25)
    assert found.centred_cosine == pytest.approx(0.5)
    scaled = centroid_orthogonality(table * [[3], [0.1], [8]], (slice(0, 1), slice(1, 2), slice(2, 3)))
    assert scaled.mean_cosine == pytest.approx(0.5)
    opposite = centroid_orthogonality(np.array([[1.0, 0], [-1, 0], [0, 0]]), (slice(0, 1), slice(1, 2), slice(2, 3)))
    assert (opposite.mean_cosine, opposite.gram_error) == (pytest.approx(1 / 3), pytest.approx(2))
