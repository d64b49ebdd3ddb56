import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.motion.features272 import features_to_joints
from fastvq.models.motion.mirror import mirror_features
from fastvq.models.motion.rotation import yaw_matrix
from fastvq.models.motion.transform import change_speed
from fastvq.models.training.windows import WindowSampler, turn_


def sampler(clips, **changes):
    return WindowSampler(clips, **{"window": 16, "batch_size": 64, "seed": 0, **changes})


def test_windows_come_from_one_clip_each(feature_clip):
    clips = [feature_clip(frames, seed) for seed, frames in enumerate((16, 15, 40))]
    drawn = sampler(clips)
    assert (drawn.used, drawn.skipped, drawn.frames) == (2, 1, 56)
    allowed = [clip.features[start : start + 16] for clip in clips for start in range(len(clip.features) - 15)]
    seen = set()
    for step in range(4):
        batch = drawn.batch(step).motion
        assert batch.shape == (64, 16, 272)
        assert batch.dtype == torch.float32
        for window in batch.numpy():
            found = [index for index, other in enumerate(allowed) if np.array_equal(window, other)]
            assert len(found) == 1
            seen.add(found[0])
    # 256 draws from 26 windows: the chance to miss one is 26 (25/26)^256 = 0.001, and the seed is fixed.
    assert len(seen) == 26


def test_windows_depend_on_seed_and_step_alone(feature_clip):
    clips = [feature_clip(100)]
    first = sampler(clips)
    expected = first.batch(7).motion
    first.batch(8)
    np.random.default_rng(0)
    torch.manual_seed(5)
    assert torch.equal(first.batch(7).motion, expected)
    assert torch.equal(sampler(clips).batch(7).motion, expected)
    assert not torch.equal(sampler(clips).batch(8).motion, expected)
    assert not torch.equal(sampler(clips, seed=1).batch(7).motion, expected)


def test_about_half_of_the_windows_are_mirrored(feature_clip):
    clip = feature_clip(16)
    batch = sampler([clip], mirror=True, batch_size=400).batch(0).motion.numpy()
    mirrored = mirror_features(clip.features)
    straight = sum(np.array_equal(window, clip.features) for window in batch)
    turned = sum(np.array_equal(window, mirrored) for window in batch)
    assert straight + turned == 400
    assert 150 < turned < 250  # five standard deviations


def test_no_clip_that_is_long_enough_is_an_error(feature_clip):
    with pytest.raises(UserError, match=r"at least 16 frames, and none of the 2 clips .* \(the longest has 15\)"):
        sampler([feature_clip(15), feature_clip(4, 1)])
    with pytest.raises(UserError, match="none of the 0 clips"):
        sampler([])


def test_windows_are_played_at_every_speed_and_clips_count_where_one_speed_makes_them_long_enough(feature_clip):
    clips = [feature_clip(16), feature_clip(9, 1), feature_clip(7, 2)]
    drawn = sampler(clips, speeds=(1.0, 0.5), batch_size=400)
    assert (drawn.used, drawn.skipped, drawn.frames) == (2, 1, 25)  # 9 frames are 17 at half the speed
    batch = drawn.batch(0).motion.numpy()
    normal = sum(np.array_equal(window, clips[0].features) for window in batch)
    assert 150 < normal < 250
    slow = [change_speed(clip.features, 0.5) for clip in clips[:2]]
    allowed = [features[start : start + 16] for features in slow for start in range(len(features) - 15)]
    assert normal + sum(any(np.array_equal(window, other) for other in allowed) for window in batch) == 400


def test_a_turned_window_is_the_same_motion_facing_another_way(feature_clip):
    clip = feature_clip(30)
    windows = torch.from_numpy(np.stack([clip.features, clip.features]))
    turn_(windows, torch.tensor([0.0, 0.7]))
    np.testing.assert_allclose(windows[0], clip.features, atol=1e-7)
    before, after = (features_to_joints(features) for features in (clip.features, windows[1].numpy()))
    turned = np.einsum("ij,tnj->tni", yaw_matrix(np.array(0.7)).T, before)
    np.testing.assert_allclose(after, turned, atol=1e-5)
    plain, random = sampler([clip]), sampler([clip], turn=True)
    assert torch.equal(random.batch(3).motion, random.batch(3).motion)
    assert torch.equal(plain.batch(3).motion[..., 8:], random.batch(3).motion[..., 8:])
    assert not torch.equal(plain.batch(3).motion[..., 2:8], random.batch(3).motion[..., 2:8])


def test_short_clips_may_be_padded_and_masked(feature_clip):
    clips = [feature_clip(20), feature_clip(10, 1)]
    drawn = sampler(clips, pad_to=4, batch_size=300, mirror=True)
    assert (drawn.used, drawn.skipped, drawn.frames) == (2, 0, 30)
    motion, mask = drawn.batch(0)
    short = ~mask.all(1)
    assert 160 < int(short.sum()) < 240  # 10 of 15 positions, 200 of 300, within five standard deviations
    assert (mask[short] == (torch.arange(16) < 12)).all()
    assert (motion[short][:, 12:] == 0).all()
    given = clips[1].features
    for window in motion[short].numpy():
        expected = given if np.array_equal(window[:10], given) else mirror_features(given)
        np.testing.assert_array_equal(window[:10], expected)
        np.testing.assert_array_equal(window[10:12], expected[[-1, -1]])
    assert sampler(clips).batch(0).mask is None
