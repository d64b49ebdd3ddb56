"""The search for rows that are long or lie apart: each is split once into a scratch, where the products read it.

The scores, their order and the bound are those of ``nearest``, in pieces of BD entries. A program takes tiles of rows
one after another. It writes both float16 pieces of scale (x - mu) of a tile to a scratch of its own, where the search
reads them for every tile of codes: centring, scaling, splitting and addresses of single entries are paid once a row,
not once a score. There are as many programs, each with its scratch, as run at a time. Together these hold at most x,
padded, in float32, and are written again from tile to tile, so that they stay in L2.

Bytes moved: x twice, once of that from L2 where it holds the tiles at work; the pieces (4 per entry) there once and
back once per tile of codes; the codebook once per tile of rows (from L2); out 12 per row.

Pieces of 64, not 32: for 128 rows and 128 codes the products of a piece take 1536 cycles of a multiprocessor's tensor
cores on sm_90, and its 64 KiB from L2 as long at 43 bytes a cycle (28 to 46 are what there is); both run beside the
rest. Adding it to the row's sum takes 128 cycles, and three waits for products some hundred each, however short a
piece is. The price is the bound, 1.7 times that of pieces of 32 at D = 512, and so many more rows with a rival.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._bound import NO_SLACK, rounding_slack, row_field, row_slack
from fastvq.kernels.triton._codebook import launch_split
from fastvq.kernels.triton._oracle import MASKED
from fastvq.kernels.triton._tiles import (
    load_centred,
    mask_arguments,
    row_alignment,
    row_arguments,
    row_offsets,
    row_programs,
    scale_for,
    split_dot,
    split_float16,
    unknown_zero,
)
from fastvq.kernels.triton._units import better, candidates, no_slots, tile_slots


@triton.jit
def load_apart(
    x: tl.tensor,
    first_row: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    stride_x1: tl.int64,
    stride_x2: tl.int64,
    stride_xd: tl.int64,
    mean: tl.tensor,
    d0: tl.int32,
    D: tl.int32,
    METRIC: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
) -> tl.tensor:
    """What ``load_centred`` loads, by lanes that are rows: neighbouring ones lie side by side in a map. [BN, BC]

    One axis of lanes leaves the compiler no choice.
    """
    o_entry = tl.arange(0, BC * BN)
    o_row = first_row + o_entry % BN
    o_d = d0 + o_entry // BN
    p_x = x + row_offsets(o_row, inner, stride_x1, stride_x2) + o_d.to(tl.int64) * stride_xd
    b_x = tl.load(p_x, mask=(o_row < rows) & (o_d < D), other=0.0).to(tl.float32)
    b_x = tl.trans(tl.reshape(b_x, [BC, BN]))
    if METRIC == "l2":
        b_x = b_x - tl.load(mean + d0 + tl.arange(0, BC))[None, :]
    return b_x


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K_padded", "D", "D_padded"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd", "stride_mg", "stride_m1", "stride_m2"),
    ]
)
def nearest_staged_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    mean: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    pieces: tl.tensor,
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
    UNIT_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    ONE_PIECE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    UNIT: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """indices and rivals (rows, groups): the first candidate, and the second or a state of ``_oracle``.

    pieces (programs, D_padded / BD, 2, BN, BD) is the scratch, written BC columns at a time.
    """
    o_lane = tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    o_d = tl.arange(0, BD)
    o_c = tl.arange(0, BC)
    # No changes of value, here: they show the compiler what an unspecialised argument hides.
    K_padded = K_padded // BK * BK
    D_padded = D_padded // BD * BD
    if ALIGN > 1:
        D = D // ALIGN * ALIGN
        stride_xg = stride_xg // ALIGN * ALIGN
        stride_x1 = stride_x1 // ALIGN * ALIGN
        stride_x2 = stride_x2 // ALIGN * ALIGN
    tiles = tl.cdiv(rows, BN).to(tl.int32) * groups

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        group = (tile % groups).to(tl.int64)
        zero = unknown_zero(tl.load(field + group))
        o_place = o_lane + zero
        program = tl.program_id(0).to(tl.int64) + zero
        p_tile = pieces + program * 2 * BN * D_padded + o_place[:, None] * BD
        o_row = (tile // groups).to(tl.int64) * BN + o_place
        m_row = o_row < rows
        p_row = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)
        first_row = ((tile + zero) // groups).to(tl.int64) * BN
        apart = (x + group * stride_xg, first_row, rows, inner, stride_x1, stride_x2, stride_xd)
        p_mean = mean + group * D_padded

        b_peak = tl.zeros([BN], tl.float32)
        for d0 in tl.range(0, D_padded, BC, num_stages=1):
            if UNIT_STRIDE:
                b_x = load_centred(p_row, m_row, p_mean, d0 + o_c, D, stride_xd, METRIC, False, True)
            else:
                b_x = load_apart(*apart, p_mean, d0, D, METRIC, BN, BC)
            b_peak = tl.maximum(b_peak, tl.max(tl.abs(b_x), 1))
        b_field, b_weight = row_field(b_peak, tl.load(field + group), METRIC)
        b_scale = scale_for(b_field)
        # Here and below, a barrier lies between writing the scratch and reading it by other threads, and back.
        tl.debug_barrier()
        b_square = tl.zeros([BN], tl.float32)
        for d0 in tl.range(0, D_padded, BD, num_stages=1):
            for c0 in tl.static_range(0, BD, BC):
                o_x = d0 + c0 + o_c
                if UNIT_STRIDE:
                    b_x = load_centred(p_row, m_row, p_mean, o_x, D, stride_xd, METRIC, False, True)
                else:
                    b_x = load_apart(*apart, p_mean, d0 + c0, D, METRIC, BN, BC)
                b_x = b_x * b_scale[:, None]
                b_high, b_low = split_float16(b_x)
                p_piece = p_tile + (d0 * (2 * BN) + c0 + o_c)[None, :]
                tl.store(p_piece, b_high)
                tl.store(p_piece + BN * BD, b_low)
                b_square += tl.sum(b_x * b_x, 1)
        tl.debug_barrier()

        b_slack = row_slack(
            *(b_square, b_weight, tl.load(radius + group), tl.load(radius + groups + group)),
            *(slack_product, slack_bias, slack_floor, slack_oracle, METRIC),
        )
        p_high = p_tile + o_d[None, :]
        p_low = p_high + BN * BD
        if ONE_PIECE:
            b_high = tl.load(p_high)
            b_low = tl.load(p_low)
        b_best, b_second, b_code = no_slots(BN, SLOTS)
        for k0 in tl.range(0, K_padded, BK, num_stages=STAGES):
            if ONE_PIECE:
                p_code = (group * K_padded + k0 + o_k)[:, None] * D_padded + o_d[None, :]
                b_score = split_dot(b_high, b_low, p_code, high, low)
            else:
                start = (group * K_padded + k0) * D_padded
                p_code = o_k[:, None] * D_padded + o_d[None, :]
                b_score = tl.zeros([BN, BK], tl.float32)
                for d0 in tl.range(0, D_padded, BD, num_stages=STAGES):
                    b_high = tl.load(p_high + d0 * (2 * BN))
                    b_low = tl.load(p_low + d0 * (2 * BN))
                    b_score += split_dot(b_high, b_low, p_code, high + (start + d0), low + (start + d0))
            b_bias = tl.load(bias + group * K_padded + k0 + o_k)
            if METRIC == "l2":
                b_score += b_weight[:, None] * b_bias[None, :]
            else:
                b_score += b_bias[None, :]

            b_tile_best, b_tile_second, b_column = tile_slots(b_score, UNIT, SLOTS)
            b_best, b_second, b_code = better(b_best, b_second, b_code, b_tile_best, b_tile_second, b_column + k0)

        b_first, b_rival = candidates(b_best, b_second, b_code, b_slack, BK, SLOTS)
        zero = unknown_zero(tl.load(field + group))
        o_row = ((tile + zero) // groups).to(tl.int64) * BN + o_lane
        m_row = o_row < rows
        if mask is not None:
            p_mask = mask + group * stride_mg + row_offsets(o_row, inner, stride_m1, stride_m2)
            b_rival = tl.where(tl.load(p_mask, mask=m_row, other=0) != 0, b_rival, MASKED)
        o_out = o_row * groups + group
        tl.store(indices + o_out, b_first.to(tl.int64), mask=m_row)
        tl.store(rivals + o_out, b_rival, mask=m_row)


def launch_staged(
    x: Tensor, codes: Tensor, mask: Tensor | None, indices: Tensor, rivals: Tensor, metric: str, precision: str
) -> int:
    """The search for rows of any length and any strides; see :func:`fastvq.kernels.triton.nearest.launch_nearest`."""
    dim = x.shape[-1]
    arguments: dict[str, Any] = row_arguments(x)
    config = _configs.staged(x.device, dim)
    split = launch_split(codes, metric, config.codes, config.depth, deal=True)
    slack = rounding_slack(dim, config.depth) if precision == "exact" else NO_SLACK
    programs = min(row_programs(x, config.rows), _configs.processors(x.device) * config.resident)
    nearest_staged_kernel[(programs,)](
        x=x,
        mean=split.mean,
        high=split.high,
        low=split.low,
        bias=split.bias,
        radius=split.radius,
        field=split.field,
        pieces=torch.empty((programs, 2 * config.rows, split.high.shape[2]), dtype=torch.float16, device=x.device),
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
        UNIT_STRIDE=arguments["stride_xd"] == 1,
        ALIGN=row_alignment(arguments),
        ONE_PIECE=dim <= config.depth,
        BN=config.rows,
        BK=config.codes,
        BD=config.depth,
        BC=min(config.depth, 1024 * config.num_warps // config.rows),
        UNIT=config.unit,
        SLOTS=config.slots,
        STAGES=config.stages,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )
    return config.unit
