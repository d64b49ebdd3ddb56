"""SplitResidualVQ: against its parts, and with masks, fewer stages, dtypes, and whole graphs."""

import copy
import pickle

import pytest
import torch

from fastvq import QuantizeDropout, SplitResidualVQ


@pytest.fixture(params=[{"codebook_dim": 4}, {}, {"project": True}], ids=["projected", "plain", "square"])
def make(request):
    torch.manual_seed(0)
    return lambda **options: SplitResidualVQ(6, 9, num_quantizers=(1, 3), **{**request.param, **options})


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 4, 6), (2, 0, 6)])
@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_shapes_and_round_trip(make, shape, channel_dim):
    vq = make(channel_dim=channel_dim)
    vq(torch.randn(4, 6, 6))
    x = torch.randn(shape).movedim(-1, channel_dim)
    vq(x)
    out = vq.eval()(x)
    assert out.quantized.shape == x.shape
    assert out.indices.shape == (*shape[:-1], 4)
    assert out.indices.dtype == torch.int64
    assert torch.equal(vq.encode(x), out.indices)
    torch.testing.assert_close(vq.decode(out.indices), out.quantized)


def test_is_the_sum_of_its_parts(make):
    vq = make()
    x = torch.randn(50, 6)
    vq(x)
    out = vq.eval()(x)
    total, loss = 0, 0
    for i, stages in enumerate((1, 3)):
        part = vq.parts[i](vq.project_in[i](x))
        total = total + vq.project_out[i](part.quantized)
        loss = loss + part.loss * stages / 4
        assert torch.equal(part.indices, out.indices[:, slice(0, 1) if i == 0 else slice(1, 4)])
    torch.testing.assert_close(out.quantized, total)
    torch.testing.assert_close(out.loss, loss)


def test_learns():
    torch.manual_seed(0)
    vq = SplitResidualVQ(6, 9, num_quantizers=(1, 3), codebook_dim=4)
    x = torch.randn(256, 6, requires_grad=True)
    vq(x)
    start = (vq.eval()(x).quantized - x).square().mean()
    optimizer = torch.optim.Adam(vq.parameters(), 0.01)
    vq.train()
    for _ in range(100):
        out = vq(x)
        loss = (out.quantized - x.detach()).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert x.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in vq.parameters())
    assert (vq.eval()(x).quantized - x).square().mean() < 0.5 * start


@pytest.mark.parametrize("number", [1, 2, 4])
def test_fewer_stages(make, number):
    vq = make()
    x = torch.randn(7, 5, 6)
    vq(x)
    vq.eval()
    out = vq(x, num_quantizers=number)
    assert torch.equal(out.indices, vq.encode(x, num_quantizers=number))
    assert torch.equal(out.indices[..., :number], vq.encode(x)[..., :number])
    assert (out.indices[..., number:] == -1).all()
    torch.testing.assert_close(vq.decode(out.indices), out.quantized)


def test_masks(make):
    vq = make()
    x = torch.randn(4, 5, 6)
    lengths = torch.tensor([5, 0, 3, 1])
    mask = torch.arange(5) < lengths[:, None]
    vq(x, mask)
    vq.eval()
    out, again = vq(x, mask), vq(torch.where(mask[..., None], x, 1e3), lengths=lengths)
    assert torch.equal(out.indices, again.indices)
    torch.testing.assert_close(out.loss, again.loss)
    assert (out.indices[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    assert torch.equal(vq.encode(x, lengths=lengths), out.indices)
    x[0, 0, 0] = float("nan")
    out = vq(x, mask)
    assert out.quantized[0, 0].isnan().all()
    assert out.quantized[0, 1:].isfinite().all()


def test_dropout_leaves_the_first_part_whole():
    vq = SplitResidualVQ(6, 9, num_quantizers=(2, 3), dropout=QuantizeDropout(1.0))
    x = torch.randn(30, 6)
    counts = {tuple((vq(x).indices[0] >= 0).tolist()) for _ in range(40)}
    assert all(taken[:3] == (True, True, True) for taken in counts)
    assert len(counts) == 3


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
    assert half.decode(expected.indices).shape == x.shape
    assert half.parts[0].codebook.dtype == torch.float32
    double = copy.deepcopy(vq).double()
    assert double(x.double()).quantized.dtype == torch.float64


@pytest.mark.usefixtures("inductor")
def test_compiles_whole_in_training(make):
    vq = make()
    x = torch.randn(4, 5, 6, requires_grad=True)
    vq(x)
    out = torch.compile(vq, fullgraph=True)(x)
    (out.quantized.sum() + out.loss).backward()
    assert x.grad.isfinite().all()


def test_mistakes_are_explained():
    for options, message in (
        ({"num_quantizers": 4}, r"num_quantizers must be the stages of each part, as in \(1, 7\), got 4"),
        ({"num_quantizers": ()}, "num_quantizers must be the stages of each part"),
        ({"num_quantizers": (1, 0)}, "num_quantizers must be at least 1"),
        ({"num_quantizers": (1, 2), "codebook_dim": 4, "project": False}, "codebook_dim must be dim without proj"),
    ):
        with pytest.raises(ValueError, match=message):
            SplitResidualVQ(6, 9, **options)
    vq = SplitResidualVQ(6, 9, num_quantizers=(1, 3))
    with pytest.raises(ValueError, match="x must have 6 channels on axis -1"):
        vq(torch.randn(5, 7))
    with pytest.raises(ValueError, match="num_quantizers must be at most 4, got 5"):
        vq.encode(torch.randn(5, 6), num_quantizers=5)
    with pytest.raises(ValueError, match=r"indices must be \(\*R, 4\), got shape \(5, 3\)"):
        vq.decode(torch.zeros(5, 3, dtype=torch.int64))
