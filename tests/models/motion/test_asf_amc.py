"""ASF/AMC: a skeleton of our own whose positions can be worked out by hand, and CMU's subject 02."""

import zipfile

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.asf_amc import find_asf, read_amc, read_asf
from fastvq.models.motion.joint_arrays import read_joint_npz
from fastvq.models.motion.placement import place

ASF = """# a small arm
:version 1.10
:name small
:units
  mass 1.0
  length 0.5
  angle deg
:documentation
   nothing
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name upper
     direction 0 2 0
     length 3
     axis 0 0 90 XYZ
     dof rx rz
     limits (-160.0 20.0)
            (-70.0 70.0)
  end
  begin
     id 2
     name stiff
     direction 1 0 0
     length 2
     axis 0 0 0 XYZ
  end
:hierarchy
  begin
    root upper
    upper stiff
  end
"""
AMC = """#!OML:ASF small.ASF
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 0 0 0
upper 0 0
2
root 1 2 3 0 90 0
upper 0 0
3
root 0 0 0 0 0 0
upper 90 0
4
root 0 0 0 90 0 90
upper 0 0
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "small.asf").write_text(ASF)
    (tmp_path / "small_01.amc").write_text(AMC)
    return tmp_path


def read(folder):
    return read_amc(folder / "small_01.amc", read_asf(folder / "small.asf"))


def test_positions_worked_out_by_hand(folder):
    motion = read(folder)
    assert motion.skeleton.names == ("root", "upper", "stiff", "end site of stiff")
    assert motion.unit == pytest.approx(0.0254 / 0.5)
    assert motion.fps == 120.0
    # The direction is made a unit vector; "upper" begins at the root and ends where "stiff" begins.
    np.testing.assert_allclose(motion.positions[0], [[1, 2, 3], [1, 2, 3], [1, 5, 3], [3, 5, 3]], atol=1e-12)
    # The root turned about y by 90 degrees takes +x to -z.
    np.testing.assert_allclose(motion.positions[1], [[1, 2, 3], [1, 2, 3], [1, 5, 3], [1, 5, 1]], atol=1e-12)
    # The bone's axes are turned by 90 degrees about z, so that its x axis is the world's y: rx turns the
    # bones below about y, and +x goes to -z.
    np.testing.assert_allclose(motion.positions[2], [[0, 0, 0], [0, 0, 0], [0, 3, 0], [0, 3, -2]], atol=1e-12)
    # Order XYZ about fixed axes, x first: +y goes to +z by x and stays there by z; +x goes to +y by z.
    np.testing.assert_allclose(motion.positions[3], [[0, 0, 0], [0, 0, 0], [0, 0, 3], [0, 2, 3]], atol=1e-12)


def test_radians_are_read(folder):
    (folder / "small_01.amc").write_text(AMC.replace(":DEGREES", ":RADIANS").replace(" 90", " 1.5707963267948966"))
    np.testing.assert_allclose(read(folder).positions[1, 3], [1, 5, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (AMC, "", "not an AMC file"),
        ("1\nroot", "root", "not an AMC file"),
        ("3\nroot 0 0 0 0 0 0\nupper 90 0\n4", "3\nroot 0 0 0 0 0 0\nupper 90\n4", "cut off in frame"),
        ("root 0 0 0 90 0 90\nupper 0 0\n", "root 0 0 0 90", "cut off in frame 4"),
        ("upper 90 0", "upper x 0", "damaged"),
        ("3\nroot 0 0 0 0 0 0\nupper 90 0\n", "3\nupper 90 0\nroot 0 0 0 0 0 0\n", "damaged"),
        ("upper", "lower", "bone 'lower' is not in the skeleton: give the ASF file that belongs to it"),
    ],
)
def test_damaged_motions_get_one_clear_sentence(folder, old, new, message):
    assert old in AMC
    (folder / "small_01.amc").write_text(AMC.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert "small_01.amc" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ASF, "hello", "lacks the section :root, :bonedata, :hierarchy"),
        (ASF[ASF.index(":hierarchy") :], "", "lacks the section :hierarchy"),
        ("direction 0 2 0", "direction 0 2", "direction of bone upper"),
        ("length 3", "length long", "makes no sense"),
        ("axis 0 0 90 XYZ", "axis 0 0 90 XYX", "axis or direction"),
        ("dof rx rz", "dof rx l", "degrees of freedom"),
        ("length 0.5", "length 0", "makes no sense"),
        ("upper stiff", "upper root stiff", "the root hangs on bone upper"),
        ("root upper", "root root upper", "the root hangs on bone root"),
        ("upper stiff", "upper stiff\n stiff upper", "bone stiff of the hierarchy does not hang on the root"),
        ("   axis XYZ", "   axis XYX", "axis xyx of the root"),
        ("upper stiff", "upper hand", "bone hand of the hierarchy is not in :bonedata"),
        ("     axis 0 0 0 XYZ\n  end", "     axis 0 0 0 XYZ", "without its 'end'"),
    ],
)
def test_damaged_skeletons_get_one_clear_sentence(folder, old, new, message):
    assert old in ASF
    (folder / "small.asf").write_text(ASF.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read(folder)


def test_the_skeleton_is_found_by_name(tmp_path):
    amc = tmp_path / "HDM_bk_01-01_01_120.amc"
    with pytest.raises(UserError, match=r"no \.asf file lies beside it"):
        find_asf(amc)
    only = tmp_path / "only.asf"
    only.touch()
    assert find_asf(amc) == only
    assert find_asf(tmp_path / "motions" / amc.name if (tmp_path / "motions").mkdir() is None else amc) == only
    for name in ("HDM_b.asf", "HDM_bk.asf", "HDM_dg.asf"):
        (tmp_path / name).touch()
    assert find_asf(amc).name == "HDM_bk.asf"
    with pytest.raises(UserError, match="none has a name that begins like this one's"):
        find_asf(tmp_path / "walk.amc")


def test_cmu_takes_equal_the_same_takes_of_the_shared_arrays(mocap, tmp_path):
    with zipfile.ZipFile(mocap / "cmu_asf_amc_subject02.zip") as archive:
        archive.extractall(tmp_path)
    reference = {clip.name: clip for clip in read_joint_npz(mocap / "mocap_cmu_hdm05_22j_60fps.npz")[0]}
    takes = sorted(tmp_path.rglob("*.amc"))
    assert len(takes) == 10
    for take in takes:
        motion = read_amc(take, read_asf(find_asf(take)))
        placed = place(motion)
        assert placed.notes == []
        assert motion.fps == 120.0
        # Bones of the source are rigid.
        above = [max(parent, 0) for parent in motion.skeleton.parents]
        lengths = np.linalg.norm(motion.positions - motion.positions[:, above], axis=-1)
        assert np.ptp(lengths, axis=0).max() < 1e-9
        # The arrays hold every second frame, shifted to begin at x = z = 0 and to stand on the floor.
        joints, expected = placed.joints[::2], reference[f"cmu_{take.stem}"].joints
        assert len(joints) == len(expected)
        shift = expected[0, 0] - joints[0, 0]
        # Both are float32, rounded at a few metres to 2.4e-7 m, and shifted once more; 4e-7 m were measured.
        assert np.abs(joints + shift - expected).max() < 2e-6
    # A man of plausible size in the first frame of the last take, standing: head to toes.
    assert 1.4 < np.ptp(placed.joints[0, :, 1]) < 1.7
    assert placed.report.interpolated == ("left_collar", "right_collar")
    assert placed.report.sources["spine3"] == "lowerneck"
