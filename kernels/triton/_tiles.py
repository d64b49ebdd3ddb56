"""What the kernels share: addresses and loads of rows, powers of two by exponent field, the split in two float16."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The least exponent field (IEEE binary32, bias 127) that is scaled in full: below it a factor beyond 2^113 would be
# needed, with which an input flushed as subnormal could weigh more than the split's own floor.
SMALLEST_FIELD = tl.constexpr(28)


@triton.jit
def row_offsets(o_row: tl.tensor, inner: tl.int64, stride_outer: tl.int64, stride_inner: tl.int64) -> tl.tensor:
    """Element offsets of flat rows over the two row axes (outer, inner). o_row: int64 [BN]."""
    outer = o_row // inner
    return outer * stride_outer + (o_row - outer * inner) * stride_inner


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
def exponent_field(x: tl.tensor) -> tl.tensor:
    """The biased exponent of non-negative float32 values, held to where 2^(141 - field) is a normal number."""
    return tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 255, SMALLEST_FIELD)


@triton.jit
def scale_for(field: tl.tensor) -> tl.tensor:
    """The power of two that brings values with this exponent field into [2^14, 2^15), just inside float16."""
    return power_of_two(268 - field)


@triton.jit
def power_of_two(field: tl.tensor) -> tl.tensor:
    """The float32 whose biased exponent is ``field`` (1 to 254)."""
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def split_float16(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """x = high + low + error, high and low float16, |error| <= 2^-22 |x| + 2^-12 for |x| < 2^15.

    The second term covers hardware that flushes subnormal operands, before the scaling or in the product.
    """
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    return high, low


@triton.jit
def split_dot(b_high: tl.tensor, b_low: tl.tensor, p_code: tl.tensor, high: tl.tensor, low: tl.tensor) -> tl.tensor:
    """Rows . codes from their float16 pieces, the small products first. [BN, BD] x [BK, BD] -> [BN, BK]"""
    b_code_high = tl.trans(tl.load(high + p_code))
    b_code_low = tl.trans(tl.load(low + p_code))
    b_score = tl.dot(b_low, b_code_high)
    b_score = tl.dot(b_high, b_code_low, b_score)
    return tl.dot(b_high, b_code_high, b_score)


@triton.jit
def is_finite(x: tl.tensor) -> tl.tensor:
    """True where a float is neither infinite nor NaN."""
    return tl.abs(x) < float("inf")


@triton.jit
def unknown_zero(field: tl.tensor) -> tl.tensor:
    """0, for an exponent field is positive; which the compiler does not know.

    So what this is added to is computed anew for a tile or a stage: addresses kept in registers through the search
    would make it spill.
    """
    return field >> 31


def row_programs(x: Tensor, block: int) -> int:
    """Programs that take ``block`` rows of one group each. x: (G, R1, R2, D)."""
    groups, outer, inner, _ = x.shape
    return groups * triton.cdiv(outer * inner, block)


def row_arguments(x: Tensor) -> dict[str, int]:
    """Sizes and strides of x (G, R1, R2, D) by the kernels' names; an axis of length 1 has stride 0."""
    groups, outer, inner, dim = x.shape
    return {
        "rows": outer * inner,
        "inner": inner,
        "groups": groups,
        "D": dim,
        "stride_xg": x.stride(0) if groups > 1 else 0,
        "stride_x1": x.stride(1) if outer > 1 else 0,
        "stride_x2": x.stride(2) if inner > 1 else 0,
        "stride_xd": x.stride(3) if dim > 1 else 1,
    }


def row_alignment(arguments: dict[str, int]) -> int:
    """How many adjacent entries of every row share an aligned address, at most 16; 1 where entries lie apart."""
    if arguments["stride_xd"] != 1:
        return 1
    return math.gcd(16, arguments["D"], *(arguments[f"stride_x{axis}"] for axis in "g12"))


def code_arguments(codes: Tensor) -> dict[str, int]:
    """Size and strides of codes (G, K, D) by the kernels' names."""
    return {
        "K": codes.shape[1],
        "stride_cg": codes.stride(0),
        "stride_ck": codes.stride(1),
        "stride_cd": codes.stride(2),
    }


def mask_arguments(mask: Tensor | None) -> dict[str, Any]:
    """A mask (G, R1, R2) as bytes, with its strides, by the kernels' names."""
    strides = (0, 0, 0) if mask is None else mask.stride()
    return {
        "mask": None if mask is None else mask.view(torch.uint8),
        "stride_mg": strides[0],
        "stride_m1": strides[1],
        "stride_m2": strides[2],
    }
