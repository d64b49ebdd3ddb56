"""Nearest code of every row, exactly, without an N x K matrix.

    argmin_k sum_d (x_d - c_kd)^2 = argmax_k s_k,   s_k = (x - mu) . (c_k - mu) - |c_k - mu|^2 / 2

with mu the mean of the codes; for dot and cosine s_k = x . (c_k - mu). Both operands are scaled by powers of two and
split in two float16 pieces, so that three tensor-core products give s_k to about float32 accuracy. A row keeps its
best score and, of the codes whose score lies within twice the proven rounding bound of it, the number, the first and
the sum of the indices. One such code: it is the answer. More: ``_oracle.resolve_kernel`` compares them in float64.

Bytes moved: x once per tile of codes where D > BD (from L2), else once; the codebook once per tile of rows (from
L2); out 12 per row (index and rival), and again x and the chosen codes once for the distances.

The bound. Let u = 2^-24, X = |scaled row|, C = the largest |scaled code|, w the scale of the bias. All norms are
Euclidean, sums over d go by Cauchy-Schwarz. The computed s_k differs from the scaled exact one by at most

    X C u (4 BD (1 + 1/64) + D / BD + 24) + 3 w C^2 u + 2^-12 sqrt(D) (X + C) (1 + 2^-8)

* 2u: rounding of x - mu and c - mu, each relative to the entry itself; 1u for cosine, whose oracle scores the
  unit row rounded to float32.
* 8u + 4u: the two splits (2^-22 = 4u of an operand each), and the product low . low, left out.
* 4 BD u (1 + 1/64): the accumulation of 3 BD products inside the tensor core. Products of float16 are exact in
  float32. The sum, in any order and grouping, is taken to err by at most 2^-22 of the sum of magnitudes per product:
  twice what truncating both aligned addends and the result to 24 bits can lose (Fasi, Higham, Mikaitis and Pranesh
  2021, "Numerical behavior of NVIDIA tensor cores"). The two small products go first, at magnitude 2^-10, so their
  share is below 1/64.
* D / BD u: the float32 sum over pieces of D. 2u: the sum with the bias, and the threshold that scores are held
  against; the rest of 24 is spare.
* 3u: in the bias, which is half of C^2, 2u from c - mu and u from its own rounding; u more in either sum.
* 2^-12 sqrt(D): entries below float16's normal range, see ``split_float16``.

The oracle rounds too: at most (D + 3) 2^-53 of its sum of magnitudes, which is X^2 / w + w C^2 for l2 and X times
the largest |scaled code as given| for dot and cosine.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._codebook import launch_split, launch_unit_rows
from fastvq.kernels.triton._oracle import MANY, MASKED, SINGLE, launch_resolve, launch_scan
from fastvq.kernels.triton._tiles import (
    exponent_field,
    is_finite,
    mask_arguments,
    power_of_two,
    row_arguments,
    row_offsets,
    row_programs,
    scale_for,
    split_float16,
)

# A candidate's mark: marks of a tile add up to their number times COUNT_UNIT plus the sum of their columns.
COUNT_UNIT = tl.constexpr(1 << 20)


@triton.jit
def load_centred(
    p_row: tl.tensor,
    m_row: tl.tensor,
    mean: tl.tensor,
    o_d: tl.tensor,
    D: tl.int32,
    stride_d: tl.int64,
    METRIC: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
) -> tl.tensor:
    """Columns o_d of the rows as float32, less the codebook's mean for l2. [BN, BD]"""
    o_x = o_d if UNIT_STRIDE else o_d.to(tl.int64) * stride_d
    p_x = p_row[:, None] + o_x[None, :]
    if EVEN:
        b_x = tl.load(p_x, mask=m_row[:, None], other=0.0).to(tl.float32)
    else:
        b_x = tl.load(p_x, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
    if METRIC == "l2":
        b_x = b_x - tl.load(mean + o_d)[None, :]
    return b_x


@triton.jit
def split_dot(b_high: tl.tensor, b_low: tl.tensor, p_code: tl.tensor, high: tl.tensor, low: tl.tensor) -> tl.tensor:
    """Rows . codes from their float16 pieces, the small products first. [BN, BD] x [BK, BD] -> [BN, BK]"""
    b_code_high = tl.trans(tl.load(high + p_code))
    b_code_low = tl.trans(tl.load(low + p_code))
    b_score = tl.dot(b_low, b_code_high)
    b_score = tl.dot(b_high, b_code_low, b_score)
    return tl.dot(b_high, b_code_high, b_score)


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K_padded", "D", "D_padded"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd", "stride_mg", "stride_m1", "stride_m2"),
    ]
)
def nearest_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    mean: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    indices: tl.tensor,
    rivals: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    K_padded: tl.int32,
    D: tl.int32,
    D_padded: tl.int32,
    stride_xg: tl.int64,
    stride_x1: tl.int64,
    stride_x2: tl.int64,
    stride_xd: tl.int64,
    stride_mg: tl.int64,
    stride_m1: tl.int64,
    stride_m2: tl.int64,
    slack_product: tl.float32,
    slack_bias: tl.float32,
    slack_floor: tl.float32,
    slack_oracle: tl.float32,
    METRIC: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """indices and rivals (rows, groups): the first candidate, and the second or a state of ``_oracle``."""
    group = (tl.program_id(0) % groups).to(tl.int64)
    o_row = (tl.program_id(0) // groups).to(tl.int64) * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    o_d = tl.arange(0, BD)
    m_row = o_row < rows
    m_valid = m_row
    if mask is not None:
        p_mask = mask + group * stride_mg + row_offsets(o_row, inner, stride_m1, stride_m2)
        m_valid = tl.load(p_mask, mask=m_row, other=0) != 0
    # No changes of value, here: they show the compiler what an unspecialised argument hides.
    K_padded = K_padded // BK * BK
    D_padded = D_padded // BD * BD
    if ALIGN > 1:
        D = D // ALIGN * ALIGN
        stride_xg = stride_xg // ALIGN * ALIGN
        stride_x1 = stride_x1 // ALIGN * ALIGN
        stride_x2 = stride_x2 // ALIGN * ALIGN
    p_row = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)
    mean += group * D_padded

    if ONE_PIECE:
        b_x = load_centred(p_row, m_valid, mean, o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
        b_peak = tl.max(tl.abs(b_x), 1)
    else:
        b_peak = tl.zeros([BN], tl.float32)
        for d0 in tl.range(0, D_padded, BD, num_stages=1):
            b_x = load_centred(p_row, m_valid, mean, d0 + o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
            b_peak = tl.maximum(b_peak, tl.max(tl.abs(b_x), 1))
    # The row's scale is a power of two; for l2 no larger than the codebook's, so that the bias' scale is at most 1.
    b_field = exponent_field(b_peak)
    if METRIC == "l2":
        code_field = tl.load(field + group)
        b_field = tl.maximum(b_field, code_field)
        b_weight = power_of_two(tl.maximum(127 + code_field - b_field, 1))
    b_scale = scale_for(b_field)
    if ONE_PIECE:
        b_x = b_x * b_scale[:, None]
        b_square = tl.sum(b_x * b_x, 1)
        b_high, b_low = split_float16(b_x)
    else:
        b_square = tl.zeros([BN], tl.float32)
        for d0 in tl.range(0, D_padded, BD, num_stages=1):
            b_x = load_centred(p_row, m_valid, mean, d0 + o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
            b_x = b_x * b_scale[:, None]
            b_square += tl.sum(b_x * b_x, 1)

    b_norm = tl.sqrt(b_square)
    code_norm = tl.load(radius + group)
    b_slack = slack_product * b_norm * code_norm + slack_floor * (b_norm + code_norm)
    if METRIC == "l2":
        b_part = b_weight * code_norm * code_norm
        b_slack += slack_bias * b_part + slack_oracle * (b_square / b_weight + b_part)
    else:
        b_slack += slack_oracle * b_norm * tl.load(radius + groups + group)

    b_best = tl.full([BN], float("-inf"), tl.float32)
    b_count = tl.zeros([BN], tl.int32)
    b_total = tl.zeros([BN], tl.int32)
    b_last = tl.zeros([BN], tl.int32)
    for k0 in tl.range(0, K_padded, BK, num_stages=STAGES):
        p_code = (group * K_padded + k0 + o_k)[:, None] * D_padded + o_d[None, :]
        if ONE_PIECE:
            b_score = split_dot(b_high, b_low, p_code, high, low)
        else:
            b_score = tl.zeros([BN, BK], tl.float32)
            for d0 in tl.range(0, D_padded, BD, num_stages=STAGES):
                b_x = load_centred(p_row, m_valid, mean, d0 + o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
                b_high, b_low = split_float16(b_x * b_scale[:, None])
                b_score += split_dot(b_high, b_low, p_code + d0, high, low)
        b_bias = tl.load(bias + group * K_padded + k0 + o_k)
        if METRIC == "l2":
            b_score += b_weight[:, None] * b_bias[None, :]
        else:
            b_score += b_bias[None, :]

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
    b_rival = tl.where(is_finite(b_slack) & is_finite(b_best), b_rival, MANY)
    b_rival = tl.where(m_valid, b_rival, MASKED)
    o_out = o_row * groups + group
    tl.store(indices + o_out, b_first.to(tl.int64), mask=m_row)
    tl.store(rivals + o_out, b_rival, mask=m_row)


class Slack(NamedTuple):
    """Twice the bound of the module's docstring, as factors of X C, w C^2, X + C and the oracle's own magnitude."""

    product: float
    bias: float
    floor: float
    oracle: float


def rounding_slack(dim: int, piece: int) -> Slack:
    """The factors for rows of ``dim`` entries summed in pieces of ``piece``.

    2 (1 + 2^-6) times the bound: two scores are compared, and the norms and the slack are float32 sums themselves,
    off by at most (dim + 8) 2^-24 of their value.
    """
    unit = 2.0**-24
    twice = 2 * (1 + max(2.0**-6, (dim + 8) * 4 * unit))
    return Slack(
        product=twice * unit * (4 * piece * (1 + 2.0**-6) + dim / piece + 24),
        bias=twice * unit * 3,
        floor=twice * 2.0**-12 * math.sqrt(dim) * (1 + 2.0**-8),
        oracle=twice * (dim + 3) * 2.0**-53,
    )


def launch_nearest(
    x: Tensor, codes: Tensor, mask: Tensor | None, indices: Tensor, rivals: Tensor, metric: str, precision: str
) -> None:
    """The search: candidates of every row into ``indices`` and ``rivals`` (R1, R2, G).

    Args:
        x: (G, R1, R2, D) float16, bfloat16 or float32, any strides.
        codes: (G, K, D) float32, any strides; for cosine the unit rows.
    """
    dim = x.shape[-1]
    arguments = row_arguments(x)
    unit_stride = arguments["stride_xd"] == 1
    alignment = math.gcd(16, dim, *(arguments[f"stride_x{axis}"] for axis in "g12")) if unit_stride else 1
    config = _configs.search(x.device, dim, alignment)
    split = launch_split(codes, metric, config.codes, config.depth)
    slack = rounding_slack(dim, config.depth) if precision == "exact" else Slack(0.0, 0.0, 0.0, 0.0)
    nearest_kernel[(row_programs(x, config.rows),)](
        x=x,
        mean=split.mean,
        high=split.high,
        low=split.low,
        bias=split.bias,
        radius=split.radius,
        field=split.field,
        indices=indices,
        rivals=rivals,
        **arguments,
        **mask_arguments(mask),
        K_padded=split.high.shape[1],
        D_padded=split.high.shape[2],
        slack_product=slack.product,
        slack_bias=slack.bias,
        slack_floor=slack.floor,
        slack_oracle=slack.oracle,
        METRIC="l2" if metric == "l2" else "dot",
        EVEN=dim % config.depth == 0,
        UNIT_STRIDE=unit_stride,
        ALIGN=alignment,
        ONE_PIECE=dim <= config.depth,
        BN=config.rows,
        BK=config.codes,
        BD=config.depth,
        STAGES=config.stages,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )


def nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """See :func:`fastvq.kernels.reference.nearest`.

    ``precision="fast"`` takes the best score of the float16 pieces as it is: it may return a code whose distance
    exceeds the least one by the rounding error of the score (about 2^-14 of |x - mu| |c - mu| at D = 64).
    """
    groups, outer, inner, _ = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    indices = torch.empty((outer, inner, groups), dtype=torch.int64, device=x.device)
    distances = torch.empty((outer, inner, groups), dtype=dtype, device=x.device)
    if indices.numel():
        with torch.cuda.device_of(x):
            codes = launch_unit_rows(codebook) if metric == "cosine" else codebook
            if x.dtype == torch.float64:
                launch_scan(x, codes, mask, indices, distances, metric)
            else:
                rivals = torch.empty((outer, inner, groups), dtype=torch.int32, device=x.device)
                launch_nearest(x, codes, mask, indices, rivals, metric, precision)
                launch_resolve(x, codes, indices, rivals, distances, metric)
    return indices.permute(2, 0, 1), distances.permute(2, 0, 1)
