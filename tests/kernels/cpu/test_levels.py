"""Rows whose codes a coarse pass cannot tell apart, in numbers that make the search change its level."""

import time
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastvq.benchmarks import gate, worst_cases
from fastvq.benchmarks.shapes import Shape
from fastvq.kernels import reference

ROWS = 520  # more than a search's first trial of a level, in several blocks


def assert_exact(cpu: ModuleType, x: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    """Asserts that every code is the oracle's and every distance within rounding; returns the codes."""
    wrong = gate.nearest_mismatches(cpu, x, codebook, None, metric)
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} rows, {metric}, {tuple(codebook.shape)}"
    return cpu.nearest(x, codebook, None, metric)[0]


@pytest.mark.parametrize("kind", gate.INPUTS)
@pytest.mark.parametrize(("groups", "codes", "dim"), [(3, 150, 8), (1, 300, 17), (2, 150, 67), (1, 90, 260)])
def test_every_kind_of_data(cpu, kind, groups, codes, dim):
    x, codebook, _ = gate.search_input(kind, (groups, 1, ROWS, codes, dim), torch.float32, "cpu")
    for metric in reference.METRICS if dim < 100 else ("l2",):
        assert_exact(cpu, x, codebook, metric)


@pytest.mark.parametrize("spread", [0.0, 2.0**-26, 2.0**-20, 2.0**-10, 1.0])
@pytest.mark.parametrize(("codes", "dim"), [(300, 8), (300, 40)])
def test_two_far_clusters(cpu, codes, dim, spread):
    """Centring leaves codes far from the mean: within a cluster float32 scores cannot tell them apart."""
    torch.manual_seed(dim)
    x = torch.randn(1, 1, ROWS, dim)
    x[..., ::2, :] += 60
    side = 30 * (-1.0) ** torch.arange(codes).view(1, codes, 1)
    codebook = 30 + side + spread * torch.randn(1, codes, dim)
    for metric in reference.METRICS:
        assert_exact(cpu, x, codebook, metric)


@pytest.mark.parametrize("dim", [8, 40])
@pytest.mark.parametrize("length", [300.0, 3e3, 1e6, 1e18])
def test_a_few_far_longer_codes(cpu, dim, length):
    """Rows among the others, rows up to the long codes and beyond, and rows just midway, where neither is nearer."""
    torch.manual_seed(dim)
    codebook = torch.randn(2, 330, dim)
    long = torch.tensor([0, 31, 77, 200, 329])
    codebook[:, long] *= length * torch.tensor([1.0, 1.0, 2.0, 30.0, 1e3])[:, None]
    codebook[1, 100:200] = codebook[1, 99] * (1 + torch.arange(100)[:, None] * 2.0**-23)  # close calls
    x = torch.randn(2, 1, ROWS, dim)
    shares = torch.tensor([0.001, 0.1, 0.49, 0.499, 0.4999, 0.5, 0.5001, 0.501, 0.51, 1.0, 3.0])
    for k, code in enumerate(long.tolist()):
        x[:, 0, k * 40 : k * 40 + len(shares)] += shares[:, None] * codebook[:, code, None]
    for metric in reference.METRICS:
        assert_exact(cpu, x, codebook, metric)
    assert_exact(cpu, x[:, :, 20:40].repeat(1, 1, 30, 1), codebook)
    for scale in (1e-30, 1e-10, 1e12):
        assert_exact(cpu, x * scale, codebook * scale)


@pytest.mark.parametrize("dim", [8, 24, 64])
def test_many_equal_distances(cpu, dim):
    """Rows at the centre of a sphere of codes, and codes that repeat each other or an excluded one."""
    torch.manual_seed(dim)
    corners = torch.randint(0, 2, (1, 400, dim)).float() * 2 - 1
    assert_exact(cpu, torch.zeros(1, 1, ROWS, dim), corners)
    assert_exact(cpu, torch.randint(-1, 2, (1, 1, ROWS, dim)).float(), corners)
    codebook = torch.randn(1, 5, dim).repeat(1, 60, 1)
    codebook[0, ::7, -1] = float("nan")
    indices = assert_exact(cpu, torch.randn(1, 1, ROWS, dim), codebook)
    assert indices.max() < 6  # repeats of a code are never chosen


