"""The best scores of a row, tile by tile, without leaving a thread's registers.

Matrix units leave a thread the columns 2q and 2q + 1 of every 8 (q = 0 .. 3). A tile of scores [BN, BK] is seen as
[BN, BK / 8, 4, 2]: columns along the first and the last of these axes are a thread's own, so halving them costs no
exchange between threads, and the axis of 4 stays until the last tile. (Elsewhere the compiler exchanges what it must:
nothing here depends on the layout but the time.)

    unit     1, 2 or 4 codes of a thread that the oracle compares with each other in any case, and of which the search
             knows the best score only: code, code + 1, code + 8, code + 9
    slot     of each row there are SLOTS, each with its best unit so far and the score of its runner-up

A score costs 1/2 or 3/4 comparisons to join a unit of 2 or 4, and a unit 5 to join its slot. A unit that rivals the
best one is either the best of another slot, and known, or the runner-up of a slot: then all codes are compared. Codes
are dealt to slots so that copies of a code half a codebook apart meet in different ones, see ``turn``.
"""

import triton
import triton.language as tl

from fastvq.kernels.triton._oracle import MANY, SINGLE
from fastvq.kernels.triton._tiles import is_finite


@triton.jit
def turn(tile: tl.tensor) -> tl.tensor:
    """By how many of the four lanes a tile's codes are turned (modulo 4): tiles 2^n apart differ by 1 to 3."""
    return (tile * 0x55555555) >> 30


@triton.jit
def dealt(o_place: tl.tensor, BK: tl.constexpr) -> tl.tensor:
    """The code stored at a place, for tiles of BK: within eight columns, pairs of codes are turned."""
    lane = (o_place // 2 - turn((o_place // BK).to(tl.int32))) & 3
    return o_place // 8 * 8 + lane * 2 + o_place % 2


@triton.jit
def halves(b: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """[BN, F, 4] -> the even and the odd of F, [BN, F / 2, 4] each."""
    return tl.split(tl.permute(tl.reshape(b, [b.shape[0], b.shape[1] // 2, 2, 4]), (0, 1, 3, 2)))


@triton.jit
def better(
    b_best: tl.tensor,
    b_second: tl.tensor,
    b_code: tl.tensor,
    b_other_best: tl.tensor,
    b_other_second: tl.tensor,
    b_other_code: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Best, runner-up and code of two slots taken together. A NaN score is never the best."""
    b_second = tl.maximum(tl.maximum(b_second, b_other_second), tl.minimum(b_best, b_other_best))
    b_code = tl.where(b_other_best > b_best, b_other_code, b_code)
    return tl.maximum(b_best, b_other_best), b_second, b_code


@triton.jit
def tile_slots(b_score: tl.tensor, UNIT: tl.constexpr, SLOTS: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A tile [BN, BK] in slots: best, runner-up and column less lane, each [BN, SLOTS / 4, 4]."""
    BN: tl.constexpr = b_score.shape[0]
    EIGHTS: tl.constexpr = b_score.shape[1] // 8
    b_even, b_odd = tl.split(tl.reshape(b_score, [BN, EIGHTS, 4, 2]))
    b_column = tl.broadcast_to(tl.arange(0, EIGHTS)[None, :, None] * 8, [1, EIGHTS, 4])
    if UNIT == 1:
        b_code = tl.where(b_odd > b_even, b_column + 1, b_column)
    else:
        b_unit = tl.maximum(b_even, b_odd)
        if UNIT == 4:
            b_even, b_odd = halves(b_unit)
            b_unit = tl.maximum(b_even, b_odd)
            b_column, _ = halves(b_column)
        b_even, b_odd = halves(b_unit)
        b_column, b_other_column = halves(b_column)
        b_code = tl.where(b_odd > b_even, b_other_column, b_column)
    b_best, b_second = tl.maximum(b_even, b_odd), tl.minimum(b_even, b_odd)
    for _ in tl.static_range(5):
        if b_best.shape[1] * 4 > SLOTS:
            b_best, b_other_best = halves(b_best)
            b_second, b_other_second = halves(b_second)
            b_code, b_other_code = halves(b_code)
            b_best, b_second, b_code = better(b_best, b_second, b_code, b_other_best, b_other_second, b_other_code)
    return b_best, b_second, b_code


@triton.jit
def no_slots(BN: tl.constexpr, SLOTS: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Slots before the first tile."""
    b_none = tl.full([BN, SLOTS // 4, 4], float("-inf"), tl.float32)
    return b_none, b_none, tl.zeros([BN, SLOTS // 4, 4], tl.int32)


@triton.jit
def candidates(
    b_best: tl.tensor,
    b_second: tl.tensor,
    b_code: tl.tensor,
    b_slack: tl.tensor,
    BK: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The lowest code of the first unit within slack of the best score, and of the second or a state of ``_oracle``.

    For codes stored where ``dealt`` says. Without a usable bound (an overflow on the way) nothing is decided.
    """
    o_lane = tl.arange(0, 4)[None, None, :]
    b_code += ((o_lane - turn(b_code // BK)) & 3) * 2
    b_best = tl.reshape(b_best, [b_slack.shape[0], SLOTS])
    b_second = tl.reshape(b_second, [b_slack.shape[0], SLOTS])
    b_code = tl.reshape(b_code, [b_slack.shape[0], SLOTS])
    b_top = tl.max(b_best, 1)
    b_threshold = b_top - b_slack
    m_candidate = b_best >= b_threshold[:, None]
    b_count = tl.sum(m_candidate.to(tl.int32), 1)
    b_first = tl.min(tl.where(m_candidate, b_code, 2147483647), 1)
    b_last = tl.max(tl.where(m_candidate, b_code, -1), 1)
    b_rival = tl.where(b_count == 1, SINGLE, tl.where(b_count == 2, b_last, MANY))
    m_decided = (tl.max(b_second, 1) < b_threshold) & is_finite(b_slack) & is_finite(b_top)
    return b_first, tl.where(m_decided, b_rival, MANY)
