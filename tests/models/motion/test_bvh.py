"""BVH files: what any exporter writes is read, and what is written reads back to where it was."""

import dataclasses
import errno
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvq.models.errors import UserError
from fastvq.models.motion.bvh import read_bvh, write_bvh
from fastvq.models.motion.features272 import joints_to_rotations
from fastvq.models.motion.placement import place
from fastvq.models.motion.skeleton import (
    CHILDREN,
    JOINT_NAMES,
    forward_kinematics,
)

SMALL = """HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Yposition Xposition Zposition Zrotation Xrotation Yrotation
  JOINT Upper Arm {
    OFFSET 0 2 0
    CHANNELS 3 Yrotation Zrotation Xrotation
    JOINT Slider
    {
      OFFSET 0 0 3
      CHANNELS 2 Xposition Yrotation
      End Site
      {
        OFFSET 1 0 0
      }
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.0333333
5 4 6   0 0 0   0 0 0    0 0
1 2 3   90 0 0  0 90 0   0.5 -90
"""


def save(folder: Path, text: str, name="take.bvh") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_positions_and_rotations_follow_the_written_order(tmp_path):
    motion = read_bvh(save(tmp_path, SMALL))
    assert motion.skeleton.names == ("Hips", "Upper Arm", "Slider", "end site of Slider")
    assert motion.skeleton.parents == (-1, 0, 1, 2)
    assert motion.skeleton.end_sites == (False, False, False, True)
    assert motion.fps == 30.0
    # Frame 0, nothing turned; the slider's x channel replaces its offset's 0.
    np.testing.assert_allclose(motion.positions[0], [[4, 5, 6], [4, 7, 6], [4, 7, 9], [5, 7, 9]], atol=1e-12)
    # Frame 1: Rz(90) takes the arm's +y to -x; below it Rz(90) again takes (0.5, 0, 3) to (-0.5, 0, 3); then
    # Ry(-90) takes +x to +z.
    np.testing.assert_allclose(motion.positions[1], [[2, 1, 3], [0, 1, 3], [-0.5, 1, 6], [-0.5, 1, 7]], atol=1e-12)