def test_close_calls_take_little_more_time(cpu):
    """Twice the normal time is the most that was measured; the oracle on every code takes ten to fifteen times."""
    shape = Shape("wide", 1, 2048, 256, 512)
    threads, taken = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        for kind in ("normal", *worst_cases.KINDS[:-1]):  # two clusters are decided in float64: five times a pass
            x, codebooks = worst_cases.make_case(kind, shape)
            times = []
            for _ in range(5):
                start = time.process_time()
                cpu.nearest(x[:, None], codebooks[:, 0], None)
                times.append(time.process_time() - start)
            taken[kind] = min(times)
    finally:
        torch.set_num_threads(threads)
    assert {kind: ratio for kind in taken if (ratio := taken[kind] / taken["normal"]) > 6} == {}


@pytest.mark.parametrize("dim", [8, 40])
def test_results_of_close_calls_do_not_depend_on_threads(cpu, dim):
    threads = torch.get_num_threads()
    for kind in ("trained", "twice", "equal", "neighbours"):
        x, codebook, _ = gate.search_input(kind, (2, 1, 3 * ROWS, 150, dim), torch.float32, "cpu")
        results = []
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(cpu.nearest(x, codebook, None))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def rounded_choice(x: Tensor, codebook: Tensor) -> Tensor:
    """What a search on values rounded to bfloat16 would choose."""
    return torch.cdist(x.bfloat16().double(), codebook.bfloat16().double()).argmin(-1)


@pytest.mark.parametrize("dim", [17, 33, 64, 513, 4001])
def test_differences_that_bfloat16_loses(cpu, dim):
    """Rows between two codes, nearer to one by anything from a sixteenth of the way down to float32's rounding."""
    torch.manual_seed(dim)
    codes = 120
    codebook = torch.randn(1, codes, dim)
    pair = torch.arange(ROWS) % (codes - 1)
    share = torch.exp2(-4 - 18 * torch.rand(ROWS, 1)) * (-1.0) ** torch.arange(ROWS)[:, None]
    one, other = codebook[0, pair], codebook[0, pair + 1]
    x = (0.5 * (one + other) + share * (one - other))[None, None]
    assert_exact(cpu, x, codebook, "dot")
    indices = assert_exact(cpu, x, codebook)
    assert (rounded_choice(x[0, 0], codebook[0]) != indices[0, 0]).sum() > ROWS // 20


@pytest.mark.parametrize("dim", [18, 64, 1024])
def test_rounding_at_its_worst(cpu, dim):
    """Every entry of a row is rounded to bfloat16 by almost half a unit, each time away from the nearest code."""
    torch.manual_seed(dim)
    half = 2.0**-8  # of a unit in [1, 2)
    sign = torch.randint(0, 2, (ROWS, dim)) * 2.0 - 1
    x = sign * (1 + half * 0.99)  # rounded to the sign
    middle = 1 + half * torch.rand(ROWS, 1)  # between the row as it is and as it is rounded
    gap = 2.0**-4
    near, far = sign * (middle + gap), sign * (middle - gap)
    rows = torch.arange(0, ROWS, 13)  # the codes of some rows, and their opposites, so that the mean is zero
    codebook = torch.cat([far[rows], near[rows], -far[rows], -near[rows]])[None]
    many = x[rows].repeat(14, 1)[None, None]
    indices = assert_exact(cpu, many, codebook)
    assert (rounded_choice(many[0, 0], codebook[0]) != indices[0, 0]).sum() > many.shape[2] // 4


@pytest.mark.parametrize("dim", [20, 65, 1030])
def test_entries_of_all_magnitudes(cpu, dim):
    """Within one row from the largest down to denormals, which bfloat16 arithmetic takes for zero."""
    torch.manual_seed(dim)
    for top, bottom in ((0, -149), (-100, -149), (57, -100), (62, 40)):
        scale = torch.exp2(torch.linspace(top, bottom, dim))
        x = torch.randn(1, 1, ROWS, dim) * scale
        x[0, 0, ::3] = x[0, 0, ::3].flip(-1)
        for power in (0, -20, 40):
            codebook = torch.randn(1, 130, dim) * scale.clamp_max(2.0**70) * 2.0**power
            assert_exact(cpu, x, codebook)
        assert_exact(cpu, x, codebook, "dot")
