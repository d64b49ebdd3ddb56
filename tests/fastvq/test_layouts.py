"""Heads, projections, lengths, feature maps and quantize-dropout."""

import pytest
import torch

from fastvq import (
    EMA,
    CodebookRules,
    GroupedResidualVQ,
    GroupedVQ,
    QuantizeDropout,
    RelativeUsage,
    ResidualVQ,
    VectorQuantize,
)

PLAIN = CodebookRules(init=None, dead=None)


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 4, 12)])
def test_heads_are_rows_of_one_codebook(shape):
    torch.manual_seed(0)
    vq = VectorQuantize(12, 8, heads=3, rules=PLAIN)
    single = VectorQuantize(4, 8, rules=PLAIN)
    single.load_state_dict(vq.state_dict())
    x = torch.randn(shape)
    out, rows = vq(x), single(x.reshape(-1, 4))
    assert out.indices.shape == (*shape[:-1], 3)
    assert torch.equal(out.indices.flatten(), rows.indices)
    assert torch.equal(out.quantized.reshape(-1, 4), rows.quantized)
    torch.testing.assert_close(out.loss, rows.loss)
    torch.testing.assert_close(vq.codebook, single.codebook)
    vq.eval()
    assert torch.equal(vq.encode(x), vq(x).indices)
    assert torch.equal(vq.decode(vq.encode(x)), vq(x).quantized)


@pytest.mark.parametrize("channel_dim", [-1, 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda d: VectorQuantize(10, 8, codebook_dim=4, channel_dim=d),
        lambda d: VectorQuantize(10, 8, codebook_dim=4, heads=3, channel_dim=d),
        lambda d: GroupedVQ(10, 8, groups=3, codebook_dim=4, channel_dim=d),
        lambda d: ResidualVQ(10, 8, num_quantizers=2, codebook_dim=4, channel_dim=d),
        lambda d: GroupedResidualVQ(10, 8, groups=2, num_quantizers=2, codebook_dim=4, channel_dim=d),
    ],
)
def test_projections(make, channel_dim):
    torch.manual_seed(0)
    vq = make(channel_dim)
    x = torch.randn(2, 5, 10).movedim(-1, channel_dim)
    mask = torch.rand(2, 5) < 0.6
    for module in (vq.train(), vq.eval()):
        out = module(x, mask)
        assert out.quantized.shape == x.shape
        assert (out.quantized.movedim(channel_dim, -1)[~mask] == 0).all()
        assert (out.indices[~mask] == -1).all()
        assert (out.indices[mask] >= 0).all()
        assert out.loss.isfinite()
    (out.quantized.sum() + out.loss).backward()
    assert vq.project_in.weight.grad.abs().sum() > 0
    assert vq.project_out.weight.grad.abs().sum() > 0
    decoded = vq.decode(out.indices).movedim(channel_dim, -1)
    torch.testing.assert_close(decoded[mask], out.quantized.movedim(channel_dim, -1)[mask])
    assert torch.equal(vq.encode(x, mask), out.indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projections_in_half_precision(dtype):
    vq = ResidualVQ(10, 8, num_quantizers=2, codebook_dim=4).to(dtype)
    out = vq(torch.randn(2, 5, 10, dtype=dtype))
    assert out.quantized.dtype == dtype
    assert vq.codebook.dtype == torch.float32
    assert vq.decode(out.indices).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert VectorQuantize(10, 8, codebook_dim=4)(torch.randn(2, 5, 10)).loss.isfinite()


@pytest.mark.parametrize(
    "make",
    [lambda: VectorQuantize(6, 8), lambda: VectorQuantize(6, 8, heads=2), lambda: ResidualVQ(6, 8, num_quantizers=2)],
)
@pytest.mark.parametrize("trailing", [(), (4,)])
def test_lengths_are_a_mask(make, trailing):
    torch.manual_seed(0)
    vq = make().eval()
    x = torch.randn(3, 5, *trailing, 6)
    lengths = torch.tensor([5, 0, 3])
    mask = (torch.arange(5) < lengths[:, None]).view(3, 5, *(1,) * len(trailing))
    by_length, by_mask = vq(x, lengths=lengths), vq(x, mask.expand(3, 5, *trailing))
    for a, b in zip(by_length, by_mask, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(vq.encode(x, lengths=lengths), by_length.indices)


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 5, 4), (2, 6, 3, 4, 5)])
def test_feature_maps(shape):
    vq = GroupedVQ(6, 8, groups=2, channel_dim=1).eval()
    x = torch.randn(shape)
    out = vq(x)
    assert out.quantized.shape == shape
    assert out.indices.shape == (shape[0], *shape[2:], 2)
    assert torch.equal(vq.decode(out.indices), out.quantized)


