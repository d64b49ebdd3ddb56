"""The search for rows of up to 16 entries, such as groups of a grouped codebook: one matrix product does everything.

The score of ``nearest``, s_k = (x - mu) . (c_k - mu) - |c_k - mu|^2 / 2, both operands scaled by powers of two and
split in two float16 pieces, the bias in three, is one product of 4 columns per entry:

    row     [x_high, x_low, x_high, v]   for each d        v = 2^15 w: the scale of the bias, see ``nearest``
    code    [c_high, c_high, c_low, h_d] for each d        h_0 + h_1 + h_2 = -|c_k|^2 / 2 / 2^15, other h_d = 0

so that splitting and bias cost no instruction of their own: all that is left of a score is to find the best.

Bytes moved: x once, 16 per entry of the codebook once per tile of rows (from L2), out 12 per row.

The bound. With the symbols of ``nearest`` (u = 2^-24, X, C, w) and scaled entries below 2^13, the computed s_k
differs from the scaled exact one by at most

    X C u (4 n (1 + 2^-8) + 24) + w (C^2 + 2^24) u (2 n (1 + 2^-8) + 3) + 2^-12 sqrt(D) (X + C) (1 + 2^-8)

with n = 3 D + 3 the number of products that are not zero.

* 2u, 8u, 4u: centring, splits and the product low . low, left out, as in ``nearest``.
* 4 n u (1 + 2^-8) of X C + w C^2 / 2: the accumulation of n products, each erring by at most 2^-22 of the sum of all
  magnitudes, which is at most (1 + 2^-8) times that of the high pieces' products and the bias.
* u w C^2: the bias is half of C^2 and has 2u from c - mu. 2u w 2^24: a piece below float16's normal range may be
  flushed, which is 2^-14 before it is multiplied by v. What the third piece leaves, 2^-33 of the bias, is far below.
* v is at least 2^-14, so that float16 holds it. A smaller w is overstated by less than 2^-29, and the bias by less
  than 2^-30 C^2. Then X >= 2^12, and C <= 2^15, so this is below X C u; with u for the threshold it is in the spare.
* The oracle's own rounding as in ``nearest``.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._bound import NO_SLACK, Slack, margin, row_field, row_slack
from fastvq.kernels.triton._oracle import MASKED
from fastvq.kernels.triton._tiles import (
    code_arguments,
    exponent_field,
    is_finite,
    load_centred,
    mask_arguments,
    row_alignment,
    row_arguments,
    row_offsets,
    row_programs,
    scale_for,
    split_float16,
)
from fastvq.kernels.triton._units import better, candidates, dealt, no_slots, tile_slots

WIDEST = 16


@triton.jit
def scale_narrow(field: tl.tensor) -> tl.tensor:
    """The power of two that brings values with this exponent field into [2^12, 2^13)."""
    return scale_for(field) * 0.25


@triton.jit
def interleaved(b_0: tl.tensor, b_1: tl.tensor, b_2: tl.tensor, b_3: tl.tensor) -> tl.tensor:
    """Four float16 [B, BD] as one [B, 4 BD], the four columns of an entry side by side."""
    b = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)).to(tl.int16, bitcast=True)
    # As float16 all the way to the product, the reshape would not compile for sm_100 with Triton 3.9.
    return tl.reshape(b, [b_0.shape[0], 4 * b_0.shape[1]]).to(tl.float16, bitcast=True)


@triton.jit(do_not_specialize=["K", "K_padded", "D", "stride_cg", "stride_ck", "stride_cd"])
def pack_kernel(
    codes: tl.tensor,
    mean: tl.tensor,
    packed: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    K: tl.int32,
    K_padded: tl.int32,
    D: tl.int32,
    stride_cg: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    METRIC: tl.constexpr,
    TILE: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """mean (G, BD), packed (G, K_padded, 4 BD), radius (2, G) and field (G,) of one group's codes, each a program.

    Any mean serves, so entries that are not finite are left out and a sum that overflows gives a mean of 0. Codes
    with an entry that is not finite, and the padding, get a bias of -inf. radius and field are those of
    ``_codebook.SplitCodebook``.
    """
    group = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0)
    o_k = tl.arange(0, BK).to(tl.int64)
    o_d = tl.arange(0, BD)
    p_codes = codes + group * stride_cg + o_d.to(tl.int64)[None, :] * stride_cd

    b_sum = tl.zeros([BK, BD], tl.float32)
    for k0 in range(0, K, BK):
        m_tile = (k0 + o_k < K)[:, None] & (o_d < D)[None, :]
        b_code = tl.load(p_codes + (k0 + o_k)[:, None] * stride_ck, mask=m_tile, other=0.0)  # [BK, BD]
        b_sum += tl.where(is_finite(b_code), b_code, 0.0)
    b_mean = tl.sum(b_sum, 0) / K
    b_mean = tl.where(is_finite(b_mean), b_mean, 0.0)
    tl.store(mean + group * BD + o_d, b_mean)

    b_peak = tl.zeros([BK, BD], tl.float32)
    for k0 in range(0, K, BK):
        m_tile = (k0 + o_k < K)[:, None] & (o_d < D)[None, :]
        b_code = tl.load(p_codes + (k0 + o_k)[:, None] * stride_ck, mask=m_tile, other=0.0)
        b_peak = tl.maximum(b_peak, tl.where(is_finite(b_code) & m_tile, tl.abs(b_code - b_mean[None, :]), 0.0))
    code_field = exponent_field(tl.max(tl.max(b_peak, 1), 0))
    scale = scale_narrow(code_field)
    tl.store(field + group, code_field)

    b_radius = tl.zeros([BK], tl.float64)
    b_whole_radius = tl.zeros([BK], tl.float64)
    for k0 in range(0, K_padded, BK):
        o_code = dealt(k0 + o_k, TILE)
        m_code = o_code < K
        m_tile = m_code[:, None] & (o_d < D)[None, :]
        b_code = tl.load(p_codes + o_code[:, None] * stride_ck, mask=m_tile, other=0.0)
        m_usable = m_code & (tl.max(tl.where(is_finite(b_code), 0, 1), 1) == 0)
        m_tile = m_usable[:, None] & m_tile
        b_scaled = tl.where(m_tile, (b_code - b_mean[None, :]) * scale, 0.0)
        b_square = tl.sum(b_scaled.to(tl.float64) * b_scaled.to(tl.float64), 1)
        b_entry = tl.where(m_tile, b_code.to(tl.float64) * scale.to(tl.float64), 0.0)
        b_radius = tl.maximum(b_radius, b_square)
        b_whole_radius = tl.maximum(b_whole_radius, tl.sum(b_entry * b_entry, 1))

        b_bias = b_square * -(2.0**-16) if METRIC == "l2" else tl.zeros([BK], tl.float64)
        b_first = b_bias.to(tl.float16)
        b_rest = b_bias - b_first.to(tl.float64)
        b_second = b_rest.to(tl.float16)
        b_third = (b_rest - b_second.to(tl.float64)).to(tl.float16)
        b_first = tl.where(m_usable, b_first, float("-inf"))
        b_bias = tl.where(o_d[None, :] == 0, b_first[:, None], tl.zeros([BK, BD], tl.float16))
        b_bias = tl.where(o_d[None, :] == 1, b_second[:, None], b_bias)
        b_bias = tl.where(o_d[None, :] == 2, b_third[:, None], b_bias)
        b_high, b_low = split_float16(b_scaled)
        o_packed = (group * K_padded + k0 + o_k)[:, None] * (4 * BD) + tl.arange(0, 4 * BD)[None, :]
        tl.store(packed + o_packed, interleaved(b_high, b_high, b_low, b_bias))
    up = 1 + 2.0**-20
    tl.store(radius + group, (tl.sqrt(tl.max(b_radius, 0)) * up).to(tl.float32))
    tl.store(radius + groups + group, (tl.sqrt(tl.max(b_whole_radius, 0)) * up).to(tl.float32))


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K_padded", "D"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd", "stride_mg", "stride_m1", "stride_m2"),
    ]
)
def nearest_narrow_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    mean: tl.tensor,
    packed: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    indices: tl.tensor,
    rivals: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    K_padded: tl.int32,
    D: tl.int32,
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
    UNIT: tl.constexpr,
    SLOTS: tl.constexpr,
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
    if ALIGN > 1:
        D = D // ALIGN * ALIGN
        stride_xg = stride_xg // ALIGN * ALIGN
        stride_x1 = stride_x1 // ALIGN * ALIGN
        stride_x2 = stride_x2 // ALIGN * ALIGN
    p_row = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)

    b_x = load_centred(p_row, m_valid, mean + group * BD, o_d, D, stride_xd, METRIC, EVEN, UNIT_STRIDE)
    b_field, b_weight = row_field(tl.max(tl.abs(b_x), 1), tl.load(field + group), METRIC)
    b_x = b_x * scale_narrow(b_field)[:, None]
    b_high, b_low = split_float16(b_x)
    b_bias = tl.broadcast_to(tl.maximum(b_weight * 2.0**15, 2.0**-14)[:, None], [BN, BD]).to(tl.float16)
    b_row = interleaved(b_high, b_low, b_high, b_bias)
    # The 2^24 of the bound's second term, in terms of the norm that the slack is computed from.
    code_norm = tl.load(radius + group)
    b_slack = row_slack(
        *(tl.sum(b_x * b_x, 1), b_weight, code_norm, tl.load(radius + groups + group)),
        *(slack_product, slack_bias, slack_floor, slack_oracle, METRIC),
    )
    if METRIC == "l2":
        b_slack += slack_bias * b_weight * 2.0**24

    b_best, b_second, b_code = no_slots(BN, SLOTS)
    for k0 in tl.range(0, K_padded, BK, num_stages=STAGES):
        o_packed = (group * K_padded + k0 + o_k)[:, None] * (4 * BD) + tl.arange(0, 4 * BD)[None, :]
        b_score = tl.dot(b_row, tl.trans(tl.load(packed + o_packed)))
        b_tile_best, b_tile_second, b_column = tile_slots(b_score, UNIT, SLOTS)
        b_best, b_second, b_code = better(b_best, b_second, b_code, b_tile_best, b_tile_second, b_column + k0)

    b_first, b_rival = candidates(b_best, b_second, b_code, b_slack, BK, SLOTS)
    b_rival = tl.where(m_valid, b_rival, MASKED)
    o_out = o_row * groups + group
    tl.store(indices + o_out, b_first.to(tl.int64), mask=m_row)
    tl.store(rivals + o_out, b_rival, mask=m_row)


class PackedCodebook(NamedTuple):
    """A codebook as the narrow search reads it; see the module's docstring."""

    codes: Tensor  # (G, K_padded, 4 BD) float16
    mean: Tensor  # (G, BD) float32
    radius: Tensor  # (2, G) float32: largest norm of a centred code, of a code as given, in scaled units
    field: Tensor  # (G,) int32: biased exponent of the largest |c - mu|


