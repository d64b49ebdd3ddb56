"""How a search scales its rows, and the rounding bound of its scores as the factors that a launch passes.

The searches derive the factors in their docstrings, from X = |scaled row|, C = the largest |scaled code| and w, the
scale of the bias.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl

from fastvq.kernels.triton._tiles import exponent_field, power_of_two


class Slack(NamedTuple):
    """Twice a bound, as factors of X C, w C^2, X + C and the magnitude of what the oracle sums."""

    product: float
    bias: float
    floor: float
    oracle: float


NO_SLACK = Slack(0.0, 0.0, 0.0, 0.0)


def margin(dim: int) -> float:
    """What a bound is multiplied by, a little more than 2.

    Two scores are compared, and norms and slack are float32 sums themselves, off by (dim + 8) 2^-24 of their value.
    """
    return 2 * (1 + max(2.0**-6, (dim + 8) * 2.0**-22))


@triton.jit
def row_field(b_peak: tl.tensor, code_field: tl.tensor, METRIC: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The exponent field that rows [BN] are scaled by, and the weight of the bias, at most 1.

    For l2 no less than the codebook's: a bias of whatever scale would otherwise outgrow the scores.
    """
    b_field = exponent_field(b_peak)
    if METRIC == "l2":
        b_field = tl.maximum(b_field, code_field)
        return b_field, power_of_two(tl.maximum(127 + code_field - b_field, 1))
    return b_field, tl.full(b_peak.shape, 1.0, tl.float32)


@triton.jit
def row_slack(
    b_square: tl.tensor,
    b_weight: tl.tensor,
    code_norm: tl.tensor,
    whole_norm: tl.tensor,
    slack_product: tl.float32,
    slack_bias: tl.float32,
    slack_floor: tl.float32,
    slack_oracle: tl.float32,
    METRIC: tl.constexpr,
) -> tl.tensor:
    """By how much less than the best score a code may have and still be the nearest. [BN]

    b_square: X^2. code_norm: C. whole_norm: the same for codes as given, not centred.
    """
    b_norm = tl.sqrt(b_square)
    b_slack = slack_product * b_norm * code_norm + slack_floor * (b_norm + code_norm)
    if METRIC == "l2":
        b_part = b_weight * code_norm * code_norm
        return b_slack + slack_bias * b_part + slack_oracle * (b_square / b_weight + b_part)
    return b_slack + slack_oracle * b_norm * whole_norm


def rounding_slack(dim: int, piece: int) -> Slack:
    """Twice the bound that ``nearest`` derives, for rows of ``dim`` entries summed in pieces of ``piece``."""
    unit = 2.0**-24
    twice = margin(dim)
    return Slack(
        product=twice * unit * (4 * piece * (1 + 2.0**-6) + dim / piece + 24),
        bias=twice * unit * 3,
        floor=twice * 2.0**-12 * math.sqrt(dim) * (1 + 2.0**-8),
        oracle=twice * (dim + 3) * 2.0**-53,
    )
