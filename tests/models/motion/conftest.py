"""Bodies shared by the tests of motions."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.motion.skeleton import REST_DIRECTIONS, forward_kinematics


def rest_body(height=1.0):
    """(22, 3) offsets of a plausible body; ``height`` scales it."""
    lengths = np.full(22, 0.12)
    lengths[[4, 5, 7, 8]] = 0.42
    lengths[[18, 19, 20, 21]] = 0.26
    lengths[0] = 0.0
    return REST_DIRECTIONS * lengths[:, None] * height


def moving_body(frames=40, seed=0, offsets=None):
    """(T, 22, 3) joints of a rigid body in smooth motion, and the rotations that made them."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.linspace(0, 4, frames)[:, None, None] + rng.uniform(0, 6, size=(22, 3)))
    rotations = Rotation.from_rotvec((0.4 * wave).reshape(-1, 3)).as_matrix().reshape(frames, 22, 3, 3)
    root = np.linspace([0, 0.95, 0], [1.0, 1.05, 2.0], frames)
    return forward_kinematics(rest_body() if offsets is None else offsets, rotations, root), rotations


@pytest.fixture(name="rest_body")
def rest_body_fixture() -> Callable[..., np.ndarray]:
    return rest_body


@pytest.fixture(name="moving_body")
def moving_body_fixture() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return moving_body
