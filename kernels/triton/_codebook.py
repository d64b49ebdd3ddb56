"""What the search needs of a codebook, made once per call: unit rows, the mean, centred codes split in float16.

With mu the mean of a group's codes and s a power of two that brings the largest |c - mu| into [2^14, 2^15):

    high + low ~ s (c - mu)              bias = -|s (c - mu)|^2 / 2  (l2), 0 (dot)

Bytes moved: the codebook three times, the split once (4 per entry).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._tiles import (
    code_arguments,
    exponent_field,
    is_finite,
    scale_for,
    split_float16,
)
from fastvq.kernels.triton._units import dealt


@triton.jit(do_not_specialize=["K", "D", "stride_cg", "stride_ck", "stride_cd"])
def unit_rows_kernel(
    codes: tl.tensor,
    unit: tl.tensor,
    K: tl.int32,
    D: tl.int32,
    stride_cg: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    BK: tl.constexpr,
) -> None:
    """unit (G, K, D) = codes / |codes|, the norm summed in float64 with d ascending, the quotient rounded once."""
    blocks = tl.cdiv(K, BK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    o_code = (tl.program_id(0) % blocks) * BK + tl.arange(0, BK).to(tl.int64)
    m_code = o_code < K
    p_code = codes + group * stride_cg + o_code * stride_ck
    p_unit = unit + (group * K + o_code) * D

    b_square = tl.zeros([BK], tl.float64)
    for d in range(D):
        b_entry = tl.load(p_code + d * stride_cd.to(tl.int64), mask=m_code, other=0.0).to(tl.float64)
        b_square = b_square + b_entry * b_entry
    b_norm = tl.sqrt(b_square)
    # Only an exact zero row has no direction; a NaN norm divides through, so that a broken code stays NaN.
    b_divisor = tl.where(b_norm == 0.0, 1.0, b_norm)
    for d in range(D):
        b_entry = tl.load(p_code + d * stride_cd.to(tl.int64), mask=m_code, other=0.0).to(tl.float64)
        tl.store(p_unit + d, (b_entry / b_divisor).to(unit.dtype.element_ty), mask=m_code)


@triton.jit(do_not_specialize=["K", "D", "D_padded", "stride_cg", "stride_ck", "stride_cd"])
def centre_kernel(
    codes: tl.tensor,
    mean: tl.tensor,
    peak: tl.tensor,
    K: tl.int32,
    D: tl.int32,
    D_padded: tl.int32,
    stride_cg: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    BK: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """mean (G, D_padded) over the codes, and peak (G, D_padded / BD) = max |code - mean| in each slice of D.

    Any mean serves, so entries that are not finite are left out and a sum that overflows gives a mean of 0.
    """
    slices = D_padded // BD
    group = (tl.program_id(0) // slices).to(tl.int64)
    piece = tl.program_id(0) % slices
    o_d = piece * BD + tl.arange(0, BD)
    m_d = o_d < D
    p_slice = codes + group * stride_cg + o_d.to(tl.int64)[None, :] * stride_cd
    o_k = tl.arange(0, BK).to(tl.int64)

    b_sum = tl.zeros([BK, BD], tl.float32)
    for k0 in range(0, K, BK):
        m_tile = (k0 + o_k < K)[:, None] & m_d[None, :]
        b_code = tl.load(p_slice + (k0 + o_k)[:, None] * stride_ck, mask=m_tile, other=0.0)  # [BK, BD]
        b_sum += tl.where(is_finite(b_code), b_code, 0.0)
    b_mean = tl.sum(b_sum, 0) / K
    b_mean = tl.where(is_finite(b_mean), b_mean, 0.0)
    tl.store(mean + group * D_padded + o_d, b_mean)

    b_peak = tl.zeros([BK, BD], tl.float32)
    for k0 in range(0, K, BK):
        m_tile = (k0 + o_k < K)[:, None] & m_d[None, :]
        b_code = tl.load(p_slice + (k0 + o_k)[:, None] * stride_ck, mask=m_tile, other=0.0)
        b_peak = tl.maximum(b_peak, tl.where(is_finite(b_code) & m_tile, tl.abs(b_code - b_mean[None, :]), 0.0))
    tl.store(peak + group * slices + piece, tl.max(tl.max(b_peak, 1), 0))


@triton.jit(do_not_specialize=["K", "K_padded", "D", "D_padded", "slices", "stride_cg", "stride_ck", "stride_cd"])
def split_kernel(
    codes: tl.tensor,
    mean: tl.tensor,
    peak: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    bias: tl.tensor,
    radius: tl.tensor,
    field: tl.tensor,
    K: tl.int32,
    K_padded: tl.int32,
    D: tl.int32,
    D_padded: tl.int32,
    slices: tl.int32,
    stride_cg: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    METRIC: tl.constexpr,
    TILE: tl.constexpr,
    BS: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """high, low (G, K_padded, D_padded), bias (G, K_padded), radius (2, G, K_padded), field (G,).

    radius holds norms in scaled units, rounded up: of the centred code, and of the code as given. Codes with an
    entry that is not finite, and the padding, get bias -inf and radius 0.
    """
    blocks = tl.cdiv(K_padded, BK)
    groups = tl.num_programs(0) // blocks
    group = (tl.program_id(0) // blocks).to(tl.int64)
    o_place = (tl.program_id(0) % blocks) * BK + tl.arange(0, BK).to(tl.int64)
    o_code = dealt(o_place, TILE) if TILE else o_place
    m_code = o_code < K
    o_d = tl.arange(0, BD)

    b_peak = tl.zeros([BS], tl.float32)
    for s0 in range(0, slices, BS):
        o_slice = s0 + tl.arange(0, BS)
        b_peak = tl.maximum(b_peak, tl.load(peak + group * slices + o_slice, mask=o_slice < slices, other=0.0))
    code_field = exponent_field(tl.max(b_peak, 0))
    scale = scale_for(code_field)
    tl.store(field + group, code_field)

    b_square = tl.zeros([BK], tl.float64)
    b_whole = tl.zeros([BK], tl.float64)
    b_broken = tl.zeros([BK], tl.int32)
    for d0 in range(0, D_padded, BD):
        m_tile = m_code[:, None] & (d0 + o_d < D)[None, :]
        p_code = codes + group * stride_cg + o_code[:, None] * stride_ck
        p_code += (d0 + o_d).to(tl.int64)[None, :] * stride_cd
        b_code = tl.load(p_code, mask=m_tile, other=0.0)  # [BK, BD]
        b_mean = tl.load(mean + group * D_padded + d0 + o_d)
        b_broken = tl.maximum(b_broken, tl.max(tl.where(is_finite(b_code), 0, 1), 1))
        b_scaled = tl.where(m_tile & is_finite(b_code), (b_code - b_mean[None, :]) * scale, 0.0)
        b_high, b_low = split_float16(b_scaled)
        p_split = (group * K_padded + o_place)[:, None] * D_padded + (d0 + o_d)[None, :]
        tl.store(high + p_split, b_high, mask=(o_place < K_padded)[:, None])
        tl.store(low + p_split, b_low, mask=(o_place < K_padded)[:, None])
        b_square += tl.sum(b_scaled.to(tl.float64) * b_scaled.to(tl.float64), 1)
        b_entry = b_code.to(tl.float64) * scale.to(tl.float64)
        b_whole += tl.sum(b_entry * b_entry, 1)

    m_usable = m_code & (b_broken == 0)
    b_bias = (-0.5 * b_square).to(tl.float32) if METRIC == "l2" else tl.zeros([BK], tl.float32)
    o_out = group * K_padded + o_place
    m_out = o_place < K_padded
    tl.store(bias + o_out, tl.where(m_usable, b_bias, float("-inf")), mask=m_out)
    b_radius = (tl.sqrt(b_square) * (1 + 2.0**-20)).to(tl.float32)
    tl.store(radius + o_out, tl.where(m_usable, b_radius, 0.0), mask=m_out)
    b_radius = (tl.sqrt(b_whole) * (1 + 2.0**-20)).to(tl.float32)
    tl.store(radius + groups.to(tl.int64) * K_padded + o_out, tl.where(m_usable, b_radius, 0.0), mask=m_out)


class SplitCodebook(NamedTuple):
    """A codebook as the search reads it; see the module's docstring."""

    high: Tensor  # (G, K_padded, D_padded) float16
    low: Tensor  # (G, K_padded, D_padded) float16
    bias: Tensor  # (G, K_padded) float32
    mean: Tensor  # (G, D_padded) float32
    radius: Tensor  # (2, G) float32: largest norm of a centred code, of a code as given, in scaled units
    field: Tensor  # (G,) int32: biased exponent of the largest |c - mu|


