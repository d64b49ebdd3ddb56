import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastvq.models.motion.features272 import SLICES
from fastvq.models.training.config import LossWeights
from fastvq.models.training.losses import TERMS, motion_loss


@pytest.fixture
def pair():
    return torch.randn(3, 12, 272, dtype=torch.float64) * 2, torch.randn(3, 12, 272, dtype=torch.float64)


def test_terms_are_the_means_of_their_blocks(pair):
    recon, target = pair
    loss = motion_loss(recon, target, LossWeights())
    terms = dict(zip(TERMS, loss.terms, strict=True))
    for name, block in SLICES.items():
        torch.testing.assert_close(terms[name], F.smooth_l1_loss(recon[..., block], target[..., block]))
    steps = [x[:, 1:, 8:74] - x[:, :-1, 8:74] for x in pair]
    torch.testing.assert_close(terms["temporal_velocity"], F.smooth_l1_loss(*steps))
    torch.testing.assert_close(loss.smooth_l1, F.smooth_l1_loss(recon, target))
    expected = sum(getattr(LossWeights(), name) * terms[name] for name in TERMS)
    torch.testing.assert_close(loss.total, expected)


def test_the_published_slices_give_the_published_loss():
    # The model card lists the five slices and their mean over the 272 features; our blocks must weigh them alike.
    slices = dict(zip(SLICES, (0.00107, 0.00029, 0.00851, 0.02301, 0.00383), strict=True))
    error = torch.zeros(1, 2, 272, dtype=torch.float64)
    for name, block in SLICES.items():
        error[..., block] = (2 * slices[name]) ** 0.5  # smooth L1 of e below 1 is e^2 / 2
    loss = motion_loss(error, torch.zeros_like(error), LossWeights())
    assert round(float(loss.smooth_l1), 4) == 0.0095


@pytest.mark.parametrize("name", TERMS)
def test_each_weight_weighs_its_own_term(pair, name):
    zero = LossWeights(*(0.0 for _ in TERMS))
    loss = motion_loss(*pair, dataclasses.replace(zero, **{name: 2.0}))
    torch.testing.assert_close(loss.total, 2 * loss.terms[TERMS.index(name)])


def test_a_mask_leaves_padding_out(pair):
    recon, target = (x.clone() for x in pair)
    lengths = torch.tensor([12, 8, 4])
    mask = torch.arange(12) < lengths[:, None]
    recon[~mask], target[~mask] = 100.0, float("nan")
    recon.requires_grad_()
    loss = motion_loss(recon, target, LossWeights(), mask)
    frames = [torch.cat([x[row, :length] for row, length in enumerate(lengths)]) for x in (recon, target)]
    torch.testing.assert_close(loss.smooth_l1, F.smooth_l1_loss(*frames).detach())
    steps = [
        torch.cat([x[row, :length, 8:74].diff(dim=0) for row, length in enumerate(lengths)]) for x in (recon, target)
    ]
    torch.testing.assert_close(loss.terms[-1], F.smooth_l1_loss(*steps).detach())
    loss.total.backward()
    assert recon.grad.isfinite().all()
    assert not recon.grad[~mask].any()
    assert recon.grad[mask].any()


def test_one_frame_has_no_velocity():
    loss = motion_loss(torch.ones(1, 1, 272), torch.zeros(1, 1, 272), LossWeights())
    assert loss.terms[-1] == 0
    assert loss.total.isfinite()
