"""The rounding bound of the search, against a tensor core simulated at its worst: aligned addends are truncated."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is published for Linux only")

from fastvq.kernels.triton.nearest import rounding_slack


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


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize(("dim", "piece"), [(8, 16), (64, 64), (512, 32)])
def test_scores_stay_within_the_bound(dim, piece, block):
    """Rows and codes of one sign, where truncation adds up, and of both."""
    torch.manual_seed(dim + block)
    worst = 0.0
    for spread in (0.0, 1e-3, 0.3, 3.0):
        # Scaled as the search scales them: the largest entry below 2^15.
        x, codes = (2.0**14 * (1 + spread * torch.randn(100, dim)).clamp(-1.99, 1.99) for _ in range(2))
        exact = (x.double() * codes.double()).sum(-1)
        product = x.double().norm(dim=-1) * codes.double().norm(dim=-1)
        error = (simulated(x, codes, piece, block).double() - exact).abs()
        worst = max(worst, float((error / product).max()))
    # Half the slack is one score's bound; centring, the bias and the oracle's rounding are not simulated here.
    assert worst <= rounding_slack(dim, piece).product / 2
    # And not a bound for something else: the worst case comes within a factor of 64 of it.
    assert worst >= rounding_slack(dim, piece).product / 2 / 64
