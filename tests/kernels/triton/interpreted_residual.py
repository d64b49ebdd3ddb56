"""``residual_nearest`` and ``residual_segment_sum`` under the interpreter against the oracle. Run by
``test_interpreter.py``."""

import itertools

import pytest
import torch
from torch import Tensor

from fastvq.benchmarks import gate
from fastvq.kernels import reference
from fastvq.kernels import triton as kernels
from fastvq.kernels.triton import _configs
from fastvq.kernels.triton import segment as segment_module

# numpy, which computes here, warns of the overflows and NaN that the kernels expect and leave to the oracle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# In one piece and longer than one, with every kind of data; past a tile of codes, one row, no rows.
SIZES = ((1, 2, 3, 7, 17), (2, 1, 5, 6, 67))
MORE_SIZES = ((2, 3, 5, 67, 8), (1, 1, 1, 1, 1), (3, 2, 0, 5, 4))


class Rounded:
    """The kernels, with ``quantized`` in bfloat16 as compilers round it: the interpreter cuts off instead."""

    @staticmethod
    def residual_nearest(x: Tensor, codebooks: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
        indices, quantized, errors = kernels.residual_nearest(x, codebooks, *rest)
        if x.dtype == torch.bfloat16:
            _, whole, _ = kernels.residual_nearest(x.float(), codebooks, *rest)
            cut = (whole.view(torch.int32) & -(2**16)).view(torch.float32).to(torch.bfloat16)
            assert torch.equal(quantized.nan_to_num(nan=7.0), cut.nan_to_num(nan=7.0))
            quantized = whole.to(torch.bfloat16)
        return indices, quantized, errors


def mismatches(*stack: object) -> Tensor:
    """Of a stack's arguments; see the gate."""
    return gate.residual_mismatches(Rounded, gate.Stack(*stack))


@pytest.mark.parametrize("kind", gate.INPUTS)
def test_codes_are_the_oracles(kind):
    turn = gate.INPUTS.index(kind)
    cases = [(size, DTYPES[(turn + place) % 3]) for place, size in enumerate(SIZES)]
    cases += [(SIZES[0], torch.float64), (MORE_SIZES[turn % 3], DTYPES[(turn + 2) % 3])]
    for size, dtype in cases:
        stack = gate.stack_input(kind, size, dtype, "cpu")
        assert not mismatches(*stack).any(), (size, dtype)


@pytest.mark.parametrize("dim", [6, 8])
@pytest.mark.parametrize("kind", ["halfway", "equal"])
def test_rows_that_need_every_code_are_settled_by_the_tile(kind, dim):
    """More of them than are scanned at a time, between rows that are decided, with and without a limit of stages."""
    x, codes, _ = gate.search_input(kind, (1, 1, 40, 9, dim), torch.float32, "cpu")
    x[:, :, ::3] = torch.randn(1, 1, 14, dim)
    assert _configs.RESIDUAL_SCAN.rows < 14
    for stages in (None, torch.arange(40).reshape(1, 40) % 3):
        assert not mismatches(x, torch.stack([codes, codes / 2], 1), None, stages).any()


@pytest.mark.parametrize("dim", [7, 8, 20])
def test_of_two_rivals_the_nearer_one_is_taken_and_of_equal_ones_the_first(dim):
    """Pairs of codes a rounding error of the search apart, in either order, and copies; rows lie beside one each."""
    codes = torch.randn(1, 12, dim)
    codes[:, 4:8] = codes[:, :4]
    codes[:, 4:6, 0] += 2.0**-20
    x = codes[:, None, torch.arange(40) % 4] + 0.5
    x[..., 0] += torch.tensor([2.0**-10, -(2.0**-10)]).repeat(20)
    assert not mismatches(x, torch.stack([codes, codes.flip(1) / 2], 1)).any()


@pytest.mark.parametrize("dim", [9, 70])
def test_more_tiles_than_programs_and_more_codes_than_a_tile(dim):
    config = _configs.residual(torch.device("cpu"), dim)
    assert (dim <= config.depth) == (dim == 9)
    rows, num_codes = 2 * config.rows + 5, config.codes + 1
    assert _configs.processors(torch.device("cpu")) * config.resident < 3
    x, codes, mask = gate.search_input("normal", (1, 1, rows, num_codes, dim), torch.float32, "cpu")
    assert not mismatches(x, torch.stack([codes, codes / 3], 1), None, None, mask).any()


def test_operands_in_place():
    """Groups inside a row, feature maps, expanded masks, stages and codebooks, codes that are a transposed view."""
    codebooks = torch.randn(3, 2, 20, 8)
    stages = torch.tensor([2, 1, 0, 5, -3]).expand(2, 5)
    for x in (
        torch.randn(2, 5, 3, 8).permute(2, 0, 1, 3),
        torch.randn(2, 3, 8, 5).permute(1, 0, 3, 2),
        torch.randn(1, 2, 5, 8).expand(3, -1, -1, -1),
        torch.randn(3, 4, 10, 16)[:, ::2, 1::2, ::2],
    ):
        mask = torch.tensor([[True], [False]]).expand(3, 2, 5)
        assert not mismatches(x, codebooks, None, stages).any()
        assert not mismatches(x, codebooks.mT.contiguous().mT, None, None, mask).any()
        assert not mismatches(x, codebooks[:, :1].expand(3, 4, 20, 8), None, stages, mask).any()
        assert not mismatches(x, codebooks[:, :1].expand(3, 4, 20, 8), [20, 3, 1, 20]).any()
        assert not mismatches(x.double(), codebooks[:, :1].double().expand(3, 4, 20, 8), None, stages, mask).any()


def test_results_keep_rows_outermost_and_sum_as_lookup_does():
    x, codes, mask = gate.search_input("normal", (3, 2, 5, 7, 8), torch.float32, "cpu")
    codes[:, :, 0] = -0.0
    codebooks = torch.stack([codes, codes / 2], 1)
    indices, quantized, errors = kernels.residual_nearest(x, codebooks, None, None, mask)
    for result in (indices, quantized, errors):
        assert result.permute(1, 2, 0, 3).is_contiguous()
    expected = reference.lookup(indices, codebooks)
    assert torch.equal(quantized.view(torch.int32), expected.view(torch.int32))
    assert not quantized[..., 0].signbit().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stages_that_find_no_code_end_a_row(dtype):
    huge = 0.9 * torch.finfo(dtype).max
    x = torch.ones(1, 1, 4, 2, dtype=dtype)
    x[0, 0, 1], x[0, 0, 2, 1] = huge, float("nan")
    codebooks = torch.zeros(1, 3, 2, 2, dtype=dtype)
    codebooks[0, 0, 1] = 1.0
    # Of the second row the residual overflows at the second stage, whose only finite code lies on the other side; in
    # float64 its squares already do at the first.
    second = [0, 0, -1] if dtype == torch.float32 else [-1, -1, -1]
    codebooks[0, 1, 0], codebooks[0, 1, 1] = -huge, float("inf")
    stages = torch.tensor([[1, 3, 3, 0]])
    for limit, taken in ((None, [3, 3, 3, 3]), (stages, [1, 3, 3, 0])):
        indices, quantized, errors = kernels.residual_nearest(x, codebooks, None, limit, None)
        assert not mismatches(x, codebooks, None, limit).any()
        assert (indices[0, 0, 2] == -1).all()
        assert errors[0, 0, 2].isnan().all()
        assert quantized[0, 0, 1:3].isnan().all()
        assert indices[0, 0, 1].tolist() == second
        assert errors[0, 0, 3, taken[3] :].eq(0).all()
    codebooks[0, 1] = float("nan")
    indices, quantized, errors = kernels.residual_nearest(x[:, :, :1], codebooks, None, None, None)
    assert indices.flatten().tolist() == [1, -1, -1]
    assert errors.isnan().flatten().tolist() == [False, True, True]
    assert quantized.isnan().all()


def test_codes_beyond_a_stage_are_never_chosen():
    """Whatever lies there: the nearest code, or what is not finite."""
    x, codes, _ = gate.search_input("normal", (2, 1, 30, 12, 5), torch.float32, "cpu")
    codebooks = torch.stack([codes, codes / 2], 1)
    for beyond in (0.0, 1e38, float("nan"), float("-inf")):
        codebooks[:, 0, 4:], codebooks[:, 1, 1:] = beyond, beyond
        indices, _, _ = kernels.residual_nearest(x, codebooks, [4, 1], None, None)
        assert (indices.amax((0, 1, 2)) == torch.tensor([3, 0])).all()
        assert not mismatches(x, codebooks, [4, 1]).any()


def test_fast_follows_its_own_codes():
    """Codes may be second best by a hair; sums and errors are those of the codes chosen."""
    x, codes, mask = gate.search_input("normal", (2, 1, 40, 70, 24), torch.float32, "cpu")
    codebooks = torch.stack([codes, codes / 2], 1)
    indices, quantized, errors = kernels.residual_nearest(x, codebooks, None, None, mask, "fast")
    _, _, best = kernels.residual_nearest(x, codebooks, None, None, mask)
    assert torch.equal(quantized, reference.lookup(indices, codebooks))
    left = x - reference.lookup(indices[..., :1], codebooks[:, :1])
    assert torch.allclose(errors[..., 0], torch.where(mask, left.square().sum(-1), 0.0))
    assert torch.allclose(errors[..., 0], best[..., 0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "halfway", "equal"])
def test_runs_agree_bit_for_bit(kind):
    stack = gate.stack_input(kind, (2, 1, 40, 19, 12), torch.float32, "cpu")
    first, second = (kernels.residual_nearest(*stack) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(first, second))


@pytest.mark.parametrize("dtype", gate.DTYPES, ids=str)
def test_segment_sum(dtype):
    for groups, outer, inner, num_codes, dim in (
        (1, 1, 1, 1, 1),
        (3, 2, 0, 5, 4),
        (2, 3, 5, 7, 8),
        (1, 7, 3, 5, 130),
    ):
        x = torch.randn(outer, inner, groups, dim).to(dtype).permute(2, 0, 1, 3)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        codebooks = torch.randn(groups, 3, num_codes, dim, dtype=wide)
        indices = torch.randint(-1, num_codes, (outer, inner, groups, 3)).permute(2, 0, 1, 3)
        assert not gate.residual_segment_mismatches(kernels, x, indices, codebooks).any()
        indices, codebooks = indices.contiguous(), codebooks.mT.contiguous().mT
        assert not gate.residual_segment_mismatches(kernels, x.contiguous(), indices, codebooks).any()


def test_segment_sum_of_what_a_search_left():
    """One code takes more rows than a piece holds, and a hole subtracts nothing."""
    x = torch.randn(1, 1, segment_module.PIECE + 9, 5)
    codebooks = torch.stack([torch.randn(1, 4, 5) + 9, torch.randn(1, 4, 5)], 1)
    codebooks[:, 0, 2] = 0.0
    indices, _, _ = kernels.residual_nearest(x, codebooks, None, None, None)
    assert (indices[..., 0] == 2).all()
    indices[0, 0, ::7, 0] = -1
    assert not gate.residual_segment_mismatches(kernels, x, indices, codebooks).any()
    first, second = (kernels.residual_segment_sum(x, indices, codebooks)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_segment_sum_leaves_out_indices_beyond_the_codebook():
    x, codebooks = torch.randn(2, 1, 6, 3), torch.randn(2, 2, 3, 3)
    indices = torch.tensor([[0, 1], [3, 2], [2**40, 0], [-7, 2], [2**32 + 1, 1], [2, -1]]).expand(2, 1, 6, 2)
    inside = torch.where((indices >= 0) & (indices < 3), indices, -1)
    ours, expected = (
        impl.residual_segment_sum(x, chosen, codebooks) for impl, chosen in ((kernels, indices), (reference, inside))
    )
    assert all(torch.allclose(a, b, rtol=2.0**-22) for a, b in zip(ours, expected, strict=True))
