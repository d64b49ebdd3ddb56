"""VectorQuantize and GroupedVQ: training behaviour, state, masks, gradients."""

import copy

import pytest
import torch
from torch import nn

from fastvq import (
    EMA,
    AbsoluteUsage,
    Codebook,
    CodebookRules,
    Frozen,
    GroupedResidualVQ,
    GroupedVQ,
    KMeansInit,
    RandomInit,
    RelativeUsage,
    RotationTrick,
    StraightThrough,
    VectorQuantize,
    metrics,
)


def plain(**changes) -> CodebookRules:
    """No initialisation from data and no replacement, so that a step can be worked out by hand."""
    return CodebookRules(**{"init": None, "dead": None, **changes})


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 3, 4, 12), (2, 2, 3, 2, 12), (0, 12)])
def test_shapes_channels_last(shape):
    vq = GroupedVQ(12, 7, groups=3)
    for mode in (True, False):
        out = vq.train(mode)(torch.randn(shape))
        assert out.quantized.shape == shape
        assert out.indices.shape == (*shape[:-1], 3)
        assert out.loss.shape == ()
        assert vq.decode(out.indices).shape == shape
    assert VectorQuantize(12, 7).encode(torch.randn(shape)).shape == shape[:-1]


def test_channels_first_is_channels_last_transposed():
    torch.manual_seed(0)
    first, last = GroupedVQ(12, 7, groups=3, channel_dim=1).eval(), GroupedVQ(12, 7, groups=3).eval()
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 12, 5, 3)
    a, b = first(x), last(x.movedim(1, -1))
    assert torch.equal(a.quantized, b.quantized.movedim(-1, 1))
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(first.decode(a.indices), a.quantized)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_eval_returns_the_nearest_codes(metric):
    torch.manual_seed(0)
    vq = GroupedVQ(6, 9, groups=2, metric=metric, commitment_weight=0.5).eval()
    x = torch.randn(4, 5, 6)
    out = vq(x)
    assert torch.equal(out.quantized, vq.decode(out.indices))
    assert torch.equal(out.indices, vq.encode(x))
    rows = x.view(4, 5, 2, 3)
    if metric == "cosine":
        rows = nn.functional.normalize(rows, dim=-1)
    assert torch.allclose(out.loss, 0.5 * (rows - out.quantized.view(4, 5, 2, 3)).square().mean(), rtol=1e-5)


def test_gradients_straight_through_and_commitment():
    torch.manual_seed(0)
    vq = GroupedVQ(6, 9, groups=2, commitment_weight=0.25).eval()
    x = torch.randn(4, 5, 6, requires_grad=True)
    out = vq(x)
    weight = torch.randn(4, 5, 6)
    (grad,) = torch.autograd.grad((out.quantized * weight).sum() + 3 * out.loss, x)
    expected = weight + 3 * 0.25 * 2 * (x - out.quantized).detach() / x.numel()
    torch.testing.assert_close(grad, expected)


