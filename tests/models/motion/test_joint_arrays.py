"""Joint arrays: round trip, the shared data, and every kind of wrong file."""

import errno
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.joint_arrays import read_array, read_joint_npy, read_joint_npz, write_joint_arrays
from fastvq.models.motion.skeleton import REST_DIRECTIONS, forward_kinematics


def body(frames=6, size=1.0):
    """(T, 22, 3) float32 joints of a standing body that walks along z."""
    root = np.linspace([0, 1, 0], [0, 1, 1], frames)
    rotations = np.broadcast_to(np.eye(3), (frames, 22, 3, 3))
    return (forward_kinematics(REST_DIRECTIONS * 0.2, rotations, root) * size).astype(np.float32)


def test_what_is_written_comes_back(tmp_path):
    clips = [
        Clip("walk", 60.0, body(), text="a person wälks", split="test"),
        # Names that numpy.savez could not take as keywords.
        Clip("file", 30.0, body(9)),
        Clip("sub/take", 24.0, body(1)),
    ]
    path = tmp_path / "new" / "data.npz"
    write_joint_arrays(path, clips)
    back, notes = read_joint_npz(path)
    assert notes == []
    assert [clip.name for clip in back] == ["file", "sub/take", "walk"]
    for clip in clips:
        (same,) = [other for other in back if other.name == clip.name]
        np.testing.assert_array_equal(same.joints, clip.joints)
        assert (same.fps, same.text, same.split) == (clip.fps, clip.text, clip.split)
        assert same.joints.dtype == np.float32
    assert sorted(file.name for file in path.parent.iterdir()) == ["data.json", "data.npz"]


def test_the_shared_data_is_read(mocap):
    clips, notes = read_joint_npz(mocap / "mocap_cmu_hdm05_22j_60fps.npz")
    assert notes == []
    assert len(clips) == 410
    assert {clip.fps for clip in clips} == {60.0}
    assert {clip.split for clip in clips} == {"train", "test"}
    assert sum(clip.seconds for clip in clips) == pytest.approx(30.0 * 60, rel=2e-3)
    (walk,) = [clip for clip in clips if clip.name == "cmu_02_01"]
    assert walk.text == "walk"
    assert walk.joints.shape == (172, 22, 3)


def test_without_a_table_the_rate_is_in_the_file_given_or_assumed(tmp_path):
    np.savez(tmp_path / "a.npz", walk=body(), fps=np.array(50))
    clips, notes = read_joint_npz(tmp_path / "a.npz")
    assert ([clip.fps for clip in clips], notes, clips[0].split) == ([50.0], [], "")
    np.savez(tmp_path / "b.npz", walk=body().astype(np.float64))
    clips, notes = read_joint_npz(tmp_path / "b.npz")
    assert clips[0].fps == 30.0
    assert "1 clips have no frame rate and are taken as 30 frames per second" in notes[0]
    clips, notes = read_joint_npz(tmp_path / "b.npz", fps=20)
    assert (clips[0].fps, notes) == (20, [])


def test_one_clip_in_a_npy_file(tmp_path):
    np.save(tmp_path / "walk.npy", body())
    clip, notes = read_joint_npy(tmp_path / "walk.npy", fps=20)
    assert (clip.name, clip.fps, notes) == ("walk", 20, [])
    np.testing.assert_array_equal(clip.joints, body())
    clip, notes = read_joint_npy(tmp_path / "walk.npy")
    assert clip.fps == 30.0
    assert "says no frame rate" in notes[0]


def test_bodies_that_are_not_in_metres_are_noted(tmp_path):
    np.save(tmp_path / "walk.npy", body(size=100))
    _, notes = read_joint_npy(tmp_path / "walk.npy", fps=20)
    assert "joints are expected in metres" in notes[0]


class Payload:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def nan_body():
    joints = body()
    joints[4, 3, 1] = np.nan
    return joints


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (body()[:, :21], r"expected joints of the shape \(frames, 22, 3\), got \(6, 21, 3\)"),
        (body()[:0], "got .0, 22, 3."),
        (body().reshape(6, 66), "got .6, 66."),
        (body() > 0, "real numbers, got dtype bool"),
        (body() * 1j, "real numbers, got dtype complex"),
        (nan_body(), "1 of 6 frames hold NaN or infinity, first frame 4: cut them out"),
        (body().astype(np.float64) * 1e39, "6 of 6 frames hold NaN or infinity"),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path, array, message):
    np.save(tmp_path / "walk.npy", array)
    with pytest.raises(UserError, match=rf"walk\.npy: .*{message}"):
        read_joint_npy(tmp_path / "walk.npy")
    np.savez(tmp_path / "all.npz", good=body(), walk=array)
    with pytest.raises(UserError, match=rf"all\.npz: clip 'walk': .*{message}"):
        read_joint_npz(tmp_path / "all.npz")


