"""ResidualVQ and GroupedResidualVQ: training behaviour, state, masks, gradients."""

import copy

import pytest
import torch
from torch.nn.functional import mse_loss

from fastvq import (
    EMA,
    CodebookRules,
    Frozen,
    GroupedResidualVQ,
    RandomInit,
    RelativeUsage,
    ResidualVQ,
    RotationTrick,
)
from fastvq import (
    functional as F,
)

PLAIN = CodebookRules(init=None, dead=None)
FROZEN = CodebookRules(init=None, update=Frozen())


def started(module):
    """The module with codes that shrink from stage to stage, and statistics that agree with them."""
    books = module.codebooks
    books.codebook.copy_(
        torch.randn_like(books.codebook) * 0.6 ** torch.arange(books.codebook.shape[1])[:, None, None]
    )
    books.embed_sum.copy_(books.codebook)
    books.cluster_size.fill_(1)
    books._clear_padding_()
    return module


def test_shapes_of_both_forms():
    x = torch.randn(2, 7, 12)
    one = started(ResidualVQ(12, 16, num_quantizers=3, rules=FROZEN))
    result = one(x)
    assert result.quantized.shape == x.shape
    assert result.indices.shape == (2, 7, 3)
    assert torch.equal(one.decode(result.indices), result.quantized)
    assert torch.equal(one.encode(x), result.indices)
    several = started(GroupedResidualVQ(12, 16, groups=4, num_quantizers=3, channel_dim=1, rules=FROZEN))
    image = torch.randn(2, 12, 5, 3)
    result = several(image)
    assert result.quantized.shape == image.shape
    assert result.indices.shape == (2, 5, 3, 4, 3)
    torch.testing.assert_close(several.decode(result.indices), result.quantized, rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 3])
def test_loss_and_gradient_are_the_textbook_ones(groups):
    torch.manual_seed(0)
    vq = started(GroupedResidualVQ(6, 8, groups=groups, num_quantizers=4, rules=FROZEN)).double()
    x = torch.randn(5, 9, 6, dtype=torch.float64, requires_grad=True)
    quantized, indices, loss = vq(x)
    upstream = torch.randn_like(x)
    (grad,) = torch.autograd.grad((quantized * upstream).sum() + loss, x)

    rows = x.reshape(5, 9, groups, -1)
    total, expected = torch.zeros_like(rows), 0
    for stage in range(4):
        code = torch.stack([vq.codebook[g, stage, indices[..., g, stage]] for g in range(groups)], 2)
        expected = expected + mse_loss(rows - total, code)
        total = total + code
    expected = expected / 4
    (wanted,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, wanted + upstream)


def test_gradient_of_rows_with_masks_and_of_rows_that_are_not_finite():
    torch.manual_seed(0)
    vq = started(ResidualVQ(6, 8, num_quantizers=3, rules=FROZEN))
    x = torch.randn(2, 5, 6)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    broken = x.clone()
    broken[0, 1, 2] = float("nan")
    leaf = broken.clone().requires_grad_()
    quantized, indices, loss = vq(leaf, mask)
    assert (indices[1, 3:] == -1).all()
    assert (quantized[1, 3:] == 0).all()
    assert quantized[0, 1].isnan().all()
    (grad,) = torch.autograd.grad(loss, leaf)
    kept = mask.clone()
    kept[0, 1] = False
    assert (grad[~kept] == 0).all()
    alone = x[kept].clone().requires_grad_()
    expected = vq(alone.unsqueeze(0)).loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad[kept], torch.autograd.grad(expected, alone)[0])


@pytest.mark.parametrize("shared", [False, True])
def test_update_is_one_step_of_every_stage_on_its_residuals(shared):
    torch.manual_seed(0)
    vq = started(ResidualVQ(4, 5, num_quantizers=3, shared=shared, rules=PLAIN)).train()
    before = copy.deepcopy(vq.codebooks)
    x = torch.randn(1, 40, 4)
    indices = vq(x).indices[0]
    residual, sums, counts = x[0], [], []
    for stage in range(3):
        found = F.segment_sum(residual, indices[:, stage], 5)
        sums.append(found.sums)
        counts.append(found.counts)
        residual = residual - before.stack()[0, stage, indices[:, stage]]
    sums, counts = torch.stack(sums), torch.stack(counts)
    if shared:
        sums, counts = sums.sum(0, keepdim=True), counts.sum(0, keepdim=True)
    state = [getattr(before, name)[0] for name in ("codebook", "embed_sum", "cluster_size")]
    F.ema_update_(*state, sums, counts, decay=0.99)
    for name, expected in zip(("codebook", "embed_sum", "cluster_size"), state, strict=True):
        torch.testing.assert_close(getattr(vq.codebooks, name)[0], expected)


