"""Gradients and state beside side effects: codes that move, padding, zeros, writes in place."""

import copy

import pytest
import torch
from torch import nn

import fastvq
from fastvq import (
    EMA,
    AttentionVQ,
    CodebookRules,
    Frozen,
    GroupedVQ,
    GumbelSoftmax,
    KMeansInit,
    Learned,
    ProjectedResidualVQ,
    RelativeUsage,
    ResidualVQ,
    RotationTrick,
    VectorQuantize,
    losses,
)


@pytest.mark.parametrize(
    "options",
    [
        {"regularisers": [losses.Diversity(temperature=1.0)]},
        {"regularisers": [losses.Diversity(temperature=1.0)], "metric": "dot"},
        {"estimator": GumbelSoftmax()},
        {"estimator": GumbelSoftmax(), "metric": "dot"},
    ],
)
@pytest.mark.parametrize("dead", [None, RelativeUsage(0.5)])
def test_gradients_are_those_of_the_codes_before_they_moved(options, dead):
    torch.manual_seed(0)
    rules = CodebookRules(update=EMA(0.5), init=None, dead=dead)
    moving = VectorQuantize(8, 16, rules=rules, **options)
    still = VectorQuantize(8, 16, rules=CodebookRules(update=Frozen(), init=None, dead=None), **options)
    still.load_state_dict(moving.state_dict())
    grads = []
    for module in (moving, still):
        x = torch.linspace(-2, 2, 300 * 8).sin().view(300, 8).requires_grad_()
        torch.manual_seed(1)
        out = module(x)
        (out.quantized.sin().sum() + out.loss).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def check_compiled(eager):
    """Asserts that a module of 8 channels has the gradients and the next codes of its compiled copy."""
    compiled = copy.deepcopy(eager)
    grads = []
    for module in (eager, torch.compile(compiled, fullgraph=True)):
        x = torch.linspace(-2, 2, 100 * 8).sin().view(100, 8).requires_grad_()
        out = module(x)
        (out.quantized.sin().sum() + 10 * out.loss).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.codebook, eager.codebook)


@pytest.mark.parametrize(
    "options",
    [{}, {"regularisers": [losses.Diversity(temperature=1.0)]}, {"estimator": RotationTrick()}, {"metric": "cosine"}],
)
@pytest.mark.usefixtures("inductor")
def test_compiled_gradients_are_those_of_the_codes_before_they_moved(options):
    torch.manual_seed(0)
    check_compiled(VectorQuantize(8, 16, rules=CodebookRules(update=EMA(0.5), init=None, dead=None), **options))


@pytest.mark.usefixtures("inductor")
def test_compiled_stacks_have_the_gradients_of_eager_ones():
    torch.manual_seed(0)
    check_compiled(ResidualVQ(8, 16, num_quantizers=3, rules=CodebookRules(update=EMA(0.5), init=None, dead=None)))


def test_going_back_through_moved_codes_is_refused():
    vq = VectorQuantize(8, 16)
    vq(torch.randn(50, 8))
    x = torch.randn(50, 8, requires_grad=True)
    scores = x @ vq.codebook[0].T
    vq(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantize(8, 16),
        lambda: VectorQuantize(8, 16, heads=2),
        lambda: GroupedVQ(8, 16, groups=2, channel_dim=1),
        lambda: VectorQuantize(8, 16, codebook_dim=4),
        lambda: VectorQuantize(8, 16, estimator=RotationTrick()),
        lambda: ResidualVQ(8, 16, num_quantizers=2),
        lambda: fastvq.SimVQ(8, 16),
        lambda: AttentionVQ(8, 16),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_models_may_write_to_what_they_get(make, training):
    torch.manual_seed(0)
    vq = make()
    vq(torch.randn(2, 8, 8))
    vq.train(training)
    other = copy.deepcopy(vq)
    x = torch.randn(2, 8, 8)
    grads = []
    for module, relu in ((vq, nn.ReLU(inplace=True)), (other, nn.ReLU())):
        rows = x.clone().requires_grad_()
        out = module(rows)
        (relu(out.quantized).sum() + out.loss).backward()
        grads.append(rows.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantize(8, 16, codebook_dim=4),
        lambda: ResidualVQ(8, 16, num_quantizers=2, codebook_dim=4),
        lambda: ProjectedResidualVQ(8, 16, num_quantizers=2, codebook_dim=4),
        lambda: AttentionVQ(8, 16),
    ],
)
def test_padding_that_is_not_finite_reaches_no_weight(make):
    vq = make()
    x = torch.randn(2, 12, 8)
    x[1, 9:] = float("nan")
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False
    out = vq(x, mask)
    (out.quantized.square().sum() + out.loss).backward()
    for name, parameter in vq.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cosine_of_zero_tiny_and_long_rows(dtype):
    torch.manual_seed(0)
    vq = VectorQuantize(8, 16, metric="cosine", rules=CodebookRules(init=None, dead=None)).to(dtype)
    base = torch.randn(20, 8)
    x = torch.cat([torch.zeros(1, 8), base * 1e-3, base * 2e3]).to(dtype).requires_grad_()
    out = vq.eval()(x)
    assert (out.indices >= 0).all()
    assert (out.indices[1:21] == out.indices[21:]).float().mean() > 0.8  # float16 rounds the small ones
    (out.quantized.float().sum() + out.loss).backward()
    assert x.grad.isfinite().all()
    assert x.grad[0].abs().max() < 10


