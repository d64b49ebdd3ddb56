"""``segment_sum``, ``ema_update_`` and ``lookup`` under the interpreter against the oracle. Run by
``test_interpreter.py``."""

import pytest
import torch

from fastvq.benchmarks import gate
from fastvq.kernels import reference
from fastvq.kernels import triton as kernels
from fastvq.kernels.triton import segment as segment_module

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIZES = ((1, 1, 1, 1, 1), (3, 2, 0, 5, 4), (2, 3, 5, 7, 8), (1, 7, 3, 5, 130))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segment_sum(dtype):
    for groups, outer, inner, num_codes, dim in SIZES:
        x = torch.randn(outer, inner, groups, dim).to(dtype).permute(2, 0, 1, 3)
        indices = torch.randint(-1, num_codes, (groups, outer, inner))
        assert not gate.segment_mismatches(kernels, x, indices, num_codes).any()
        feature_map = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        assert not gate.segment_mismatches(kernels, feature_map, indices, num_codes).any()


def test_segment_sum_by_indices_as_the_search_stores_them():
    x = torch.randn(2, 5, 3, 4).permute(2, 0, 1, 3)
    indices = torch.randint(-1, 3, (2, 5, 3)).permute(2, 0, 1)
    assert not gate.segment_mismatches(kernels, x, indices, 3).any()


def test_segment_sum_of_codes_longer_than_a_piece():
    """One code takes nearly all rows, one exactly a piece, others none."""
    piece = segment_module.PIECE
    indices = torch.cat([torch.zeros(2 * piece + 3), torch.full((piece,), 2), torch.full((5,), -1)]).long()
    indices = indices[torch.randperm(len(indices))].reshape(1, 1, -1)
    x = torch.randn(1, 1, indices.numel(), 9)
    assert not gate.segment_mismatches(kernels, x, indices, 4).any()
    first, second = (kernels.segment_sum(x, indices, 4)[0] for _ in range(2))
    assert torch.equal(first, second)
    permuted = torch.randperm(indices.numel())
    moved = kernels.segment_sum(x[:, :, permuted], indices[:, :, permuted], 4)[0]
    assert torch.allclose(moved, first, rtol=0, atol=2.0**-23 * float(first.abs().max()))


def test_segment_sum_leaves_out_indices_beyond_the_codebook():
    x = torch.randn(2, 1, 9, 3)
    indices = torch.tensor([0, 1, 2, 3, -1, -7, 2**40, 2**32 + 1, 1]).expand(2, 1, 9)
    inside = torch.where((indices >= 0) & (indices < 3), indices, -1)
    for ours, expected in zip(kernels.segment_sum(x, indices, 3), reference.segment_sum(x, inside, 3), strict=True):
        assert torch.allclose(ours, expected, rtol=2.0**-22)


@pytest.mark.parametrize("paper", [True, False], ids=["laplace", "normalised"])
def test_ema_update(paper):
    for groups, num_codes, dim in ((1, 1, 1), (3, 7, 5), (2, 33, 100), (2, 141, 120)):
        assert not gate.ema_mismatches(kernels, groups, num_codes, dim, "cpu", paper).any()


def test_ema_update_in_float64():
    """Scalars reach the kernel in float64: decay 0.99 is not its float32 neighbour."""
    state = [torch.rand(1, 5, 3, dtype=torch.float64) + 0.5 for _ in range(3)]
    sizes = [torch.rand(1, 5, dtype=torch.float64) + 0.5 for _ in range(2)]
    ours, theirs = ([tensor.clone() for tensor in (*state[:2], sizes[0])] for _ in range(2))
    arguments = (state[2], sizes[1], 0.99, 1e-5, "laplace", False, 0.1, False)
    assert torch.equal(kernels.ema_update_(*ours, *arguments), reference.ema_update_(*theirs, *arguments))
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, expected, rtol=2.0**-48, atol=0)


def test_ema_update_counts_dead_codes():
    """Relative: below a share of the mean size. Absolute: below a size. A code without rows keeps its value."""
    for relative, dead_below in ((True, 0.5), (False, 2.0)):
        codebook, zeros = torch.randn(1, 4, 2), torch.zeros(1, 4, 2)
        kept = codebook.clone()
        counts = torch.tensor([[0.0, 1.0, 5.0, 10.0]])
        dead = kernels.ema_update_(
            *(codebook, zeros, torch.zeros(1, 4), torch.ones(1, 4, 2), counts),
            *(0.0, 1e-5, "none", False, dead_below, relative),
        )
        assert dead.tolist() == [[True, True, False, False]]
        assert torch.equal(codebook[0, 0], kept[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lookup(dtype):
    for groups, outer, inner, num_codes, dim in SIZES:
        for stages in (1, 3):
            codebooks = torch.randn(groups, stages, num_codes, dim, dtype=dtype)
            indices = torch.randint(-1, num_codes, (groups, outer, inner, stages))
            assert not gate.lookup_mismatches(kernels, indices, codebooks).any()
            assert not gate.lookup_mismatches(kernels, indices, codebooks.mT.contiguous().mT).any()
            assert kernels.lookup(indices, codebooks).permute(1, 2, 0, 3).is_contiguous()


def test_lookup_beyond_the_codebook_adds_nothing():
    codebooks = torch.randn(1, 2, 3, 4)
    indices = torch.tensor([[0, 3], [2**32, 1], [-5, -1]]).reshape(1, 1, 3, 2)
    holes = torch.tensor([[0, -1], [-1, 1], [-1, -1]]).reshape(1, 1, 3, 2)
    assert torch.equal(kernels.lookup(indices, codebooks), reference.lookup(holes, codebooks))
