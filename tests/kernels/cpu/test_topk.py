"""The C++ search for several nearest codes against the oracle: equal codes and equal float64 distances, bit for bit.

``test_instruction_sets.py`` runs this file once more for every other instruction set of the processor.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

import fastvq.ops  # noqa: F401  registers the public op
from fastvq.kernels import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def check(
    cpu: ModuleType, x: Tensor, codebook: Tensor, topk: int, mask: Tensor | None = None, metric: str = "l2"
) -> None:
    expected = reference.nearest_topk(x, codebook, mask, topk, metric)
    got = cpu.nearest_topk(x, codebook, mask, topk, metric)
    name = f"{metric}, {tuple(x.shape)}, {tuple(codebook.shape)}, {x.dtype}, {topk}"
    for left, right in zip(got, expected, strict=True):
        assert left.dtype == right.dtype
        assert left.permute(1, 2, 0, 3).is_contiguous()
        assert torch.equal(left.isnan(), right.isnan()), name
        assert torch.equal(left.nan_to_num(7, 8, 9), right.nan_to_num(7, 8, 9)), name


def make(rows: int, codes: int, dim: int, dtype: torch.dtype, groups: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows + 31 * codes + 1009 * dim)
    x = torch.randn(groups, rows, 1, dim, dtype=torch.float64).to(dtype)
    return x, torch.randn(groups, codes, dim, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 7, 16, 17, 33, 130, 513])
def test_codes_are_the_oracles(cpu, dim, dtype):
    for number, codes in enumerate((1, 2, 31, 65, 511)):
        metrics = reference.METRICS if dim * codes < 5_000 else reference.METRICS[number % 3 :][:1]
        for metric in metrics:
            for topk in {1, min(codes, 2), min(codes, 5)}:
                check(cpu, *make(14, codes, dim, dtype), topk, None, metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("topk", [16, 31, 32, 33, 100, 257])
def test_many_of_the_codes(cpu, topk, dtype):
    for dim in (3, 20):
        check(cpu, *make(25, 257, dim, dtype), topk)
        check(cpu, *make(5, topk, dim, dtype), topk, None, "cosine")
        check(cpu, *make(5, topk + 1, dim, dtype), topk, None, "dot")


@pytest.mark.parametrize("dim", [1, 8, 40])
@pytest.mark.parametrize("rows", [0, 1, 11, 12, 13, 97, 521])
def test_every_number_of_rows(cpu, rows, dim):
    x, codebook = make(rows, 9, dim, torch.float32, groups=3)
    check(cpu, x, codebook, 3)
    check(cpu, x.transpose(1, 2), codebook, 2, None, "cosine")


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_are_read_in_place(cpu, dtype, metric):
    torch.manual_seed(0)
    feature_map = torch.randn(3, 24, 20).to(dtype)  # (B, C, T)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    check(cpu, feature_map.transpose(1, 2).unsqueeze(0), torch.randn(1, 50, 24, dtype=wide), 4, None, metric)
    activation = torch.randn(7, 11, 40).to(dtype).view(7, 11, 5, 8).permute(2, 0, 1, 3)  # (N, G D)
    check(cpu, activation, torch.randn(5, 33, 8, dtype=wide), 4, None, metric)
    check(cpu, activation[:, ::2, 1::3], torch.randn(5, 8, 33, dtype=wide).transpose(1, 2), 4, None, metric)
    check(cpu, activation[:1].expand(4, 7, 11, 8), torch.randn(4, 33, 16, dtype=wide)[..., ::2], 4, None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [5, 40])
def test_masked_rows_and_rows_and_codes_that_are_not_finite(cpu, dim, metric):
    for dtype in (torch.float32, torch.float64, torch.float16):
        x, codebook = make(130, 70, dim, dtype, groups=3)
        x[0, 0, 0, 0], x[0, 7, 0, dim - 1], x[1, 40, 0, 1] = float("nan"), float("inf"), -float("inf")
        codebook[0, 0, 0], codebook[0, 33], codebook[0, 69, dim - 1] = float("nan"), float("inf"), -float("inf")
        codebook[1, 3:] = float("nan")  # a group with three usable codes, and one without any
        codebook[2] = float("inf")
        x = x.view(3, 13, 10, dim)
        for topk in (2, 3, 5, 40):
            check(cpu, x, codebook, topk, None, metric)
            check(cpu, x, codebook, topk, (torch.rand(13, 10) > 0.5).expand(3, 13, 10), metric)
        check(cpu, x, codebook, 4, torch.zeros(3, 13, 10, dtype=torch.bool), metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [2, 16, 40])
def test_ties_go_to_the_lower_index(cpu, dim, metric):
    x, codebook = make(61, 129, dim, torch.float32)
    for topk in (2, 5, 20):
        check(cpu, x, torch.cat([codebook[:, 64:], codebook[:, :64], codebook[:, 5:6]], dim=1), topk, None, metric)
        check(cpu, x, codebook.repeat(1, 3, 1), topk, None, metric)
        check(cpu, x, codebook[:, 3:4].expand(2, 129, dim), topk, None, metric)
        check(cpu, x.round(), codebook.round(), topk, None, metric)
        check(cpu, torch.zeros_like(x), codebook * 0, topk, None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [2, 16, 40])
def test_close_calls(cpu, dim, metric):
    """Codes that float32 cannot tell apart, fewer and more than a row's list holds, and offsets."""
    x, codebook = make(33, 129, dim, torch.float32)
    step = torch.randn(codebook.shape) * 2.0**-24
    for topk in (1, 3, 17):
        check(cpu, x, torch.cat([codebook, codebook * (1 + step)], dim=1), topk, None, metric)
        check(cpu, x, codebook[:, :1] * (1 + step), topk, None, metric)
        check(cpu, x, torch.cat([30 + step, step - 30], dim=1), topk, None, metric)
        check(cpu, x + 30, codebook + 30, topk, None, metric)
        check(cpu, x + 3e4, codebook * 1e-3 + 3e4, topk, None, metric)
        middles = (codebook[:, :33] + codebook[:, 60:93]) / 2  # halfway between two codes
        check(cpu, middles.unsqueeze(2), codebook, topk, None, metric)


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_clusters_that_bfloat16_cannot_tell_apart(cpu, metric):
    """Enough rows for a search that changes its pass on the way."""
    x, codebook = make(450, 400, 40, torch.float32, groups=1)
    centre = torch.randn(1, 1, 40).sign() * 30
    codebook = torch.cat([centre + codebook[:, :200] * 0.02, codebook[:, 200:] * 0.02 - centre], dim=1)
    x = torch.where(torch.rand(1, 450, 1, 1) > 0.5, centre, -centre) + x
    for topk in (1, 2, 9):
        check(cpu, x, codebook, topk, None, metric)


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [1, 40])
def test_magnitudes(cpu, dim, metric):
    x, codebook = make(37, 60, dim, torch.float32)
    for scale in (1e-44, 1e-38, 1e-30, 1e19, 1e37):
        check(cpu, x * scale, codebook * scale, 3, None, metric)
    check(cpu, x * 1e25, codebook, 3, None, metric)
    check(cpu, x, codebook * 1e25, 3, None, metric)
    mixed = torch.logspace(-30, 30, 37).view(1, 37, 1, 1)
    check(cpu, x * mixed, codebook * torch.logspace(-30, 30, 60).view(1, 60, 1), 3, None, metric)
    x, codebook = make(37, 60, 5, torch.float64)
    check(cpu, x * 1e200, codebook, 3, None, metric)  # squares overflow: no code has a finite cost


