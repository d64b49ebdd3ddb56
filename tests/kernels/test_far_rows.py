"""Rows, codes and indices that lie more than 2^31 elements apart, in memory of which only a few pages are touched."""

import pytest
import torch

from fastvq.kernels import cpu, reference, tiled

APART = 2**30 + 7  # elements; the third row begins beyond 2^31


@pytest.fixture(params=[cpu, tiled], ids=["cpu", "tiled"])
def impl(request):
    return request.getfixturevalue("compiled") if request.param is cpu else request.param


def far(values):
    """The rows of a (N, D) tensor, each APART elements after the one before."""
    rows, dim = values.shape
    try:
        memory = torch.empty((rows - 1) * APART + dim, dtype=values.dtype)
    except RuntimeError as error:
        pytest.skip(f"no address space for rows so far apart: {error}")
    view = memory.as_strided((rows, dim), (APART, 1))
    view.copy_(values)
    return view


@pytest.mark.parametrize("dim", [8, 40])
def test_rows_and_codes(impl, dim):
    torch.manual_seed(dim)
    x = far(torch.randn(4, dim, dtype=torch.float16))[None, None]
    codes = torch.randn(1, 5, dim)
    expected = reference.nearest(x, codes, None)
    found = impl.nearest(x, codes, None)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    sums, counts = impl.segment_sum(x, found[0], 5)
    torch.testing.assert_close(sums, reference.segment_sum(x, found[0], 5)[0])
    assert int(counts.sum()) == 4


def test_codebooks_of_a_stack(impl):
    torch.manual_seed(0)
    stages = far(torch.randn(3, 4 * 6)).unflatten(1, (4, 6))[None]
    indices = torch.randint(0, 4, (1, 1, 9, 3))
    assert torch.equal(impl.lookup(indices, stages), reference.lookup(indices, stages.contiguous()))
    x = torch.randn(1, 1, 9, 6)
    found = impl.residual_nearest(x, stages, None, None, None, "exact")
    expected = reference.residual_nearest(x, stages.contiguous(), None, None, None, "exact")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
