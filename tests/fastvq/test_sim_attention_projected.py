"""SimVQ, attention quantizers, and stages with projections of their own: against the formulas by autograd."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastvq import (
    AttentionVQ,
    CodebookRules,
    KMeansInit,
    Learned,
    ProjectedResidualVQ,
    QuantizeDropout,
    RelativeUsage,
    ResidualAttentionVQ,
    ResidualSimVQ,
    SimVQ,
    StraightThrough,
    soft,
)

REPLACED = CodebookRules(update=Learned(), init=KMeansInit(), dead=RelativeUsage(0.3))
MAKERS = {
    "sim": lambda **k: SimVQ(6, 9, **k),
    "residual sim": lambda **k: ResidualSimVQ(6, 9, num_quantizers=3, **k),
    "attention": lambda **k: AttentionVQ(6, 9, **k),
    "residual attention": lambda **k: ResidualAttentionVQ(6, 9, num_quantizers=3, **k),
    "attention, dead codes replaced": lambda **k: ResidualAttentionVQ(6, 9, num_quantizers=3, rules=REPLACED, **k),
    "projected": lambda **k: ProjectedResidualVQ(6, 9, num_quantizers=3, codebook_dim=2, **k),
}


@pytest.fixture(params=MAKERS)
def make(request):
    torch.manual_seed(0)
    return MAKERS[request.param]


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_shapes_and_round_trip(make, shape, channel_dim):
    vq = make(channel_dim=channel_dim)
    x = torch.randn(shape).movedim(-1, channel_dim)
    vq(x)
    out = vq.eval()(x)
    assert out.quantized.shape == x.shape
    assert out.indices.shape[: len(shape) - 1] == shape[:-1]
    assert torch.equal(vq.encode(x), out.indices)
    torch.testing.assert_close(vq.decode(out.indices), out.quantized)


def test_training_lowers_the_loss(make):
    vq = make()
    optimizer = torch.optim.Adam(vq.parameters(), 0.01)
    x = torch.randn(128, 6)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(vq(x).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for name, p in vq.named_parameters() if "project_out" not in name)


def test_masks(make):
    vq = make()
    x = torch.randn(4, 5, 6)
    mask = torch.rand(4, 5) < 0.6
    vq(x, mask)
    vq.eval()
    out, again = vq(x, mask), vq(torch.where(mask[..., None], x, 1e3), mask)
    assert torch.equal(out.indices, again.indices)
    torch.testing.assert_close(out.loss, again.loss)
    assert (out.indices[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    torch.testing.assert_close(out.loss, vq(x[mask]).loss)


@pytest.mark.usefixtures("inductor")
def test_copies_dtypes_and_whole_graphs(make):
    vq = make()
    x = torch.randn(4, 5, 6)
    vq(x)
    vq.eval()
    expected = vq(x)
    for other in (copy.deepcopy(vq), pickle.loads(pickle.dumps(vq)), make().eval()):
        other.load_state_dict(vq.state_dict())
        assert torch.equal(other(x).quantized, expected.quantized)
    exported = torch.export.export(vq, (x,)).module()
    torch.testing.assert_close(exported(x).quantized, expected.quantized)
    torch.testing.assert_close(torch.compile(vq, fullgraph=True)(x).quantized, expected.quantized)
    half = copy.deepcopy(vq).bfloat16()
    assert half(x.bfloat16()).quantized.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vq(x).loss.isfinite()


@pytest.mark.usefixtures("inductor")
def test_compiles_whole_in_training(make):
    vq = make()
    x = torch.randn(4, 5, 6, requires_grad=True)
    vq(x)
    out = torch.compile(vq, fullgraph=True)(x)
    (out.quantized.sum() + out.loss).backward()
    assert x.grad.isfinite().all()


def test_sim_vq_against_autograd():
    torch.manual_seed(0)
    vq = SimVQ(6, 9, frozen_dim=4, estimator=StraightThrough(), commitment_weight=0.3)
    x = torch.randn(40, 6, requires_grad=True)
    out = vq(x)
    codes = vq.frozen[0] @ vq.transforms[0].weight.T
    assert torch.equal(out.indices, torch.cdist(x, codes).argmin(-1))
    chosen = codes[out.indices]
    expected = (x.detach() - chosen).square().mean() + 0.3 * (x - chosen.detach()).square().mean()
    torch.testing.assert_close(out.loss, expected)
    inputs = (x, vq.transforms[0].weight)
    for grad, wanted in zip(
        torch.autograd.grad(out.loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(grad, wanted)


def test_sim_vq_takes_any_map():
    vq = SimVQ(6, 9, frozen_dim=4, transform=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)))
    assert vq(torch.randn(5, 6)).quantized.shape == (5, 6)
    assert vq.codebook.shape == (1, 9, 6)


@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_attention_against_autograd(chunk, monkeypatch):
    monkeypatch.setattr(soft, "CHUNK", chunk)
    torch.manual_seed(0)
    rules = CodebookRules(update=Learned(), init=None, dead=None)
    vq = AttentionVQ(6, 9, rules=rules, beta=0.25, entropy_weight=0.1, entropy_temperature=0.5)
    x = torch.randn(40, 6, requires_grad=True)
    out = vq(x)
    logits = vq.query_norm(vq.query(x)) @ vq.key_norm(vq.key(vq.codebooks.codebook[0])).T / 6**0.5
    values = vq.value(vq.codebooks.codebook[0])
    hard = nn.functional.one_hot(logits.argmax(-1), 9).float()
    assert torch.equal(out.indices, logits.argmax(-1))
    probability = logits.softmax(-1)
    z = (hard - probability.detach() + probability) @ values
    code = hard @ values
    loss = (z - x).square().mean() + (code.detach() - x).square().mean() + 0.25 * (code - x.detach()).square().mean()
    sharp = (logits / 0.5).softmax(-1)
    mean = sharp.mean(0)
    loss = loss + 0.1 * (-(sharp * sharp.log()).sum(-1).mean() + (mean * mean.log()).sum())
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.quantized, code)
    inputs = (x, *(p for _, p in sorted(vq.named_parameters())))
    for grad, wanted in zip(torch.autograd.grad(out.loss, inputs), torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-5)


def test_attention_starts_from_the_first_rows():
    torch.manual_seed(0)
    vq = AttentionVQ(6, 4)
    x = torch.randn(2, 5, 6)
    vq(x)
    assert torch.equal(vq.codebooks.codebook[0], x.view(10, 6)[:4])
    other = AttentionVQ(6, 4)
    other.load_state_dict(vq.state_dict())
    other(x + 1)
    assert torch.equal(other.codebooks.codebook, vq.codebooks.codebook)


@pytest.mark.parametrize("name", ["residual attention", "projected"])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_dropout(name, per_sequence):
    torch.manual_seed(0)
    vq = MAKERS[name](dropout=QuantizeDropout(per_sequence=per_sequence))
    x = torch.randn(8, 5, 6)
    seen = set()
    for _ in range(8):
        out = vq(x)
        taken = (out.indices >= 0).sum(-1)
        seen |= set(taken.unique().tolist())
        assert (taken == taken[:, :1]).all()
        assert out.loss.isfinite()
    assert seen == {1, 2, 3}


def test_projected_stages_are_dacs():
    """Against the steps of DAC's quantizer written out: unit vectors are compared, raw codes are used."""
    torch.manual_seed(0)
    vq = ProjectedResidualVQ(6, 9, num_quantizers=3, codebook_dim=2, channel_dim=1).eval()
    x = torch.randn(2, 6, 7)
    residual, total = x.mT, 0.0
    for number, stage in enumerate(vq.stages):
        latent = stage.project_in(residual)
        unit = nn.functional.normalize
        codes = stage.codebook[0]
        found = torch.cdist(unit(latent, dim=-1), unit(codes, dim=-1).expand(2, -1, -1)).argmin(-1)
        assert torch.equal(found, vq.encode(x)[..., number])
        step = stage.project_out(codes[found])
        residual, total = residual - step, total + step
    torch.testing.assert_close(vq(x).quantized, total.mT)
    torch.testing.assert_close(vq.decode(vq.encode(x)[..., :2]), total.mT - step.mT)


