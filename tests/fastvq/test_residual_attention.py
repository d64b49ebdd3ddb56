"""Residual attention quantization against the published steps, written out in float64, by autograd."""

import copy
import math
import pickle

import pytest
import torch

from fastvq import (
    EMA,
    AttentionVQ,
    CodebookRules,
    FirstRowsInit,
    Learned,
    QuantizeDropout,
    RelativeUsage,
    ResidualAttentionVQ,
)

BETA, WEIGHT, ENTROPY, TEMPERATURE = 0.25, 0.3, 0.1, 0.5


def settings(**changes):
    rules = CodebookRules(update=Learned(WEIGHT), init=None, dead=None)
    return {"entropy_weight": ENTROPY, "entropy_temperature": TEMPERATURE, "rules": rules, **changes}


@pytest.fixture
def vq():
    torch.manual_seed(0)
    return ResidualAttentionVQ(6, 9, num_quantizers=3, **settings()).double()


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def one_stage(stage, x):
    """PGR2M's quantizer of rows (N, D): what it passes on, indices, and the loss."""
    raw = stage.codebooks.codebook[0]
    queries = rms_norm(x @ stage.query.weight.T + stage.query.bias, stage.query_norm.weight)
    keys = rms_norm(raw @ stage.key.weight.T + stage.key.bias, stage.key_norm.weight)
    values = raw @ stage.value.weight.T + stage.value.bias
    logits = queries @ keys.T / math.sqrt(x.shape[1])
    indices = logits.argmax(-1)
    hard = torch.zeros_like(logits).scatter(1, indices[:, None], 1.0)
    soft = logits.exp() / logits.exp().sum(-1, keepdim=True)
    z1, z2 = (hard - soft.detach() + soft) @ values, hard @ values
    loss = ((z1 - x) ** 2).mean() + ((z2.detach() - x) ** 2).mean() + BETA * ((z2 - x.detach()) ** 2).mean()
    sharp = (logits / TEMPERATURE).softmax(-1)
    mean = sharp.mean(0)
    rows = -(sharp * sharp.log()).sum(-1).mean()
    entropy = rows + (mean * mean.log()).sum()
    return x + (z1 - x).detach(), indices, WEIGHT * loss + ENTROPY * entropy


def textbook(vq, x, stages=None):
    """The published stack: quantized, indices (N, Q), loss."""
    residual, total, losses, indices = x, 0.0, [], []
    for stage in list(vq.stages)[:stages]:
        quantized, found, loss = one_stage(stage, residual)
        residual, total = residual - quantized.detach(), total + quantized
        losses.append(loss)
        indices.append(found)
    return total, torch.stack(indices, -1), torch.stack(losses).mean()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_results_and_gradients_are_those_of_the_formulas(vq, stages):
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(40, 6, dtype=torch.float64)
    parameters = dict(vq.named_parameters())
    out = vq(x, num_quantizers=stages)
    quantized, indices, loss = textbook(vq, x, stages)
    assert torch.equal(out.indices[:, :stages], indices)
    assert (out.indices[:, stages:] == -1).all()
    torch.testing.assert_close(out.quantized, quantized)
    torch.testing.assert_close(out.loss, loss)
    given, wanted = (
        torch.autograd.grad((q * pull).sum() + term, (x, *parameters.values()), allow_unused=True)
        for q, term in ((out.quantized, out.loss), (quantized, loss))
    )
    for name, ours, theirs in zip(("x", *parameters), given, wanted, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)


def test_padding_counts_for_nothing(vq):
    x = torch.randn(4, 7, 6, dtype=torch.float64)
    lengths = torch.tensor([7, 3, 0, 1])
    mask = torch.arange(7) < lengths[:, None]
    x[~mask] = float("nan")
    given, wanted = vq(x, mask), textbook(vq, x[mask])
    torch.testing.assert_close(given.quantized[mask], wanted[0])
    assert torch.equal(given.indices[mask], wanted[1])
    torch.testing.assert_close(given.loss, wanted[2])
    assert (given.indices[~mask] == -1).all()
    assert (given.quantized[~mask] == 0).all()
    assert torch.equal(vq(x, lengths=lengths).indices, given.indices)
    assert torch.equal(vq.encode(x, lengths=lengths), given.indices)


