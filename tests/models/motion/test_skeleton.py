"""The joint tree and forward kinematics."""

from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation

from fastvq.models.motion.skeleton import (
    CHAINS,
    CHILDREN,
    FEET,
    JOINT_NAMES,
    MIRROR_ORDER,
    MIRROR_PAIRS,
    NUM_JOINTS,
    PARENTS,
    RAW_DIRECTIONS,
    REST_DIRECTIONS,
    bone_lengths,
    bone_vectors,
    forward_kinematics,
    global_rotations,
)


def random_pose(seed: int, frames: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    turns = Rotation.from_quat(rng.normal(size=(frames * NUM_JOINTS, 4)))
    rotations = turns.as_matrix().reshape(frames, NUM_JOINTS, 3, 3)
    return rng.normal(size=(NUM_JOINTS, 3)), rotations, rng.normal(size=(frames, 3))


def test_parents_precede_their_children_and_make_one_tree():
    assert PARENTS[0] == -1
    assert all(0 <= parent < joint for joint, parent in enumerate(PARENTS) if joint)
    assert sorted(child for children in CHILDREN for child in children) == list(range(1, NUM_JOINTS))
    assert len(set(JOINT_NAMES)) == NUM_JOINTS == len(PARENTS)


def test_chains_run_along_the_tree_and_cover_every_bone_once():
    bones = [pair for chain in CHAINS for pair in pairwise(chain)]
    assert all(PARENTS[child] == parent for parent, child in bones)
    assert sorted(child for _, child in bones) == list(range(1, NUM_JOINTS))


def test_sides_are_named_alike_and_mirror_each_other():
    for left, right in MIRROR_PAIRS:
        assert JOINT_NAMES[left].replace("left", "right") == JOINT_NAMES[right] != JOINT_NAMES[left]
    paired = {joint for pair in MIRROR_PAIRS for joint in pair}
    assert all(("left" in name or "right" in name) == (i in paired) for i, name in enumerate(JOINT_NAMES))
    assert [MIRROR_ORDER[MIRROR_ORDER[i]] for i in range(NUM_JOINTS)] == list(range(NUM_JOINTS))
    for ankle, foot in FEET:
        assert PARENTS[foot] == ankle


def test_directions_are_unit_and_mirror_symmetric():
    for table in (RAW_DIRECTIONS, REST_DIRECTIONS):
        np.testing.assert_allclose(np.linalg.norm(table[1:], axis=1), 1.0, atol=1e-15)
        assert not table[0].any()
        np.testing.assert_array_equal(table[list(MIRROR_ORDER)] * [-1, 1, 1], table)


def test_kinematics_of_the_rest_pose_adds_up_offsets():
    offsets = np.random.default_rng(0).normal(size=(NUM_JOINTS, 3))
    rest = np.broadcast_to(np.eye(3), (1, NUM_JOINTS, 3, 3))
    joints = forward_kinematics(offsets, rest, np.array([[1.0, 2.0, 3.0]]))
    for chain in CHAINS[:3]:
        expected = np.array([1.0, 2.0, 3.0]) + offsets[list(chain[1:])].sum(axis=0)
        np.testing.assert_allclose(joints[0, chain[-1]], expected, atol=1e-12)


def test_a_rotation_moves_what_hangs_below_and_nothing_else():
    offsets = REST_DIRECTIONS * 0.3
    rotations = np.broadcast_to(np.eye(3), (1, NUM_JOINTS, 3, 3)).copy()
    root = np.zeros((1, 3))
    before = forward_kinematics(offsets, rotations, root)
    rotations[0, 16] = Rotation.from_euler("z", -90, degrees=True).as_matrix()
    after = forward_kinematics(offsets, rotations, root)
    moved = set(np.flatnonzero(np.abs(after - before)[0].max(axis=1) > 1e-9))
    assert moved == {18, 20}
    # Turned about +z by -90 degrees, the left arm, stretched along +x, hangs down.
    np.testing.assert_allclose(after[0, 18] - after[0, 16], [0, -0.3, 0], atol=1e-12)


def test_kinematics_agrees_with_homogeneous_matrices():
    offsets, rotations, root = random_pose(1)
    joints, turned = forward_kinematics(offsets, rotations, root), global_rotations(rotations)
    for frame in range(len(root)):
        world = []
        for joint, parent in enumerate(PARENTS):
            matrix = np.eye(4)
            matrix[:3, :3] = rotations[frame, joint]
            matrix[:3, 3] = offsets[joint] if joint else root[frame]
            world.append(matrix if parent < 0 else world[parent] @ matrix)
        np.testing.assert_allclose(joints[frame], [m[:3, 3] for m in world], atol=1e-12)
        np.testing.assert_allclose(turned[frame], [m[:3, :3] for m in world], atol=1e-12)


def test_kinematics_keeps_bone_lengths():
    offsets, rotations, root = random_pose(2)
    joints = forward_kinematics(offsets, rotations, root)
    expected = np.linalg.norm(offsets, axis=1) * (np.arange(NUM_JOINTS) > 0)
    np.testing.assert_allclose(bone_lengths(joints), np.broadcast_to(expected, (5, NUM_JOINTS)), atol=1e-12)
    assert bone_vectors(joints).shape == joints.shape