def test_strides_are_snacs():
    torch.manual_seed(0)
    vq = ProjectedResidualVQ(6, 9, num_quantizers=3, codebook_dim=2, strides=(4, 2, 1)).eval()
    x = torch.randn(2, 8, 6)
    out = vq(x)
    assert [tuple(i.shape) for i in out.indices] == [(2, 2), (2, 4), (2, 8)]
    residual = x
    for stage, stride, found in zip(vq.stages, vq.strides, out.indices, strict=True):
        pooled = nn.functional.avg_pool1d(residual.mT, stride, stride).mT
        assert torch.equal(stage.encode(pooled), found)
        residual = residual - stage.decode(found).repeat_interleave(stride, dim=1)
    torch.testing.assert_close(x - residual, out.quantized)
    torch.testing.assert_close(vq.decode(out.indices), out.quantized)
    assert all(torch.equal(a, b) for a, b in zip(vq.encode(x), out.indices, strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SimVQ(6, 0), "codebook_size must be at least 1"),
        (lambda: SimVQ(6, 9, frozen_dim=0), "frozen_dim must be at least 1"),
        (lambda: AttentionVQ(6, 9, entropy_temperature=0.0), "entropy_temperature must be above 0"),
        (lambda: ResidualAttentionVQ(6, 9, num_quantizers=2).decode(torch.zeros(4, 3).long()), r"\(\*R, 2\)"),
        (lambda: ProjectedResidualVQ(6, (9, 8), num_quantizers=3), "codebook_size must have one entry for each of 3"),
        (lambda: ProjectedResidualVQ(6, 9, num_quantizers=2, strides=(2,)), "strides must have one entry for each"),
        (lambda: ProjectedResidualVQ(6, 9, num_quantizers=1, strides=(2,))(torch.zeros(1, 3, 6)), "multiple of each"),
        (lambda: ProjectedResidualVQ(6, 9, num_quantizers=2)(torch.zeros(3, 5)), "x must have 6 channels"),
        (lambda: ProjectedResidualVQ(6, 9, num_quantizers=2).decode([]), "1 to 2 stages"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