def test_rows_that_are_not_finite_are_lost_alone(vq):
    x = torch.randn(5, 6, dtype=torch.float64)
    clean = vq(x)
    x[2, 1] = float("inf")
    out = vq(x)
    assert (out.indices[2] == -1).all()
    assert out.quantized[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(out.indices[others], clean.indices[others])
    assert out.loss.isfinite()


def test_decoding_takes_projected_codes_and_leaves_out_holes(vq):
    x = torch.randn(30, 6, dtype=torch.float64)
    indices = vq.eval().encode(x)
    projected = torch.stack([s.codebooks.codebook[0] @ s.value.weight.T + s.value.bias for s in vq.stages])
    torch.testing.assert_close(vq.codebook, projected)
    assert not torch.allclose(projected, torch.stack([s.codebooks.codebook[0] for s in vq.stages]))
    torch.testing.assert_close(vq.decode(indices), sum(projected[q][indices[:, q]] for q in range(3)))
    coarse = torch.where(torch.arange(3) < 2, indices, -1)
    torch.testing.assert_close(vq.decode(coarse), sum(projected[q][indices[:, q]] for q in range(2)))
    assert torch.equal(vq.encode(x, num_quantizers=2), coarse)
    assert (vq.decode(torch.full_like(indices, -1)) == 0).all()
    torch.testing.assert_close(vq(x).quantized, vq.decode(indices))


def test_codes_are_projected_once_until_something_changes(vq, monkeypatch):
    vq.eval()
    calls = []
    stage = vq.stages[1]
    monkeypatch.setattr(stage.value, "forward", lambda c, own=stage.value.forward: (calls.append(1), own(c))[1])
    indices = torch.randint(9, (20, 3))
    with torch.no_grad():
        first = vq.decode(indices)
        assert torch.equal(vq.decode(indices), first)
        assert len(calls) == 1
        vq.codebook.zero_()
        stage.codebook.zero_()
        vq.decode(indices).zero_()
        assert torch.equal(vq.decode(indices), first), "what is kept has been written to from outside"
        assert len(calls) == 1
        for name in ("value.bias", "value.weight", "codebooks.codebook"):
            stage.get_parameter(name).data.mul_(2)  # leaves the version that autograd counts as it is
            changed = vq.decode(indices)
            assert not torch.equal(changed, first), name
            first = changed
        assert len(calls) == 4
        vq.float()
        assert vq.decode(indices).dtype == torch.float32
        monkeypatch.undo()
        for other in (pickle.loads(pickle.dumps(vq)), copy.deepcopy(vq)):  # which begin with nothing kept
            calls.clear()
            value = other.stages[1].value
            monkeypatch.setattr(value, "forward", lambda c, own=value.forward: (calls.append(1), own(c))[1])
            other.decode(indices)
            assert len(calls) == 1
    assert vq.decode(indices).requires_grad


def test_dropout_waits_for_first_codes_of_all_stages_and_then_takes_the_first_ones():
    torch.manual_seed(0)
    vq = ResidualAttentionVQ(6, 9, num_quantizers=3, dropout=QuantizeDropout(1.0))
    x = torch.randn(2, 20, 6)
    assert (vq(x).indices >= 0).all()
    assert all(stage.codebooks.initted for stage in vq.stages)
    seen = set()
    for _ in range(30):
        out = vq(x)
        taken = int((out.indices[0, 0] >= 0).sum())
        assert ((out.indices >= 0) == (torch.arange(3) < taken)).all()
        wanted = copy.deepcopy(vq)(x, num_quantizers=taken)
        torch.testing.assert_close(out.loss, wanted.loss)
        torch.testing.assert_close(out.quantized, wanted.quantized)
        seen.add(taken)
    assert seen == {1, 2, 3}
    assert (vq.eval()(x).indices >= 0).all()


def test_each_stage_starts_from_the_rows_that_the_one_before_leaves():
    torch.manual_seed(0)
    vq = ResidualAttentionVQ(6, 4, num_quantizers=2)
    x = torch.randn(30, 6)
    vq(x)
    assert torch.equal(vq.stages[0].codebooks.codebook[0], x[:4])
    left = x - vq.stages[0].decode(vq.encode(x)[:, 0])
    torch.testing.assert_close(vq.stages[1].codebooks.codebook[0], left[:4])


def test_an_identity_start_finds_the_code_nearest_by_angle():
    torch.manual_seed(0)
    vq = AttentionVQ(6, 9, start="identity")
    x = torch.randn(50, 6)
    out = vq(x)
    codes = x[:9]
    wanted = torch.nn.functional.cosine_similarity(x[:, None], codes, dim=-1).argmax(-1)
    assert torch.equal(out.indices, wanted)
    torch.testing.assert_close(out.quantized, codes[wanted])


def test_unused_codes_become_rows_where_the_rules_say_so():
    torch.manual_seed(0)
    used = {}
    for dead in (None, RelativeUsage(0.3)):
        rules = CodebookRules(update=Learned(), init=FirstRowsInit(), dead=dead)
        vq = ResidualAttentionVQ(6, 32, num_quantizers=2, rules=rules, start="identity")
        vq(torch.randn(1, 6).expand(64, 6))  # all codes are one
        x = torch.randn(400, 6)
        for _ in range(20):
            out = vq(x)
            (out.quantized.sum() + out.loss).backward()  # what the backward pass needs is not written over
        used[dead] = [len(out.indices[:, q].unique()) for q in range(2)]
    assert used[None] == [1, 1]
    assert min(used[RelativeUsage(0.3)]) >= 28


def test_a_stack_of_another_seed_becomes_a_saved_one():
    torch.manual_seed(0)
    vq, other = (ResidualAttentionVQ(6, 9, num_quantizers=3) for _ in range(2))
    x = torch.randn(30, 6)
    vq(x)
    other.load_state_dict(vq.state_dict())
    other(torch.randn(30, 6))  # has its codes, and takes no others
    assert torch.equal(other.eval()(x).quantized, vq.eval()(x).quantized)
    assert torch.equal(other.codebook, vq.codebook)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ResidualAttentionVQ(6, 9, num_quantizers=0), ValueError, "num_quantizers must be at least 1"),
        (lambda: AttentionVQ(6, 9, start="nearest"), ValueError, "start must be one of 'random', 'identity'"),
        (
            lambda: AttentionVQ(6, 9, rules=CodebookRules(update=EMA())),
            TypeError,
            r"rules.update must be Learned\(\), since gradients move the codes",
        ),
        (lambda: stack()(torch.zeros(4, 5)), ValueError, "x must have 6 channels on axis -1"),
        (lambda: stack()(torch.zeros(4, 6), num_quantizers=3), ValueError, "num_quantizers must be at most 2, got 3"),
        (
            lambda: stack().encode(torch.zeros(4, 6), num_quantizers=0),
            ValueError,
            "num_quantizers must be at least 1",
        ),
        (lambda: stack()(torch.zeros(4, 6), torch.ones(3, dtype=torch.bool)), ValueError, "mask"),
        (lambda: stack().decode(torch.zeros(4, 3).long()), ValueError, r"indices must be \(\*R, 2\)"),
        (lambda: stack().decode(torch.zeros(4, 2)), TypeError, "indices must be"),
        (lambda: stack().decode(torch.full((4, 2), 9)), IndexError, "9"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def stack():
    return ResidualAttentionVQ(6, 9, num_quantizers=2)
