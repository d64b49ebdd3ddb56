"""Motions of any size and axes stand upright in metres: the unit is told from the body, Z up is noticed."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.motion.bvh import read_bvh, write_bvh
from fastvq.models.motion.placement import body_length, guess_scale, place
from fastvq.models.motion.skeleton import CHILDREN, JOINT_NAMES, PARENTS


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("metres", 1.0), ("CMU units", 0.0254 / 0.45), ("inches", 0.0254), ("cm", 0.01), ("mm", 0.001)],
)
@pytest.mark.parametrize("height", [0.8, 1.0, 1.15])
def test_the_unit_is_told_from_the_size_of_the_body(tmp_path, unit, scale, height, moving_body, rest_body):
    joints, _ = moving_body(frames=4, offsets=rest_body(height))
    assert 1.0 < body_length(joints) < 1.9
    assert guess_scale(joints / scale) == (scale, unit)
    write_bvh(tmp_path / "out.bvh", joints / scale, 30)
    placed = place(read_bvh(tmp_path / "out.bvh"))
    np.testing.assert_allclose(placed.joints, joints, atol=1e-4)
    assert placed.notes == []


def test_scale_and_up_axis_can_be_given_and_odd_sizes_are_noted(tmp_path, moving_body):
    joints, _ = moving_body(frames=4)
    path = tmp_path / "out.bvh"
    write_bvh(path, joints * 7, 30)
    assert "no grown body: give the scale" in place(read_bvh(path)).notes[0]
    placed = place(read_bvh(path), scale=1 / 7)
    np.testing.assert_allclose(placed.joints, joints, atol=1e-5)
    assert placed.notes == []
    with pytest.raises(UserError, match="scale must be a positive number of metres per unit, got -1"):
        place(read_bvh(path), scale=-1)
    with pytest.raises(UserError, match="up axis must be 'y' or 'z', got 'x'"):
        place(read_bvh(path), up_axis="x")


def z_up_bvh(joints):
    """A BVH with Z up: every joint moved by position channels, so that the rest pose can be anything."""
    turned = np.stack([joints[..., 0], -joints[..., 2], joints[..., 1]], axis=-1)
    lines = ["HIERARCHY"]

    def add(joint, depth):
        parent = PARENTS[joint]
        offset = turned[0, joint] - (turned[0, parent] if joint else 0)
        lines.append(
            f"{'JOINT' if joint else 'ROOT'} {JOINT_NAMES[joint]}\n{{\nOFFSET {' '.join(map(repr, offset.tolist()))}"
        )
        lines.append("CHANNELS 3 Xposition Yposition Zposition")
        columns.append(turned[:, joint] - (turned[:, parent] if joint else 0))
        for child in CHILDREN[joint]:
            add(child, depth + 1)
        lines.append("End Site\n{\nOFFSET 0 0 0\n}\n}" if not CHILDREN[joint] else "}")

    columns: list[np.ndarray] = []
    add(0, 0)
    rows = np.concatenate(columns, axis=1)
    lines += [
        "MOTION",
        f"Frames: {len(rows)}",
        "Frame Time: 0.05",
        *(" ".join(map(repr, row)) for row in rows.tolist()),
    ]
    return "\n".join(lines) + "\n"


def test_z_up_is_noticed_and_turned(tmp_path, moving_body):
    joints, _ = moving_body()
    path = tmp_path / "take.bvh"
    path.write_text(z_up_bvh(joints))
    placed = place(read_bvh(path))
    np.testing.assert_allclose(placed.joints, joints, atol=1e-6)
    assert "taken as Z up" in placed.notes[0]
    np.testing.assert_allclose(place(read_bvh(path), up_axis="z").joints, joints, atol=1e-6)
    as_it_is = place(read_bvh(path), up_axis="y").joints
    np.testing.assert_allclose(as_it_is[..., 2], joints[..., 1], atol=1e-6)


def test_somebody_who_lies_down_does_not_change_the_axes(tmp_path, moving_body):
    joints, _ = moving_body()
    lying = Rotation.from_euler("X", 90, degrees=True).apply(joints.reshape(-1, 3)).reshape(joints.shape)
    path = tmp_path / "out.bvh"
    write_bvh(path, lying, 30)
    np.testing.assert_allclose(place(read_bvh(path)).joints, lying, atol=1e-5)
