"""C++ nearest-code search against the oracle: equal codes bit for bit, distances to one rounding.

``test_instruction_sets.py`` runs this file once more for every other instruction set of the processor.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastvq.kernels import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DIMS = [1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 130, 513]
CODES = [1, 2, 31, 33, 511]


FEW = 3  # rows of a group for which codes are never packed
MANY = 49  # for which they always are


def check(cpu: ModuleType, x: Tensor, codebook: Tensor, mask: Tensor | None = None, metric: str = "l2") -> None:
    """Asserts that codes equal the reference's and distances are within rounding of them.

    A few rows are searched without preparing the codes, so they are checked once more as part of many, and the first
    of many a few at a time.
    """
    expected, values = reference.nearest(x, codebook, mask, metric)
    compare(cpu, x, codebook, mask, metric, expected, values)
    rows = x.shape[1] * x.shape[2]
    for first in range(0, min(x.shape[1], 8 * FEW), FEW):
        part = (slice(None), slice(first, first + FEW))
        few = None if mask is None else mask[part]
        compare(cpu, x[part], codebook, few, metric, expected[part], values[part])
    if 0 < rows < MANY:
        times = (1, -(-MANY // rows), 1)
        mask = None if mask is None else mask.repeat(times)
        compare(cpu, x.repeat(*times, 1), codebook, mask, metric, expected.repeat(times), values.repeat(times))


def compare(
    cpu: ModuleType,
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    metric: str,
    expected: Tensor,
    values: Tensor,
) -> None:
    indices, distances = cpu.nearest(x, codebook, mask, metric)
    assert torch.equal(indices, expected), f"{metric}, {tuple(x.shape)}, {tuple(codebook.shape)}, {x.dtype}"
    assert distances.dtype == values.dtype
    if indices.numel():
        assert indices.permute(1, 2, 0).is_contiguous()
        assert distances.permute(1, 2, 0).is_contiguous()
    assert torch.equal(distances.isnan(), values.isnan())
    if x.dtype == torch.float64:  # the same operations, but torch's square root of the norms may be off by one bit
        bound = (8 * 2.0**-52 if metric == "cosine" else 0.0) + torch.zeros_like(values)
        assert ((distances - values).abs().nan_to_num(0) <= bound).all()
        assert torch.equal(distances.isinf(), values.isinf())
        return
    # Both are float64 sums (of terms as large as |x||c| where they have signs), rounded to float32 once.
    finite = values.isfinite()
    assert torch.equal(distances[values.isinf()], values[values.isinf()])
    terms = torch.ones_like(values, dtype=torch.float64)
    if metric == "dot":
        terms = x.double().nan_to_num(0, 0, 0).norm(dim=-1) * codebook.double().nan_to_num(0, 0, 0).norm(dim=-1).max()
    elif metric == "l2":
        terms = values.double()
    bound = 2.0**-23 * values.double().abs() + x.shape[-1] * 2.0**-51 * terms.abs() + 2.0**-148
    assert ((distances.double() - values.double()).abs()[finite] <= bound[finite]).all()


def make(rows: int, codes: int, dim: int, dtype: torch.dtype, groups: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows + 31 * codes + 1009 * dim)
    x = torch.randn(groups, rows, 1, dim, dtype=torch.float64).to(dtype)
    return x, torch.randn(groups, codes, dim, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_codes_are_the_oracles(cpu, dim, dtype):
    for number, codes in enumerate(CODES):
        metrics = reference.METRICS if dim * codes < 20_000 else reference.METRICS[number % 3 :][:1]
        for metric in metrics:
            check(cpu, *make(14, codes, dim, dtype), None, metric)


@pytest.mark.parametrize("dim", [1, 8, 40])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 11, 12, 13, 31, 32, 33, 97, 521])
def test_every_number_of_rows(cpu, rows, dim):
    x, codebook = make(rows, 9, dim, torch.float32, groups=3)
    check(cpu, x, codebook)
    check(cpu, x.transpose(1, 2), codebook, None, "cosine")


@pytest.mark.parametrize(("rows", "dim"), [(600, 8), (511, 16)])
def test_narrow_rows_and_many_codes(cpu, rows, dim):
    """More panels than a block of rows has room to list: parts of the block take turns."""
    x, codebook = make(rows, 4096, dim, torch.float32)
    check(cpu, x, codebook)


@pytest.mark.parametrize("dim", [3, 8, 13])
@pytest.mark.parametrize("groups", [25, 67])
def test_many_groups(cpu, groups, dim):
    """Some at a time are found before they are written: whole sets and parts of them, with rows left out or not."""
    for rows, codes, metric in ((1, 40, "l2"), (64, 40, "dot"), (97, 300, "l2"), (523, 40, "cosine")):
        x = torch.randn(rows, groups, dim).transpose(0, 1)[:, :, None]
        codebook = torch.randn(groups, codes, dim)
        check(cpu, x, codebook, (torch.rand(rows, 1) > 0.5).expand(groups, rows, 1) if rows == 64 else None, metric)
    two_axes = torch.randn(19, groups, 31, dim + 1)[..., :dim].transpose(0, 1)  # what is copied first lies apart
    check(cpu, two_axes, torch.randn(groups, 300, dim))


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_are_read_in_place(cpu, dtype, metric):
    torch.manual_seed(0)
    feature_map = torch.randn(3, 24, 20).to(dtype)  # (B, C, T)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    check(cpu, feature_map.transpose(1, 2).unsqueeze(0), torch.randn(1, 50, 24, dtype=wide), None, metric)
    grouped = feature_map.view(3, 3, 8, 20).permute(1, 0, 3, 2)  # three groups of eight channels
    check(cpu, grouped, torch.randn(3, 50, 8, dtype=wide), None, metric)
    activation = torch.randn(7, 11, 40).to(dtype).view(7, 11, 5, 8).permute(2, 0, 1, 3)  # (N, G D)
    check(cpu, activation, torch.randn(5, 33, 8, dtype=wide), None, metric)
    check(cpu, activation[:, ::2, 1::3], torch.randn(5, 8, 33, dtype=wide).transpose(1, 2), None, metric)
    check(cpu, activation[:1].expand(4, 7, 11, 8), torch.randn(4, 33, 16, dtype=wide)[..., ::2], None, metric)
    check(
        cpu,
        torch.randn(1, 1, 1, 40).to(dtype).expand(2, 5, 6, 40),
        torch.randn(1, 9, 40, dtype=wide).expand(2, 9, 40),
    )


@pytest.mark.parametrize("dim", [5, 8, 40])
def test_masks(cpu, dim):
    x, codebook = make(130, 20, dim, torch.float32, groups=3)
    x[0, 3] = float("nan")
    x = x.view(3, 13, 10, dim)
    check(cpu, x, codebook, torch.rand(3, 13, 10) > 0.4)
    check(cpu, x, codebook, torch.zeros(3, 13, 10, dtype=torch.bool))
    check(cpu, x, codebook, (torch.rand(13, 10) > 0.5).expand(3, 13, 10))
    check(cpu, x, codebook, (torch.rand(13, 1) > 0.5).expand(3, 13, 10), "cosine")
    check(cpu, x.double(), codebook.double(), (torch.rand(10, 13) > 0.5).t().expand(3, 13, 10), "dot")


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [3, 8, 40])
def test_non_finite_rows_and_codes(cpu, dim, metric):
    for dtype in (torch.float32, torch.float64, torch.float16):
        x, codebook = make(41, 70, dim, dtype)
        x[0, 0, 0, 0], x[0, 7, 0, dim - 1], x[1, 40, 0, 1] = float("nan"), float("inf"), -float("inf")
        codebook[0, 0, 0], codebook[0, 33], codebook[0, 69, dim - 1] = float("nan"), float("inf"), -float("inf")
        codebook[1] = float("nan")  # a group without a usable code
        check(cpu, x, codebook, None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [2, 8, 16, 40])
def test_ties_go_to_the_lowest_index(cpu, dim, metric):
    x, codebook = make(61, 129, dim, torch.float32)
    half = torch.cat([codebook[:, 64:], codebook[:, :64], codebook[:, 5:6]], dim=1)
    check(cpu, x, half, None, metric)
    check(cpu, x, codebook[:, 3:4].expand(2, 129, dim), None, metric)
    check(cpu, x.round(), codebook.round(), None, metric)
    check(cpu, torch.zeros_like(x), codebook * 0, None, metric)
    check(cpu, x, torch.cat([torch.zeros(2, 1, dim), -torch.zeros(2, 1, dim)], dim=1), None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [2, 8, 16, 40])
def test_close_calls(cpu, dim, metric):
    """Codes that float32 cannot tell apart: few of them, more than a row's list holds, and two far clusters."""
    x, codebook = make(33, 129, dim, torch.float32)
    step = torch.randn(codebook.shape) * 2.0**-24
    check(cpu, x, torch.cat([codebook, codebook * (1 + step)], dim=1), None, metric)
    check(cpu, x, codebook[:, :1] * (1 + step), None, metric)
    check(cpu, x, torch.cat([30 + step, step - 30], dim=1), None, metric)
    check(cpu, x + 30, codebook + 30, None, metric)
    check(cpu, x + 3e4, codebook * 1e-3 + 3e4, None, metric)
    check(cpu, codebook[:, :33].unsqueeze(2).clone(), codebook, None, metric)
    middles = (codebook[:, :33] + codebook[:, 60:93]) / 2  # halfway between two codes
    check(cpu, middles.unsqueeze(2), codebook, None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [1, 8, 40])
