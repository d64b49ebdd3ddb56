"""load_clips: every kind, mixed; order, names, splits; and one clear sentence for everything wrong."""

import json
import os
import zipfile

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.bvh import write_bvh
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import convert_heading, joints_to_features
from fastvq.models.motion.joint_arrays import write_joint_arrays
from fastvq.models.motion.load import clip_features, load_clips, split_of
from fastvq.models.motion.rotation import yaw_matrix
from fastvq.models.motion.skeleton import REST_DIRECTIONS, forward_kinematics


def body(frames=40, turn=1.0):
    """(T, 22, 3) float32 joints that walk and turn."""
    rotations = np.broadcast_to(np.eye(3), (frames, 22, 3, 3)).copy()
    rotations[:, 0] = yaw_matrix(np.linspace(0, turn, frames))
    root = np.linspace([0, 1, 0], [0, 1, 1], frames)
    return forward_kinematics(REST_DIRECTIONS * 0.2, rotations, root).astype(np.float32)


def names(report):
    return [clip.name for clip in report.clips]


def test_a_folder_of_all_kinds(tmp_path):
    features = joints_to_features(body())
    write_bvh(tmp_path / "b" / "walk.bvh", body(), 24)
    write_joint_arrays(tmp_path / "c.npz", [Clip("z", 60, body(), "turns", "test"), Clip("a", 60, body())])
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "joints.npy", body())
    np.save(tmp_path / "d" / "features.npy", convert_heading(features, source="absolute", target="difference"))
    np.save(tmp_path / "d" / "mean.npy", np.zeros(272))
    np.save(tmp_path / "d" / "std.npy", np.ones(272))
    (tmp_path / "d" / "joints.txt").write_text("a man turns\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.bvh").write_text("no motion")
    (tmp_path / "old.zip").write_bytes(b"PK\x03\x04")
    seen = []
    report = load_clips(tmp_path, progress=lambda done, total, name: seen.append((done, total, name)))
    assert names(report) == ["walk", "a", "z", "features", "joints"]
    assert seen == [(1, 4, "walk.bvh"), (2, 4, "c.npz"), (3, 4, "features.npy"), (4, 4, "joints.npy")]
    clips = {clip.name: clip for clip in report.clips}
    assert {clip.fps for clip in report.clips} == {30.0}
    assert {name: clip.frames for name, clip in clips.items()} == {
        "walk": 49,  # 39 / 24 s at 30 frames per second, and the first
        "a": 20,
        "z": 20,
        "features": 40,
        "joints": 40,
    }
    assert (clips["z"].text, clips["z"].split, clips["joints"].text) == ("turns", "test", "a man turns")
    np.testing.assert_array_equal(clips["a"].joints, body()[::2])
    np.testing.assert_allclose(clips["features"].features, features, atol=1e-5)
    (mapping,) = report.mappings.values()
    assert mapping.sources["left_hip"] == "left_hip"
    notes = "\n".join(report.notes)
    assert "old.zip: skipped, an archive" in notes
    assert "skipped 1 files .png" in notes
    assert "1 files of features are taken to hold the heading as: difference" in notes
    assert "joints.npy: says no frame rate" in notes
    assert len(report.notes) == 4


def test_rates(tmp_path):
    np.save(tmp_path / "a.npy", body())
    assert load_clips(tmp_path, fps=None).clips[0].fps == 30.0
    clip = load_clips(tmp_path, source_fps=60).clips[0]
    assert (clip.fps, clip.frames) == (30.0, 20)
    clip = load_clips(tmp_path, fps=None, source_fps=20).clips[0]
    assert (clip.fps, clip.frames) == (20, 40)


def test_features_keep_their_own_unless_the_rate_changes(tmp_path):
    np.save(tmp_path / "a.npy", joints_to_features(body()))
    clip = load_clips(tmp_path, heading="absolute").clips[0]
    np.testing.assert_array_equal(clip_features(clip), joints_to_features(body()))
    slower = load_clips(tmp_path, fps=15, heading="absolute").clips[0]
    assert slower.features is None
    assert clip_features(slower).shape == (20, 272)


def test_features_of_a_clip_from_joints():
    np.testing.assert_array_equal(clip_features(Clip("a", 30, body())), joints_to_features(body()))


def test_equal_names_get_their_folders_then_their_files(tmp_path):
    for folder in ("one", "two"):
        write_bvh(tmp_path / folder / "walk.bvh", body(), 30)
    np.save(tmp_path / "two" / "walk.npy", body())
    np.save(tmp_path / "run.npy", body())
    report = load_clips(tmp_path)
    assert names(report) == ["one__walk", "run", "two__walk__walk.bvh", "two__walk__walk.npy"]
    assert names(load_clips(tmp_path)) == names(report)


def test_splits_of_lists_and_those_that_nobody_listed(tmp_path):
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", body())
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b\n")
    report = load_clips(tmp_path, source_fps=30)
    assert {clip.name: clip.split for clip in report.clips} == {"a": "train", "b": "val"}
    assert report.notes == ["skipped 1 .npy files that no split file names, first 'c'"]
    assert names(load_clips(tmp_path, split="val")) == ["b"]
    with pytest.raises(UserError, match=r"no clips in the split 'test': it has train \(1\), val \(1\)"):
        load_clips(tmp_path, split="test")


def test_a_tenth_of_all_names_is_for_the_test():
    drawn = [split_of(f"clip_{number}") for number in range(4000)]
    # A binomial draw of 4000 with p = 0.1 has a standard deviation of 19; it is a hash, so it never changes.
    assert 400 - 60 < drawn.count("test") < 400 + 60
    assert set(drawn) == {"train", "test"}
    assert split_of("clip_0") == split_of("clip_0")


