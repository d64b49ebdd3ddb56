"""Learned codes, estimators, losses and initialisers: gradients against autograd on the textbook's formulas."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from fastvq import (
    EMA,
    AbsoluteUsage,
    CodebookRules,
    DiVeQ,
    FirstRowsInit,
    GroupedResidualVQ,
    GroupedVQ,
    GumbelSoftmax,
    Learned,
    RelativeUsage,
    ResidualVQ,
    VectorQuantize,
    losses,
    soft,
)


def learned(weight: float = 1.0, dead=None, **changes) -> CodebookRules:
    return CodebookRules(update=Learned(weight), init=None, dead=dead, **changes)


def test_codebook_loss_of_groups():
    torch.manual_seed(0)
    vq = GroupedVQ(6, 9, groups=2, rules=learned(0.7), commitment_weight=0.25)
    x = torch.randn(4, 5, 6, requires_grad=True)
    out = vq(x)
    codes = vq.codebook.detach().clone().requires_grad_()
    rows = x.detach().clone().requires_grad_()
    chosen = codes[torch.arange(2), out.indices].reshape(4, 5, 6)
    expected = 0.25 * (rows - chosen.detach()).square().mean() + 0.7 * (rows.detach() - chosen).square().mean()
    torch.testing.assert_close(out.loss, expected)
    found = torch.autograd.grad(out.loss, (x, vq.codebook))
    for grad, wanted in zip(found, torch.autograd.grad(expected, (rows, codes)), strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("shared", [False, True])
def test_codebook_loss_of_stacks(shared):
    torch.manual_seed(0)
    vq = GroupedResidualVQ(
        6, 9, groups=2, num_quantizers=3, shared=shared, rules=learned(0.7), commitment_weight=0.25
    )
    x = torch.randn(4, 5, 6, requires_grad=True)
    mask = torch.rand(4, 5) < 0.7
    out = vq(x, mask)
    codes = vq.codebooks.codebook.detach().clone().requires_grad_()
    rows = x.detach().clone().requires_grad_()
    residual, expected = rows.view(4, 5, 2, 3), 0.0
    for stage in range(3):
        chosen = codes[torch.arange(2), 0 if shared else stage, out.indices[..., stage]]
        for weight, error in ((0.25, residual - chosen.detach()), (0.7, residual.detach() - chosen)):
            expected = expected + weight * error.square()[mask].mean() / 3
        residual = residual - chosen.detach()
    torch.testing.assert_close(out.loss, expected)
    found = torch.autograd.grad(out.loss, (x, vq.codebooks.codebook))
    for grad, wanted in zip(found, torch.autograd.grad(expected, (rows, codes)), strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize(
    "make", [lambda r: VectorQuantize(4, 8, rules=r), lambda r: ResidualVQ(4, 8, num_quantizers=2, rules=r)]
)
def test_an_optimizer_moves_learned_codes_and_dead_ones_are_replaced(make):
    torch.manual_seed(0)
    vq = make(learned(dead=RelativeUsage(0.1)))
    with torch.no_grad():
        vq.codebooks.codebook[..., 0, :] = 1e3  # no row ever comes here
    optimizer = torch.optim.Adam(vq.parameters(), 0.02)
    x = torch.randn(64, 4)
    first = vq(x).loss.item()
    for _ in range(300):
        optimizer.zero_grad()
        vq(x).loss.backward()
        optimizer.step()
    assert vq(x).loss.item() < 0.7 * first
    assert vq.codebooks.codebook.abs().max() < 100
    assert [name for name, _ in vq.named_parameters()] == ["codebooks.codebook"]


def test_learned_codes_stay_float32():
    vq = VectorQuantize(4, 8, rules=learned())
    held, codes = vq.codebook, vq.codebook.detach().clone()
    vq.half()
    assert vq.codebook.dtype == torch.float32
    assert vq.codebook is held  # an optimizer's hold on it does not go
    assert torch.equal(vq.codebook, codes)
    assert vq.double().codebook.dtype == torch.float64
    vq = VectorQuantize(4, 8, rules=learned()).bfloat16()
    out = vq(torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True))
    out.loss.backward()
    assert vq.codebook.grad.dtype == torch.float32
    state = {name: value.half() if value.is_floating_point() else value for name, value in vq.state_dict().items()}
    vq.load_state_dict(state, assign=True)
    assert vq.codebook.dtype == torch.float32
    assert isinstance(vq.codebook, nn.Parameter)
    assert torch.equal(pickle.loads(pickle.dumps(vq)).codebook, vq.codebook)
    assert torch.equal(copy.deepcopy(vq).codebook, vq.codebook)


def test_learned_cosine_codes_keep_their_length():
    torch.manual_seed(0)
    vq = VectorQuantize(4, 8, metric="cosine", rules=learned()).eval()
    with torch.no_grad():
        vq.codebook.mul_(torch.linspace(0.5, 3, 8).view(1, 8, 1))
    x = torch.randn(50, 4)
    out = vq(x)
    cosine = nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(vq.codebook[0], dim=-1).T
    assert torch.equal(out.indices, cosine.argmax(-1))
    assert torch.equal(out.quantized, vq.codebook[0, out.indices])
    torch.testing.assert_close(out.loss, 2 * (x - out.quantized).square().mean())


def test_diveq_is_as_far_as_the_code_and_reaches_the_codes():
    torch.manual_seed(0)
    vq = VectorQuantize(6, 16, rules=learned(0.0), estimator=DiVeQ(1e-3), commitment_weight=0.0)
    x = torch.randn(40, 6, requires_grad=True)
    out = vq(x)
    code = vq.codebook[0, out.indices]
    torch.testing.assert_close((out.quantized - x).norm(dim=-1), (code - x).norm(dim=-1))
    assert not torch.equal(out.quantized, code)
    grad_x, grad_c = torch.autograd.grad(out.quantized.square().mean(), (x, vq.codebook))
    # By the formula: d|q - x| = unit(q - x) . (dq - dx), along the drawn direction.
    step = out.quantized.detach() - x.detach()
    unit = nn.functional.normalize(step, dim=-1)
    g = 2 * out.quantized.detach() / x.numel()
    along = (g * unit).sum(-1, keepdim=True) * nn.functional.normalize(code - x, dim=-1).detach()
    torch.testing.assert_close(grad_x, g - along)
    torch.testing.assert_close(grad_c[0], torch.zeros(16, 6).index_add_(0, out.indices, along))
    assert torch.equal(vq.eval()(x).quantized, code)


def test_diveq_at_a_code_has_finite_gradients():
    vq = VectorQuantize(3, 4, rules=learned(0.0), estimator=DiVeQ(0.0))
    x = vq.codebook[0].detach().clone().requires_grad_()
    vq(x).quantized.sum().backward()
    assert x.grad.isfinite().all()
    assert vq.codebook.grad.isfinite().all()


def test_diveq_trains_a_residual_stack():
    torch.manual_seed(0)
    vq = ResidualVQ(4, 16, num_quantizers=2, rules=learned(0.0), estimator=DiVeQ(), commitment_weight=0.0)
    optimizer = torch.optim.Adam(vq.parameters(), 0.05)
    x = torch.randn(256, 4)
    before = (vq.eval()(x).quantized - x).square().mean()
    vq.train()
    for _ in range(100):
        optimizer.zero_grad()
        (vq(x).quantized - x).square().mean().backward()
        optimizer.step()
    assert (vq.eval()(x).quantized - x).square().mean() < 0.7 * before


def test_gumbel_softmax_against_autograd():
    torch.manual_seed(0)
    vq = VectorQuantize(4, 8, rules=learned(), estimator=GumbelSoftmax(0.5))
    x = torch.randn(30, 4, requires_grad=True)
    torch.manual_seed(1)
    out = vq(x)
    grads = torch.autograd.grad(out.quantized.square().sum(), (x, vq.codebook))
    assert torch.equal(out.quantized, vq.codebook[0, out.indices])
    rows, codes = x.detach().clone().requires_grad_(), vq.codebook.detach().clone().requires_grad_()
    torch.manual_seed(1)
    noise = -torch.empty(1, 30, 8).exponential_().log()
    noisy = -torch.cdist(rows[None], codes).square() / 0.5 + noise
    assert torch.equal(noisy.argmax(-1)[0], out.indices)
    mean = noisy.softmax(-1) @ codes
    mean.backward(2 * out.quantized.detach()[None])
    torch.testing.assert_close(grads[0], rows.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grads[1], codes.grad, rtol=1e-3, atol=1e-4)


def test_codes_are_drawn_by_their_scores():
    torch.manual_seed(0)
    vq = VectorQuantize(2, 4, rules=CodebookRules(init=None, dead=None, update=EMA(1.0)), sample_temperature=2.0)
    x = torch.tensor([0.3, -0.2]).expand(40000, 2)
    counts = torch.bincount(vq(x).indices, minlength=4) / len(x)
    expected = (-(x[0] - vq.codebook[0]).square().sum(-1) / 2.0).softmax(-1)
    assert (counts - expected).abs().max() < 4 * 0.5 / math.sqrt(len(x))
    assert (vq.eval()(x).indices == vq(x).indices[0]).all()


def test_sampling_leaves_masked_and_broken_rows_out():
    vq = GroupedVQ(6, 4, groups=2, sample_temperature=1.0)
    x = torch.randn(3, 5, 6)
    x[1, 2, 0] = float("nan")
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 4] = False
    out = vq(x, mask)
    assert (out.indices[0, 4] == -1).all()
    assert out.indices[1, 2].tolist()[0] == -1
    assert (out.quantized[0, 4] == 0).all()
    assert out.quantized[1, 2, :3].isnan().all()
    assert out.loss.isfinite()


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("chunk", [1 << 20, 64])
def test_diversity_against_the_whole_matrix(metric, chunk, monkeypatch):
    monkeypatch.setattr(soft, "CHUNK", chunk)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 4, requires_grad=True)
    codebook = torch.randn(2, 9, 4, requires_grad=True)
    valid = torch.rand(2, 3, 7) < 0.8
    loss = losses.Diversity(0.5, 0.3)(x, codebook, metric, valid)
    if metric == "l2":
        score = -torch.cdist(x.flatten(1, 2), codebook).square()
    elif metric == "cosine":
        score = nn.functional.normalize(x, dim=-1).flatten(1, 2) @ nn.functional.normalize(codebook, dim=-1).mT
    else:
        score = x.flatten(1, 2) @ codebook.mT
    share = (score / 0.3).softmax(-1)
    mean = torch.stack([share[g][valid[g].flatten()].mean(0) for g in range(2)])
    expected = 0.5 * (mean * mean.log()).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    for grad, wanted in zip(
        torch.autograd.grad(loss, (x, codebook)), torch.autograd.grad(expected, (x, codebook)), strict=True
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 9, 5)])
def test_orthogonality_against_the_gram_matrix(shape):
    codebook = torch.randn(shape, requires_grad=True)
    loss = losses.Orthogonality(2.0)(torch.zeros(0), codebook, "l2", None)
    codes = nn.functional.normalize(codebook, dim=-1)
    gram = codes @ codes.mT - torch.eye(shape[1])
    torch.testing.assert_close(loss, 2 * gram.square().mean(), rtol=1e-4, atol=1e-6)


def test_regularisers_move_learned_codes():
    torch.manual_seed(0)
    vq = VectorQuantize(4, 3, rules=learned(0.0), regularisers=[losses.Orthogonality()], commitment_weight=0.0)
    optimizer = torch.optim.Adam(vq.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        vq(torch.randn(8, 4)).loss.backward()
        optimizer.step()
    gram = nn.functional.normalize(vq.codebook[0], dim=-1)
    assert ((gram @ gram.T) - torch.eye(3)).abs().max() < 0.05


def test_the_reset_of_t2m_gpt():
    """Codes of a size below one take a row of the batch, and their averages go on as if nothing had happened."""
    torch.manual_seed(0)
    rules = CodebookRules(
        update=EMA(0.99, smoothing="none"), init=FirstRowsInit(), dead=AbsoluteUsage(1.0, reset=None)
    )
    vq = VectorQuantize(3, 4, rules=rules)
    x = torch.randn(64, 3)
    books = vq.codebooks
    vq(x)
    books.embed_sum.copy_(books.codebook * torch.tensor([5.0, 5.0, 0.5, 5.0])[:, None])
    books.cluster_size.copy_(torch.tensor([[5.0, 5.0, 0.5, 5.0]]))
    books.codebook[0, 2] = 100.0  # far away: no row comes
    total, size = books.embed_sum.clone(), books.cluster_size.clone()
    out = vq(x)
    counts = torch.bincount(out.indices, minlength=4).float()
    sums = torch.zeros(4, 3).index_add_(0, out.indices, x)
    torch.testing.assert_close(books.cluster_size[0], 0.99 * size[0] + 0.01 * counts)
    torch.testing.assert_close(books.embed_sum[0], 0.99 * total[0] + 0.01 * sums)
    alive = [0, 1, 3]
    torch.testing.assert_close(books.codebook[0, alive], (books.embed_sum / books.cluster_size[..., None])[0, alive])
    assert (x == books.codebook[0, 2]).all(-1).any()


def test_first_rows_start_a_codebook():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6)
    vq = VectorQuantize(6, 4, rules=CodebookRules(update=EMA(1.0), init=FirstRowsInit(), dead=None))
    vq(x)
    torch.testing.assert_close(vq.codebook[0], x.view(6, 6)[:4], rtol=1e-4, atol=1e-5)
    vq = VectorQuantize(6, 20, rules=CodebookRules(update=EMA(1.0), init=FirstRowsInit(), dead=None))
    mask = torch.tensor([[True, False, True], [True, True, True]])
    vq(x, mask)
    tiled = x[mask].repeat(4, 1)
    assert (vq.codebook[0] - tiled).abs().max() < 0.05
    assert len(vq.codebook[0].unique(dim=0)) == 20


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Learned(-1.0), ValueError, "weight must be a finite number of at least 0"),
        (lambda: Learned(decay=2.0), ValueError, "decay must lie in"),
        (lambda: GumbelSoftmax(0.0), ValueError, "temperature must be above 0"),
        (lambda: DiVeQ(-1.0), ValueError, "variance must be"),
        (lambda: losses.Diversity(temperature=0.0), ValueError, "temperature must be above 0"),
        (lambda: FirstRowsInit(-1.0), ValueError, "noise must be"),
        (lambda: VectorQuantize(4, 8, sample_temperature=-1.0), ValueError, "sample_temperature must be"),
        (lambda: ResidualVQ(4, 8, num_quantizers=2, estimator=GumbelSoftmax()), ValueError, "GumbelSoftmax"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()