def test_pickles_are_refused_unread(tmp_path):
    objects = np.array([Payload()], dtype=object)
    np.save(tmp_path / "objects.npy", objects)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Payload()))
    np.savez(tmp_path / "objects.npz", walk=objects)
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(UserError, match="pickled Python objects"):
            read_array(tmp_path / name)
    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(UserError, match="pickled Python objects"):
            read_joint_npz(tmp_path / name)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_cut_off_files_are_refused(tmp_path, kind):
    path = tmp_path / f"walk.{kind}"
    reader = read_joint_npy if kind == "npy" else read_joint_npz
    np.save(path, body()) if kind == "npy" else np.savez(path, walk=body())
    whole = path.read_bytes()
    for size in (0, 1, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"walk\.{kind}: "):
            reader(path)


def header(shape: str) -> bytes:
    """The beginning of a .npy file that claims a shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header("(1000000000000, 22, 3)"),
        header("(100000000000000000000, 22, 3)"),
        header("(" * 40),
        b"\x93NUMPY\x01\x00\x10\x00" + b'{"descr": ((((  ',
    ],
    ids=["more than memory", "more than addresses", "open brackets", "cut header"],
)
def test_hostile_headers_are_refused(tmp_path, content):
    (tmp_path / "walk.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"walk\.npy: the file is cut off or damaged \(.+\): copy or export"):
        read_joint_npy(tmp_path / "walk.npy")
    with zipfile.ZipFile(tmp_path / "all.npz", "w") as archive:
        archive.writestr("walk.npy", content)
    with pytest.raises(UserError, match=r"all\.npz: the file is cut off or damaged \(.+\): copy or export"):
        read_joint_npz(tmp_path / "all.npz")


@pytest.mark.parametrize("name", ["walk.txt", "walk.npy", "fps.npy"])
def test_other_members_of_an_archive_are_refused(tmp_path, name):
    np.savez(tmp_path / "all.npz", good=body())
    with zipfile.ZipFile(tmp_path / "all.npz", "a") as archive:
        archive.writestr(name, b"no array")
    with pytest.raises(UserError, match=r"expected an array of numbers, got other data"):
        read_joint_npz(tmp_path / "all.npz")


@pytest.mark.parametrize("rate", ["thirty", 1j, [30, 30], 0.0, -30.0, float("nan"), 1e-9])
def test_a_rate_that_is_none_is_refused(tmp_path, rate):
    np.savez(tmp_path / "all.npz", walk=body(), fps=np.array(rate))
    with pytest.raises(UserError, match=r"all\.npz: (clip 'walk': )?(fps must|fps: expected)"):
        read_joint_npz(tmp_path / "all.npz")


def test_a_missing_file_and_an_empty_archive_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_joint_npy(tmp_path / "none.npy")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(UserError, match="holds no clips"):
        read_joint_npz(tmp_path / "empty.npz")


def test_amass_parameters_are_named_as_such(tmp_path):
    np.savez(tmp_path / "amass.npz", poses=np.zeros((5, 156)), trans=np.zeros((5, 3)), betas=np.zeros(16))
    with pytest.raises(UserError, match=r"SMPL pose parameters \(AMASS\), not joint positions"):
        read_joint_npz(tmp_path / "amass.npz")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "no valid JSON"),
        ('{"a": 1}', "expected a list of rows"),
        ('[{"frames": 3}]', "expected a list of rows"),
        ('[{"name": "a", "fps": 60}]', "says nothing of 1 of the 2 clips in the .npz beside it, first 'b'"),
        ('[{"name": "a", "fps": 0}, {"name": "b"}]', "clip 'a': fps must be a positive number"),
        ('[{"name": "a", "fps": "sixty"}, {"name": "b"}]', "clip 'a': fps must be a positive number"),
        ('[{"name": "a", "fps": true}, {"name": "b"}]', "clip 'a': fps must be a positive number"),
        ('[{"name": "a", "fps": 1e-9}, {"name": "b"}]', "clip 'a': fps must be a positive number"),
        ("[" * 100_000, "no valid JSON: it is nested too deeply"),
        ('[{"name": "a", "fps": ' + "9" * 5000 + "}]", "no valid JSON: .*digits"),
        (b"\xff\xfe\x00", "expected a JSON table"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, table, message):
    np.savez(tmp_path / "all.npz", a=body(), b=body())
    (tmp_path / "all.json").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(UserError, match=rf"all\.json: .*{message}"):
        read_joint_npz(tmp_path / "all.npz")


def test_rows_without_a_clip_are_noted(tmp_path):
    np.savez(tmp_path / "all.npz", a=body())
    (tmp_path / "all.json").write_text(json.dumps([{"name": "a", "fps": 60}, {"name": "gone", "fps": 60}]))
    clips, notes = read_joint_npz(tmp_path / "all.npz")
    assert len(clips) == 1
    assert "1 rows have no clip in the .npz, first 'gone'" in notes[0]


def test_writing_refuses_double_names_and_other_endings(tmp_path):
    with pytest.raises(UserError, match="two clips are called 'a'"):
        write_joint_arrays(tmp_path / "x.npz", [Clip("a", 30, body()), Clip("a", 30, body())])
    with pytest.raises(UserError, match=r"ends in \.npz"):
        write_joint_arrays(tmp_path / "x.npy", [Clip("a", 30, body())])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    write_joint_arrays(path, [Clip("a", 30, body())])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self, *_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_joint_arrays(path, [Clip("b", 30, body())])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