@pytest.mark.parametrize("order", ["XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"])
def test_any_rotation_order_is_the_product_of_turns_in_that_order(tmp_path, order):
    channels = " ".join(f"{axis}rotation" for axis in order)
    text = f"HIERARCHY\nROOT a\n{{\nOFFSET 0 0 0\nCHANNELS 3 {channels}\nEnd Site\n{{\nOFFSET 1 2 3\n}}\n}}\n"
    text += "MOTION\nFrames: 1\nFrame Time: 0.01\n10 20 30\n"
    turn = np.eye(3)
    for axis, angle in zip(order, (10, 20, 30), strict=True):
        turn = turn @ Rotation.from_euler(axis, angle, degrees=True).as_matrix()
    motion = read_bvh(save(tmp_path, text))
    np.testing.assert_allclose(motion.positions[0, 1], turn @ [1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(motion.rotations[0, 0], turn, atol=1e-12)


def test_position_channels_around_zero_are_added_to_the_offsets(tmp_path):
    motion = read_bvh(save(tmp_path, SMALL.replace("OFFSET 0 0 3", "OFFSET 7 0 3")))
    np.testing.assert_allclose(motion.positions[0, 2], [11, 7, 9], atol=1e-12)


@pytest.mark.parametrize(
    ("written", "fps"),
    [("0.041667", 24), ("0.0333333", 30), ("0.008333", 120), ("0.033", 30), ("0.0166667", 60), ("1.0", 1)],
)
def test_rounded_frame_times_give_whole_rates(tmp_path, written, fps):
    assert read_bvh(save(tmp_path, SMALL.replace("0.0333333", written))).fps == fps


def test_a_rate_that_is_not_whole_is_kept(tmp_path):
    assert read_bvh(save(tmp_path, SMALL.replace("0.0333333", "0.0333667"))).fps == pytest.approx(29.97, abs=1e-3)


def test_byte_order_mark_windows_lines_and_lower_case_are_read(tmp_path):
    path = tmp_path / "take.bvh"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    np.testing.assert_array_equal(read_bvh(path).positions, read_bvh(save(tmp_path, SMALL, "b.bvh")).positions)
    path.write_text(SMALL, encoding="utf-16")
    assert len(read_bvh(path).positions) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HIERARCHY", "HELLO", "not a BVH file: expected HIERARCHY"),
        ("MOTION", "", "no MOTION section"),
        (
            "0.5 -90",
            "",
            r"expected 2 frames of 11 numbers as its headers say, got 1.81818 frames: the file is cut off",
        ),
        ("Frames: 2", "Frames: 3", "expected 3 frames"),
        ("Frames: 2", "Frames: two", "is no number"),
        ("Frames: 2", "Frames: 0", "at least 1 frame"),
        ("Frame Time: 0.0333333", "", "expected 'Frames:' and 'Frame Time:'"),
        ("0.0333333", "-1", "frame time"),
        ("0.5 -90", "x -90", "no number"),
        ("0.5 -90", "nan -90", "1 of 2 frames hold NaN or infinity, first frame 1"),
        ("OFFSET 0 2 0", "OFFSET 0 2", "line 7 of the BVH file makes no sense"),
        ("CHANNELS 2", "CHANNELS 3", "makes no sense: 'CHANNELS 3"),
        ("Yrotation Zrotation Xrotation", "Yrotation Yrotation Xrotation", "no Euler order"),
        ("        OFFSET 1 0 0\n      }\n    }\n  }\n}\n", "", "HIERARCHY is cut off"),
        ("  JOINT Upper", "  ROOT Upper", "more than one ROOT"),
        ("JOINT Slider", "JOIN Slider", "makes no sense"),
        ("OFFSET 0 2 0", "OFFSET 0 nan 0", "line 7 of the BVH file makes no sense"),
        ("Frames: 2", "Frames: " + "9" * 5000, "is no number, got '9{20}' and"),
    ],
)
def test_damaged_files_get_one_clear_sentence(tmp_path, old, new, message):
    assert old in SMALL
    path = save(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        read_bvh(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frames", ["2", "2000000000000"])
def test_a_file_in_which_nothing_moves_is_refused(tmp_path, frames):
    text = f"HIERARCHY\nROOT a\n{{\nOFFSET 0 0 0\n}}\nMOTION\nFrames: {frames}\nFrame Time: 0.03\n1 2 3\n"
    with pytest.raises(UserError, match="no joint of the BVH file has CHANNELS"):
        read_bvh(save(tmp_path, text))


def test_absurd_sizes_are_refused_without_a_warning(tmp_path, moving_body):
    joints, _ = moving_body(frames=3)
    write_bvh(tmp_path / "a.bvh", joints, 30)
    motion = read_bvh(tmp_path / "a.bvh")
    with pytest.raises(UserError, match="3 of 3 frames hold NaN or infinity"):
        place(dataclasses.replace(motion, positions=motion.positions * 1e200))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a BVH file"),
        (b"HIERARCHY\nROOT J\xe4nner", "no such text"),
        (b"HIERARCHY\0\0", "binary data"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, message):
    path = tmp_path / "take.bvh"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_bvh(path)


def test_cut_off_anywhere_a_file_is_refused(tmp_path, moving_body):
    joints, _ = moving_body(frames=3)
    whole = tmp_path / "whole.bvh"
    write_bvh(whole, joints, 30)
    text = whole.read_text()
    # A cut within the last number leaves another number; everything before that must be noticed.
    for end in range(0, text.rstrip().rindex(" "), 97):
        with pytest.raises(UserError, match=r"take\.bvh: "):
            read_bvh(save(tmp_path, text[:end]))


def test_a_rigid_body_needs_no_position_channels_but_the_root(tmp_path, moving_body):
    joints, _ = moving_body()
    path = tmp_path / "out.bvh"
    write_bvh(path, joints, 24)
    back = place(read_bvh(path))
    # 1e-6 m and 1e-6 degrees are written, and float32 holds 3 m to 2.4e-7 m; errors add up over 7 joints.
    assert np.abs(back.joints - joints).max() < 1e-5
    # The collars and the neck, and hips and spine, move against each other when spine3 has no rotation of
    # its own to share, so only the branches may need channels.
    assert path.read_text().count("CHANNELS 6") <= 1 + len(CHILDREN[0]) + len(CHILDREN[9])
    assert back.fps == 24.0
    assert list(back.report.sources.values()) == list(JOINT_NAMES)


def test_given_rotations_are_written_and_come_back(tmp_path, moving_body):
    joints, rotations = moving_body()
    path = tmp_path / "out.bvh"
    write_bvh(path, joints, 30, rotations=rotations)
    motion = read_bvh(path)
    order = [motion.skeleton.names.index(name) for name in JOINT_NAMES]
    # 1e-6 degrees are 2e-8 radians.
    assert np.abs(motion.rotations[:, order] - rotations).max() < 1e-7
    assert np.abs(place(motion).joints - joints).max() < 1e-5
    assert path.read_text().count("CHANNELS 6") == 1


def test_bones_that_vary_get_position_channels(tmp_path, moving_body):
    joints, _ = moving_body()
    joints = joints.copy()
    joints[:, 20] += np.linspace(0, 0.05, len(joints))[:, None]
    path = tmp_path / "out.bvh"
    write_bvh(path, joints, 30)
    text = path.read_text()
    after = text[text.index("JOINT left_wrist") :]
    assert "CHANNELS 6 Xposition" in after[: after.index("End Site")]
    assert np.abs(place(read_bvh(path)).joints - joints).max() < 1e-5


@pytest.mark.parametrize("tolerance", [1e-4, 1e-2])
def test_no_joint_is_off_by_more_than_the_tolerance(tmp_path, tolerance, moving_body):
    joints, _ = moving_body()
    noisy = joints + np.random.default_rng(1).normal(scale=tolerance / 3, size=joints.shape)
    path = tmp_path / "out.bvh"
    write_bvh(path, noisy, 30, tolerance=tolerance)
    error = np.linalg.norm(place(read_bvh(path)).joints - noisy, axis=-1)
    assert error.max() <= tolerance + 1e-5
    assert path.read_text().count("CHANNELS 3") > 0


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_short_and_degenerate_bodies_are_written(tmp_path, frames, moving_body):
    joints, _ = moving_body(frames=frames)
    joints = joints.copy()
    joints[:, [13, 14]] = joints[:, [12]]
    path = tmp_path / "out.bvh"
    write_bvh(path, joints, 30)
    assert np.abs(place(read_bvh(path)).joints - joints).max() < 1e-5


def test_gimbal_lock_is_written_without_a_warning(tmp_path, rest_body):
    rotations = np.broadcast_to(np.eye(3), (5, 22, 3, 3)).copy()
    rotations[:, 16] = Rotation.from_euler("ZXY", [20, 90, 0], degrees=True).as_matrix()
    joints = forward_kinematics(rest_body(), rotations, np.zeros((5, 3)))
    path = tmp_path / "out.bvh"
    write_bvh(path, joints, 30, rotations=rotations)
    assert np.abs(place(read_bvh(path)).joints - joints).max() < 1e-5


@pytest.mark.parametrize(
    ("joints", "options", "message"),
    [
        (np.zeros((5, 21, 3)), {}, r"shape \(frames, 22, 3\), got \(5, 21, 3\)"),
        (np.zeros((0, 22, 3)), {}, "shape"),
        (np.full((5, 22, 3), np.nan), {}, "5 of 5 frames hold NaN"),
        (np.zeros((5, 22, 3)), {"rotations": np.zeros((4, 22, 3, 3))}, "rotations must have the shape"),
    ],
)
def test_wrong_arrays_are_refused_and_nothing_is_written(tmp_path, joints, options, message):
    with pytest.raises(UserError, match=message):
        write_bvh(tmp_path / "out.bvh", joints, 30, **options)
    with pytest.raises(UserError, match="frames per second must be positive"):
        write_bvh(tmp_path / "out.bvh", np.zeros((5, 22, 3)), 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moving_body):
    path = save(tmp_path, "old", "out.bvh")

    def full(self, *_args, **_options):
        self.write_bytes(b"HIERARCHY half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    joints, _ = moving_body(frames=4)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\): choose another place or make room"
    ):
        write_bvh(path, joints, 30)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_real_files_come_back_within_a_millimetre(mocap, tmp_path):
    with zipfile.ZipFile(mocap / "reactidle_bvh_3clips.zip") as archive:
        archive.extractall(tmp_path)
    files = sorted(tmp_path.glob("*.bvh"))
    assert len(files) == 3
    for file in files:
        motion = read_bvh(file)
        source = place(motion)
        assert source.fps == 24.0
        assert source.notes == []
        assert set(source.report.end_sites) == {"left_wrist", "right_wrist", "left_foot", "right_foot"}
        assert set(source.report.interpolated) == {"spine1", "spine3"}
        out = tmp_path / "out.bvh"
        write_bvh(out, source.joints, source.fps)
        back = place(read_bvh(out))
        assert back.fps == source.fps
        assert len(back.joints) == len(source.joints)
        error = np.linalg.norm(back.joints - source.joints, axis=-1)
        # 1 mm is what is promised, 0.1 mm the writer's tolerance; 0.0023 mm was measured.
        assert error.max() < 1e-4


def plain_positions(text, frame):
    """{joint: position} of one frame, by the letter of the format, one 4 x 4 matrix per channel."""
    head, motion = text.split("MOTION")
    numbers = [float(word) for word in motion.splitlines()[3 + frame].split()]
    found, stack, channel, name = {}, [np.eye(4)], 0, ""
    for words in (line.split() for line in head.splitlines()):
        if words[:1] in (["ROOT"], ["JOINT"]):
            name = words[1]
        elif words[:1] == ["End"]:
            name = f"end site of {name}"
        elif words[:1] == ["OFFSET"]:
            here = np.eye(4)
            here[:3, 3] = [float(word) for word in words[1:]]
        elif words[:1] == ["CHANNELS"]:
            for word in words[2:]:
                step, axis = np.eye(4), "XYZ".index(word[0])
                if word.endswith("position"):
                    here[axis, 3] = numbers[channel]
                else:
                    step[:3, :3] = Rotation.from_euler(word[0], numbers[channel], degrees=True).as_matrix()
                here = here @ step
                channel += 1
            stack.append(stack[-1] @ here)
            found[name] = stack[-1][:3, 3]
        elif words == ["}"]:
            stack.pop()
        if name.startswith("end site") and words[:1] == ["OFFSET"]:
            stack.append(stack[-1] @ here)
            found[name] = stack[-1][:3, 3]
    assert channel == len(numbers)
    return found


def test_real_files_are_read_as_the_format_says(mocap):
    with zipfile.ZipFile(mocap / "reactidle_bvh_3clips.zip") as archive:
        name = "003_genuine.bvh"
        text = archive.read(name).decode()
        with tempfile.TemporaryDirectory() as folder:
            motion = read_bvh(save(Path(folder), text))
    assert motion.positions.shape == (918, 26, 3)
    for frame in (0, 1, 500, 917):
        expected = plain_positions(text, frame)
        for joint, position in zip(motion.skeleton.names, motion.positions[frame], strict=True):
            np.testing.assert_allclose(position, expected[joint], atol=1e-12)


def test_written_rotations_are_those_of_the_features(tmp_path, moving_body):
    joints, _ = moving_body()
    path = tmp_path / "out.bvh"
    write_bvh(path, joints, 30)
    motion = read_bvh(path)
    order = [motion.skeleton.names.index(name) for name in JOINT_NAMES]
    assert np.abs(motion.rotations[:, order] - joints_to_rotations(joints)).max() < 1e-7