def test_k_means_starts_each_stage_on_what_the_stage_before_leaves():
    torch.manual_seed(0)
    vq = ResidualVQ(8, 32, num_quantizers=4).train()
    x = torch.randn(4, 300, 8)
    assert not vq.codebooks.initted
    vq(x)
    assert vq.codebooks.initted
    errors = F.residual_nearest(x.view(-1, 8), vq.codebook[0]).errors.mean(0)
    assert (errors[1:] < 0.8 * errors[:-1]).all()


def test_training_leaves_less_error():
    torch.manual_seed(0)
    vq = ResidualVQ(8, 32, num_quantizers=3, rules=CodebookRules(init=RandomInit())).train()
    x = torch.randn(4, 300, 8)
    vq(x)
    first = F.residual_nearest(x.view(-1, 8), vq.codebook[0]).errors.mean(0)[-1]
    for _ in range(60):
        vq(x)
    assert F.residual_nearest(x.view(-1, 8), vq.codebook[0]).errors.mean(0)[-1] < 0.9 * first


def test_stages_of_several_sizes_never_use_their_padding():
    torch.manual_seed(0)
    vq = ResidualVQ(4, (3, 16, 5), num_quantizers=3, rules=CodebookRules(dead=RelativeUsage(0.5))).train()
    x = torch.randn(2, 100, 4)
    for step in range(5):
        indices = vq(x + 0.1 * step).indices
        assert (indices.flatten(0, 1) < torch.tensor([3, 16, 5])).all()
    state = vq.codebooks
    for stage, size in enumerate((3, 16, 5)):
        assert (state.codebook[0, stage, size:] == 0).all()
        assert (state.cluster_size[0, stage, size:] == 0).all()
        assert (state.codebook[0, stage, :size] != 0).any(-1).all()


@pytest.mark.parametrize("shared", [False, True])
def test_dead_codes_are_replaced_by_residuals(shared):
    torch.manual_seed(0)
    rules = CodebookRules(init=None, update=EMA(0.5), dead=RelativeUsage(0.1))
    vq = started(ResidualVQ(4, 6, num_quantizers=2, shared=shared, rules=rules)).train()
    vq.codebooks.codebook[:, :, -1] = 1e4
    vq.codebooks.embed_sum[:, :, -1] = 1e4
    vq.codebooks.cluster_size[:, :, -1] = 1e-3
    x = torch.randn(1, 60, 4)
    indices = vq(x).indices[0]
    codes = vq.codebook[0]
    assert (codes.abs() < 10).all()
    reach = [x[0], x[0] - codes[0, indices[:, 0]]]
    for stage in range(1 if shared else 2):
        candidates = torch.cat(reach) if shared else reach[stage]
        distance = (codes[stage, -1:] - candidates).norm(dim=-1).min()
        assert distance < 1e-5


def test_state_survives_half_precision_copies_and_files():
    vq = started(ResidualVQ(4, 6, num_quantizers=2)).half()
    assert vq.codebooks.codebook.dtype == torch.float32
    other = ResidualVQ(4, 6, num_quantizers=2)
    other.load_state_dict(vq.state_dict())
    assert torch.equal(other.codebook, vq.codebook)
    assert list(vq.state_dict()) == [f"codebooks.{n}" for n in ("codebook", "embed_sum", "cluster_size", "initted")]
    assert vq.codebooks.codebook.shape == (1, 2, 6, 4)
    quantized = vq.eval()(torch.randn(2, 3, 4, dtype=torch.float16)).quantized
    assert quantized.dtype == torch.float16


def test_a_wider_beam_leaves_no_more_error():
    torch.manual_seed(0)
    narrow = started(ResidualVQ(6, 16, num_quantizers=3, rules=FROZEN))
    wide = ResidualVQ(6, 16, num_quantizers=3, beam=6, rules=FROZEN)
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(3, 50, 6)
    left = [(x - vq(x).quantized).square().sum() for vq in (narrow, wide)]
    assert left[1] < left[0]


def test_rotation_trick_keeps_the_value():
    vq = started(ResidualVQ(6, 16, num_quantizers=3, estimator=RotationTrick(), rules=FROZEN))
    x = torch.randn(3, 5, 6, requires_grad=True)
    quantized = vq(x).quantized
    assert torch.equal(quantized, vq.decode(vq.encode(x)))
    quantized.sum().backward()
    assert x.grad.isfinite().all()


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="one for each of the 3 quantizers, got 2"):
        ResidualVQ(4, (3, 4), num_quantizers=3)
    with pytest.raises(ValueError, match="a shared codebook has one size"):
        ResidualVQ(4, (3, 4), num_quantizers=2, shared=True)
    with pytest.raises(ValueError, match="num_quantizers"):
        ResidualVQ(4, 3, num_quantizers=0)
    with pytest.raises(ValueError, match="multiple of groups"):
        GroupedResidualVQ(5, 3, groups=2, num_quantizers=1)
    with pytest.raises(ValueError, match=r"indices must be \(\*R, 1, 2\)"):
        ResidualVQ(4, 3, num_quantizers=2).decode(torch.zeros(5, 3, dtype=torch.int64))