def test_rotation_trick_against_the_formula():
    """The gradient is the one of |q|/|x| R x with R = I - 2 r r^T + 2 q^ e^T held constant, and the value is q."""
    torch.manual_seed(0)
    x, q = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randn(7, 5, dtype=torch.float64)
    out = RotationTrick()(x, q)
    assert torch.equal(out, q)
    e, c = nn.functional.normalize(x.detach(), dim=-1), nn.functional.normalize(q, dim=-1)
    r = nn.functional.normalize(e + c, dim=-1)
    eye = torch.eye(5, dtype=torch.float64)
    R = eye - 2 * r.unsqueeze(-1) * r.unsqueeze(-2) + 2 * c.unsqueeze(-1) * e.unsqueeze(-2)
    rotated = (q.norm(dim=-1) / x.detach().norm(dim=-1))[:, None] * (R @ x.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(rotated, q)
    weight = torch.randn(7, 5, dtype=torch.float64)
    (got,) = torch.autograd.grad((out * weight).sum(), x)
    (expected,) = torch.autograd.grad((rotated * weight).sum(), x)
    torch.testing.assert_close(got, expected)
    zero = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad((RotationTrick()(zero, q[:1]) * weight[:1]).sum(), zero)
    assert torch.equal(got, weight[:1])


def test_one_ema_step_by_hand():
    torch.manual_seed(0)
    vq = VectorQuantize(3, 5, rules=plain(update=EMA(0.9, smoothing="none"))).train()
    before = copy.deepcopy(vq.codebooks)
    x = torch.randn(40, 3)
    out = vq(x)
    assert torch.equal(out.quantized, before.codebook[0][out.indices])  # quantized with the codes before the step
    one_hot = nn.functional.one_hot(out.indices, 5).float()
    n = 0.9 * before.cluster_size[0] + 0.1 * one_hot.sum(0)
    m = 0.9 * before.embed_sum[0] + 0.1 * one_hot.T @ x
    torch.testing.assert_close(vq.codebooks.cluster_size[0], n)
    torch.testing.assert_close(vq.codebooks.embed_sum[0], m)
    torch.testing.assert_close(vq.codebook[0], m / n[:, None])


def test_masked_rows_count_for_nothing():
    torch.manual_seed(0)
    a = GroupedVQ(6, 4, groups=2, rules=plain()).train()
    b = copy.deepcopy(a)
    x = torch.randn(2, 5, 6)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    short, whole = torch.cat([x[0], x[1, :2]]), x.clone()
    whole[~mask] = 1e3
    whole.requires_grad_()
    out, expected = a(whole, mask), b(short)
    assert torch.equal(out.indices[mask], expected.indices)
    assert (out.indices[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(a.codebook, b.codebook)
    (grad,) = torch.autograd.grad(out.quantized.sum() + out.loss, whole)
    assert (grad[~mask] == 0).all()


def test_everything_masked():
    vq = GroupedVQ(6, 4, groups=2).train()
    out = vq(torch.randn(2, 5, 6), torch.zeros(2, 5, dtype=torch.bool))
    assert out.loss == 0
    assert vq.codebook.isfinite().all()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [GroupedVQ, GroupedResidualVQ])
def test_a_first_batch_without_a_row_to_learn_from(kind, compiled):
    """Padding, or rows spoilt by an overflow, would otherwise become the codes, and NaN codes stay for ever."""
    torch.manual_seed(0)
    stages = {"num_quantizers": 2} if kind is GroupedResidualVQ else {}
    for mask in (None, torch.zeros(9, dtype=torch.bool)):
        vq = kind(6, 4, groups=2, **stages).train()
        step = torch.compile(vq, fullgraph=True, backend="eager") if compiled else vq
        step(torch.full((9, 6), float("nan")), mask)
        assert vq.codebook.isfinite().all()
        assert bool(vq.codebooks.initted) == compiled  # asking whether there is a row would cost a sync there
        out = step(torch.randn(50, 6) + 30)
        assert (out.indices >= 0).all()
        assert bool(vq.codebooks.initted)
        if not compiled:
            assert (vq.codebook[:, 0] if kind is GroupedResidualVQ else vq.codebook).min() > 20


def test_rows_that_are_not_finite_spoil_only_themselves():
    torch.manual_seed(0)
    vq = GroupedVQ(6, 4, groups=2).train()
    x = torch.randn(50, 6)
    x[7, 0] = float("nan")
    out = vq(x)
    assert out.indices[7].tolist() == [-1, out.indices[7, 1].item()]
    assert out.quantized[7, :3].isnan().all()
    assert out.quantized[torch.arange(50) != 7].isfinite().all()
    assert out.loss.isfinite()
    assert vq.codebook.isfinite().all()
    with pytest.raises(ValueError, match=r"row \(7,\)"):
        GroupedVQ(6, 4, groups=2, check_finite=True)(x)


@pytest.mark.parametrize("init", [KMeansInit(), RandomInit()])
@pytest.mark.parametrize("rows", [300, 20, 1])
def test_initialisation_from_data(init, rows):
    torch.manual_seed(0)
    vq = GroupedVQ(8, 64, groups=2, rules=CodebookRules(init=init, update=Frozen())).train()
    x = torch.randn(rows, 8) + 5
    first = vq(x)
    assert bool(vq.codebooks.initted)
    assert (vq.codebook.mean() - 5).abs() < 2
    assert vq.codebook[0].unique(dim=0).shape[0] == 64
    codes = vq.codebook.clone()
    vq(x * 2)
    assert torch.equal(codes, vq.codebook)
    assert first.loss < x.var() if rows > 1 else first.loss < 1e-3


@pytest.mark.parametrize("compiled", [False, True])
def test_dead_codes_are_replaced_by_rows(compiled):
    """Eager on a CPU only the dead codes are touched; compiled, as on a GPU, a mask decides."""
    torch.manual_seed(0)
    rules = CodebookRules(init=None, update=EMA(0.5), dead=RelativeUsage(0.1))
    vq = VectorQuantize(2, 8, rules=rules).train()
    vq.codebooks.codebook.fill_(100)
    vq.codebooks.codebook[0, 0] = 0
    vq.codebooks.embed_sum.copy_(vq.codebook)
    step = torch.compile(vq, fullgraph=True, backend="eager") if compiled else vq
    for _ in range(40):
        out = step(torch.randn(64, 2))
    assert vq.codebook.abs().max() < 10
    assert metrics.utilisation(metrics.code_counts(out.indices.unsqueeze(-1), 8)) == 1


def test_absolute_threshold_warns_where_it_would_reset_everything():
    vq = VectorQuantize(2, 32, rules=CodebookRules(dead=AbsoluteUsage())).train()
    with pytest.warns(UserWarning, match="RelativeUsage"):
        vq(torch.randn(16, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_state_stays_float32(dtype):
    vq = GroupedVQ(6, 4, groups=2)
    codes = vq.codebook.clone()
    vq.to(dtype).train()
    assert torch.equal(vq.codebook, codes)
    assert {vq.codebooks.embed_sum.dtype, vq.codebooks.cluster_size.dtype} == {torch.float32}
    out = vq(torch.randn(9, 6, dtype=dtype))
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert vq.codebook.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vq(nn.Linear(6, 6)(torch.randn(9, 6))).quantized.dtype == torch.bfloat16
    assert vq.double()(torch.randn(9, 6).double()).loss.dtype == torch.float64
    assert vq.float().codebook.dtype == torch.float32


def test_state_stays_float32_whatever_is_loaded_or_cast():
    torch.manual_seed(0)
    vq = GroupedVQ(6, 4, groups=2).train()
    vq(torch.randn(50, 6))
    half = {name: value.half() if value.is_floating_point() else value for name, value in vq.state_dict().items()}
    other = GroupedVQ(6, 4, groups=2).train()
    other.load_state_dict(half, assign=True)
    assert {getattr(other.codebooks, name).dtype for name in ("codebook", "embed_sum", "cluster_size")} == {
        torch.float32
    }
    assert torch.equal(other.codebook, vq.codebook.half().float())
    assert other(torch.randn(9, 6)).loss.isfinite()
    codes = vq.codebook.clone()
    assert torch.equal(vq.to(torch.float8_e4m3fn).codebook, codes)


def test_state_dict_round_trip():
    torch.manual_seed(0)
    vq, other = GroupedVQ(6, 4, groups=2).train(), GroupedVQ(6, 4, groups=2).train()
    x = torch.randn(90, 6)
    vq(x)
    assert set(vq.state_dict()) == {f"codebooks.{n}" for n in ("codebook", "embed_sum", "cluster_size", "initted")}
    other.load_state_dict(vq.state_dict())
    torch.manual_seed(1)
    a = vq(x)
    torch.manual_seed(1)
    b = other(x)  # does not initialise again
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(vq.codebook, other.codebook)


@pytest.mark.parametrize("estimator", [StraightThrough(), RotationTrick()], ids=lambda e: type(e).__name__)
@pytest.mark.usefixtures("inductor")
def test_compiles_whole_in_training_and_exports(estimator):
    torch.manual_seed(0)
    vq = GroupedVQ(6, 4, groups=2, estimator=estimator).train()
    vq(torch.randn(50, 6))
    eager = copy.deepcopy(vq)
    compiled = torch.compile(vq, fullgraph=True)
    x = torch.randn(50, 6, requires_grad=True)
    got, expected = compiled(x), eager(x)
    assert torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(vq.codebook, eager.codebook)
    for a, b in zip(
        *(torch.autograd.grad(o.quantized.square().sum() + o.loss, x) for o in (got, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)
    exported = torch.export.export(eager.eval(), (x.detach(),)).module()
    assert torch.equal(exported(x.detach()).indices, eager(x.detach()).indices)


@pytest.mark.parametrize("kind", [GroupedVQ, GroupedResidualVQ])
def test_exports_for_every_number_of_rows(kind):
    stages = {"num_quantizers": 2} if kind is GroupedResidualVQ else {}
    vq = kind(6, 4, groups=2, **stages).eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    example = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    exported = torch.export.export(vq, example, dynamic_shapes=(dims, dims)).module()
    x, mask = torch.randn(4, 7, 6), torch.rand(4, 7) < 0.5
    assert torch.equal(exported(x, mask).indices, vq(x, mask).indices)


@pytest.mark.usefixtures("inductor")
def test_compiles_whole_before_initialisation():
    vq = GroupedVQ(6, 4, groups=2).train()
    torch.compile(vq, fullgraph=True)(torch.randn(50, 6))
    assert bool(vq.codebooks.initted)


def test_a_mask_may_join_once_sizes_are_dynamic():
    torch._dynamo.reset()  # a size is taken as dynamic once it has changed
    vq = GroupedVQ(6, 4, groups=2, rules=plain())
    step = torch.compile(vq, fullgraph=True, backend="eager")
    for rows, mask in ((9, None), (50, None), (9, torch.ones(9, dtype=torch.bool))):
        assert step(torch.randn(rows, 6), mask).indices.shape == (rows, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: GroupedVQ(10, 4, groups=3), ValueError, "multiple of groups"),
        (lambda: GroupedVQ(9, 0, groups=3), ValueError, "codebook_size must be at least 1"),
        (lambda: VectorQuantize(9.0, 4), TypeError, "dim must be an int"),
        (lambda: VectorQuantize(9, 4, metric="l1"), ValueError, "'l2', 'cosine', 'dot'"),
        (lambda: VectorQuantize(9, 4)(torch.zeros(3, 8)), ValueError, "9 channels on axis -1"),
        (lambda: VectorQuantize(9, 4)(torch.zeros(9)), ValueError, "at least one more axis"),
        (lambda: VectorQuantize(9, 4)(torch.zeros(3, 9), torch.ones(4) > 0), ValueError, "broadcast"),
        (lambda: GroupedVQ(9, 4, groups=3).decode(torch.zeros(5, 2).long()), ValueError, r"\(\*R, 3\)"),
        (lambda: GroupedVQ(9, 4, groups=3).decode(torch.full((5, 3), 4)), IndexError, "another codebook"),
        (lambda: EMA(1.5), ValueError, r"\[0, 1\]"),
        (lambda: EMA(eps=float("nan")), ValueError, "eps must be a finite number of at least 0"),
        (lambda: EMA(eps="x"), TypeError, "eps must be a number, got str"),
        (lambda: RelativeUsage(reset=-1.0), ValueError, "reset must be a finite number of at least 0"),
        (lambda: AbsoluteUsage(float("nan")), ValueError, "threshold must be a finite number of at least 0"),
        (lambda: VectorQuantize(9, 4, rules=EMA()), TypeError, "rules must be a CodebookRules, got EMA"),
        (
            lambda: VectorQuantize(9, 4, commitment_weight=-1.0),
            ValueError,
            "commitment_weight must be a finite number",
        ),
        (lambda: VectorQuantize(9, 4, channel_dim="last"), TypeError, "channel_dim must be an int"),
        (lambda: VectorQuantize(9, 4, channel_dim=2)(torch.zeros(3, 9)), ValueError, "9 channels on axis 2"),
        (lambda: Codebook(4, 0), ValueError, "dim must be at least 1"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
