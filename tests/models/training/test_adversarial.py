import pytest
import torch
import torch.nn.functional as F

from fastvq.models.errors import UserError
from fastvq.models.nn.patch_discriminator import PatchDiscriminator3d
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapReconstruction
from fastvq.models.training.adversarial import (
    AdversarialWeights,
    adaptive_weight,
    discriminator_loss,
    generator_losses,
)
from fastvq.models.training.perceptual import GradientDifference, PerSlice


@pytest.fixture(name="scene")
def scene_fixture():
    """A last layer, its reconstruction of a target, and a small discriminator, in float64."""
    torch.manual_seed(0)
    last = torch.nn.Conv3d(4, 2, 1).double()
    fake = last(torch.randn(2, 4, 8, 8, 8, dtype=torch.float64))
    real = torch.rand(2, 2, 8, 8, 8, dtype=torch.float64)
    judge = PatchDiscriminator3d(2, width=4, layers=2).double()
    return last, fake, real, judge


def test_the_published_discriminator():
    with torch.device("meta"):
        judge = PatchDiscriminator3d(3)
        assert judge(torch.empty(1, 3, 64, 128, 128)).shape == (1, 1, 8, 16, 16)
    shapes = [tuple(module.weight.shape[:2]) for module in judge.body if isinstance(module, torch.nn.Conv3d)]
    assert shapes == [(64, 3), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert [judge.body[at].bias is None for at in (0, 2, 5, 8, 11)] == [False, True, True, True, False]
    assert [judge.body[at].stride[0] for at in (0, 2, 5, 8, 11)] == [2, 2, 2, 1, 1]


def test_the_discriminator_begins_small_and_needs_room():
    torch.manual_seed(0)
    judge = PatchDiscriminator3d(3, width=32)
    # 32 * 64 * 64 weights: the error of their deviation is 0.02 / sqrt(2 * 131072), that of BatchNorm's mean 0.0025.
    assert abs(judge.body[2].weight.std() - 0.02) < 2e-4
    assert abs(judge.body[3].weight.mean() - 1) < 0.02
    assert judge(torch.rand(2, 3, 16, 16, 16)).shape == (2, 1, 2, 2, 2)
    with pytest.raises(UserError, match=r"at least 16 frames, rows and columns, got \(8, 16, 16\)"):
        judge(torch.rand(2, 3, 8, 16, 16))


def test_the_hinge_loss(scene):
    _, fake, real, judge = scene
    loss = discriminator_loss(judge, fake, real, AdversarialWeights(factor=0.5))
    scores = judge(real), judge(fake.detach())
    expected = 0.25 * ((1 - scores[0]).clamp_min(0).mean() + (1 + scores[1]).clamp_min(0).mean())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())


def test_the_generator_s_loss(scene):
    last, fake, real, judge = scene
    vq = torch.tensor(0.25, dtype=torch.float64)
    weights = AdversarialWeights(l1=2.0, perceptual=0.5, adversarial=0.8, factor=0.5)
    result = HeatmapReconstruction(fake, torch.zeros(2, 1, 1, 1).long(), vq)
    losses = generator_losses(result, real, last.weight, weights, discriminator=judge)
    rec = 2 * (fake - real).abs().mean() + 0.5 * GradientDifference()(fake, real)
    g = -judge(fake).mean()
    norms = [torch.autograd.grad(x, last.weight, retain_graph=True)[0].norm() for x in (rec, g)]
    weight = 0.8 * norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(losses.adversarial_weight, weight, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.total, rec + vq + 0.5 * weight.detach() * g, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.l1, F.l1_loss(fake, real))
    judge.zero_grad()
    losses.total.backward()
    assert last.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert all(parameter.requires_grad for parameter in judge.parameters())


def test_what_should_be_bright_may_weigh_more(scene):
    last, fake, real, _ = scene
    result = HeatmapReconstruction(fake, torch.zeros(2, 1, 1, 1).long(), fake.new_tensor(0.0))
    weights = AdversarialWeights(l1=2.0, perceptual=0.0, foreground=3.0, l2=5.0)
    losses = generator_losses(result, real, last.weight, weights)
    error = 2 * (fake - real).abs() + 5 * (fake - real) ** 2
    torch.testing.assert_close(losses.total, (error * (1 + 3 * real)).mean())
    torch.testing.assert_close(losses.l1, F.l1_loss(fake, real).detach())  # the log stays comparable
    with pytest.raises(UserError, match=r"loss\.foreground must be a number at least 0, got -1"):
        AdversarialWeights(foreground=-1.0)


def test_without_a_discriminator_nothing_is_adversarial(scene):
    last, fake, real, _ = scene
    result = HeatmapReconstruction(fake, torch.zeros(2, 1, 1, 1).long(), fake.new_tensor(0.25))
    losses = generator_losses(result, real, last.weight, AdversarialWeights())
    torch.testing.assert_close(losses.total.detach(), losses.l1 + losses.perceptual + losses.quantizer)
    assert losses.adversarial == losses.adversarial_weight == 0


def test_the_adaptive_weight_has_a_limit():
    last = torch.ones(3, requires_grad=True)
    weight = adaptive_weight((1e9 * last).sum(), (1e-3 * last).sum(), last)
    assert weight == 1e4
    assert not weight.requires_grad


def test_when_the_discriminator_takes_part():
    weights = AdversarialWeights(start=10)
    assert [weights.takes_part(step) for step in (0, 9, 10, 11)] == [False, False, True, True]
    assert not AdversarialWeights(factor=0).takes_part(10**6)
    with pytest.raises(UserError, match=r"loss\.start must be an integer of at least 0, got -1"):
        AdversarialWeights(start=-1)
    with pytest.raises(UserError, match=r"loss\.perceptual must be a number at least 0, got -1"):
        AdversarialWeights(perceptual=-1.0)


def test_gradient_difference():
    wanted = torch.zeros(1, 1, 1, 4, 4, dtype=torch.float64)
    wanted[..., 2:] = 1.0  # one edge
    given = torch.zeros_like(wanted)
    # Of 12 horizontal differences 4 are wrong by 1, of 12 vertical ones none; half as large, 2 of 2 and none of 2.
    assert GradientDifference(scales=1)(given, wanted).item() == pytest.approx((4 / 12) / 2)
    assert GradientDifference(scales=2)(given, wanted).item() == pytest.approx(((4 / 12) / 2 + 1 / 2) / 2)
    assert GradientDifference(scales=9)(given, wanted) == GradientDifference(scales=2)(given, wanted)
    assert GradientDifference()(wanted + 0.3, wanted).item() == pytest.approx(0, abs=1e-15)  # brightness is L1's
    assert GradientDifference()(wanted[..., :1, :1], wanted[..., :1, :1]) == 0
    x = torch.rand(1, 2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: GradientDifference()(x, torch.zeros_like(x)), x)


def test_a_network_sees_every_view_of_every_frame_as_grey():
    def network(first, second):
        assert first.shape == second.shape == (2 * 3 * 4, 3, 8, 8)
        assert torch.equal(first[:, 0], first[:, 2])
        return (first - second).square().mean(dim=(1, 2, 3), keepdim=True)

    given, wanted = torch.rand(2, 2, 3, 4, 8, 8).unbind(0)
    torch.testing.assert_close(PerSlice(network)(given, wanted), F.mse_loss(given, wanted))