def narrow_slack(dim: int) -> Slack:
    """Twice the bound of the module's docstring for rows of ``dim`` entries."""
    unit = 2.0**-24
    products = (3 * dim + 3) * (1 + 2.0**-8)
    twice = margin(dim)
    return Slack(
        product=twice * unit * (4 * products + 24),
        bias=twice * unit * (2 * products + 3),
        floor=twice * 2.0**-12 * math.sqrt(dim) * (1 + 2.0**-8),
        oracle=twice * (dim + 3) * 2.0**-53,
    )


def launch_pack(codebook: Tensor, metric: str, codes_multiple: int, depth: int) -> PackedCodebook:
    """Centres and packs a float32 codebook (G, K, D), D at most ``depth``, padded to whole tiles of the search."""
    groups, num_codes, dim = codebook.shape
    device = codebook.device
    codes_padded = triton.cdiv(num_codes, codes_multiple) * codes_multiple
    packed = PackedCodebook(
        codes=torch.empty((groups, codes_padded, 4 * depth), dtype=torch.float16, device=device),
        mean=torch.empty((groups, depth), dtype=torch.float32, device=device),
        radius=torch.empty((2, groups), dtype=torch.float32, device=device),
        field=torch.empty((groups,), dtype=torch.int32, device=device),
    )
    config = _configs.PACK
    pack_kernel[(groups,)](
        codes=codebook,
        mean=packed.mean,
        packed=packed.codes,
        radius=packed.radius,
        field=packed.field,
        **code_arguments(codebook),
        K_padded=codes_padded,
        D=dim,
        METRIC="l2" if metric == "l2" else "dot",
        TILE=codes_multiple,
        BK=config.codes,
        BD=depth,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )
    return packed


