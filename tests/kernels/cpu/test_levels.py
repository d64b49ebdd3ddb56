"""Rows whose codes a coarse pass cannot tell apart, in numbers that make the search change its level."""

import itertools
import time
from collections.abc import Callable
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
@pytest.mark.parametrize(
    ("groups", "codes", "dim"), [(3, 150, 8), (3, 300, 7), (1, 1100, 9), (1, 300, 17), (2, 150, 67), (1, 90, 260)]
)
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


def in_bfloat16(values: Tensor) -> Tensor:
    return values.bfloat16().double()


def in_bytes(values: Tensor) -> Tensor:
    """Each row in 127 steps either way of its largest entry."""
    step = values.abs().amax(-1, keepdim=True).double() / 127
    return (values / step).round() * step


def rounded_choice(x: Tensor, codebook: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """What a search on rounded values would choose."""
    return torch.cdist(rounding(x), rounding(codebook)).argmin(-1)


def assert_exact_of_several(cpu: ModuleType, x: Tensor, codebook: Tensor, metric: str = "l2") -> None:
    """The search for several codes, whose coarse pass is in bfloat16 where the processor has it."""
    expected = reference.nearest_topk(x, codebook, None, 2, metric)
    assert torch.equal(cpu.nearest_topk(x, codebook, None, 2, metric)[0], expected[0])


@pytest.mark.parametrize("dim", [7, 16, 17, 33, 64, 513, 4001])
def test_differences_that_rounding_loses(cpu, dim):
    """Rows between two codes, nearer to one by a sixteenth of the way or less, down to float32's rounding."""
    torch.manual_seed(dim)
    codes = 120 if dim > 16 else 300
    codebook = torch.randn(1, codes, dim)
    pair = torch.arange(ROWS) % (codes - 1)
    share = torch.exp2(-4 - 22 * torch.rand(ROWS, 1)) * (-1.0) ** torch.arange(ROWS)[:, None]
    one, other = codebook[0, pair], codebook[0, pair + 1]
    x = (0.5 * (one + other) + share * (one - other))[None, None]
    for metric in ("dot", "l2"):
        indices = assert_exact(cpu, x, codebook, metric)
        assert_exact_of_several(cpu, x, codebook, metric)
    for rounding in (in_bfloat16, in_bytes):
        assert (rounded_choice(x[0, 0], codebook[0], rounding) != indices[0, 0]).sum() > ROWS // 40


@pytest.mark.parametrize("rounding", [in_bfloat16, in_bytes])
@pytest.mark.parametrize("dim", [8, 14, 18, 64, 1024])
def test_rounding_at_its_worst(cpu, dim, rounding):
    """Every entry of a row is rounded by almost half a unit, each time away from the nearest code."""
    torch.manual_seed(dim)
    if rounding is in_bfloat16:
        base, half = 1.0, 2.0**-8  # half a unit in [1, 2)
    else:
        base, half = 20.0, 0.5  # with an entry of 127
    sign = torch.randint(0, 2, (ROWS, dim)) * 2.0 - 1
    x = sign * (base + half * 0.99)  # rounded to the base
    middle = base + half * torch.rand(ROWS, 1)  # between the row as it is and as it is rounded
    gap = 2.0**-4
    near, far = sign * (middle + gap), sign * (middle - gap)
    if rounding is in_bytes:
        for values in (x, near, far):
            values[:, 0] = 127
    rows = torch.arange(0, ROWS, 8)  # the codes of some rows, and their opposites, so that the mean is zero
    codebook = torch.cat([far[rows], near[rows], -far[rows], -near[rows]])[None]
    many = x[rows].repeat(14, 1)[None, None]
    indices = assert_exact(cpu, many, codebook)
    assert_exact_of_several(cpu, many, codebook)
    assert (rounded_choice(many[0, 0], codebook[0], rounding) != indices[0, 0]).sum() > many.shape[2] // 4


@pytest.mark.parametrize("dim", [8, 13, 17, 64, 300])
def test_rows_lose_what_codes_in_bytes_keep(cpu, dim):
    """Codes are whole steps, so that all that the search allows for is what rounding took from the rows."""
    torch.manual_seed(dim)
    sign = torch.randint(0, 2, (80, dim)) * 2.0 - 1
    sign[:, 1:8] = (torch.arange(80)[:, None] >> torch.arange(7) & 1) * 2.0 - 1  # no two alike
    odd = torch.arange(dim) % 2
    # What lies 0.49 above 20 is nearer to 21 than to 19 by much, and to 16 than to 25 by little; 20 is the other way.
    x, near, far = sign * 20.49, sign * (21 + 4 * odd), sign * (19 - 3 * odd)
    for values in (x, near, far):
        values[:, 0] = 127
    codebook = torch.cat([far, near, -far, -near])[None]
    assert torch.equal(in_bytes(codebook), codebook.double())
    indices = assert_exact(cpu, x.repeat(14, 1)[None, None], codebook)[0, 0, :80]
    assert torch.equal(indices, torch.arange(80, 160))
    assert (rounded_choice(x, codebook[0], in_bytes) == indices - 80).all()


@pytest.mark.parametrize("dim", [8, 16, 17, 64, 513])
def test_roundings_that_conspire(cpu, dim):
    """Rounding a row and both its codes to bytes takes from the nearest code's score and adds to another's."""
    torch.manual_seed(dim)
    groups = 4  # each with a row, the two codes, and some far away
    sign = torch.randint(0, 2, (groups, 1, dim)) * 2.0 - 1

    def steps(whole: int, side: float) -> Tensor:
        """Each entry loses 0.49 of a step, but for the one that says how long a step is."""
        values = side * sign.double() * (whole + 0.49)
        values[..., 0] = 127 * side
        return values

    others = 130 if dim <= 16 else 60
    far_away = 2e3 * torch.nn.functional.normalize(torch.randn(groups, others, dim), dim=-1) * dim**0.5
    sizes = (0, 3, 60, 126)  # of two of 126, all that rounding takes lies along the other
    for row, one, other, length in itertools.product(sizes, sizes, (0, 90), (0.001, 0.5, 2.0)):
        x, near, far = steps(row, 1), steps(one, 1), steps(other, -1)
        far *= length * x.norm(dim=-1, keepdim=True) / far.norm(dim=-1, keepdim=True)
        # The length of `near` at which it is nearer than `far` by one part in 16384.
        least = (x - far).square().sum(-1, keepdim=True) * (1 - 2.0**-14)
        square, middle = near.square().sum(-1, keepdim=True), (x * near).sum(-1, keepdim=True)
        root = middle.square() - square * (x.square().sum(-1, keepdim=True) - least)
        if (root > 0).all():
            near *= (middle + root.sqrt()) / square
            panel = far * (1 + torch.arange(32).view(1, 32, 1) / 8)
            rest = far_away[:, :1] - panel.mean(1, keepdim=True) - near  # with which all codes' mean is zero
            codebook = torch.cat([panel, *[near] * 32, *(rest, -far_away[:, :1]) * 32, far_away, -far_away], 1)
            indices = assert_exact(cpu, x[:, None].repeat(1, 1, 30, 1).float(), codebook.float())
            assert (indices == 32).all()


@pytest.mark.parametrize("dim", [6, 8, 12, 16])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_rounding_rows_takes_nearly_what_the_bound_allows(cpu, dim, side):
    """All that bytes take from a row lies along the nearest code and against the runner-up, which has its length."""
    torch.manual_seed(dim)
    rows, codes = 40, 128
    x = torch.randint(-10, 10, (rows, dim)).double() + 0.4999  # but for the last digits whole once bytes have them
    x[:, 0] = 127  # says how long a step is
    x[:, 1] += 0.0001 * (dim - 2) - 0.4999
    excess = x.sum(1, keepdim=True).round()
    x[:, 2:] -= (excess / (dim - 2)).floor()
    x[:, 1:2] -= excess - (dim - 2) * (excess / (dim - 2)).floor()
    assert x.sum(1).abs().max() < 1e-6
    assert x.abs().max() == 127
    lengths = 127 * (1 + torch.arange(codes, dtype=torch.float64) * 2.0**-18)
    near, other = lengths[:, None].expand(codes, dim), -lengths[:, None].expand(codes, dim) * (1 + 2.0**-20)
    codebook = torch.cat([near, other] if side > 0 else [other, near])
    indices = assert_exact(cpu, x[None, None].float(), codebook[None].float())
    assert (indices == (0 if side > 0 else codes)).all()


@pytest.mark.parametrize("dim", [6, 8, 12, 16])
@pytest.mark.parametrize("near_panel", [0, 32])
def test_rounding_codes_takes_nearly_what_the_bound_allows(cpu, dim, near_panel):
    """Entries of 0.4999 beside 0.5001: bytes see a step between them, along rows that they keep as they are."""
    torch.manual_seed(dim)
    near = torch.randint(-10, 10, (dim,)).double() + 0.4999
    near[:2] = torch.tensor([127.0, 0.2])
    other = near + 0.0002
    other[:2] = torch.tensor([127.0, 0.2 - 0.0002 * (dim - 2) - 0.001])
    fillers = torch.randn(127, dim, dtype=torch.float64)
    fillers = torch.cat([fillers, -fillers]) - (near + other) / 254  # all codes' mean is zero
    codebook = torch.empty(256, dim, dtype=torch.float64)
    codebook[near_panel], codebook[32 - near_panel] = near, other
    codebook[1:32], codebook[33:] = fillers[:31], fillers[31:]
    x = torch.full((1, 1, 40, dim), 127.0)
    assert (assert_exact(cpu, x, codebook[None].float()) == near_panel).all()


@pytest.mark.parametrize("dim", [6, 12, 17, 64, 300])
def test_codes_of_all_lengths(cpu, dim):
    """Each code has steps of its own: lengths over six decades, single large entries, codes that lie at the mean."""
    torch.manual_seed(dim)
    codebook = torch.randn(1, 330, dim) * torch.logspace(-4, 2, 330)[:, None]
    codebook[:, 5::9] *= torch.where(torch.arange(dim) == 3, 300.0, 1.0)
    codebook[:, 7::11] = 0
    codebook -= codebook.mean(1, keepdim=True)
    x = codebook[:, torch.randint(330, (ROWS,))] * (1 + 2e-3 * torch.randn(ROWS, dim))
    x[:, ::3] = torch.randn(1, len(range(0, ROWS, 3)), dim) * torch.logspace(-5, 2, len(range(0, ROWS, 3)))[:, None]
    for scale in (1.0, 1e-9, 1e-17, 1e-25):
        for metric in ("l2", "dot"):
            assert_exact(cpu, x[None] * scale, codebook * scale, metric)


def test_the_widest_rows_in_bytes(cpu):
    """Sums of products of bytes at their largest, either way, and rows just too wide for them."""
    torch.manual_seed(0)
    for dim in (1 << 15, (1 << 15) + 1):
        sign = (torch.randint(0, 2, (40, dim)) * 2.0 - 1).index_fill_(1, torch.arange(0, dim, 5), 1.0)
        codebook = torch.cat([sign, -sign])[None]
        x = sign[torch.arange(60) % 40] * torch.where(torch.rand(60, dim) < 0.999, 1.0, -1.0)
        indices = assert_exact(cpu, x[None, None], codebook)
        assert torch.equal(indices[0, 0], torch.arange(60) % 40)


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
