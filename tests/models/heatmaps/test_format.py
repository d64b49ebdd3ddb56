import numpy as np
import pytest
import torch

from fastvq.models.errors import UserError
from fastvq.models.heatmaps.format import HeatmapFormat
from fastvq.models.heatmaps.keypoints import find_joints, joint_distances
from fastvq.models.heatmaps.limbs import PANOPTIC_LIMBS, SMPL_LIMBS
from fastvq.models.heatmaps.placement import Camera, fit
from fastvq.models.motion.procedural import generate_clips


@pytest.fixture(scope="module")
def clips():
    """(7, 16, 22, 3): a clip of every action, each over about two seconds."""
    return torch.from_numpy(np.stack([clip.joints[:64:4] for clip in generate_clips(7, seed=0)]))


@pytest.mark.parametrize("size", [64, 128])
def test_a_clip_takes_nine_tenths_of_the_size_by_one_scale(clips, size):
    placed = HeatmapFormat(size=size).place(clips)
    low, high = placed.amin(dim=(1, 2)), placed.amax(dim=(1, 2))
    torch.testing.assert_close((high - low).amax(dim=1), torch.full((7,), 0.9 * size))
    torch.testing.assert_close((high + low) / 2, torch.full((7, 3), (size - 1) / 2))
    lengths = [(x[..., 4, :] - x[..., 1, :]).norm(dim=-1) for x in (placed, clips)]
    ratios = lengths[0] / lengths[1]
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios))  # of one clip all alike


def test_pictures_stand_upright_and_show_the_left_hand_to_the_right():
    form = HeatmapFormat(size=64)
    joints = torch.zeros(1, 22, 3)
    joints[0, 15, 1], joints[0, 20, 0], joints[0, 20, 1] = 1.8, 0.7, 1.4  # head above, left wrist to the left
    front = form.views(joints)[0, 2, 0]
    assert front[15, 1] < front[0, 1]
    assert front[20, 0] > front[0, 0]
    seen = HeatmapFormat(size=64, projection="plane").views(joints)[0, 0, 0]
    torch.testing.assert_close(seen, front)


