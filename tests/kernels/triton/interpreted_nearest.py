"""``nearest`` under the interpreter against the oracle. Run by ``test_interpreter.py``."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from fastvq.benchmarks import gate
from fastvq.kernels import reference
from fastvq.kernels import triton as kernels
from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._bound import rounding_slack
from fastvq.kernels.triton._units import dealt
from fastvq.kernels.triton.narrow import launch_narrow
from fastvq.kernels.triton.nearest import launch_nearest, launcher
from fastvq.kernels.triton.staged import launch_staged

# numpy, which computes here, warns of the overflows and NaN that the kernels expect and leave to the oracle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# With every metric: a row in pieces that no wide access reaches, a narrow one and more codes than a tile. With one
# metric for each kind of data: a row in pieces that one does, past a tile of codes, one row, no rows.
SIZE = (1, 2, 3, 7, 17)
NARROW_SIZE = (2, 1, 5, 131, 6)
MORE_SIZES = ((1, 2, 3, 5, 68), (2, 3, 5, 67, 8), (1, 1, 1, 1, 1), (3, 2, 0, 5, 4))
LAUNCHES = ((launch_nearest, 64), (launch_staged, 64), (launch_staged, 100), (launch_narrow, 8))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def deal_kernel(found: tl.tensor, size: tl.constexpr, tile: tl.constexpr) -> None:
    """The code stored at every place."""
    tl.store(found + tl.arange(0, size), dealt(tl.arange(0, size).to(tl.int64), tile).to(tl.int32))


@pytest.mark.parametrize("kind", gate.INPUTS)
@pytest.mark.parametrize("metric", reference.METRICS)
def test_codes_are_the_oracles(metric, kind):
    turn = gate.INPUTS.index(kind)
    cases = [(SIZE, DTYPES[turn % 3]), (SIZE, torch.float64), (NARROW_SIZE, DTYPES[(turn + 1) % 3])]
    if metric == reference.METRICS[turn % 3]:
        cases += [(size, DTYPES[(turn + 1 + place) % 3]) for place, size in enumerate(MORE_SIZES)]
    for size, dtype in cases:
        x, codes, mask = gate.search_input(kind, size, dtype, "cpu")
        assert not gate.nearest_mismatches(kernels, x, codes, mask, metric).any(), (size, dtype)


def test_more_rows_than_a_block_and_more_codes_than_a_tile():
    x, codes, _ = gate.search_input("normal", (1, 1, 300, 150, 24), torch.float32, "cpu")
    assert not gate.nearest_mismatches(kernels, x, codes, None, "l2").any()


def rows_of(layout: str, groups: int, rows: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """(G, 2, rows, D) random rows as they lie side by side, a column apart, or in a feature map."""
    if layout == "map":
        return torch.randn(2, groups, dim, rows).to(dtype).permute(1, 0, 3, 2)
    return torch.randn(2, rows, groups, dim + (layout == "odd")).to(dtype)[..., :dim].permute(2, 0, 1, 3)


@pytest.mark.parametrize("dim", [20, 61, 64, 68, 130])
@pytest.mark.parametrize("layout", ["even", "odd", "map"])
def test_rows_by_way_of_the_scratch(layout, dim):
    """More tiles than programs, so that a scratch is written again, and more codes than a tile; some rows masked."""
    config = _configs.staged(torch.device("cpu"), dim)
    programs = _configs.processors(torch.device("cpu")) * config.resident
    groups, rows = 3, config.rows // 2 + 3
    assert groups * -(-2 * rows // config.rows) > programs
    dtype, metric = DTYPES[(dim + len(layout)) % 3], reference.METRICS[dim % 3]
    x = rows_of(layout, groups, rows, dim, dtype)
    assert (launcher(x) is launch_nearest) == (layout == "even" and dim in (20, 64))
    codes = torch.randn(groups, config.codes + 9, dim) + 3
    mask = torch.rand(groups, 2, rows) < 0.9
    assert not gate.nearest_mismatches(kernels, x + 3, codes, mask, metric).any()


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


def searched(launch, x, codes):
    """The first candidates and rivals of a search, (R1, R2, G) each."""
    groups, outer, inner, _ = x.shape
    indices = torch.empty(outer, inner, groups, dtype=torch.int64)
    rivals = torch.empty(outer, inner, groups, dtype=torch.int32)
    launch(x, codes, None, indices, rivals, "l2", "exact")
    return indices, rivals


@pytest.mark.parametrize(("launch", "dim"), LAUNCHES)
def test_most_rows_are_decided_by_the_search(launch, dim):
    """The bound is tight enough to be worth having: of random rows at most 1 % have a rival unit."""
    x, codes, _ = gate.search_input("normal", (1, 1, 1024, 128, dim), torch.float32, "cpu")
    _, rivals = searched(launch, x, codes)
    assert (rivals != -1).sum() <= 10


@pytest.mark.parametrize(("launch", "dim"), LAUNCHES)
@pytest.mark.parametrize("tiles", [2, 4])
def test_copies_half_a_codebook_apart_are_a_pair(launch, dim, tiles):
    """They meet in different slots, so that two candidates are compared and not all codes."""
    x, codes, _ = gate.search_input("normal", (1, 1, 100, 64 * tiles, dim), torch.float32, "cpu")
    indices, rivals = searched(launch, x, torch.cat([codes, codes], 1))
    assert (rivals - indices == 64 * tiles).sum() >= 95


def test_units_hold_every_code_once():
    """The codes of tiles, as they are stored and as the slots of a search name them."""
    for tile in (64, 128):
        place = torch.arange(8 * tile)
        found = torch.empty(8 * tile, dtype=torch.int32)
        deal_kernel[(1,)](found, 8 * tile, tile)
        assert torch.equal(found.sort().values, place.int())
        assert torch.equal(found // 8, place.int() // 8)
        lanes = (found // 2 % 4).reshape(8, tile)
        assert (lanes[0] != lanes[4]).all()


@pytest.mark.parametrize("kind", ["normal", "halfway", "equal"])
def test_runs_agree_bit_for_bit(kind):
    x, codes, mask = gate.search_input(kind, (2, 1, 40, 19, 12), torch.float32, "cpu")
    first, second = (kernels.nearest(x, codes, mask) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(first, second))
