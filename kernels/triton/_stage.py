"""One stage of a residual stack for one tile of rows: split, search, settle. Called by ``residual.residual_kernel``.

The arithmetic and the bound are those of ``nearest`` for l2, with the residual in the place of x. A product is fused
into a sum by name only (``tl.fma`` for the bias), so the launch that the oracle shares turns fusion off; the bound
counts a rounding for either.

Candidates are counted row by row, not kept in slots as ``_units`` does: beside all that a stage keeps, slots spill (4
to 56 bytes on sm_90 with Triton 3.6) for 0.4 of 7.4 to 8.2 instructions a score. Units of two codes would take
2 instructions less, K / 64 cycles of a multiprocessor a row; to compare both in any case, D / 8 for the other code
from L2 and D / 5 to convert them to float64, at best: a gain for K above 20 D only. The column in the low bits of a
score, and the two best of eight slots, would take 1.6 less, but leave every eighth pair to a scan of all codes, of
K D / 4 cycles: with 0.4 / D of rows in a pair (0.6 % at D = 64) that is lost again.
"""

import triton
import triton.language as tl

from fastvq.kernels.triton._oracle import MANY, SINGLE, oracle_add, oracle_scan
from fastvq.kernels.triton._tiles import is_finite, split_dot, split_float16

# A candidate's mark: marks of a tile add up to their number times COUNT_UNIT plus the sum of their columns.
COUNT_UNIT = tl.constexpr(1 << 20)


@triton.jit
def measure(
    b_row: tl.tensor, p_mean: tl.tensor, b_peak: tl.tensor, b_broken: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The largest |row - mean| so far, and 1 for rows with an entry that is not finite. b_row: [BN, BC]"""
    m_finite = is_finite(b_row)
    b_gap = tl.where(m_finite, tl.abs(b_row - tl.load(p_mean)[None, :]), 0.0)
    b_peak = tl.maximum(b_peak, tl.max(b_gap, 1))
    b_broken = tl.maximum(b_broken, tl.max(tl.where(m_finite, 0, 1), 1))
    return b_peak, b_broken


@triton.jit
def split_rows(p_row: tl.tensor, p_mean: tl.tensor, b_scale: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Both float16 pieces of scale (row - mean), and its square. p_row: [BN, BD]"""
    b_x = (tl.load(p_row) - tl.load(p_mean)[None, :]) * b_scale[:, None]
    b_high, b_low = split_float16(b_x)
    return b_high, b_low, tl.sum(b_x * b_x, 1)


@triton.jit
def candidates(
    b_high: tl.tensor,
    b_low: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    b_weight: tl.tensor,
    b_slack: tl.tensor,
    K: tl.int32,
    D_padded: tl.int32,
    ONE_PIECE: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The first candidate of every row, and the second or a state of ``_oracle``.

    b_high and b_low are the rows' float16 pieces [BN, BD] (``ONE_PIECE``), or where they lie: BD columns of each in
    turn. high, low and bias begin at the stage's codes, of which whole tiles are searched.
    """
    o_k = tl.arange(0, BK)
    o_d = tl.arange(0, BD)
    b_best = tl.full(b_slack.shape, float("-inf"), tl.float32)
    b_count = tl.zeros(b_slack.shape, tl.int32)
    b_total = tl.zeros(b_slack.shape, tl.int32)
    b_last = tl.zeros(b_slack.shape, tl.int32)
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        p_code = tl.cast(k0, tl.int64) * D_padded + (o_k[:, None] * D_padded + o_d[None, :])
        if ONE_PIECE:
            b_score = split_dot(b_high, b_low, p_code, high, low)
        else:
            b_score = tl.zeros([b_slack.shape[0], BK], tl.float32)
            for d0 in tl.range(0, D_padded, BD, num_stages=STAGES):
                b_score += split_dot(tl.load(b_high + 2 * d0), tl.load(b_low + 2 * d0), p_code + d0, high, low)
        b_score = tl.fma(b_weight[:, None], tl.load(bias + k0 + o_k)[None, :], b_score)

        b_top = tl.maximum(b_best, tl.max(b_score, 1))
        b_threshold = b_top - b_slack
        m_candidate = b_score >= b_threshold[:, None]
        b_mark = tl.where(m_candidate, (o_k + COUNT_UNIT)[None, :], 0)
        b_marks = tl.sum(b_mark, 1)
        b_last_mark = tl.max(b_mark, 1)
        b_tile_count = b_marks // COUNT_UNIT
        m_keep = b_best >= b_threshold
        b_count = tl.where(m_keep, b_count, 0) + b_tile_count
        b_total = tl.where(m_keep, b_total, 0) + b_tile_count * k0 + b_marks % COUNT_UNIT
        b_last = tl.where(b_last_mark > 0, b_last_mark - COUNT_UNIT + k0, b_last)
        b_best = b_top

    b_first = tl.where(b_count == 1, b_total, b_total - b_last)
    b_rival = tl.where(b_count == 1, SINGLE, tl.where(b_count == 2, b_last, MANY))
    # Without a usable bound (an overflow on the way) nothing is decided here.
    return b_first, tl.where(is_finite(b_slack) & is_finite(b_best), b_rival, MANY)


@triton.jit
def settle(
    residual: tl.tensor,
    codes: tl.tensor,
    b_first: tl.tensor,
    b_rival: tl.tensor,
    m_live: tl.tensor,
    K: tl.int32,
    D: tl.int32,
    D_padded: tl.int32,
    BR: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """The oracle's code of every live row [BN] of the tile at ``residual``; -1 where none has a finite cost.

    Lanes are rows where two candidates are compared. Rows with more take all codes, BR at a time.
    """
    o_lane = tl.arange(0, b_rival.shape[0])
    b_index = b_first
    m_pair = m_live & (b_rival >= 0)
    if tl.max(m_pair.to(tl.int32), 0) > 0:
        p_row = residual + o_lane * D_padded
        p_first = codes + b_first.to(tl.int64) * D
        p_second = codes + b_rival.to(tl.int64) * D
        b_cost = tl.zeros(b_rival.shape, tl.float64)
        b_second = tl.zeros(b_rival.shape, tl.float64)
        for d in range(D):
            b_entry = tl.load(p_row + d, mask=m_pair, other=0.0).to(tl.float64)
            b_cost = oracle_add(b_cost, b_entry, tl.load(p_first + d, mask=m_pair, other=0.0), "l2")
            b_second = oracle_add(b_second, b_entry, tl.load(p_second + d, mask=m_pair, other=0.0), "l2")
        b_index = tl.where(m_pair & (b_second < b_cost), b_rival, b_index)

    m_open = m_live & (b_rival == MANY)
    b_rank = tl.cumsum(m_open.to(tl.int32), 0)
    for done in range(0, tl.max(b_rank, 0), BR):
        o_rank = done + 1 + tl.arange(0, BR)
        m_slot = (b_rank[None, :] == o_rank[:, None]) & m_open[None, :]  # [BR, BN]
        b_lane = tl.max(tl.where(m_slot, o_lane[None, :], -1), 1)
        p_row = residual + tl.maximum(b_lane, 0) * D_padded
        b_cost, b_scan = oracle_scan(p_row, b_lane >= 0, codes, K, D, 1, D, 1, "l2", BK)
        b_scan = tl.where(is_finite(b_cost), b_scan, -1)
        m_lane = m_open & (b_rank > done) & (b_rank <= done + BR)
        b_index = tl.where(m_lane, tl.sum(tl.where(m_slot, b_scan[:, None], 0), 0), b_index)
    return b_index
