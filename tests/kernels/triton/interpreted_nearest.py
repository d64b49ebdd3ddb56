"""``nearest`` under the interpreter against the oracle. Run by ``test_interpreter.py``."""

import itertools

import pytest
import torch

from fastvq.benchmarks import gate
from fastvq.kernels import reference
from fastvq.kernels import triton as kernels
from fastvq.kernels.triton.nearest import launch_nearest, rounding_slack

# numpy, which computes here, warns of the overflows and NaN that the kernels expect and leave to the oracle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# With every metric: a row in pieces that no wide access reaches. With one metric for each kind of data: a row in
# pieces that one does, past a tile of codes, one row, no rows.
SIZE = (1, 2, 3, 7, 17)
MORE_SIZES = ((1, 2, 3, 5, 68), (2, 3, 5, 67, 8), (1, 1, 1, 1, 1), (3, 2, 0, 5, 4))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("kind", gate.INPUTS)
@pytest.mark.parametrize("metric", reference.METRICS)
def test_codes_are_the_oracles(metric, kind):
    turn = gate.INPUTS.index(kind)
    cases = [(SIZE, DTYPES[turn % 3]), (SIZE, torch.float64)]
    if metric == reference.METRICS[turn % 3]:
        cases += [(size, DTYPES[(turn + 1 + place) % 3]) for place, size in enumerate(MORE_SIZES)]
    for size, dtype in cases:
        x, codes, mask = gate.search_input(kind, size, dtype, "cpu")
        assert not gate.nearest_mismatches(kernels, x, codes, mask, metric).any(), (size, dtype)


def test_more_rows_than_a_block_and_more_codes_than_a_tile():
    x, codes, _ = gate.search_input("normal", (1, 1, 300, 150, 24), torch.float32, "cpu")
    assert not gate.nearest_mismatches(kernels, x, codes, None, "l2").any()


def test_rows_in_place():
    """Groups inside a row, feature maps, masks that are expanded, codes that are a transposed view."""
    codes = torch.randn(3, 20, 8)
    for x in (
        torch.randn(2, 5, 3, 8).permute(2, 0, 1, 3),
        torch.randn(2, 3, 8, 5).permute(1, 0, 3, 2),
        torch.randn(1, 2, 5, 8).expand(3, -1, -1, -1),
        torch.randn(3, 2, 5, 9)[..., 1:],
        torch.randn(3, 4, 10, 16)[:, ::2, 1::2, ::2],
    ):
        assert not gate.nearest_mismatches(kernels, x, codes, None, "l2").any()
        mask = torch.tensor([[True], [False]]).expand(3, 2, 5)
        assert not gate.nearest_mismatches(kernels, x, codes.mT.contiguous().mT, mask, "cosine").any()


def test_results_keep_rows_outermost():
    x, codes, _ = gate.search_input("normal", (3, 2, 5, 7, 8), torch.float32, "cpu")
    for result in kernels.nearest(x, codes, None):
        assert result.permute(1, 2, 0).is_contiguous()


def test_codes_that_are_not_finite_are_never_chosen():
    """Not even by cosine, where a direction of zeros would otherwise stand for a NaN code."""
    x = torch.randn(1, 1, 20, 4)
    codes = torch.randn(1, 6, 4)
    codes[0, ::2, 1] = float("nan")
    for metric in reference.METRICS:
        for dtype in (torch.float32, torch.float64):
            indices, distances = kernels.nearest(x.to(dtype), codes.to(dtype), None, metric)
            assert (indices % 2 == 1).all()
            assert distances.isfinite().all()
            indices, distances = kernels.nearest(x.to(dtype), codes[:, ::2].to(dtype), None, metric)
            assert (indices == -1).all()
            assert distances.isnan().all()


def test_fast_is_nearly_right():
    """A distance is the row's square less twice the score, and two scores differ by no more than the slack."""
    x, codes, mask = gate.search_input("normal", (2, 1, 100, 70, 24), torch.float32, "cpu")
    expected = reference.nearest(x, codes, mask)[1]
    distances = kernels.nearest(x, codes, mask, "l2", "fast")[1]
    slack = rounding_slack(24, 32)
    mean = codes.mean(1, keepdim=True)
    row = (x - mean[:, None]).norm(dim=-1)
    code = (codes - mean).norm(dim=-1).amax(-1)[:, None, None]
    allowed = 2 * (slack.product * row * code + slack.bias * code * code) + 2.0**-22 * expected
    assert ((distances - expected).abs() <= allowed).all()


def test_most_rows_are_decided_by_the_search():
    """The bound is tight enough to be worth having: of random rows at most 1 % are compared again in float64."""
    x, codes, _ = gate.search_input("normal", (1, 1, 1024, 128, 64), torch.float32, "cpu")
    indices, rivals = torch.empty(1, 1024, 1, dtype=torch.int64), torch.empty(1, 1024, 1, dtype=torch.int32)
    launch_nearest(x, codes, None, indices, rivals, "l2", "exact")
    assert (rivals != -1).sum() <= 10


@pytest.mark.parametrize("kind", ["normal", "halfway", "equal"])
def test_runs_agree_bit_for_bit(kind):
    x, codes, mask = gate.search_input(kind, (2, 1, 40, 19, 12), torch.float32, "cpu")
    first, second = (kernels.nearest(x, codes, mask) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(first, second))