def test_short_clips_are_left_out_with_a_note(tmp_path):
    write_joint_arrays(
        tmp_path / "c.npz", [Clip("long", 30, body(4)), Clip("short", 30, body(3)), Clip("s", 60, body(6))]
    )
    report = load_clips(tmp_path)
    assert names(report) == ["long"]
    assert report.notes == ["skipped 2 clips of fewer than 4 frames, first 's' with 3 at 30 frames per second"]
    write_joint_arrays(tmp_path / "c.npz", [Clip("short", 30, body(3))])
    with pytest.raises(UserError, match=r"nothing remains to load \(skipped 1 clips of fewer than 4 frames"):
        load_clips(tmp_path)


def test_a_mapping_file_is_used(tmp_path):
    write_bvh(tmp_path / "walk.bvh", body(), 30)
    file = tmp_path / "walk.bvh"
    file.write_text(file.read_text().replace("left_hip", "bone7"))
    with pytest.raises(UserError, match=r"walk\.bvh: the skeleton lacks left_hip "):
        load_clips(tmp_path)
    (tmp_path / "map.json").write_text(json.dumps({"left_hip": "bone7"}))
    report = load_clips(tmp_path, mapping_file=tmp_path / "map.json")
    assert next(iter(report.mappings.values())).sources["left_hip"] == "bone7"
    np.testing.assert_allclose(report.clips[0].joints, body(), atol=1e-4)


def test_files_with_other_endings_are_known_by_their_beginning(tmp_path):
    write_bvh(tmp_path / "walk.motion", body(), 30)
    with open(tmp_path / "joints.data", "wb") as file:
        np.save(file, body())
    assert names(load_clips(tmp_path)) == ["joints", "walk"]
    assert names(load_clips(tmp_path / "walk.motion")) == ["walk"]


def test_names_in_another_encoding_can_be_written(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9", b"caf\xe8"):
        path = os.path.join(folder, name + b".bvh")
        try:
            os.mkdir(os.path.join(folder, name))
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        write_bvh(tmp_path / "good.bvh", body(), 30)
        os.rename(tmp_path / "good.bvh", path)
        os.link(path, os.path.join(folder, name, b"x.bvh"))
    report = load_clips(tmp_path)
    assert len(set(names(report))) == 4
    assert all(name.encode() and name.startswith("caf?") for name in names(report))


def test_linked_folders_are_searched_and_links_to_nothing_noted(tmp_path):
    write_bvh(tmp_path / "elsewhere" / "a.bvh", body(), 30)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "gone.bvh").symlink_to(tmp_path / "nowhere.bvh")
    report = load_clips(tmp_path / "data")
    assert names(report) == ["a"]
    assert any("gone.bvh: skipped, a link to what is not there" in note for note in report.notes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder: check the path"),
        (lambda path: path.mkdir(), "the folder is empty: expected BVH"),
        (lambda path: (path.mkdir(), (path / "notes.txt").touch()), r"no motions in 1 files \(\.txt\): expected BVH"),
    ],
)
def test_paths_without_motions(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        load_clips(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.zip", b"PK\x03\x04", "is an archive: unpack it and give the folder"),
        ("data", b"PK\x03\x04", "is an archive"),
        ("a.json", b"[]", "is no motion file: expected BVH"),
        ("a.csv", b"1,2", "is no motion file"),
        ("a.bvh", b"once upon a time", "not a BVH file"),
        ("a.bvh", b"HIERARCHY\nROOT a\n{\n", "no MOTION section"),
        ("a.amc", b"1\nroot 0 0 0 0 0 0\n", "an AMC file needs its skeleton"),
        ("a.npy", b"\x80\x04K\x01.", "pickled Python objects are refused"),
        ("a.npz", b"PK\x03\x04 and no more", "cut off or damaged"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_clips(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_file_in_a_folder_stops_unless_it_may_be_skipped(tmp_path):
    write_bvh(tmp_path / "good.bvh", body(), 30)
    (tmp_path / "bad.bvh").write_text((tmp_path / "good.bvh").read_text()[:-200])
    np.save(tmp_path / "wide.npy", np.zeros((9, 263)))
    with pytest.raises(UserError, match=r"bad\.bvh: expected 40 frames"):
        load_clips(tmp_path)
    report = load_clips(tmp_path, on_error="skip")
    assert names(report) == ["good"]
    assert [note.partition(":")[0] for note in report.notes] == ["skipped", "skipped"]
    assert "bad.bvh" in report.notes[0]
    assert "wide.npy: columns 67 to 192 are no rotations" in report.notes[1]
    (tmp_path / "good.bvh").unlink()
    with pytest.raises(UserError, match="nothing remains to load"):
        load_clips(tmp_path, on_error="skip")


def test_the_shared_data(mocap):
    report = load_clips(mocap / "mocap_cmu_hdm05_22j_60fps.npz")
    assert len(report.clips) == 410
    assert report.notes == []
    assert {clip.fps for clip in report.clips} == {30.0}
    assert len(load_clips(mocap, split="test").clips) == 127


def test_real_skeletons_are_mapped_and_reported(mocap, tmp_path):
    for name in ("reactidle_bvh_3clips.zip", "cmu_asf_amc_subject02.zip"):
        with zipfile.ZipFile(mocap / name) as archive:
            archive.extractall(tmp_path / name.split("_")[0])
    report = load_clips(tmp_path)
    assert len(report.clips) == 13
    assert report.notes == []
    assert sorted(key.partition(",")[0] for key in report.mappings) == [
        "skeleton 'pelvis' of 19 joints",
        "skeleton 'root' of 31 joints",
    ]
    for clip in report.clips:
        assert clip_features(clip).shape == (clip.frames, 272)
