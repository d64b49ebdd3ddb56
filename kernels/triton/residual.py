"""A stack of codebooks searched in one launch: each stage takes the exact nearest code of what the last one left.

    r_1 = x,   i_q = argmin_k |r_q - c_qk|^2,   r_{q+1} = fl(r_q - c_q,i_q),   quantized = c_1,i_1 + ... + c_Q,i_Q

A program takes tiles of rows of one group through all stages. The residuals of its tile lie in a scratch of its own,
in float32, reused from tile to tile so that it stays in L2. A stage scales and splits them in two float16 pieces,
searches as ``nearest`` does, with the same proven bound, and settles rows with a close call by the float64 oracle
before it subtracts their codes. Rows of one piece (D <= BD) keep their float16 pieces for all codes of a stage;
longer ones write them to the scratch, where the search reads them like codes.

Bytes moved: x once, out 12 Q + D times its size per row; from L2, per tile and stage, the codebook's pieces (4 per
entry), 12 per entry of a residual (20 in pieces, and 4 more for each tile of codes), and at last the chosen codes.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._bound import NO_SLACK, rounding_slack, row_field, row_slack
from fastvq.kernels.triton._codebook import launch_split
from fastvq.kernels.triton._oracle import launch_scan
from fastvq.kernels.triton._stage import candidates, measure, settle, split_rows
from fastvq.kernels.triton._tiles import (
    mask_arguments,
    row_arguments,
    row_offsets,
    row_programs,
    scale_for,
    unknown_zero,
)
from fastvq.kernels.triton.lookup import lookup

# What the scratch holds of a row, in int32: how many stages it takes, or the complement of that once it is lost; the
# bits of the largest |r - mean|; the code of the stage.
DEPTH, PEAK, INDEX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "depth", "distinct", "K", "K_padded", "D", "D_padded"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd", "stride_mg", "stride_m1", "stride_m2"),
        *("stride_s1", "stride_s2"),
    ]
)
def residual_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    stages: tl.tensor,
    codes: tl.tensor,
    sizes: tl.tensor,
    mean: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    residual: tl.tensor,
    pieces: tl.tensor,
    state: tl.tensor,
    indices: tl.tensor,
    errors: tl.tensor,
    quantized: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    depth: tl.int32,
    distinct: tl.int32,
    K: tl.int32,
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
    stride_s1: tl.int64,
    stride_s2: tl.int64,
    slack_product: tl.float32,
    slack_bias: tl.float32,
    slack_floor: tl.float32,
    slack_oracle: tl.float32,
    ALIGN: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    BS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """indices and errors (rows, groups, depth), quantized (rows, groups, D).

    codes (groups, distinct, K, D) are contiguous, ``distinct`` being depth, or 1 where all stages share a codebook;
    those beyond a stage's size are not finite. residual (programs, BN, D_padded) and pieces (programs, BN,
    D_padded / BD, 2, BD) are the scratch.
    """
    o_lane = tl.arange(0, BN)
    o_c = tl.arange(0, BC)
    o_d = tl.arange(0, BD)
    # No changes of value, here: they show the compiler what an unspecialised argument hides.
    K_padded = K_padded // BK * BK
    D_padded = D_padded // BD * BD
    D = D // ALIGN * ALIGN
    stride_xd = stride_xd.to(tl.int64)
    tiles = tl.cdiv(rows, BN).to(tl.int32) * groups

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        group = (tile % groups).to(tl.int64)
        zero = unknown_zero(tl.load(field + group * distinct))
        program = tl.program_id(0).to(tl.int64) + zero
        o_place = o_lane + zero
        p_tile = residual + program * BN * D_padded
        p_columns = p_tile + o_place[:, None] * D_padded + o_c[None, :]
        p_state = state + program * 3 * BN + o_place
        o_row = (tile // groups).to(tl.int64) * BN + o_place
        m_row = o_row < rows

        # Here and below, a barrier lies between writing the scratch and reading it by other threads, and back.
        tl.debug_barrier()
        m_valid = m_row
        if mask is not None:
            p_mask = mask + group * stride_mg + row_offsets(o_row, inner, stride_m1, stride_m2)
            m_valid = tl.load(p_mask, mask=m_row, other=0) != 0
        b_depth = tl.where(m_valid, depth, 0)
        if stages is not None:
            b_stages = tl.load(stages + row_offsets(o_row, inner, stride_s1, stride_s2), mask=m_row, other=0)
            b_depth = tl.minimum(b_depth, tl.maximum(b_stages, 0)).to(tl.int32)
        taken = tl.max(b_depth, 0)
        p_x = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)
        p_mean = mean + group * distinct * D_padded + o_c
        b_peak = tl.zeros([BN], tl.float32)
        b_broken = tl.zeros([BN], tl.int32)
        for d0 in range(0, D_padded, BC):
            m_x = m_valid[:, None] & (d0 + o_c < D)[None, :]
            b_x = tl.load(p_x[:, None] + (d0 + o_c)[None, :] * (stride_xd + zero), mask=m_x, other=0.0).to(tl.float32)
            tl.store(p_columns + d0, b_x)
            b_peak, b_broken = measure(b_x, p_mean + d0, b_peak, b_broken)
        tl.store(p_state + PEAK * BN, b_peak.to(tl.int32, bitcast=True))
        tl.store(p_state + DEPTH * BN, tl.where(b_broken > 0, ~b_depth, b_depth))
        tl.debug_barrier()

        for stage in range(taken):
            o_book = group * distinct + tl.minimum(stage, distinct - 1)
            code_field = tl.load(field + o_book)
            zero = unknown_zero(code_field)
            o_place = o_lane + zero
            o_column = o_place[:, None] * D_padded
            p_state = state + program * 3 * BN + o_place
            o_here = ((tile + zero) // groups).to(tl.int64) * BN + o_place
            m_here = o_here < rows
            p_here = (o_here * groups + group) * depth + stage
            p_row = p_tile + o_column + o_d[None, :]
            b_peak = tl.load(p_state + PEAK * BN).to(tl.float32, bitcast=True)
            b_field, b_weight = row_field(b_peak, code_field, "l2")
            b_scale = scale_for(b_field)
            p_mean = mean + o_book * D_padded + o_d
            if ONE_PIECE:
                b_high, b_low, b_square = split_rows(p_row, p_mean, b_scale)
            else:
                # Where the search finds what it keeps in registers otherwise.
                b_high = pieces + program * 2 * BN * D_padded + 2 * o_column + o_d[None, :]
                b_low = b_high + BD
                b_square = tl.zeros([BN], tl.float32)
                for d0 in tl.range(0, D_padded, BD, num_stages=1):
                    b_high_piece, b_low_piece, b_part = split_rows(p_row + d0, p_mean + d0, b_scale)
                    tl.store(b_high + 2 * d0, b_high_piece)
                    tl.store(b_low + 2 * d0, b_low_piece)
                    b_square += b_part
                tl.debug_barrier()
            code_norm = tl.load(radius + o_book)
            b_slack = row_slack(
                *(b_square, b_weight, code_norm, code_norm),
                *(slack_product, slack_bias, slack_floor, slack_oracle, "l2"),
            )
            size = K
            if sizes is not None:
                size = tl.load(sizes + stage)
            p_split = o_book * K_padded * D_padded
            b_first, b_rival = candidates(
                b_high,
                b_low,
                high + p_split,
                low + p_split,
                bias + o_book * K_padded,
                b_weight,
                b_slack,
                size,
                D_padded,
                ONE_PIECE,
                BK,
                BD,
                STAGES,
            )

            p_codes = codes + o_book * K * D
            b_depth = tl.load(p_state + DEPTH * BN)
            m_live = stage < b_depth
            b_index = settle(p_tile, p_codes, b_first, b_rival, m_live, size, D, D_padded, BR, BS)
            b_index = tl.where(m_live, b_index, -1)
            tl.store(indices + p_here, b_index.to(tl.int64), mask=m_here)
            tl.debug_barrier()
            tl.store(p_state + INDEX * BN, b_index)
            tl.store(p_state + DEPTH * BN, tl.where(m_live & (b_index < 0), ~b_depth, b_depth))
            tl.debug_barrier()

            b_index = tl.load(p_state + INDEX * BN)
            b_depth = tl.load(p_state + DEPTH * BN)
            p_code = p_codes + b_index.to(tl.int64)[:, None] * D + o_c[None, :]
            p_mean = mean + (group * distinct + tl.minimum(stage + 1, distinct - 1)) * D_padded + o_c
            b_peak = tl.zeros([BN], tl.float32)
            b_broken = tl.zeros([BN], tl.int32)
            b_error = tl.zeros([BN], tl.float64)
            p_columns = p_tile + o_column + o_c[None, :]
            for d0 in range(0, D_padded, BC):
                b_row = tl.load(p_columns + d0)
                m_code = (b_index >= 0)[:, None] & (d0 + o_c < D)[None, :]
                b_code = tl.load(p_code + d0, mask=m_code, other=0.0)
                b_gap = b_row.to(tl.float64) - b_code.to(tl.float64)
                b_error += tl.sum(b_gap * b_gap, 1)
                b_row = b_row - b_code
                tl.store(p_columns + d0, b_row)
                b_peak, b_broken = measure(b_row, p_mean + d0, b_peak, b_broken)
            tl.debug_barrier()
            # A residual that overflows is the next stage's to find; a row without such a stage keeps its sum.
            m_taken = stage < tl.maximum(b_depth, ~b_depth)
            b_error = tl.where(b_index >= 0, b_error, tl.where(m_taken, float("nan"), 0.0))
            tl.store(errors + p_here, b_error.to(tl.float32), mask=m_here)
            m_over = (b_broken > 0) & (stage + 1 < b_depth)
            tl.store(p_state + DEPTH * BN, tl.where(m_over, ~b_depth, b_depth))
            tl.store(p_state + PEAK * BN, b_peak.to(tl.int32, bitcast=True))
            tl.debug_barrier()

        zero = unknown_zero(tl.load(field + group * distinct))
        o_row = ((tile + zero) // groups).to(tl.int64) * BN + o_lane
        m_row = o_row < rows
        p_out = (o_row * groups + group) * depth
        for stage in range(taken, depth):
            tl.store(indices + p_out + stage, tl.full([BN], -1, tl.int64), mask=m_row)
            tl.store(errors + p_out + stage, tl.zeros([BN], tl.float32), mask=m_row)
        b_depth = tl.load(state + (program * 3 + DEPTH) * BN + o_lane)
        m_lost = (b_depth < 0) & (~b_depth > 0)
        p_quantized = quantized + (o_row * groups + group)[:, None] * D + o_c[None, :]
        for d0 in range(0, D_padded, BC):
            b_sum = tl.zeros([BN, BC], tl.float32)
            for stage in range(taken):
                b_index = tl.load(indices + p_out + stage, mask=m_row, other=-1)
                p_codes = codes + (group * distinct + tl.minimum(stage, distinct - 1)) * K * D
                m_code = (b_index >= 0)[:, None] & (d0 + o_c < D)[None, :]
                # A hole loads zeros; adding zero keeps every bit, as the sum starts from +0 and is never -0.
                b_sum += tl.load(p_codes + b_index[:, None] * D + d0 + o_c[None, :], mask=m_code, other=0.0)
            b_sum = tl.where(m_lost[:, None], float("nan"), b_sum)
            m_out = m_row[:, None] & (d0 + o_c < D)[None, :]
            tl.store(p_quantized + d0, b_sum.to(quantized.dtype.element_ty), mask=m_out)


def launch_residual(
    x: Tensor,
    codes: Tensor,
    sizes: Tensor | None,
    stages: Tensor | None,
    mask: Tensor | None,
    indices: Tensor,
    quantized: Tensor,
    errors: Tensor,
    precision: str,
) -> None:
    """Fills ``indices`` and ``errors`` (R1, R2, G, Q) and ``quantized`` (R1, R2, G, D).

    Args:
        x: (G, R1, R2, D) float16, bfloat16 or float32, any strides.
        codes: (G, Q, K, D) float32, contiguous, or (G, 1, K, D) for a codebook that all stages share.
        sizes: (Q,) int32 on x's device, or None.
        stages: (R1, R2) int64, or None.
    """
    _, distinct, num_codes, dim = codes.shape
    config = _configs.residual(x.device, dim)
    split = launch_split(codes.flatten(0, 1), "l2", config.codes, config.depth, deal=False)
    slack = rounding_slack(dim, config.depth) if precision == "exact" else NO_SLACK
    one_piece = dim <= config.depth
    programs = min(row_programs(x, config.rows), _configs.processors(x.device) * config.resident)
    scratch = (config.rows, split.high.shape[2])
    strides = (0, 0) if stages is None else stages.stride()
    scan = _configs.RESIDUAL_SCAN
    residual_kernel[(programs,)](
        x=x,
        stages=stages,
        codes=codes,
        sizes=sizes,
        mean=split.mean,
        high=split.high,
        low=split.low,
        bias=split.bias,
        radius=split.radius,
        field=split.field,
        residual=torch.empty((programs, *scratch), dtype=torch.float32, device=x.device),
        pieces=None if one_piece else torch.empty((programs, 2, *scratch), dtype=torch.float16, device=x.device),
        state=torch.empty((programs, 3, config.rows), dtype=torch.int32, device=x.device),
        indices=indices,
        errors=errors,
        quantized=quantized,
        **row_arguments(x),
        **mask_arguments(mask),
        stride_s1=strides[0],
        stride_s2=strides[1],
        depth=indices.shape[3],
        distinct=distinct,
        K=num_codes,
        K_padded=split.high.shape[1],
        D_padded=split.high.shape[2],
        slack_product=slack.product,
        slack_bias=slack.bias,
        slack_floor=slack.floor,
        slack_oracle=slack.oracle,
        ALIGN=math.gcd(16, dim),
        ONE_PIECE=one_piece,
        BN=config.rows,
        BK=config.codes,
        BD=config.depth,
        BC=min(config.depth, 512 * config.num_warps // config.rows),
        BR=scan.rows,
        BS=scan.codes,
        STAGES=config.stages,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )


def scan_stages(
    x: Tensor, codes: Tensor, stages: Tensor | None, mask: Tensor | None, indices: Tensor, errors: Tensor
) -> Tensor:
    """Fills ``indices`` and ``errors`` (R1, R2, G, Q) for float64 rows, a scan of all codes per stage.

    Returns:
        lost (G, R1, R2): rows in which a stage found no code.
    """
    groups, outer, inner, _ = x.shape
    group = torch.arange(groups, device=x.device)[:, None, None]
    valid = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
    valid = valid.expand(groups, outer, inner)
    lost = torch.zeros_like(valid)
    for stage in range(indices.shape[3]):
        book = codes[:, min(stage, codes.shape[1] - 1)]
        taken = valid if stages is None else valid & (stage < stages)
        index = torch.empty((outer, inner, groups), dtype=torch.int64, device=x.device)
        error = torch.empty_like(index, dtype=torch.float64)
        launch_scan(x, book, taken, index, error, "l2")
        indices[..., stage], errors[..., stage] = index, error
        index = index.permute(2, 0, 1)
        lost = lost | (taken & (index < 0))
        x = torch.where((index >= 0).unsqueeze(-1), x - book[group, index.clamp_min(0)], float("nan"))
    return lost


def residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastvq.kernels.reference.residual_nearest`; ``precision`` as in :func:`.nearest.nearest`."""
    groups, outer, inner, dim = x.shape
    depth, num_codes = codebooks.shape[1:3]
    indices = torch.empty((outer, inner, groups, depth), dtype=torch.int64, device=x.device)
    errors = torch.empty((outer, inner, groups, depth), dtype=codebooks.dtype, device=x.device)
    quantized = torch.empty((outer, inner, groups, dim), dtype=x.dtype, device=x.device)
    if indices.numel():
        with torch.cuda.device_of(x):
            bounds = None
            if sizes is not None:
                # Filled one by one: a copy from the host would wait for the device, and not replay from a CUDA graph.
                bounds = torch.empty((depth,), dtype=torch.int32, device=x.device)
                for stage, size in enumerate(sizes):
                    bounds[stage].fill_(size)
                beyond = torch.arange(num_codes, device=x.device) >= bounds[:, None]
                codes = codebooks.masked_fill(beyond.unsqueeze(-1), float("nan")).contiguous()
            elif codebooks.stride(1) == 0:
                codes = codebooks[:, :1].contiguous()
            else:
                codes = codebooks.contiguous()
            if x.dtype == torch.float64:
                lost = scan_stages(x, codes, stages, mask, indices, errors)
                found = lookup(indices.permute(2, 0, 1, 3), codebooks)
                quantized = found.masked_fill(lost.unsqueeze(-1), float("nan")).permute(1, 2, 0, 3)
            else:
                launch_residual(x, codes, bounds, stages, mask, indices, quantized, errors, precision)
    return indices.permute(2, 0, 1, 3), quantized.permute(2, 0, 1, 3), errors.permute(2, 0, 1, 3)