def test_magnitudes(cpu, dim, metric):
    x, codebook = make(37, 60, dim, torch.float32)
    for scale in (1e-44, 1e-38, 1e-30, 1e19, 1e30, 1e37):
        check(cpu, x * scale, codebook * scale, None, metric)
    check(cpu, x * 1e25, codebook, None, metric)
    check(cpu, x, codebook * 1e25, None, metric)
    check(cpu, x * 1e-30, codebook, None, metric)
    check(cpu, x, codebook * 1e-30, None, metric)
    mixed = torch.logspace(-30, 30, 37).view(1, 37, 1, 1)
    check(cpu, x * mixed, codebook * torch.logspace(-30, 30, 60).view(1, 60, 1), None, metric)
    check(cpu, x.sign() * 3e38, codebook.sign() * 3e38, None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
def test_magnitudes_of_float64(cpu, metric):
    """Where squares overflow the oracle has no finite cost, and the row has no code."""
    x, codebook = make(37, 60, 5, torch.float64)
    for scale in (1e-200, 1e200):
        check(cpu, x * scale, codebook, None, metric)
        check(cpu, x * scale, codebook * scale, None, metric)


def test_flushed_denormals_change_nothing(cpu):
    x, codebook = make(37, 60, 8, torch.float32)
    x, codebook = x * 1e-41, codebook * 1e-41
    expected = reference.nearest(x, codebook, None)[0]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        indices = cpu.nearest(x, codebook, None)[0]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(indices, expected)


@pytest.mark.parametrize("dim", [8, 17])
def test_results_do_not_depend_on_threads(cpu, dim):
    x, codebook = make(900, 77, dim, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*cpu.nearest(x, codebook, None), *cpu.nearest(x, codebook, None, "l2", "fast")])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [8, 40])