def test_cameras():
    joints = torch.randn(5, 22, 3, generator=torch.Generator().manual_seed(0))
    front, side, top = (Camera(*angles).see(joints) for angles in ((0, 0), (90, 0), (0, 90)))
    middle = (joints.amin(dim=(0, 1)) + joints.amax(dim=(0, 1))) / 2
    x, y, z = (joints - middle).unbind(dim=-1)
    torch.testing.assert_close(front, torch.stack([x, -y], dim=-1))
    torch.testing.assert_close(side, torch.stack([-z, -y], dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(top, torch.stack([x, z], dim=-1), atol=1e-6, rtol=0)
    near = Camera(distance=10.0).see(joints)
    torch.testing.assert_close(near, front * (10 / (10 - z)).unsqueeze(-1))
    with pytest.raises(UserError, match=r"before the camera, got 1\.0 m: give more than"):
        Camera(distance=1.0).see(joints)


def test_channels_are_views_and_time_comes_after_them(clips):
    for form, channels in (
        (HeatmapFormat(size=32), 3),
        (HeatmapFormat(size=32, projection="analytic"), 3),
        (HeatmapFormat(size=32, projection="plane", cameras=(Camera(), Camera(90))), 2),
    ):
        heatmaps = form.render(clips[:2])
        assert form.channels == channels
        assert heatmaps.shape == (2, channels, 16, 32, 32)
        assert heatmaps.dtype == torch.float32
        assert heatmaps.is_contiguous()
        assert float(heatmaps.amax(dim=(3, 4)).min()) > 0.75
        assert float(heatmaps.max()) <= 1
        again = form.render(clips[1].double().numpy())
        torch.testing.assert_close(heatmaps[1], again[0], rtol=0, atol=1e-4)


def test_other_skeletons():
    joints = torch.randn(3, 15, 3, generator=torch.Generator().manual_seed(0))
    assert HeatmapFormat(size=32, limbs=PANOPTIC_LIMBS).render(joints).shape == (1, 3, 3, 32, 32)
    with pytest.raises(UserError, match=r"pairs of different joints from 0 to 14, got \(12, 15\)"):
        HeatmapFormat(size=32).render(joints)


def test_scores_dim_limbs(clips):
    form = HeatmapFormat(size=32, projection="plane")
    half = form.render(clips[:1], torch.full((1, 16, 22), 0.5))
    torch.testing.assert_close(half, form.render(clips[:1]) / 2)
    volume = HeatmapFormat(size=32)
    torch.testing.assert_close(volume.render(clips[0], torch.full((16, 22), 0.5)), volume.render(clips[0]) / 4)


@pytest.mark.parametrize("projection", ["volume", "plane"])
def test_joints_are_found_again(clips, projection):
    """From places that are off by up to 3 pixels along each axis, which alone would be a median error of 2.4."""
    form = HeatmapFormat(size=64, projection=projection)
    heatmaps, truth = form.render(clips), form.views(clips)
    generator = torch.Generator().manual_seed(0)
    near = truth + 3 * (2 * torch.rand(truth.shape, generator=generator) - 1)
    start, found, exact = (
        joint_distances(joints, truth).median()
        for joints in (near, form.find(heatmaps, near), form.find(heatmaps, truth))
    )
    assert start > 2.2
    assert found < 2.0
    assert found < start - 0.4
    assert exact < 1.0


def test_what_is_shown_elsewhere_is_an_error(clips):
    form = HeatmapFormat(size=64)
    heatmaps, truth = form.render(clips), form.views(clips)
    own, moved, another = (
        joint_distances(form.find(shown, truth), truth).median()
        for shown in (heatmaps, heatmaps.roll(3, dims=-1), heatmaps.roll(1, dims=0))
    )
    assert moved > 2.0
    assert another > 3 * own  # other poses, though in the same place


def test_a_limb_that_is_not_there_is_missing():
    image = torch.zeros(1, 32, 32)
    image[0, 16, 4:12] = 1
    near = torch.tensor([[[4.0, 16], [11, 16], [25, 4], [28, 4]]])
    found = find_joints(image, near, ((0, 1), (2, 3)))
    assert found[0, :2].isfinite().all()
    assert found[0, 2:].isnan().all()
    assert joint_distances(found, near)[0, 2:].tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        (np.zeros((0, 22, 3)), r"at least one frame, got the shape \(0, 22, 3\)"),
        (np.zeros((4, 1, 3)), "at least 2 joints, got 1"),
        (np.zeros((4, 22, 2)), r"shape \(T, J, 3\) or \(B, T, J, 3\), got \(4, 22, 2\)"),
        (np.zeros((4, 22, 3)), "must not all lie in one point"),
        ([[1.0]], "NumPy array or a tensor, got list"),
        (np.stack([np.ones((22, 3)), np.full((22, 3), np.nan)]), r"finite, but frame 1 is not \(1 such frames\)"),
    ],
)
def test_bad_joints_are_named(joints, message):
    with pytest.raises(UserError, match=message):
        HeatmapFormat(size=32).render(joints)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be a number above 0"),
        ({"sigma": float("nan")}, "sigma must be a number above 0"),
        ({"size": 0}, "size must be an integer of at least 1"),
        ({"share": 0.0}, "share must be a number above 0"),
        ({"projection": "sum"}, "projection must be one of volume, analytic, plane, got 'sum'"),
        ({"cameras": ()}, "cameras must hold at least one camera"),
    ],
)
def test_bad_formats_are_named(change, message):
    with pytest.raises(UserError, match=message):
        HeatmapFormat(**change)


def test_bad_scores_are_named(clips):
    form, scores = HeatmapFormat(size=32), torch.ones(16, 22)
    with pytest.raises(UserError, match=r"scores must have the shape \(1, 16, 22\)"):
        form.render(clips[0], scores[:, :5])
    with pytest.raises(UserError, match="scores must lie in 0 to 1, got 1 to 2"):
        form.render(clips[0], torch.cat([scores[:8], scores[:8] + 1]))
    scores[3] = 0
    with pytest.raises(UserError, match="frame 3 would be empty"):
        form.render(clips[0], scores)


def test_bad_searches_are_named(clips):
    form = HeatmapFormat(size=32)
    heatmaps, near = form.render(clips[:1]), form.views(clips[:1])
    empty = heatmaps.clone()
    empty[0, 0, 2] = 0
    with pytest.raises(UserError, match=r"frame 2 shows nothing \(1 such frames\)"):
        form.find(empty, near)
    empty[0, 0, 1, 3, 3] = float("nan")
    with pytest.raises(UserError, match=r"frame 1 is not finite \(2 such frames\)"):
        form.find(empty, near)
    with pytest.raises(UserError, match="same leading axes"):
        form.find(heatmaps, near[:, :2])
    with pytest.raises(UserError, match="radius must be a number above 0"):
        find_joints(heatmaps, near, SMPL_LIMBS, radius=0)


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(UserError, match="share must be a number above 0 and at most 1"):
        fit(torch.rand(4, 22, 3), 64, share=1.5)
