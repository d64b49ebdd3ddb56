"""6D rotations, shortest turns and yaw, against scipy and at the places where formulas break."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.motion.rotation import (
    matrix_from_6d,
    matrix_to_6d,
    normalise,
    perpendicular,
    rotation_between,
    yaw_angle,
    yaw_matrix,
)

# Products of a few float64 rotations: some units in the last place of numbers up to 1.
ROUNDING = 1e-14


def random_matrices(count: int, seed: int) -> np.ndarray:
    return Rotation.from_quat(np.random.default_rng(seed).normal(size=(count, 4))).as_matrix()


def assert_rotations(matrices: np.ndarray, tolerance: float = ROUNDING) -> None:
    identity = matrices @ np.swapaxes(matrices, -1, -2)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), atol=tolerance)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=tolerance)


def test_6d_is_the_first_two_rows_and_comes_back():
    matrices = random_matrices(50, 0).reshape(5, 10, 3, 3)
    rows = matrix_to_6d(matrices)
    np.testing.assert_array_equal(rows[2, 3], np.concatenate([matrices[2, 3, 0], matrices[2, 3, 1]]))
    np.testing.assert_allclose(matrix_from_6d(rows), matrices, atol=ROUNDING)


def test_gram_schmidt_keeps_the_first_row_and_makes_rotations_of_noise():
    rows = np.random.default_rng(1).normal(size=(200, 6))
    matrices = matrix_from_6d(rows)
    # The second row loses digits in proportion as it is nearly parallel to the first.
    assert_rotations(matrices, 1e-12)
    np.testing.assert_allclose(matrices[:, 0], normalise(rows[:, :3]), atol=ROUNDING)


@pytest.mark.parametrize(
    "rows",
    [
        (0, 0, 0, 0, 0, 0),
        (1, 0, 0, 2, 0, 0),
        (0, 1, 0, 0, -3, 0),
        (0, 0, 0, 0, 0, 1),
        (1, 2, 3, 0, 0, 0),
        (1, 1, 1, -1, -1, -1),
    ],
)
def test_rows_that_name_no_rotation_still_give_one(rows: tuple[float, ...]):
    assert_rotations(matrix_from_6d(np.array(rows, dtype=np.float32)))


def test_perpendicular_is_perpendicular():
    vectors = np.concatenate([np.random.default_rng(3).normal(size=(50, 3)), np.eye(3), -np.eye(3)])
    normals = perpendicular(vectors)
    np.testing.assert_allclose(np.sum(normals * vectors, axis=1), 0.0, atol=ROUNDING)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=ROUNDING)


def test_the_shortest_rotation_turns_one_direction_into_the_other_by_their_angle():
    start, end = np.random.default_rng(4).normal(size=(2, 300, 3))
    turn = rotation_between(start, end)
    assert_rotations(turn, 1e-12)
    np.testing.assert_allclose(np.einsum("nij,nj->ni", turn, normalise(start)), normalise(end), atol=1e-12)
    angle = np.arccos(np.sum(normalise(start) * normalise(end), axis=1))
    np.testing.assert_allclose(Rotation.from_matrix(turn).magnitude(), angle, atol=1e-7)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 0.0])
def test_opposite_directions_give_half_a_turn(gap: float):
    start = normalise(np.random.default_rng(5).normal(size=(50, 3)))
    end = -start + gap * perpendicular(start)
    turn = rotation_between(start, end)
    # Forming start + end loses digits relative to the gap; the rotation stays one to that many.
    tolerance = max(1e-12, 4e-16 / gap if gap else 0.0)
    assert_rotations(turn, 10 * tolerance)
    np.testing.assert_allclose(np.einsum("nij,nj->ni", turn, start), normalise(end), atol=10 * tolerance, rtol=0)


def test_equal_and_missing_directions_do_not_turn():
    vector = np.array([0.3, -2.0, 1.0])
    np.testing.assert_allclose(rotation_between(vector, 5 * vector), np.eye(3), atol=ROUNDING)
    np.testing.assert_array_equal(rotation_between(np.zeros(3), vector), np.eye(3))
    np.testing.assert_array_equal(rotation_between(vector, np.zeros(3)), np.eye(3))


def test_yaw_turns_ahead_towards_the_left_and_comes_back():
    np.testing.assert_allclose(yaw_matrix(np.pi / 2) @ [0, 0, 1], [1, 0, 0], atol=ROUNDING)
    angles = np.linspace(-3.1, 3.1, 41)
    expected = Rotation.from_euler("y", angles[:, None]).as_matrix()
    np.testing.assert_allclose(yaw_matrix(angles), expected, atol=ROUNDING)
    np.testing.assert_allclose(yaw_angle(yaw_matrix(angles)), angles, atol=ROUNDING)


def test_yaw_angle_is_the_nearest_yaw():
    matrices = random_matrices(20, 6)
    angles = np.linspace(-np.pi, np.pi, 3601)
    # The trace of Y^T R grows as the angle between the two falls.
    closeness = np.einsum("aji,nji->na", yaw_matrix(angles), matrices)
    best = angles[closeness.argmax(axis=1)]
    error = np.angle(np.exp(1j * (yaw_angle(matrices) - best)))
    assert np.abs(error).max() <= np.pi / 3600 + 1e-12
