"""The rounding bound of the search, against a tensor core simulated at its worst: aligned addends are truncated."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is published for Linux only")

from fastvq.kernels.triton._bound import rounding_slack
from fastvq.kernels.triton.narrow import narrow_slack


def truncated(x: Tensor, ulp: Tensor) -> Tensor:
    """x cut to a multiple of ulp, towards zero."""
    return (x / ulp).trunc() * ulp


def unit_of(largest: Tensor) -> Tensor:
    """The weight of the last of 24 bits of a number."""
    _, exponent = torch.frexp(largest)
    return torch.exp2((exponent - 24).double())


def accumulate(total: Tensor, products: Tensor, block: int) -> Tensor:
    """total + sum of products (..., n), ``block`` of them at a time, all truncated at the largest one's last bit."""
    for start in range(0, products.shape[-1], block):
        terms = torch.cat([total.unsqueeze(-1), products[..., start : start + block]], -1)
        ulp = unit_of(terms.abs().amax(-1))
        total = truncated(terms, ulp.unsqueeze(-1)).sum(-1)
        total = truncated(total, unit_of(total.abs()))
    return total


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two float16 pieces, as float64."""
    high = x.half()
    return high.double(), (x - high.float()).half().double()


def simulated(x: Tensor, codes: Tensor, piece: int, block: int) -> Tensor:
    """Scores without bias of scaled rows (N, D) and codes (N, D), pair by pair, as the search computes them."""
    score = torch.zeros(x.shape[0], dtype=torch.float32)
    for start in range(0, x.shape[1], piece):
        (x_high, x_low), (c_high, c_low) = (split(data[:, start : start + piece]) for data in (x, codes))
        part = torch.zeros(x.shape[0], dtype=torch.float64)
        for a, b in ((x_low, c_high), (x_high, c_low), (x_high, c_high)):
            part = accumulate(part, a * b, block)
        score = score + part.float()
    return score


def adversaries(dim: int, top: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Scaled rows and codes (30, dim) with entries up to nearly 2 top, in which rounding errors add up.

    Random ones of both signs and of one, where truncation adds up; entries that lose most when they are split, all
    alike; one product beside which all others are cut to the last bit; and sums that cancel.
    """
    for spread in (0.0, 1e-3, 0.3, 3.0):
        yield tuple(top * (1 + spread * torch.randn(30, dim)).clamp(-1.99, 1.99) for _ in range(2))
    one = torch.ones(30, dim)
    for tie in (2.0**-12 + 2.0**-23, 2.0**-11 + 2.0**-22 + 2.0**-23, 2.0**-12 - 2.0**-23):
        yield top * (1 + tie) * one, top * (1 + tie) * one
    beside = one * (2.0**-11.5 * 0.999)
    beside[:, 0] = 1.999
    yield top * beside, top * beside
    beside = one * (2.0**-12 * 1.999)
    beside[:, -1] = 1.999
    yield top * beside, top * beside
    x, codes = (top * (1 + torch.rand(30, dim)) * 0.999 for _ in range(2))
    yield x, codes * torch.tensor([1.0, -1.0]).repeat(dim)[:dim]


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize(("dim", "piece"), [(8, 16), (64, 64), (512, 32), (512, 64), (100, 64)])
def test_scores_stay_within_the_bound(dim, piece, block):
    torch.manual_seed(dim + block)
    worst = 0.0
    for x, codes in adversaries(dim, 2.0**14):
        exact = (x.double() * codes.double()).sum(-1)
        product = x.double().norm(dim=-1) * codes.double().norm(dim=-1)
        error = (simulated(x, codes, piece, block).double() - exact).abs()
        worst = max(worst, float((error / product).max()))
    # Half the slack is one score's bound; centring, the bias and the oracle's rounding are not simulated here.
    assert worst <= rounding_slack(dim, piece).product / 2
    # And not a bound for something else: the worst case comes within a factor of 64 of it.
    assert worst >= rounding_slack(dim, piece).product / 2 / 64


def flushed(x: Tensor) -> Tensor:
    """float16 values as hardware may take them that knows no subnormal ones."""
    half = x.half().double()
    return torch.where(half.abs() < 2.0**-14, 0.0, half)


def simulated_narrow(x: Tensor, codes: Tensor, weight: float, block: int) -> Tensor:
    """Scores of scaled rows and codes (N, D) below 2^13, pair by pair, as the one product of the narrow search."""
    (x_high, x_low), (c_high, c_low) = ((data.half().double(), data - data.half().float()) for data in (x, codes))
    x_high, x_low, c_high, c_low = (flushed(piece) for piece in (x_high, x_low, c_high, c_low))
    rest = -codes.double().square().sum(-1) * 2.0**-16
    bias = torch.zeros(codes.shape, dtype=torch.float64)
    for place in range(3):
        bias[:, place] = rest.half().double()
        rest = rest - bias[:, place]
    scale = max(weight * 2.0**15, 2.0**-14)
    products = torch.stack([x_high * c_high, x_low * c_high, x_high * c_low, flushed(bias) * scale], -1).flatten(1)
    return accumulate(torch.zeros(x.shape[0], dtype=torch.float64), products, block)


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("dim", [3, 8, 16])
def test_narrow_scores_stay_within_the_bound(dim, block):
    """Rows of the codes' own length and much longer ones; codes that are tiny, and rows that are."""
    torch.manual_seed(dim + block)
    slack, worst = narrow_slack(dim), 0.0
    sizes = ((1.0, 1.0, 1.0), (2.0**-5, 1.0, 1.0), (2.0**-29, 1.0, 1.0), (2.0**-60, 1.0, 1.0))
    for weight, row_size, code_size in (*sizes, (1.0, 1.0, 2.0**-16), (1.0, 2.0**-30, 2.0**-16)):
        for x, codes in adversaries(dim, 2.0**12):
            x, codes = x * row_size, codes * code_size
            exact = (x.double() * codes.double()).sum(-1) - weight / 2 * codes.double().square().sum(-1)
            row, code = x.double().norm(dim=-1), codes.double().norm(dim=-1)
            twice = slack.product * row * code + slack.bias * weight * (code**2 + 2.0**24)
            twice = twice + slack.floor * (row + code)
            error = (simulated_narrow(x, codes, weight, block) - exact).abs()
            worst = max(worst, float((error / (twice / 2)).max()))
    # Half the slack is one score's bound; centring and the oracle's rounding are not simulated here.
    assert 1 / 64 <= worst <= 1