def launch_narrow(
    x: Tensor, codes: Tensor, mask: Tensor | None, indices: Tensor, rivals: Tensor, metric: str, precision: str
) -> int:
    """The search for rows of up to ``WIDEST`` entries; see :func:`fastvq.kernels.triton.nearest.launch_nearest`."""
    dim = x.shape[-1]
    arguments = row_arguments(x)
    unit_stride = arguments["stride_xd"] == 1
    alignment = row_alignment(arguments)
    config = _configs.narrow(x.device, dim, unit_stride)
    packed = launch_pack(codes, metric, config.codes, config.depth)
    slack = narrow_slack(dim) if precision == "exact" else NO_SLACK
    nearest_narrow_kernel[(row_programs(x, config.rows),)](
        x=x,
        mean=packed.mean,
        packed=packed.codes,
        radius=packed.radius,
        field=packed.field,
        indices=indices,
        rivals=rivals,
        **arguments,
        **mask_arguments(mask),
        K_padded=packed.codes.shape[1],
        slack_product=slack.product,
        slack_bias=slack.bias,
        slack_floor=slack.floor,
        slack_oracle=slack.oracle,
        METRIC="l2" if metric == "l2" else "dot",
        EVEN=dim == config.depth,
        UNIT_STRIDE=unit_stride,
        ALIGN=alignment,
        BN=config.rows,
        BK=config.codes,
        BD=config.depth,
        UNIT=config.unit,
        SLOTS=config.slots,
        STAGES=config.stages,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )
    return config.unit
