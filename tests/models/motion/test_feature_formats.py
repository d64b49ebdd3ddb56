"""The formats of features by their width: from clips, to joints, at another speed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion import features263
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.feature_formats import FEATURE_FORMATS, format_of
from fastvq.models.motion.humanml3d_folder import read_folder
from fastvq.models.motion.humanml3d_write import vector_clip, write_folder
from fastvq.models.motion.kit_skeleton import KIT_JOINT_NAMES, KIT_RAW_DIRECTIONS
from fastvq.models.motion.kit_to_smpl import kit_to_smpl
from fastvq.models.motion.layout263 import KIT_ML
from fastvq.models.motion.load import load_clips
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.motion.skeleton import bone_lengths
from fastvq.models.training.data import prepare_clips


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return generate_clips(4, seed=8)


def standing_kit(frames: int) -> np.ndarray:
    """(T, 21, 3) metres: KIT-ML's reference pose with bones of 0.2 m, walking forward."""
    pose = np.zeros((21, 3))
    for chain in KIT_ML.chains:
        for above, joint in pairwise(chain):
            pose[joint] = pose[above] + 0.2 * KIT_RAW_DIRECTIONS[joint]
    return pose + np.arange(frames)[:, None, None] * np.array([0, 0, 0.05])


@pytest.mark.parametrize("width", [263, 272])
def test_features_of_a_clip_hold_its_joints(clips: list[Clip], width: int) -> None:
    form = format_of(width)
    clip = clips[0]
    features = form.from_clip(clip, 10, 40)
    assert features.shape == (30 if width == 272 else 29, width)
    joints = form.to_joints(features)
    assert joints.shape == (len(features), 22, 3)
    np.testing.assert_array_equal(joints, form.to_smpl(features))
    expected = clip.joints[10 : 10 + len(features)]
    centred = [np.linalg.norm(x - x[:, :1], axis=-1) for x in (joints, expected)]
    np.testing.assert_allclose(*centred, atol=2e-5)
    posed, _ = form.posed(features, rigid=True)
    lengths = np.linalg.norm(posed[:, 1:] - posed[:, list(form.parents[1:])], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[:1], lengths.shape), atol=1e-5)
    np.testing.assert_allclose(lengths[0], np.median(bone_lengths(expected), axis=0)[1:], atol=5e-3)


def test_features_of_files_are_taken_as_they_are(clips: list[Clip], tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [vector_clip(clip) for clip in clips])
    written = {clip.name: clip.features for clip in read_folder(tmp_path / "set").clips}
    prepared = prepare_clips(load_clips(tmp_path / "set", fps=20.0).clips, fps=20.0, form=format_of(263))
    assert {clip.name for clip in prepared} == set(written)
    for clip in prepared:
        np.testing.assert_array_equal(clip.features, written[clip.name])
    # At another rate they hold other steps, and are made anew from the joints.
    slower = prepare_clips(load_clips(tmp_path / "set", fps=10.0).clips, fps=10.0, form=format_of(263))
    assert all(len(clip.features) < len(written[clip.name]) / 1.5 for clip in slower)


def test_kit_ml_keeps_its_own_joints(clips: list[Clip]) -> None:
    form = format_of(251)
    joints = standing_kit(30)
    features = features263.joints_to_features(joints, KIT_ML)
    clip = Clip("kit", 12.5, kit_to_smpl(joints[:-1].astype(np.float32)), features=features)
    (prepared,) = prepare_clips([clip], fps=12.5, form=form)
    np.testing.assert_array_equal(prepared.features, features)
    assert prepared.joints.shape == (29, 22, 3)
    expected = features263.canonicalise(joints, KIT_ML)[:-1]
    np.testing.assert_allclose(form.to_joints(features), expected, atol=1e-5)
    # The reference pose's toes point so that the joints named right are the body's left ones.
    np.testing.assert_allclose(form.to_smpl(features), kit_to_smpl(expected, exchanged=True), atol=1e-5)
    assert form.to_joints(features).shape[1] == len(KIT_JOINT_NAMES)
    with pytest.raises(UserError, match="has SMPL's joints, and KIT-ML's 251 features need KIT-ML's own"):
        prepare_clips(clips, fps=12.5, form=form)


@pytest.mark.parametrize("width", sorted(FEATURE_FORMATS))
def test_twice_the_speed_is_half_the_frames(clips: list[Clip], width: int) -> None:
    form = format_of(width)
    if width == 251:
        features = features263.joints_to_features(standing_kit(61), KIT_ML)
    else:
        features = form.from_clip(clips[0], 0, 61)[:60]
    assert form.change_speed(features, 1) is features
    fast = form.change_speed(features, 2)
    assert len(fast) == (30 if width == 272 else 29)
    before, after = form.to_joints(features), form.to_joints(fast)
    centred = [x - x[:, :1] for x in (before[: 2 * len(fast) : 2], after)]
    np.testing.assert_allclose(*(np.linalg.norm(x, axis=-1) for x in centred), atol=1e-4)


def test_clips_too_short_for_a_step_give_no_rows(clips: list[Clip]) -> None:
    assert format_of(263).from_clip(clips[0], 5, 6).shape == (0, 263)


def test_other_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"251 \(KIT-ML\), 263 \(HumanML3D\), 272 \(272-dim\); got 100"):
        format_of(100)
