"""C++ residual stacks against the oracle: equal codes and sums of codes bit for bit, errors to one rounding.

``test_instruction_sets.py`` runs this file once more for every other instruction set of the processor.
"""

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastvq.kernels import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DIMS = [1, 2, 3, 7, 8, 16, 17, 33, 130]
MANY = 49  # rows of a group for which codes are always packed


def check(
    cpu: ModuleType,
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None = None,
    stages: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Asserts that results equal the reference's, for the rows as given and as part of many; returns the indices."""
    expected = reference.residual_nearest(x, codebooks, sizes, stages, mask)
    compare(cpu.residual_nearest(x, codebooks, sizes, stages, mask), expected)
    compare_sums(cpu, x, expected[0], codebooks)
    if sizes is None:
        kept = cpu.Kept(codebooks.contiguous())
        compare(cpu.residual_nearest(x, kept.codebooks, None, stages, mask), expected)
    rows = x.shape[1] * x.shape[2]
    if 0 < rows < MANY:
        times = -(-MANY // rows)
        x, *expected = (t.repeat(1, times, 1, 1) for t in (x, *expected))
        stages = None if stages is None else stages.repeat(times, 1)
        mask = None if mask is None else mask.repeat(1, times, 1)
        compare(cpu.residual_nearest(x, codebooks, sizes, stages, mask), expected)
    return expected[0]


def compare(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    indices, quantized, errors = actual
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.numel() == 0 or ours.permute(1, 2, 0, 3).is_contiguous()
    assert torch.equal(indices, expected[0])
    assert torch.equal(quantized.isnan(), expected[1].isnan())
    known = ~quantized.isnan()
    assert torch.equal(quantized[known], expected[1][known])
    assert torch.equal(quantized[known].signbit(), expected[1][known].signbit())
    assert torch.equal(errors.isnan(), expected[2].isnan())
    # float64 sums of squares in another order, rounded once; for float64 rows in the oracle's order.
    unit = 0.0 if errors.dtype == torch.float64 else 2.0**-23
    finite = expected[2].isfinite()
    ours, theirs = errors[finite].double(), expected[2][finite].double()
    assert ((ours - theirs).abs() <= unit * theirs + 2.0**-148).all()
    infinite = expected[2].isinf()
    assert torch.equal(errors[infinite], expected[2][infinite])


def compare_sums(cpu: ModuleType, x: Tensor, indices: Tensor, codebooks: Tensor) -> None:
    actual = cpu.residual_segment_sum(x, indices, codebooks)
    expected = reference.residual_segment_sum(x, indices, codebooks)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.is_contiguous()
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(0), theirs.nan_to_num(0))


def make(
    rows: int, stages: int, codes: int, dim: int, dtype: torch.dtype = torch.float32, groups: int = 2
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows + 31 * codes + 1009 * dim + stages)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(groups, rows, 1, dim, dtype=torch.float64).to(dtype)
    shrink = 0.6 ** torch.arange(stages, dtype=wide).view(-1, 1, 1)
    return x, torch.randn(groups, stages, codes, dim, dtype=wide) * shrink


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_results_are_the_oracles(cpu, dim, dtype):
    for stages, codes in ((1, 1), (2, 33), (5, 31), (3, 200)):
        check(cpu, *make(14, stages, codes, dim, dtype))


@pytest.mark.parametrize("dim", [1, 8, 40])
@pytest.mark.parametrize("rows", [0, 1, 12, 13, 31, 33, 97, 521, 1030])
def test_every_number_of_rows(cpu, rows, dim):
    x, codebooks = make(rows, 3, 9, dim, groups=3)
    check(cpu, x, codebooks)
    check(cpu, x.transpose(1, 2), codebooks[:, :, :1])


def test_more_codes_and_rows_than_a_cache_holds(cpu):
    x, codebooks = make(600, 2, 140, 512, groups=1)
    check(cpu, x, codebooks)
    check(cpu, x.view(1, 20, 30, 512)[:, :, 3:], codebooks, stages=torch.arange(20 * 27).view(20, 27) % 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_are_read_in_place(cpu, dtype):
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    feature_map = torch.randn(3, 24, 20).to(dtype)  # (B, C, T)
    check(cpu, feature_map.transpose(1, 2).unsqueeze(0), torch.randn(1, 4, 50, 24, dtype=wide))
    grouped = feature_map.view(3, 3, 8, 20).permute(1, 0, 3, 2)  # three groups of eight channels
    check(cpu, grouped, torch.randn(4, 50, 3, 8, dtype=wide).permute(2, 0, 1, 3))
    activation = torch.randn(7, 11, 100).to(dtype).view(7, 11, 5, 20).permute(2, 0, 1, 3)  # (N, G D)
    check(cpu, activation, torch.randn(5, 3, 20, 33, dtype=wide).mT)
    check(cpu, activation[:, ::2, 1::3], torch.randn(5, 3, 66, 40, dtype=wide)[:, :, ::2, ::2])
    check(cpu, activation[:1].expand(4, 7, 11, 20), torch.randn(1, 3, 9, 20, dtype=wide).expand(4, 3, 9, 20))
    indices = torch.randint(-1, 9, (3, 11, 7, 4)).permute(3, 2, 1, 0)
    compare_sums(cpu, activation[:4], indices, torch.randn(4, 3, 9, 20, dtype=wide))


@pytest.mark.parametrize("dim", [8, 20])
def test_stages_may_share_one_codebook(cpu, dim):
    x, codebooks = make(60, 1, 30, dim)
    check(cpu, x, codebooks.expand(2, 5, 30, dim))
    check(cpu, x, codebooks.expand(2, 5, 30, dim), sizes=[30, 7, 30, 7, 1])
    check(cpu, x, codebooks.mT.contiguous().mT.expand(2, 5, 30, dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [3, 40])
def test_sizes(cpu, dim, dtype):
    """Codes past a stage's size are padding: they are never chosen, however near."""
    x, codebooks = make(60, 4, 80, dim, dtype)
    sizes = [80, 1, 33, 64]
    for stage, size in enumerate(sizes):
        codebooks[:, stage, size:] = 0 if stage % 2 else float("nan")
    indices = check(cpu, x, codebooks, sizes)
    assert (indices.amax((0, 1, 2)) < torch.tensor(sizes)).all()


@pytest.mark.parametrize("dim", [3, 40])
def test_rows_take_their_own_number_of_stages(cpu, dim):
    x, codebooks = make(130, 5, 20, dim)
    x = x.view(2, 13, 10, dim)
    stages = torch.randint(-2, 8, (13, 10))
    check(cpu, x, codebooks, stages=stages)
    check(cpu, x, codebooks, stages=torch.randint(0, 6, (10, 13)).t())
    check(cpu, x, codebooks, stages=torch.randint(0, 6, (13, 1)).expand(13, 10))
    check(cpu, x, codebooks, stages=torch.zeros(13, 10, dtype=torch.int64))
    check(cpu, x.half(), codebooks, [20, 5, 20, 1, 9], stages, torch.rand(2, 13, 10) > 0.4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [5, 40])
def test_masks(cpu, dim, dtype):
    x, codebooks = make(130, 3, 20, dim, dtype)
    x[0, 3] = float("nan")
    x = x.view(2, 13, 10, dim)
    check(cpu, x, codebooks, mask=torch.rand(2, 13, 10) > 0.4)
    check(cpu, x, codebooks, mask=torch.zeros(2, 13, 10, dtype=torch.bool))
    check(cpu, x, codebooks, mask=(torch.rand(10, 13) > 0.5).t().expand(2, 13, 10))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [3, 40])
def test_non_finite_rows_and_codes(cpu, dim, dtype):
    x, codebooks = make(61, 4, 70, dim, dtype)
    x[0, 0, 0, 0], x[0, 7, 0, dim - 1], x[1, 40, 0, 1] = float("nan"), float("inf"), -float("inf")
    codebooks[0, 1, 0, 0], codebooks[0, 2, 33], codebooks[0, 3, 69, 1] = float("nan"), float("inf"), -float("inf")
    check(cpu, x, codebooks)
    codebooks[1, 2] = float("nan")  # the rows of a group end at a stage without a usable code
    check(cpu, x, codebooks)
    check(cpu, x, codebooks, stages=torch.arange(61).view(61, 1) % 5)


@pytest.mark.parametrize("dim", [2, 40])
def test_ties_and_close_calls(cpu, dim):
    x, codebooks = make(61, 3, 65, dim)
    check(cpu, x, torch.cat([codebooks, codebooks.flip(2)], dim=2))
    check(cpu, x.round(), codebooks.round())
    check(cpu, torch.zeros_like(x), codebooks * 0)
    check(cpu, x, torch.cat([codebooks * 0, -codebooks * 0], dim=2))
    step = torch.randn(codebooks.shape) * 2.0**-24
    check(cpu, x, torch.cat([codebooks, codebooks * (1 + step)], dim=2))
    check(cpu, x, codebooks[:, :, :1] * (1 + step))
    check(cpu, codebooks[:, 0, :61].unsqueeze(2).clone(), codebooks)  # nothing is left after one stage
    for offset in (30, 3e4):
        check(cpu, x + offset, torch.cat([codebooks[:, :1] + offset, codebooks[:, 1:] * 1e-3], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 8, 40])
def test_magnitudes(cpu, dim, dtype):
    x, codebooks = make(61, 3, 20, dim)
    for scale in (1e-44, 1e-38, 1e-30, 1e19, 1e30, 1e37):
        check(cpu, (x * scale).to(dtype), codebooks * scale)
    check(cpu, (x * 1e25).to(dtype), codebooks)
    check(cpu, x.to(dtype), codebooks * 1e25)
    # The first residual overflows: its row ends at the second stage.
    check(cpu, (x.sign() * 3e38).to(dtype), torch.cat([codebooks[:, :1].sign() * 3e38, codebooks[:, 1:]], dim=1))


def test_sums_of_codes_that_float16_cannot_hold(cpu):
    """They overflow, vanish, become subnormal and fall halfway, as torch rounds them."""
    torch.manual_seed(0)
    exact = torch.cat([torch.logspace(-9, 6, 400), torch.linspace(65488, 65536, 49), 2.0**-24 * torch.arange(64) / 4])
    halves = (exact.half().view(torch.int16) + 0).view(torch.float16).float()
    ties = (halves[:-1] + halves[1:]) / 2
    values = torch.cat([exact, -exact, ties.nan_to_num(1, 1, 1), torch.tensor([0.0, -0.0, 65519.996, 65520.0])])
    codebooks = values.view(-1, 1, 1, 1)  # one code a group
    for dtype in (torch.float16, torch.bfloat16):
        for dim in (1, 20):
            check(cpu, torch.zeros(len(values), 1, 1, dim, dtype=dtype), codebooks.expand(-1, 1, 1, dim))


def test_magnitudes_of_float64(cpu):
    """Where squares overflow the oracle has no finite cost, and the row has no code."""
    x, codebooks = make(37, 3, 20, 5, torch.float64)
    for scale in (1e-200, 1e200):
        check(cpu, x * scale, codebooks)
        check(cpu, x * scale, codebooks * scale)


def test_sums_leave_out_holes_and_go_on_after_them(cpu):
    x, codebooks = make(2100, 4, 9, 40)
    compare_sums(cpu, x, torch.randint(-1, 9, (2, 2100, 1, 4)), codebooks)
    compare_sums(cpu, x, torch.full((2, 2100, 1, 4), -1), codebooks)
    compare_sums(cpu, x[:, :0], torch.zeros(2, 0, 1, 4, dtype=torch.int64), codebooks)


@pytest.mark.parametrize(("wrong", "complaint"), [(9, "got 9"), (-2, "got -2"), (2**40, f"got {2**40}")])
def test_indices_outside_are_refused(cpu, wrong, complaint):
    x, codebooks = make(5, 2, 9, 20)
    indices = torch.zeros(2, 5, 1, 2, dtype=torch.int64)
    indices[1, 3, 0, 1] = wrong
    with pytest.raises(IndexError, match=complaint) as raised:
        cpu.residual_segment_sum(x, indices, codebooks)
    with pytest.raises(IndexError) as expected:
        reference.residual_segment_sum(x, indices, codebooks)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("dim", [8, 40])
def test_results_do_not_depend_on_threads(cpu, dim):
    x, codebooks = make(900, 4, 77, dim)
    stages, threads = torch.randint(0, 5, (900, 1)), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*cpu.residual_nearest(x, codebooks, None, stages, None)])
            results[-1] += cpu.residual_nearest(x, codebooks, None, None, None, "fast")
            results[-1] += cpu.residual_segment_sum(x, results[-1][0], codebooks)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_stages_are_those_of_the_search(cpu):
    """One stage is `nearest`, and further ones are searches of what `lookup` leaves, where that is exact."""
    x, codebooks = make(100, 3, 40, 24)
    x, codebooks = (x * 8).round(), (codebooks * 8).round()  # so that x minus a sum of codes rounds nothing
    indices, quantized, errors = cpu.residual_nearest(x, codebooks, None, None, None)
    for stage in range(3):
        residual = x - cpu.lookup(indices[..., :stage], codebooks[:, :stage]) if stage else x
        index, distance = cpu.nearest(residual, codebooks[:, stage], None)
        assert torch.equal(indices[..., stage], index)
        assert torch.equal(errors[..., stage], distance)
    assert torch.equal(quantized, cpu.lookup(indices, codebooks))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 60, 211])
def test_few_rows_pass_a_stage_together(cpu, dtype, rows):
    """More codes than the cache holds and few rows, with holes, depths, and rows that are not finite."""
    x, codebooks = make(rows, 4, 700, 121, dtype)  # 2.7 MB of float32 codes in two groups
    check(cpu, x, codebooks)
    random = torch.Generator().manual_seed(rows)
    stages = torch.randint(-1, 6, x.shape[1:3], generator=random)
    mask = torch.rand(x.shape[:3], generator=random) < 0.8
    x = x.clone()
    x[0, 0, 0, 5] = float("nan")
    codebooks[1, 2, 17] = float("inf")
    check(cpu, x, codebooks, None, stages, mask)
    strided = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=dtype)[..., ::2].copy_(x)
    check(cpu, strided, codebooks.mT.contiguous().mT)
