"""The k nearest codes of every row in the oracle's order, exactly, without an N x K matrix or a wait for the device.

    the k least sum_d (x_d - c_d)^2 in float64, of equal ones the lower index first     dot, cosine: as in ``nearest``

Two passes over the scores s_k of ``nearest``, both on matrix units, then the oracle:

    1   best_j = max of s_k over k = j modulo BK.   threshold = the topk-th largest best_j
    2   candidates = the codes with s_k >= threshold - slack, in order, up to ``LISTED`` of a row
    3   float64 costs of the candidates; of all codes where there are more

The bound. Let e be the bound of ``nearest`` for one score, the oracle's rounding included: slack is 2 e. At least
topk codes have a computed score of the threshold or more, so their exact one is at least threshold - e, and so is
that of every code among the topk best; whose computed score in the second pass, however it was summed, is then at
least threshold - 2 e. Without a usable bound (an overflow, a row that is not finite) all codes are candidates.

For random codes the first pass lets BK ln(BK / (BK - topk)) codes by: 8.5, 18 and 44 of topk 8, 16 and 32. Float64
rows, and topk above ``WIDEST``, go without the passes, straight to the costs of all codes.

Bytes moved: x and the codebook's pieces twice per tile (from L2), 4 ``LISTED`` per row there and back, the codes of
the candidates once; out 16 topk per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._bound import NO_SLACK, rounding_slack, row_field, row_slack
from fastvq.kernels.triton._codebook import launch_split, launch_unit_rows
from fastvq.kernels.triton._oracle import oracle_add, oracle_entry, oracle_norm
from fastvq.kernels.triton._tiles import (
    code_arguments,
    is_finite,
    load_centred,
    mask_arguments,
    row_alignment,
    row_arguments,
    row_offsets,
    row_programs,
    scale_for,
    split_dot,
    split_float16,
)

WIDEST = 32
LISTED = tl.constexpr(64)
# Beyond every index: codes that are not there.
NOWHERE = tl.constexpr(2147483647)


@triton.jit
def tile_scores(
    p_row: tl.tensor,
    m_valid: tl.tensor,
    mean: tl.tensor,
    b_scale: tl.tensor,
    b_weight: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    o_code: tl.tensor,
    D: tl.int32,
    D_padded: tl.int32,
    stride_xd: tl.int64,
    METRIC: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT_STRIDE: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """The scores of rows against the codes at the places o_code, as ``nearest`` computes them. [BN, BK]"""
    o_d = tl.arange(0, BD)
    p_code = o_code[:, None] * D_padded + o_d[None, :]
    b_score = tl.zeros([b_scale.shape[0], o_code.shape[0]], tl.float32)
    for d0 in tl.range(0, D_padded, BD, num_stages=STAGES):
        b_x = load_centred(p_row, m_valid, mean, d0 + o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
        b_high, b_low = split_float16(b_x * b_scale[:, None])
        b_score += split_dot(b_high, b_low, p_code + d0, high, low)
    return b_score + b_weight[:, None] * tl.load(bias + o_code)[None, :]


@triton.jit
def nth_largest(b: tl.tensor, n: tl.int32) -> tl.tensor:
    """Of every row [BN, F] the n-th largest entry, equal ones counted one by one; -inf where NaN are in the way."""
    o = tl.arange(0, b.shape[1])[None, :]
    b_top = tl.max(b, 1)
    for _ in range(1, n):
        b_place = tl.min(tl.where(b == b_top[:, None], o, b.shape[1]), 1)
        b = tl.where(o == b_place[:, None], float("-inf"), b)
        b_top = tl.max(b, 1)
    return b_top


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K_padded", "D", "D_padded", "topk"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd", "stride_mg", "stride_m1", "stride_m2"),
    ]
)
def topk_search_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    mean: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    lists: tl.tensor,
    counts: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    K_padded: tl.int32,
    D: tl.int32,
    D_padded: tl.int32,
    topk: tl.int32,
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
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """lists (rows, groups, LISTED) and counts (rows, groups), both int32: the candidates of every row.

    A count above LISTED stands for all codes; a masked row has none.
    """
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
    high += group * K_padded * D_padded
    low += group * K_padded * D_padded
    bias += group * K_padded

    b_peak = tl.zeros([BN], tl.float32)
    for d0 in tl.range(0, D_padded, BD, num_stages=1):
        b_x = load_centred(p_row, m_valid, mean, d0 + o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
        b_peak = tl.maximum(b_peak, tl.max(tl.abs(b_x), 1))
    b_field, b_weight = row_field(b_peak, tl.load(field + group), METRIC)
    b_scale = scale_for(b_field)
    b_square = tl.zeros([BN], tl.float32)
    for d0 in tl.range(0, D_padded, BD, num_stages=1):
        b_x = load_centred(p_row, m_valid, mean, d0 + o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
        b_x = b_x * b_scale[:, None]
        b_square += tl.sum(b_x * b_x, 1)
    b_slack = row_slack(
        *(b_square, b_weight, tl.load(radius + group), tl.load(radius + groups + group)),
        *(slack_product, slack_bias, slack_floor, slack_oracle, METRIC),
    )

    b_best = tl.full([BN, BK], float("-inf"), tl.float32)
    for k0 in range(0, K_padded, BK):
        b_score = tile_scores(
            *(p_row, m_valid, mean, b_scale, b_weight, high, low, bias, tl.cast(k0, tl.int64) + o_k),
            *(D, D_padded, stride_xd, METRIC, EVEN, UNIT_STRIDE, BD, STAGES),
        )
        b_best = tl.maximum(b_best, b_score)
    b_threshold = nth_largest(b_best, topk) - b_slack

    p_list = lists + (o_row * groups + group) * LISTED
    b_count = tl.zeros([BN], tl.int32)
    for k0 in range(0, K_padded, BK):
        b_score = tile_scores(
            *(p_row, m_valid, mean, b_scale, b_weight, high, low, bias, tl.cast(k0, tl.int64) + o_k),
            *(D, D_padded, stride_xd, METRIC, EVEN, UNIT_STRIDE, BD, STAGES),
        )
        m_candidate = (b_score >= b_threshold[:, None]) & (b_score > float("-inf")) & m_valid[:, None]
        b_hits = m_candidate.to(tl.int32)
        if tl.max(tl.max(b_hits, 1), 0) > 0:
            b_place = b_count[:, None] + tl.cumsum(b_hits, 1) - 1
            b_code = tl.broadcast_to((k0 + o_k)[None, :], [BN, BK])
            tl.store(p_list[:, None] + b_place, b_code, mask=m_candidate & (b_place < LISTED))
            b_count += tl.sum(b_hits, 1)
    # Fewer than asked for: not so many are finite, or without slack the passes disagree.
    m_usable = is_finite(b_slack) & is_finite(b_square) & (b_threshold < float("inf")) & (b_count >= topk)
    b_count = tl.where(m_usable, b_count, LISTED + 1)
    tl.store(counts + o_row * groups + group, tl.where(m_valid, b_count, 0), mask=m_row)


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K", "D", "topk", "stride_xg", "stride_x1", "stride_x2", "stride_xd"),
        *("stride_mg", "stride_m1", "stride_m2", "stride_cg", "stride_ck", "stride_cd"),
    ]
)
def topk_order_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    codes: tl.tensor,
    lists: tl.tensor,
    counts: tl.tensor,
    indices: tl.tensor,
    distances: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    K: tl.int32,
    D: tl.int32,
    topk: tl.int32,
    stride_xg: tl.int64,
    stride_x1: tl.int64,
    stride_x2: tl.int64,
    stride_xd: tl.int64,
    stride_mg: tl.int64,
    stride_m1: tl.int64,
    stride_m2: tl.int64,
    stride_cg: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    METRIC: tl.constexpr,
    BN: tl.constexpr,
    BP: tl.constexpr,
) -> None:
    """indices and distances (rows, groups, topk): the best of the listed codes, or of all without lists.

    A row's best so far are a set of BP >= topk; a code that beats the worst of them takes its place.
    """
    group = (tl.program_id(0) % groups).to(tl.int64)
    o_row = (tl.program_id(0) // groups).to(tl.int64) * BN + tl.arange(0, BN)
    o_m = tl.arange(0, LISTED)
    o_p = tl.arange(0, BP)[None, :]
    m_row = o_row < rows
    m_valid = m_row
    if mask is not None:
        p_mask = mask + group * stride_mg + row_offsets(o_row, inner, stride_m1, stride_m2)
        m_valid = tl.load(p_mask, mask=m_row, other=0) != 0
    stride_xd = stride_xd.to(tl.int64)
    stride_cd = stride_cd.to(tl.int64)
    p_x = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)
    codes += group * stride_cg
    o_out = o_row * groups + group

    b_norm = tl.zeros([BN], tl.float64)
    if METRIC == "cosine":
        b_norm = oracle_norm(p_x, m_valid, D, stride_xd)
    b_broken = tl.zeros([BN], tl.int32)
    for d in range(D):
        b_broken = tl.where(is_finite(tl.load(p_x + d * stride_xd, mask=m_valid, other=0.0)), b_broken, 1)
    m_live = m_valid & (b_broken == 0)
    b_count = tl.zeros([BN], tl.int32)
    span = K
    if lists is not None:
        b_count = tl.where(m_live, tl.load(counts + o_out, mask=m_row, other=0), 0)
        if tl.max(b_count, 0) <= LISTED:
            span = tl.full([], LISTED, tl.int32)
        else:
            b_count = tl.zeros([BN], tl.int32) - 1

    b_kept = tl.full([BN, BP], float("inf"), tl.float64)
    # Places that are yet empty have indices of their own; those beyond topk are better than any code, and stay.
    b_kept = tl.where(o_p < topk, b_kept, float("-inf"))
    b_kept_code = tl.broadcast_to(o_p * -1 + NOWHERE, [BN, BP])
    for k0 in range(0, span, LISTED):
        b_code = tl.broadcast_to((k0 + o_m)[None, :], [BN, LISTED])
        if lists is not None:
            p_list = lists + o_out[:, None] * LISTED + o_m[None, :]
            b_list = tl.load(p_list, mask=o_m[None, :] < b_count[:, None], other=NOWHERE)
            b_code = tl.where(b_count[:, None] >= 0, b_list, b_code)
        m_code = (b_code < K) & m_live[:, None]
        p_code = codes + b_code.to(tl.int64) * stride_ck
        b_cost = tl.zeros([BN, LISTED], tl.float64)
        for d in range(D):
            b_entry = oracle_entry(tl.load(p_x + d * stride_xd, mask=m_live, other=0.0), b_norm, METRIC)
            b_c = tl.load(p_code + d * stride_cd, mask=m_code, other=0.0)
            b_cost = oracle_add(b_cost, b_entry[:, None], b_c, METRIC)
        b_cost = tl.where(m_code & is_finite(b_cost), b_cost, float("inf"))

        better = 1
        while better > 0:
            b_least = tl.min(b_cost, 1)
            b_first = tl.min(tl.where(b_cost == b_least[:, None], b_code, NOWHERE), 1)
            b_most = tl.max(b_kept, 1)
            b_last = tl.max(tl.where(b_kept == b_most[:, None], b_kept_code, -1), 1)
            m_better = (b_least < b_most) | ((b_least == b_most) & (b_first < b_last) & is_finite(b_least))
            m_place = m_better[:, None] & (b_kept == b_most[:, None]) & (b_kept_code == b_last[:, None])
            b_kept = tl.where(m_place, b_least[:, None], b_kept)
            b_kept_code = tl.where(m_place, b_first[:, None], b_kept_code)
            b_cost = tl.where(b_code == b_first[:, None], float("inf"), b_cost)
            better = tl.max(m_better.to(tl.int32), 0)

    b_kept = tl.where(o_p < topk, b_kept, float("inf"))
    for place in range(topk):
        b_cost = tl.min(b_kept, 1)
        b_code = tl.min(tl.where(b_kept == b_cost[:, None], b_kept_code, NOWHERE), 1)
        m_taken = (b_kept == b_cost[:, None]) & (b_kept_code == b_code[:, None])
        b_kept = tl.where(m_taken, float("inf"), b_kept)
        m_found = m_live & is_finite(b_cost)
        b_distance = b_cost
        if METRIC == "dot":
            b_distance = -b_cost
        elif METRIC == "cosine":
            b_distance = 1.0 + b_cost
        b_distance = tl.where(m_valid, tl.where(m_found, b_distance, float("nan")), 0.0)
        tl.store(indices + o_out * topk + place, tl.where(m_found, b_code, -1).to(tl.int64), mask=m_row)
        tl.store(distances + o_out * topk + place, b_distance, mask=m_row)


def launch_topk_search(
    x: Tensor, codes: Tensor, mask: Tensor | None, topk: int, metric: str, precision: str
) -> tuple[Tensor, Tensor]:
    """The candidates of every row, lists (R1, R2, G, LISTED) and counts (R1, R2, G).

    Args:
        x: (G, R1, R2, D) float16, bfloat16 or float32, any strides.
        codes: (G, K, D) float32, any strides; for cosine the unit rows.
    """
    groups, outer, inner, dim = x.shape
    lists = torch.empty((outer, inner, groups, LISTED.value), dtype=torch.int32, device=x.device)
    counts = torch.empty((outer, inner, groups), dtype=torch.int32, device=x.device)
    arguments = row_arguments(x)
    unit_stride = arguments["stride_xd"] == 1
    alignment = row_alignment(arguments)
    config = _configs.topk(x.device, dim, alignment)
    split = launch_split(codes, metric, config.codes, config.depth, deal=False)
    slack = rounding_slack(dim, config.depth) if precision == "exact" else NO_SLACK
    topk_search_kernel[(row_programs(x, config.rows),)](
        x=x,
        mean=split.mean,
        high=split.high,
        low=split.low,
        bias=split.bias,
        radius=split.radius,
        field=split.field,
        lists=lists,
        counts=counts,
        **arguments,
        **mask_arguments(mask),
        K_padded=split.high.shape[1],
        D_padded=split.high.shape[2],
        topk=topk,
        slack_product=slack.product,
        slack_bias=slack.bias,
        slack_floor=slack.floor,
        slack_oracle=slack.oracle,
        METRIC="l2" if metric == "l2" else "dot",
        EVEN=dim % config.depth == 0,
        UNIT_STRIDE=unit_stride,
        ALIGN=alignment,
        BN=config.rows,
        BK=config.codes,
        BD=config.depth,
        STAGES=config.stages,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )
    return lists, counts


def nearest_topk(
    x: Tensor, codebook: Tensor, mask: Tensor | None, topk: int, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """See :func:`fastvq.kernels.reference.nearest_topk`.

    ``precision="fast"`` takes candidates by their scores as they are: a code may be missing whose distance exceeds
    that of the last one by no more than the rounding error of the scores. The order is the oracle's in any case.
    """
    groups, outer, inner, _ = x.shape
    indices = torch.empty((outer, inner, groups, topk), dtype=torch.int64, device=x.device)
    distances = torch.empty((outer, inner, groups, topk), dtype=torch.float64, device=x.device)
    if indices.numel():
        with torch.cuda.device_of(x):
            codes = launch_unit_rows(codebook) if metric == "cosine" else codebook
            lists, counts = None, None
            if x.dtype != torch.float64 and topk <= WIDEST:
                lists, counts = launch_topk_search(x, codes, mask, topk, metric, precision)
            config = _configs.TOPK_ORDER
            topk_order_kernel[(row_programs(x, config.rows),)](
                x=x,
                codes=codes,
                lists=lists,
                counts=counts,
                indices=indices,
                distances=distances,
                **row_arguments(x),
                **code_arguments(codes),
                **mask_arguments(mask),
                topk=topk,
                METRIC=metric,
                BN=config.rows,
                BP=max(4, triton.next_power_of_2(topk)),
                num_warps=config.num_warps,
                enable_fp_fusion=False,
                **_configs.register_limit(x.device, 1),
            )
    return indices.permute(2, 0, 1, 3), distances.permute(2, 0, 1, 3)