def launch_unit_rows(codebook: Tensor) -> Tensor:
    """The codes over their norms, contiguous, as :func:`fastvq.kernels.reference.unit_rows` rounds them."""
    groups, num_codes, dim = codebook.shape
    unit = torch.empty((groups, num_codes, dim), dtype=codebook.dtype, device=codebook.device)
    config = _configs.UNIT_ROWS
    unit_rows_kernel[(groups * triton.cdiv(num_codes, config.codes),)](
        codes=codebook,
        unit=unit,
        **code_arguments(codebook),
        D=dim,
        BK=config.codes,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )
    return unit


def launch_split(
    codebook: Tensor, metric: str, codes_multiple: int, depth_multiple: int, *, deal: bool
) -> SplitCodebook:
    """Centres and splits a float32 codebook (G, K, D), padded to whole tiles of the search.

    With ``deal`` the codes of a tile stand where ``_units.dealt`` says, else in order.
    """
    groups, num_codes, dim = codebook.shape
    device = codebook.device
    codes_padded = triton.cdiv(num_codes, codes_multiple) * codes_multiple
    dim_padded = triton.cdiv(dim, depth_multiple) * depth_multiple

    config = _configs.CENTRE
    slices = dim_padded // config.depth
    mean = torch.empty((groups, dim_padded), dtype=torch.float32, device=device)
    peak = torch.empty((groups, slices), dtype=torch.float32, device=device)
    centre_kernel[(groups * slices,)](
        codes=codebook,
        mean=mean,
        peak=peak,
        **code_arguments(codebook),
        D=dim,
        D_padded=dim_padded,
        BK=config.codes,
        BD=config.depth,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )

    config = _configs.split(depth_multiple)
    high = torch.empty((groups, codes_padded, dim_padded), dtype=torch.float16, device=device)
    low = torch.empty_like(high)
    bias = torch.empty((groups, codes_padded), dtype=torch.float32, device=device)
    radius = torch.empty((2, groups, codes_padded), dtype=torch.float32, device=device)
    field = torch.empty((groups,), dtype=torch.int32, device=device)
    split_kernel[(groups * triton.cdiv(codes_padded, config.codes),)](
        codes=codebook,
        mean=mean,
        peak=peak,
        high=high,
        low=low,
        bias=bias,
        radius=radius,
        field=field,
        **code_arguments(codebook),
        K_padded=codes_padded,
        D=dim,
        D_padded=dim_padded,
        slices=slices,
        METRIC="l2" if metric == "l2" else "dot",
        TILE=codes_multiple if deal else 0,
        BS=64,
        BK=config.codes,
        BD=depth_multiple,
        num_warps=config.num_warps,
        enable_fp_fusion=True,
    )
    return SplitCodebook(high, low, bias, mean, radius.amax(-1), field)