@pytest.mark.parametrize("dim", [8, 17])
def test_results_do_not_depend_on_threads(cpu, dim):
    x, codebook = make(900, 77, dim, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*cpu.nearest_topk(x, codebook, None, 4)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("metric", reference.METRICS)
@pytest.mark.parametrize("dim", [8, 40])
def test_fast_loses_no_more_than_rounding(cpu, dim, metric):
    x, codebook = make(100, 200, dim, torch.float32)
    cost = reference.oracle_cost(x, codebook, metric)
    indices, distances = cpu.nearest_topk(x, codebook, None, 6, metric, "fast")
    found = cost.gather(-1, indices)
    assert (found.diff(dim=-1) >= 0).all()
    assert torch.equal(distances, {"l2": found, "dot": -found, "cosine": 1 + found}[metric])
    # Twice the error of one score, (D+5) u (|x||c| + |c|^2 / 2), and l2 costs are twice a score; codes and rows
    # shrink by centring or not at all worth speaking of.
    size = 1.1 * (x.double().norm(dim=-1) + codebook.double().norm(dim=-1).max()).max()
    bound = 4 * (dim + 5) * 2.0**-24 * (1 if metric == "cosine" else size * size)
    assert (found - cost.sort().values[..., :6]).max() <= bound


def test_the_public_op_is_this_one(cpu, monkeypatch):
    """For CPU tensors, without Python in between; another implementation is still to be had."""
    monkeypatch.setattr(cpu, "nearest_topk", None)
    x, codebook = make(20, 30, 12, torch.float32)
    expected = reference.nearest_topk(x, codebook, None, 3)
    for impl in ("auto", "cpu", "tiled", "reference"):
        got = torch.ops.fastvq.nearest_topk(x, codebook, None, 3, "l2", "exact", impl)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