def test_fast_loses_no_more_than_rounding(cpu, dim, metric):
    x, codebook = make(100, 200, dim, torch.float32)
    cost = reference.oracle_cost(x, codebook, metric)
    indices, _ = cpu.nearest(x, codebook, None, metric, "fast")
    lost = cost.gather(-1, indices.unsqueeze(-1)).squeeze(-1) - cost.amin(-1)
    # Twice the error of one score, (D+5) u (|x||c| + |c|^2 / 2), and l2 costs are twice a score; codes and rows
    # shrink by centring or not at all worth speaking of.
    size = 1.1 * (x.double().norm(dim=-1) + codebook.double().norm(dim=-1).max()).max()
    bound = 4 * (dim + 5) * 2.0**-24 * (1 if metric == "cosine" else size * size)
    assert lost.max() <= bound
    x[0, 0, 0, 0] = float("inf")
    assert cpu.nearest(x, codebook, None, metric, "fast")[0][0, 0, 0] == -1


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("dim", [33, 130])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 3e38, 2.0**25, 1e-30])
def test_odd_codes_where_none_are_read_beforehand(cpu, metric, dim, value):
    """Mean and scale come from every third 64 codes only: the others may hold anything."""
    random = torch.Generator().manual_seed(dim)
    codebook = torch.randn(2, 705, dim, generator=random)
    x = torch.randn(2, 1, 61, dim, generator=random)
    codebook[0, 64 + 5, dim // 2] = value  # the second 64
    codebook[1, 700] = value
    x[1, 0, 7] = codebook[1, 700].nan_to_num(1.0, posinf=1.0)
    check(cpu, x, codebook, None, metric)
    codebook[0, :64] = 0.0  # what is read beforehand tells nothing about the rest
    codebook[0, 256:320] = 1e-30
    check(cpu, x, codebook, None, metric)
    codebook[1, :64] = float("nan")
    check(cpu, x, codebook, None, metric)