def test_frozen_parameters_are_not_replaced():
    vq = VectorQuantize(4, 32, rules=CodebookRules(update=Learned(), init=None, dead=RelativeUsage(0.9)))
    vq.codebook.requires_grad_(False)
    codes = vq.codebook.clone()
    for _ in range(20):
        vq(torch.randn(64, 4))
    assert torch.equal(vq.codebook, codes)


@pytest.mark.parametrize(
    "make", [lambda r: VectorQuantize(4, 8, rules=r), lambda r: ResidualVQ(4, (8, 5), num_quantizers=2, rules=r)]
)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_learned_codes_beside_rows_of_another_width(make, dtypes):
    vq = make(CodebookRules(update=Learned(), init=None, dead=None)).to(dtypes[0])
    vq(torch.randn(20, 4, dtype=dtypes[1])).loss.backward()
    assert vq.codebooks.codebook.grad.isfinite().all()


def test_attention_waits_for_a_batch_with_rows():
    vq = AttentionVQ(4, 3)
    vq(torch.full((5, 4), float("nan")))
    vq(torch.randn(5, 4), torch.zeros(5, dtype=torch.bool))
    assert not vq.codebooks.initted
    x = torch.randn(5, 4)
    vq(x)
    assert torch.equal(vq.codebooks.codebook[0], x[:3])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CodebookRules(update=EMA), r"update must be one of EMA\(\), Learned\(\), Frozen\(\), got EMA"),
        (lambda: CodebookRules(dead=0.1), r"dead must be one of RelativeUsage\(\), AbsoluteUsage\(\), got 0.1"),
        (lambda: CodebookRules(init=KMeansInit), r"init must be an initialiser such as KMeansInit\(\)"),
        (lambda: VectorQuantize(4, 8, estimator="rotation"), "estimator must be an estimator such as"),
        (lambda: VectorQuantize(4, 8, estimator=RotationTrick), "got RotationTrick"),
        (lambda: ResidualVQ(4, 8, num_quantizers=2, dropout=True), "dropout must be a QuantizeDropout, got bool"),
        (lambda: VectorQuantize(4, 8)(torch.zeros(1, 3, 4), lengths=[1]), "lengths must be a torch.Tensor, got list"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.usefixtures("inductor")
def test_compiled_gradients_of_the_drop_in_quantizer():
    from fastvq.compat import vector_quantize_pytorch as drop_in

    torch.manual_seed(0)
    eager = drop_in.VectorQuantize(
        dim=8, codebook_size=16, codebook_diversity_loss_weight=1.0, codebook_diversity_temperature=1.0
    )
    grads = []
    for module in (eager, torch.compile(copy.deepcopy(eager), fullgraph=True)):
        x = torch.linspace(-2, 2, 100 * 8).sin().view(1, 100, 8).requires_grad_()
        quantized, _, loss = module(x)
        (quantized.sin().sum() + 10 * loss).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
