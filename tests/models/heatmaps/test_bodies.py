import numpy as np
import pytest
import torch

from fastvq.models.heatmaps.bodies import find_bodies, keypoints, poses_of, seen, volume_joints
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.heatmaps.placement import Camera
from fastvq.models.motion.procedural import generate_clips


@pytest.fixture(scope="module")
def windows():
    """(2, 24, 22, 3): a walk and a turn of other made-up motions than poses are taken from."""
    clips = [clip for clip in generate_clips(8, seed=123) if clip.frames >= 48][:2]
    return torch.from_numpy(np.stack([clip.joints[:48:2] for clip in clips])).float()


def test_bodies_are_found_where_nobody_says_where_to_look(windows):
    form = HeatmapFormat(size=64)
    drawn, placed = form.render(windows), form.placement(windows)
    found = keypoints(form, drawn, placed)
    distance = torch.linalg.vector_norm(found - form.views(windows), dim=-1)
    assert distance.median() < 1.0
    assert (distance < 3).float().mean() > 0.9
    metres = volume_joints(form, drawn, placed)
    assert metres.dtype == torch.float32
    assert torch.linalg.vector_norm(metres - windows, dim=-1).median() < 1.5 / float(placed[:, 0, 2].min())
    assert torch.equal(keypoints(form, drawn, placed), found)


def test_a_body_is_followed_from_window_to_window(windows):
    form = HeatmapFormat(size=64)
    walk = windows[0].unflatten(0, (6, 4))
    drawn, placed = form.render(walk), form.placement(walk)
    metres = volume_joints(form, drawn, placed)
    assert torch.linalg.vector_norm(metres - walk, dim=-1).median() < 1.5 / float(placed[:, 0, 2].min())
    # No joint jumps where a window ends: in a step of the walk none moves 0.3 m beyond what it really moves.
    steps, real = (x.flatten(0, 1).diff(dim=0) for x in (metres, walk))
    assert torch.linalg.vector_norm(steps - real, dim=-1).max() < 0.3


def test_each_camera_is_looked_through_by_itself(windows):
    form = HeatmapFormat(size=48, projection="plane", cameras=(Camera(), Camera(60, 30)))
    drawn, placed = form.render(windows[:1]), form.placement(windows[:1])
    found = keypoints(form, drawn, placed)
    assert found.shape == (1, 2, 24, 22, 2)
    # From one side left and right can be mistaken: what is on the middle line cannot.
    middle = [0, 3, 6, 9, 12, 15]
    distance = torch.linalg.vector_norm(found - form.views(windows[:1]), dim=-1)[..., middle]
    assert distance.median() < 1.5


def test_poses_are_seen_as_the_camera_sees_them():
    level, high = poses_of(0.0), poses_of(40.0)
    assert level.views == ((0, 1),)
    upright = level.joints * torch.tensor([1.0, -1.0, 1.0])
    expected = torch.stack([Camera(0, 40).see(pose[None]) for pose in upright[::500]])[:, 0]
    found = high.joints[::500, :, :2]
    expected, found = (x - x.mean(dim=1, keepdim=True) for x in (expected, found))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(poses_of(None).joints) == len(level.joints)
    torch.testing.assert_close(poses_of(None).pictures.norm(dim=1), torch.ones(len(level.joints)))


def test_frames_that_show_nothing_have_no_joints(windows):
    form = HeatmapFormat(size=32)
    drawn, placed = form.render(windows[:, :5]), form.placement(windows[:, :5])
    drawn[0, 1, 2] = 0
    drawn[1] = 0
    middle = torch.zeros(2, 3)
    found = find_bodies(drawn, middle, placed[:, 0, 2], poses_of(None))
    there = found.isfinite().flatten(2).all(dim=2)
    assert there.tolist() == [[True, True, False, True, True], [False] * 5]
    assert bool(found[0, 2].isnan().all())
    one = find_bodies(drawn[:1, :, :1], middle[:1], placed[:1, 0, 2], poses_of(None))
    assert one.shape == (1, 1, 22, 3)
    assert bool(one.isfinite().all())


def test_a_picture_of_nothing_but_noise_gives_finite_joints():
    drawn = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 7.0, 400.0):
        assert bool(find_bodies(drawn, torch.ones(1, 3), torch.tensor([scale]), poses_of(None)).isfinite().all())


def test_views_show_columns_and_rows():
    joints = torch.arange(2 * 22 * 3.0).view(2, 22, 3)
    shown = seen(joints, ((2, 1), (0, 1)))
    assert shown.shape == (2, 2, 22, 2)
    assert torch.equal(shown[0, :, :, 0], joints[..., 2])
    assert torch.equal(shown[1], joints[..., :2])
