"""HumanML3D and KIT-ML folders: written and read again, units, splits, statistics, and everything wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features263 import bone_lengths, canonicalise, joints_from_ric, joints_to_features
from fastvq.models.motion.humanml3d_folder import VectorClip, read_folder
from fastvq.models.motion.humanml3d_texts import Caption
from fastvq.models.motion.humanml3d_write import mirror_vectors, vector_clip, write_folder
from fastvq.models.motion.kit_skeleton import KIT_JOINT_NAMES
from fastvq.models.motion.kit_to_smpl import kit_to_smpl
from fastvq.models.motion.layout263 import HUMANML3D, KIT_ML, KIT_UNIT
from fastvq.models.motion.load import load_clips
from fastvq.models.motion.mirror import mirror, mirror_text
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.rotation import yaw_matrix
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.motion.statistics263 import feature_statistics
from fastvq.models.motion.transform import resample

SPLITS = ("train", "train", "val", "test")


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    made = generate_clips(4, seed=8)
    for clip, split in zip(made, SPLITS, strict=True):
        clip.split = split
    return made


@pytest.fixture
def folder(clips: list[Clip], tmp_path: Path) -> Path:
    write_folder(tmp_path / "set", [vector_clip(clip) for clip in clips])
    return tmp_path / "set"


def kit_joints(joints: np.ndarray) -> np.ndarray:
    """(T, 21, 3) metres of KIT-ML's shape, so that the joints named right are the body's right ones."""
    named = {"root": "pelvis", "spine2": "spine3"}
    out = np.empty((len(joints), 21, 3), dtype=np.float32)
    for index, name in enumerate(KIT_JOINT_NAMES):
        smpl = named.get(name, name).replace("midfoot", "foot")
        out[:, index] = joints[:, JOINT_NAMES.index(smpl)]
    return out


def kit_folder(root: Path, clips: list[Clip], *, per_metre: float) -> Path:
    """As the published one: in another unit, features of millimetres throughout."""
    (root / "new_joint_vecs").mkdir(parents=True)
    for clip in clips:
        joints = kit_joints(resample(clip.joints, clip.fps, 12.5)) * per_metre
        np.save(root / "new_joint_vecs" / f"{clip.name}.npy", joints_to_features(joints, KIT_ML))
    return root


def test_what_was_written_is_read(clips: list[Clip], folder: Path):
    read = read_folder(folder)
    assert (read.layout, read.metres_per_unit, read.notes) == (HUMANML3D, 1.0, [])
    written = {clip.name: vector_clip(clip) for clip in clips}
    assert [clip.name for clip in read.clips] == sorted(written)
    for clip in read.clips:
        np.testing.assert_array_equal(clip.features, written[clip.name].features)
        assert [caption.text for caption in clip.captions] == [one.text for one in written[clip.name].captions]
        assert clip.split == written[clip.name].split
    mean, std = feature_statistics([one.features for one in written.values() if one.split == "train"])
    np.testing.assert_array_equal(read.mean, mean)
    np.testing.assert_array_equal(read.std, std)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["new_joint_vecs", "new_joints", "texts", "train.txt", "val.txt", "test.txt", "Mean.npy", "Std.npy"]
    )
    assert (folder / "train.txt").read_text() == "".join(f"{clip.name}\n" for clip in clips[:2])


def test_a_clip_goes_in_at_twenty_frames_per_second_on_the_bones_asked_for(clips: list[Clip]):
    clip = clips[0]
    plain = vector_clip(clip)
    expected = canonicalise(resample(clip.joints, clip.fps, 20))[:-1]
    np.testing.assert_allclose(joints_from_ric(plain.features), expected, atol=1e-5)
    lengths = bone_lengths(clip.joints) * 1.1
    moved = joints_from_ric(vector_clip(clip, lengths=lengths).features)
    np.testing.assert_allclose(bone_lengths(moved), lengths, atol=1e-5)
    with pytest.raises(UserError, match="has 1 frame at 20 frames per second"):
        vector_clip(Clip("short", 30, clip.joints[:1]))


def test_one_split_by_its_file(clips: list[Clip], folder: Path):
    train = read_folder(folder, split="train")
    assert [clip.name for clip in train.clips] == sorted(clip.name for clip in clips[:2])
    (folder / "mine.txt").write_text(f"{clips[3].name}\nabsent\n")
    mine = read_folder(folder / "new_joint_vecs", split="mine")
    assert [(clip.name, clip.split) for clip in mine.clips] == [(clips[3].name, "mine")]
    assert "mine.txt: 1 of 2 names have no file, first 'absent'" in mine.notes[0]
    with pytest.raises(UserError, match=r"trian\.txt: no such split file: .* there are: mine, test, train, val"):
        read_folder(folder, split="trian")
    (folder / "mine.txt").write_text("\n")
    with pytest.raises(UserError, match=r"mine\.txt: is empty: expected a clip's name in every line"):
        read_folder(folder, split="mine")
    (folder / "mine.txt").write_text("absent\n")
    with pytest.raises(UserError, match="none of its 1 names has a file"):
        read_folder(folder, split="mine")


def test_mirrored_clips_are_written_beside(clips: list[Clip], tmp_path: Path):
    made = [vector_clip(clip) for clip in clips]
    write_folder(tmp_path / "both", [*made, *map(mirror_vectors, made)])
    read = {clip.name: clip for clip in read_folder(tmp_path / "both").clips}
    for clip in clips:
        mirrored = read[f"M{clip.name}"]
        expected = joints_to_features(mirror(resample(clip.joints, clip.fps, 20)))
        np.testing.assert_allclose(mirrored.features, expected, atol=5e-6)
        assert mirrored.captions[0].text == mirror_text(clip.text)
        assert mirrored.split == clip.split
    tagged = VectorClip("a", made[0].features, (Caption("turns left", ("turn/VERB", "left/ADV")),))
    assert mirror_vectors(tagged).captions == (Caption("turns right", ("turn/VERB", "right/ADV")),)


def test_published_turns_are_corrected_and_told(tmp_path: Path):
    pose = generate_clips(7, seed=0)[6].joints[0].astype(np.float64)
    angle = np.linspace(0, 4.0, 100)
    joints = (pose - pose[0] * [1, 0, 1]) @ np.swapaxes(yaw_matrix(angle), -1, -2) + np.linspace(0, 1, 100)[
        :, None, None
    ]
    (tmp_path / "new_joint_vecs").mkdir()
    np.save(tmp_path / "new_joint_vecs" / "a.npy", joints_to_features(joints, turns="published"))
    read = read_folder(tmp_path)
    assert read.notes[0].startswith("in 1 clips 1 turns had the wrong sign")
    np.testing.assert_allclose(read.clips[0].features, joints_to_features(joints), atol=1e-7)
    report = load_clips(tmp_path, fps=None)
    assert report.notes[0] == read.notes[0]
    np.testing.assert_allclose(report.clips[0].joints, canonicalise(joints)[:-1], atol=1e-5)


def test_normalised_features_are_restored(folder: Path):
    expected = read_folder(folder).clips[0].features
    mean, std = np.load(folder / "Mean.npy"), np.load(folder / "Std.npy")
    for path in (folder / "new_joint_vecs").iterdir():
        np.save(path, (np.load(path) - mean) / std)
    np.testing.assert_allclose(read_folder(folder).clips[0].features, expected, atol=2e-6)
    (folder / "Std.npy").unlink()
    with pytest.raises(UserError, match=r"columns 67 to 192 are no rotations.*normalised ones without their mean"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("per_metre", "words"), [(1 / KIT_UNIT, "millimetres of KIT-ML's model"), (1000, "millimetr")]
)
def test_kit_is_converted_to_metres_with_a_line_that_says_so(clips, tmp_path, per_metre, words):
    root = kit_folder(tmp_path / "kit", clips, per_metre=per_metre)
    metres = kit_folder(tmp_path / "metres", clips, per_metre=1.0)
    mean = np.arange(251.0)
    for place in (root, metres):
        np.save(place / "Mean.npy", mean)
        np.save(place / "Std.npy", mean + 1)
    read, plain = read_folder(root), read_folder(metres)
    assert read.layout is KIT_ML
    assert read.metres_per_unit == pytest.approx(1 / per_metre)
    (note,) = (note for note in read.notes if "leg" in note)
    assert note.startswith("KIT-ML: the leg measures ")
    assert words in note
    for one, other in zip(read.clips, plain.clips, strict=True):
        # Hips point nearly backwards in KIT-ML's reference pose, where rotations magnify the rounding of joints.
        np.testing.assert_allclose(one.features[:, :-4], other.features[:, :-4], atol=1e-5)
    np.testing.assert_allclose(read.mean[3], 3 / per_metre, rtol=1e-6)
    np.testing.assert_allclose(read.std[[0, 100]], [1, 101])


def test_an_unknown_unit_is_refused_with_the_remedy(clips: list[Clip], tmp_path: Path):
    root = kit_folder(tmp_path / "kit", clips, per_metre=7.0)
    with pytest.raises(
        UserError, match=r"the leg .* measures 6\.\d+ units.*give the scale \(--scale\) in metres per unit"
    ):
        read_folder(root)
    with pytest.raises(UserError, match="give the scale"):
        load_clips(root)
    assert read_folder(root, scale=1 / 7).metres_per_unit == 1 / 7
    assert len(load_clips(root, scale=1 / 7).clips) == 4


def test_joints_alone_give_features(clips: list[Clip], folder: Path):
    expected = read_folder(folder)
    for path in (folder / "new_joint_vecs").iterdir():
        path.unlink()
    (folder / "new_joint_vecs").rmdir()
    read = read_folder(folder)
    assert "new_joints: features were computed from joints" in read.notes[0]
    for one, other in zip(read.clips, expected.clips, strict=True):
        assert len(one.features) == len(other.features) - 1
        # The first row but for the heading's smoothing, which ends elsewhere: heights and the root's path.
        np.testing.assert_allclose(one.features[:, 3], other.features[:-1, 3], atol=1e-5)


def test_loading_takes_such_folders_as_any_other(clips: list[Clip], folder: Path):
    report = load_clips(folder)
    assert sorted((clip.name, clip.split) for clip in report.clips) == sorted(
        (clip.name, clip.split) for clip in clips
    )
    assert {clip.fps for clip in report.clips} == {30.0}
    assert {clip.name: clip.text for clip in report.clips} == {clip.name: clip.text for clip in clips}
    assert report.notes[0].startswith("skipped 4 files of joints whose features lie beside them, first ")
    assert report.notes[1:] == ["4 files are HumanML3D's, at 20 frames per second"]
    slow = {clip.name: clip for clip in load_clips(folder, fps=None).clips}
    for clip in clips:
        assert slow[clip.name].fps == 20
        expected = canonicalise(resample(clip.joints, clip.fps, 20))[:-1]
        np.testing.assert_allclose(slow[clip.name].joints, expected, atol=1e-5)
    alone = load_clips(folder / "new_joints", fps=None)
    assert {clip.fps for clip in alone.clips} == {20.0}
    assert [clip.split for clip in alone.clips] == [clip.split for clip in report.clips]


def test_loading_kit_gives_smpl_in_metres(clips: list[Clip], tmp_path: Path):
    root = kit_folder(tmp_path / "kit", clips, per_metre=1 / KIT_UNIT)
    report = load_clips(root, fps=None)
    notes = " ".join(report.notes)
    assert "4 files are KIT-ML's, at 12.5 frames per second" in notes
    assert "millimetres of KIT-ML's model" in notes
    assert "joints 5 to 7 and 11 to 15 are the body's right" in notes
    loaded = {clip.name: clip for clip in report.clips}
    for clip in clips:
        joints = kit_joints(resample(clip.joints, clip.fps, 12.5))
        expected = kit_to_smpl(canonicalise(joints, KIT_ML))[:-1]
        np.testing.assert_allclose(loaded[clip.name].joints, expected, atol=1e-5)
    # The same bodies, if left were called right.
    order = [0, 1, 2, 3, 4, 8, 9, 10, 5, 6, 7, 16, 17, 18, 19, 20, 11, 12, 13, 14, 15]
    other = tmp_path / "other" / "new_joints"
    other.mkdir(parents=True)
    for clip in clips:
        joints = kit_joints(resample(clip.joints, clip.fps, 12.5))
        np.save(other / f"{clip.name}.npy", joints[:, order])
    report = load_clips(other.parent, fps=None)
    assert "joints 5 to 7 and 11 to 15 are the body's left" in " ".join(report.notes)
    loaded = {clip.name: clip for clip in report.clips}
    for clip in clips:
        expected = kit_to_smpl(kit_joints(resample(clip.joints, clip.fps, 12.5)))
        np.testing.assert_allclose(loaded[clip.name].joints, expected, atol=1e-6)


def test_both_data_sets_at_once_keep_their_own_units(clips: list[Clip], folder: Path):
    kit_folder(
        folder.parent / "kit", [Clip(f"kit_{clip.name}", clip.fps, clip.joints) for clip in clips], per_metre=640
    )
    with open(folder / "train.txt", "a") as listing:
        listing.writelines(f"kit_{clip.name}\n" for clip in clips)
    report = load_clips(folder.parent)
    assert len(report.clips) == 8
    heights = [float(np.median(clip.joints[:, 15, 1])) for clip in report.clips]
    assert 1.0 < min(heights) < max(heights) < 2.0


def test_short_clips_are_left_out(folder: Path):
    path = next((folder / "new_joint_vecs").iterdir())
    np.save(path, np.load(path)[:3])
    (folder / "new_joints" / path.name).unlink()
    read = read_folder(folder)
    assert len(read.clips) == 3
    assert "skipped 1 clips of fewer than 4 frames" in read.notes


def test_mistakes_in_the_folder_are_named(clips: list[Clip], folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: no such folder: expected HumanML3D's or KIT-ML's new_joint_vecs"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty" / "new_joint_vecs").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no \.npy files"):
        read_folder(tmp_path / "empty")
    with pytest.raises(UserError, match="has no folder new_joint_vecs"):
        read_folder(tmp_path)
    path = folder / "new_joint_vecs" / f"{clips[0].name}.npy"
    features = np.load(path)

    def refused(values: np.ndarray, message: str) -> None:
        np.save(path, values)
        with pytest.raises(UserError, match=message):
            read_folder(folder)
        skipped = read_folder(folder, on_error="skip")
        assert len(skipped.clips) == 3
        assert any(note.startswith("skipped: ") for note in skipped.notes)

    refused(np.zeros((5, 100)), r"expected features of width 263 .*got \(5, 100\): keep each data set in a folder")
    refused(features[:-5], rf"new_joints.*has the shape \({len(features)}, 22, 3\), but the clip's features")
    refused(np.where(np.arange(263) == 70, np.nan, features), "frames hold NaN or infinity, first frame 0")
    refused(features * 1e30, "columns 67 to 192 are no rotations")
    refused(features[:0], r"say \(0, 22, 3\)")
    np.save(path, features)
    np.save(folder / "Mean.npy", np.zeros(251))
    with pytest.raises(UserError, match=r"Mean\.npy: expected the shape \(263,\), got \(251,\)"):
        read_folder(folder)
    (folder / "Mean.npy").unlink()
    read = read_folder(folder)
    assert read.mean is None
    assert f"{folder}: has no Mean.npy and Std.npy together" in read.notes
    for clip in clips:
        (folder / "new_joint_vecs" / f"{clip.name}.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no clip remains \(skipped: "):
        read_folder(folder, on_error="skip")


def test_descriptions_and_scales_that_cannot_be_are_named(clips: list[Clip], folder: Path):
    text = folder / "texts" / f"{clips[0].name}.txt"
    text.write_text("walks#walk/VERB#5#1\n")
    with pytest.raises(UserError, match="line 1: a part from 5 s cannot end at 1 s"):
        read_folder(folder)
    skipped = read_folder(folder, on_error="skip")
    assert [clip.name for clip in skipped.clips] == sorted(clip.name for clip in clips[1:])
    assert skipped.notes[0].startswith(f"skipped: {text}: line 1: ")
    text.unlink()
    with pytest.raises(UserError, match=r"scale must be .* 1e-06 to 1000, got 1e\+300"):
        read_folder(folder, scale=1e300)


@pytest.mark.parametrize(
    ("stem", "value", "message"),
    [
        ("Mean", np.nan, "1 of 263 values are NaN or infinity, first in column 7"),
        ("Std", np.inf, "1 of 263 values are NaN or infinity, first in column 7"),
        ("Std", -1.0, "1 of 263 standard deviations are not positive, first -1 in column 7"),
        ("Std", 0.0, "1 of 263 standard deviations are not positive, first 0 in column 7"),
    ],
)
def test_statistics_that_are_none_are_named(folder: Path, stem: str, value: float, message: str):
    values = np.load(folder / f"{stem}.npy")
    values[7] = value
    np.save(folder / f"{stem}.npy", values)
    with pytest.raises(UserError, match=rf"{stem}\.npy: {message}"):
        read_folder(folder)


def test_an_empty_file_of_joints_is_named(clips: list[Clip], folder: Path):
    shutil.rmtree(folder / "new_joint_vecs")
    # First of all files: what is damaged must not decide the layout of the others.
    np.save(folder / "new_joints" / "0.npy", np.zeros((0, 21, 3)))
    with pytest.raises(UserError, match=r"0\.npy: holds no frames: expected KIT-ML's joints \(frames, 21, 3\)"):
        read_folder(folder)
    read = read_folder(folder, on_error="skip")
    assert [clip.name for clip in read.clips] == sorted(clip.name for clip in clips)


def test_features_are_checked_and_corrected_wherever_they_lie(tmp_path: Path):
    pose = generate_clips(7, seed=0)[6].joints[0].astype(np.float64)
    joints = (pose - pose[0] * [1, 0, 1]) @ np.swapaxes(yaw_matrix(np.linspace(0, 4.0, 100)), -1, -2)
    place = tmp_path / "new_joints"
    place.mkdir()
    published = joints_to_features(joints, turns="published")
    np.save(place / "a.npy", published)
    read = read_folder(tmp_path)
    assert not any("computed from joints" in note for note in read.notes)
    np.testing.assert_allclose(read.clips[0].features, joints_to_features(joints), atol=1e-7)
    np.save(place / "b.npy", joints)
    assert read_folder(tmp_path).notes[0].endswith("features were computed from joints in 1 of 2 clips")
    np.save(place / "a.npy", published * 2)
    with pytest.raises(UserError, match=r"a\.npy: columns 67 to 192 are no rotations"):
        read_folder(tmp_path)


def test_mistakes_in_what_to_write_are_named_and_leave_nothing(clips: list[Clip], folder: Path, tmp_path: Path):
    good = vector_clip(clips[0])

    def refused(given: list[VectorClip], message: str) -> None:
        with pytest.raises(UserError, match=message):
            write_folder(tmp_path / "new", given)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]

    refused([], "no clips to write")
    refused([good, good], "2 clips are called")
    for name in ("a/b", "../../evil", "..", ".", "", " a", "a ", "a\nb", "a.npy"):
        refused([VectorClip(name, good.features)], "is no name of a file")
    for name in ("Mean", "std"):
        refused([VectorClip(name, good.features)], f"'{name}' is what a file of statistics is called")
    for split in ("../../evil", "..", " train"):
        one = VectorClip("b", good.features, split=split)
        refused([VectorClip("a", good.features), one], r"clip 'b': its split '.*' is no name of a file: rename it")
    refused([VectorClip("a", good.features[:, :251])], r"\(frames, 263\)")
    refused([VectorClip("a", good.features, (Caption("walks # fast"),))], "holds '#'")
    refused([VectorClip("a", good.features, split="test")], "no clip is in the split 'train'")
    ones = np.ones(263)
    for mean, std, message in (
        (ones[:251], ones, r"new: mean: expected the shape \(263,\), got \(251,\)"),
        (ones, ones[None], r"new: std: expected the shape \(263,\), got \(1, 263\)"),
        (ones * np.nan, ones, "new: mean: 263 of 263 values are NaN or infinity"),
        (ones, 0 * ones, "new: std: 263 of 263 standard deviations are not positive"),
    ):
        with pytest.raises(UserError, match=message):
            write_folder(tmp_path / "new", [good], statistics=(mean, std))
        assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        write_folder(folder, [good])


def test_recordings_survive_the_folder(mocap: Path, tmp_path: Path):
    with np.load(mocap / "mocap_cmu_hdm05_22j_60fps.npz") as archive:
        recorded = [Clip(name, 60, archive[name], split="train") for name in archive.files[::20]]
    write_folder(tmp_path / "set", [vector_clip(clip) for clip in recorded])
    read = {clip.name: clip for clip in read_folder(tmp_path / "set").clips}
    for clip in recorded:
        expected = canonicalise(clip.joints[::3])[:-1]
        np.testing.assert_allclose(joints_from_ric(read[clip.name].features), expected, atol=1e-5)
        joints = np.load(tmp_path / "set" / "new_joints" / f"{clip.name}.npy")
        np.testing.assert_allclose(joints, expected, atol=1e-5)
