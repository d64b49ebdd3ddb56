import numpy as np

from fastvq.models.evaluation.metrics import acceleration_errors, joint_errors


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
