import dataclasses

import numpy as np
import pytest

from fastvq.models.errors import UserError
from fastvq.models.motion.features272 import SLICES, features_to_joints
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.training.data import feature_statistics, fingerprint, prepare_clips


def test_clips_become_features_at_the_model_s_rate():
    clip = generate_clips(1, seed=0, fps=60)[0]
    [prepared] = prepare_clips([clip])
    assert prepared.name == clip.name
    assert (prepared.split, prepared.text) == (clip.split, clip.text)
    assert prepared.features.shape == (-(-clip.frames // 2), 272)
    assert prepared.features.dtype == np.float32
    assert np.array_equal(prepared.joints, features_to_joints(prepared.features))
    # The pelvis' path, up to the turn and shift that the features do not keep.
    path = clip.joints[::2, 0] - clip.joints[0, 0]
    assert np.allclose(
        np.linalg.norm(prepared.joints[:, 0, [0, 2]], axis=1), np.linalg.norm(path[:, [0, 2]], axis=1), atol=1e-4
    )


def test_clips_are_cut_where_no_body_moves_so_fast():
    clip = generate_clips(1, seed=0)[0]
    joints = clip.joints.copy()
    joints[20:] += 5  # a jump of metres within a frame
    joints[-2:] += 5  # and another that leaves two frames
    notes = []
    parts = prepare_clips([dataclasses.replace(clip, joints=joints), clip], notes=notes)
    assert [part.name for part in parts] == [f"{clip.name}_part1", f"{clip.name}_part2", clip.name]
    assert [len(part.features) for part in parts] == [20, clip.frames - 22, clip.frames]
    assert notes == [
        "1 of 2 clips were cut at 2 jumps that no body makes",
        "1 clips or parts of clips have fewer than 4 frames and were left out",
    ]


def test_parts_do_not_take_the_names_of_others():
    clip = generate_clips(1, seed=0)[0]
    jump = clip.joints.copy()
    jump[20:] += 5
    whole = [dataclasses.replace(clip, name=name) for name in ("a_part1", "a_part1__2")]
    parts = prepare_clips([dataclasses.replace(clip, name="a", joints=jump), *whole])
    assert [part.name for part in parts] == ["a_part1__3", "a_part2", "a_part1", "a_part1__2"]


def test_features_that_came_as_features_stay(motion):
    features = motion(30)
    clip = dataclasses.replace(generate_clips(1, seed=0)[0], features=features)
    clip = dataclasses.replace(clip, joints=np.zeros((30, 22, 3), np.float32))
    [prepared] = prepare_clips([clip])
    assert np.array_equal(prepared.features, features)


def test_statistics_have_one_deviation_for_each_block(feature_clip):
    clips = [feature_clip(40, 0), feature_clip(100, 1)]
    mean, std = feature_statistics(clips)
    every = np.concatenate([clip.features for clip in clips])
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-5, atol=1e-6)
    for block in SLICES.values():
        np.testing.assert_allclose(std[block], every.astype(np.float64).std(axis=0)[block].mean(), rtol=1e-6)
    assert len(set(std.tolist())) == 5


def test_a_block_that_never_varies_is_left_in_its_scale(feature_clip):
    clip = feature_clip(40)
    clip.features[:, SLICES["root_velocity"]] = 0.25
    _, std = feature_statistics([clip])
    assert (std[SLICES["root_velocity"]] == 1).all()
    with pytest.raises(UserError, match="at least one clip"):
        feature_statistics([])


def test_the_fingerprint_covers_names_splits_and_features(feature_clip):
    clips = [feature_clip(20), feature_clip(30, 1)]
    first = fingerprint(clips)
    assert fingerprint([feature_clip(20), feature_clip(30, 1)]) == first
    assert fingerprint(clips[::-1]) != first
    for change in ({"name": "other"}, {"split": "test"}, {"features": clips[0].features + 1e-6}):
        assert fingerprint([dataclasses.replace(clips[0], **change), clips[1]]) != first
