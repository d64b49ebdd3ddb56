"""C++ segment_sum, lookup and ema_update_ against the reference."""

import pytest
import torch

from fastvq.kernels import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 8, 9, 16, 17, 33, 64, 130, 257, 322, 1281, 2307])
def test_segment_sum(cpu, dim, dtype):
    torch.manual_seed(dim)
    for groups, rows, codes in ((1, 0, 3), (3, 1, 1), (2, 97, 31), (5, 64, 2)):
        x = torch.randn(groups, rows, 2, dim).to(dtype)
        indices = torch.randint(-1, codes, (groups, rows, 2))
        for actual, expected in zip(
            cpu.segment_sum(x, indices, codes), reference.segment_sum(x, indices, codes), strict=True
        ):
            assert actual.dtype == expected.dtype
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(("groups", "rows", "dim"), [(0, 5, 8), (2, 0, 8), (37, 21, 8), (9, 300, 3)])
def test_segment_sum_of_any_groups(cpu, groups, rows, dim):
    """Narrow groups are summed several at a time."""
    torch.manual_seed(groups)
    x, indices = torch.randn(groups, 1, rows, dim), torch.randint(-1, 100, (groups, 1, rows))
    for found, wanted in zip(cpu.segment_sum(x, indices, 100), reference.segment_sum(x, indices, 100), strict=True):
        assert torch.equal(found, wanted)


def test_segment_sum_of_any_strides(cpu):
    torch.manual_seed(0)
    feature_map = torch.randn(3, 24, 10)
    indices = torch.randint(-1, 7, (3, 10, 3)).permute(2, 0, 1)
    for x in (
        feature_map.view(3, 3, 8, 10).permute(1, 0, 3, 2),
        torch.randn(3, 10, 24).view(3, 10, 3, 8).permute(2, 0, 1, 3),
        torch.randn(1, 3, 1, 40).expand(3, 3, 10, 40),
    ):
        for actual, expected in zip(
            cpu.segment_sum(x, indices, 7), reference.segment_sum(x, indices, 7), strict=True
        ):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("dim", [3, 20])
def test_long_segments_keep_their_accuracy(cpu, dim):
    """A hundred thousand equal rows: a float32 running sum would be off in the fourth digit."""
    x = torch.full((1, 100_000, 1, 1), 0.1).expand(1, 100_000, 1, dim).contiguous()
    sums, counts = cpu.segment_sum(x, torch.zeros(1, 100_000, 1, dtype=torch.int64), 2)
    assert counts.tolist() == [[100_000, 0]]
    exact = torch.tensor(0.1).double() * 100_000
    assert ((sums[0, 0].double() - exact).abs() <= 2.0**-24 * exact).all()


@pytest.mark.parametrize("dim", [8, 50])
def test_sums_do_not_depend_on_threads(cpu, dim):
    torch.manual_seed(0)
    x, indices = torch.randn(3, 9000, 1, dim), torch.randint(-1, 9, (3, 9000, 1))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(cpu.segment_sum(x, indices, 9)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("wrong", "complaint"), [(7, "got 7"), (-2, "got -2"), (2**40, f"got {2**40}")])