def test_dropout_draws_every_number_of_stages():
    torch.manual_seed(0)
    drop = QuantizeDropout()
    drawn = torch.stack([drop((4, 5), 4, torch.device("cpu")) for _ in range(200)]).flatten()
    assert drawn.unique().tolist() == [1, 2, 3, 4]
    drop = QuantizeDropout(probability=0.5, at_least=3, multiple_of=2, per_sequence=True)
    drawn = torch.cat([drop((400, 5), 7, torch.device("cpu")) for _ in range(3)])
    assert drawn.shape == (1200, 1)
    assert drawn.unique().tolist() == [4, 6, 7]
    assert 0.5 < (drawn == 7).float().mean() < 0.7  # 1/2 + 1/2 * 1/5
    assert drop((1, 9), 7, torch.device("cpu")).shape == (1, 9)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_dropped_stages(per_sequence):
    torch.manual_seed(0)
    vq = ResidualVQ(6, 8, num_quantizers=4, dropout=QuantizeDropout(per_sequence=per_sequence), rules=PLAIN)
    x = torch.randn(16, 5, 6)
    taken_somewhere = set()
    for _ in range(12):
        out = vq(x)
        taken = (out.indices >= 0).sum(-1)
        taken_somewhere |= set(taken.unique().tolist())
        assert (taken == taken[:, :1]).all()
        assert per_sequence or (taken == taken[0, 0]).all()
        assert torch.isfinite(out.loss)
    assert taken_somewhere == {1, 2, 3, 4}
    assert (vq.eval()(x).indices >= 0).all()


def test_statistics_of_a_stage_that_no_row_took_stay():
    torch.manual_seed(0)
    rules = CodebookRules(update=EMA(0.5), init=None, dead=RelativeUsage(0.5))
    vq = ResidualVQ(6, 8, num_quantizers=3, rules=rules)
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(torch.randn(40, 6), num_quantizers=2)
    for name in ("codebook", "embed_sum", "cluster_size"):
        old, new = before[f"codebooks.{name}"], vq.state_dict()[f"codebooks.{name}"]
        assert torch.equal(old[:, 2], new[:, 2])
        assert not torch.equal(old[:, :2], new[:, :2])


def test_a_prefix_of_the_stages_decodes():
    torch.manual_seed(0)
    vq = ResidualVQ(6, 8, num_quantizers=3).eval()
    x = torch.randn(40, 6)
    full, part = vq.encode(x), vq.encode(x, num_quantizers=2)
    assert torch.equal(part[:, :2], full[:, :2])
    assert (part[:, 2] == -1).all()
    assert torch.equal(vq(x, num_quantizers=2).quantized, vq.decode(part))


@pytest.mark.usefixtures("inductor")
def test_new_modules_compile_whole():
    torch.manual_seed(0)
    vq = ResidualVQ(
        10,
        8,
        num_quantizers=3,
        codebook_dim=4,
        dropout=QuantizeDropout(per_sequence=True),
        rules=CodebookRules(init=None),
    )
    x = torch.randn(2, 5, 10, requires_grad=True)
    out = torch.compile(vq, fullgraph=True)(x)
    (out.quantized.sum() + out.loss).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: VectorQuantize(10, 8, heads=3), ValueError, "dim must be a multiple of heads"),
        (lambda: GroupedVQ(12, 8, groups=2, heads=2), ValueError, "groups and heads cannot both be above 1"),
        (lambda: VectorQuantize(10, 8, codebook_dim=0), ValueError, "codebook_dim must be at least 1"),
        (lambda: QuantizeDropout(probability=2.0), ValueError, "probability must lie in"),
        (lambda: QuantizeDropout(at_least=0), ValueError, "at_least must be at least 1"),
        (lambda: ResidualVQ(4, 8, num_quantizers=2)(torch.zeros(3, 4), num_quantizers=3), ValueError, "at most 2"),
        (
            lambda: VectorQuantize(4, 8)(torch.zeros(2, 3, 4), lengths=torch.tensor([1, 2, 3])),
            ValueError,
            r"lengths must be \(2,\)",
        ),
        (
            lambda: VectorQuantize(4, 8)(
                torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), lengths=torch.tensor([1, 2])
            ),
            ValueError,
            "give one of them",
        ),
        (lambda: VectorQuantize(4, 8)(torch.zeros(2, 3, 4), lengths=torch.tensor([1.0, 2.0])), TypeError, "int64"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