def test_indices_outside_are_refused(cpu, wrong, complaint):
    indices = torch.zeros(2, 5, 1, dtype=torch.int64)
    indices[1, 3, 0] = wrong
    with pytest.raises(IndexError, match=complaint):
        cpu.segment_sum(torch.randn(2, 5, 1, 40), indices, 7)
    with pytest.raises(IndexError, match=complaint) as raised:
        cpu.lookup(indices.unsqueeze(-1), torch.randn(2, 1, 7, 4))
    with pytest.raises(IndexError) as expected:
        reference.lookup(indices.unsqueeze(-1), torch.randn(2, 1, 7, 4))
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 3, 4, 8, 16, 17, 32, 40, 64, 300])
def test_lookup(cpu, dim, dtype):
    torch.manual_seed(dim)
    for groups, rows, stages, codes in (
        *((1, 0, 1, 3), (2, 1, 1, 1), (3, 41, 1, 7), (3, 41, 4, 31), (5, 9, 2, 2)),
        (2, 9, 130, 3),  # more codes than are added in one go
    ):
        codebooks = torch.randn(groups, stages, codes, dim, dtype=dtype)
        codebooks[..., 0] = -0.0
        indices = torch.randint(-1, codes, (rows, 3, stages, groups)).permute(3, 0, 1, 2)
        indices[:, ::2, 0, : stages // 2] = -1
        indices[:, 1::2, 1, stages // 2 :] = -1
        out, expected = cpu.lookup(indices, codebooks), reference.lookup(indices, codebooks)
        assert torch.equal(out, expected)
        assert torch.equal(out.signbit(), expected.signbit())
        assert out.numel() == 0 or out.permute(1, 2, 0, 3).is_contiguous()
        strided = codebooks.transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.equal(cpu.lookup(indices, strided), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("smoothing", ["laplace", "none"])
def test_ema_update(cpu, smoothing, normalize, relative, dtype):
    torch.manual_seed(0)
    for groups, codes, dim in ((1, 1, 1), (3, 131, 17), (64, 7, 8)):
        size = torch.rand(groups, codes, dtype=dtype) * 5
        size[:, 0] = 0
        counts = torch.randint(0, 3, (groups, codes)).to(dtype)
        counts[:, 0] = 0  # an empty code, which keeps its value without smoothing
        embed, sums = torch.randn(2, groups, codes, dim, dtype=dtype)
        state = [torch.randn(groups, codes, dim, dtype=dtype), embed, size]
        expected = [tensor.clone() for tensor in state]
        settings = (0.8, 1e-5, smoothing, normalize, 0.5, relative)
        dead = cpu.ema_update_(*state, sums, counts, *settings)
        assert torch.equal(dead, reference.ema_update_(*expected, sums, counts, *settings))
        # n: a sum of two products. m: the same, relative to its terms. c: m / n', where the sum of n carries
        # at most `codes` roundings in the reference.
        unit = torch.finfo(dtype).eps
        for actual, wanted in zip(state, expected, strict=True):
            scale = wanted.abs() + (embed.abs() + sums.abs() if wanted.shape == embed.shape else 0)
            bound = (codes + 8) * unit * scale / size.clamp_min(1e-2).view(groups, codes, *[1] * (wanted.dim() - 2))
            assert ((actual - wanted).abs() <= bound).all()
        if normalize:
            assert ((state[0][:, 1:].norm(dim=-1) - 1).abs() < 8 * dim * unit).all()


def test_cluster_sizes_are_summed_in_float64(cpu):
    """In float32 the ones beside one large size would be lost, and with them a code between the two means."""
    codes = 2**16
    sizes = torch.ones(1, codes)
    sizes[0, 0] = 2.0**24
    mean = float(sizes.double().mean())
    sizes[0, 1] = mean - 0.02
    books = [torch.zeros(1, codes, 1), torch.zeros(1, codes, 1), torch.zeros(1, codes)]
    dead = cpu.ema_update_(*books, torch.zeros(1, codes, 1), sizes, 0.0, 1e-5, "none", False, 1.0, True)
    assert bool(dead[0, 1])
    assert dead.sum() == codes - 1


def test_ema_update_with_a_decay_of_one_keeps_everything(cpu):
    torch.manual_seed(0)
    codebook, size = torch.randn(2, 5, 3), torch.rand(2, 5) + 1
    embed = codebook * size.unsqueeze(-1)
    before = codebook.clone(), embed.clone(), size.clone()
    dead = cpu.ema_update_(
        codebook, embed, size, torch.randn(2, 5, 3), torch.rand(2, 5), 1.0, 0.0, "none", False, 0.0, False
    )
    assert not dead.any()
    assert torch.equal(embed, before[1])
    assert torch.equal(size, before[2])
    torch.testing.assert_close(codebook, before[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 3, 8, 12, 31, 64])
def test_commitment_grad_is_its_formula(cpu, dim, dtype):
    torch.manual_seed(dim)
    scale = torch.tensor(-0.3, dtype=dtype)
    for groups, rows, codes in ((1, 0, 3), (3, 1, 1), (2, 97, 31), (1, 4000, 20)):
        x, grad = (torch.randn(rows, 2, groups, dim, dtype=dtype).permute(2, 0, 1, 3) for _ in range(2))
        codebook = torch.randn(groups, codes, dim, dtype=dtype)
        indices, valid = torch.randint(-1, codes, (groups, rows, 2)), torch.rand(groups, rows, 2) < 0.7
        for given in (grad, torch.randn(dim, dtype=dtype).expand_as(x)):
            chosen = reference.lookup(indices.unsqueeze(-1), codebook.unsqueeze(1))
            expected = (chosen - x) * scale + given
            assert torch.equal(cpu.commitment_grad(x, indices, codebook, None, given, scale), expected)
            expected = torch.where(valid.unsqueeze(-1), expected, given)
            assert torch.equal(cpu.commitment_grad(x, indices, codebook, valid, given, scale), expected)


def test_commitment_grad_leaves_what_it_does_not_serve(cpu):
    x, codebook, indices = torch.randn(1, 2, 3, 4), torch.randn(1, 5, 4), torch.zeros(1, 2, 3, dtype=torch.int64)
    one = torch.ones(())
    assert cpu.commitment_grad(x.half(), indices, codebook, None, x.half(), one) is None
    assert cpu.commitment_grad(x, indices, codebook, None, torch.ones(()).expand_as(x), one) is None
    with pytest.raises(IndexError, match=r"indices must lie in \[-1, 5\), got 5"):
        cpu.commitment_grad(x, indices + 5, codebook, None, x, one)
