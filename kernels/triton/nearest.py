"""Nearest code of every row, exactly, without an N x K matrix.

    argmin_k sum_d (x_d - c_kd)^2 = argmax_k s_k,   s_k = (x - mu) . (c_k - mu) - |c_k - mu|^2 / 2

with mu the mean of the codes; for dot and cosine s_k = x . (c_k - mu). Both operands are scaled by powers of two and
split in two float16 pieces, so that three tensor-core products give s_k to about float32 accuracy. Codes are compared
in units of one or two neighbours, and a row keeps its best units and what rivals them, see ``_units``. One unit whose
score lies within twice the proven rounding bound of the best: it holds the answer. Otherwise it lies in two, or
anywhere. ``_oracle.resolve_kernel`` finds it in float64.

Three products, not one: within the bound of one float16 product 4 to 6 % of rows would have a rival at D = 64 to
512, and 0.1 to 0.4 % more than one (simulated; 27 % and 6.5 % where k-means fitted 512 codes to noise in 512
dimensions). The latter compare all codes in float64, about K D / 4 cycles of a multiprocessor, 250 times what the two
products of a row take: 0.4 % of such rows cost all that is saved, and nothing bounds their number. With three it is
0.05 to 0.8 %, and next to none.

Rows of up to 64 adjacent entries stay in registers and shared memory, here; longer ones, and such as lie apart, go by
way of a scratch, see ``staged``; up to 16 entries make one product with the bias in it, see ``narrow``.

Bytes moved: x once; the codebook once per tile of rows (from L2); out 12 per row (index and rival), and again x and
the chosen codes once for the distances.

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

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._bound import NO_SLACK, rounding_slack, row_field, row_slack
from fastvq.kernels.triton._codebook import launch_split, launch_unit_rows
from fastvq.kernels.triton._oracle import MASKED, launch_resolve, launch_scan
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
)
from fastvq.kernels.triton._units import better, candidates, no_slots, tile_slots
from fastvq.kernels.triton.narrow import WIDEST, launch_narrow
from fastvq.kernels.triton.staged import launch_staged


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
    D_padded = D_padded // BD * BD
    if ALIGN > 1:
        D = D // ALIGN * ALIGN
        stride_xg = stride_xg // ALIGN * ALIGN
        stride_x1 = stride_x1 // ALIGN * ALIGN
        stride_x2 = stride_x2 // ALIGN * ALIGN
    p_row = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)

    b_x = load_centred(p_row, m_valid, mean + group * D_padded, o_d, D, stride_xd, METRIC, EVEN, True)
    b_peak = tl.max(tl.abs(b_x), 1)
    b_field, b_weight = row_field(b_peak, tl.load(field + group), METRIC)
    b_scale = scale_for(b_field)
    b_x = b_x * b_scale[:, None]
    b_square = tl.sum(b_x * b_x, 1)
    b_high, b_low = split_float16(b_x)
    b_slack = row_slack(
        *(b_square, b_weight, tl.load(radius + group), tl.load(radius + groups + group)),
        *(slack_product, slack_bias, slack_floor, slack_oracle, METRIC),
    )
    b_best, b_second, b_code = no_slots(BN, SLOTS)
    for k0 in tl.range(0, K_padded, BK, num_stages=STAGES):
        p_code = (group * K_padded + k0 + o_k)[:, None] * D_padded + o_d[None, :]
        b_score = split_dot(b_high, b_low, p_code, high, low)
        b_bias = tl.load(bias + group * K_padded + k0 + o_k)
        if METRIC == "l2":
            b_score += b_weight[:, None] * b_bias[None, :]
        else:
            b_score += b_bias[None, :]

        b_tile_best, b_tile_second, b_column = tile_slots(b_score, UNIT, SLOTS)
        b_best, b_second, b_code = better(b_best, b_second, b_code, b_tile_best, b_tile_second, b_column + k0)

    b_first, b_rival = candidates(b_best, b_second, b_code, b_slack, BK, SLOTS)
    b_rival = tl.where(m_valid, b_rival, MASKED)
    o_out = o_row * groups + group
    tl.store(indices + o_out, b_first.to(tl.int64), mask=m_row)
    tl.store(rivals + o_out, b_rival, mask=m_row)


def launch_nearest(
    x: Tensor, codes: Tensor, mask: Tensor | None, indices: Tensor, rivals: Tensor, metric: str, precision: str
) -> int:
    """The search: candidates of every row into ``indices`` and ``rivals`` (R1, R2, G).

    Args:
        x: (G, R1, R2, D) float16, bfloat16 or float32; rows of at most ``_configs.WHOLE`` entries, adjacent and at
            aligned addresses.
        codes: (G, K, D) float32, any strides; for cosine the unit rows.

    Returns:
        How many codes a candidate stands for, see ``_units``.
    """
    dim = x.shape[-1]
    arguments = row_arguments(x)
    config = _configs.search(x.device, dim)
    split = launch_split(codes, metric, config.codes, config.depth, deal=True)
    slack = rounding_slack(dim, config.depth) if precision == "exact" else NO_SLACK
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
        ALIGN=row_alignment(arguments),
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


def launcher(x: Tensor) -> Callable[..., int]:
    """The search for rows such as these: narrow ones, whole ones in registers, or any others through a scratch."""
    dim = x.shape[-1]
    if dim <= WIDEST:
        return launch_narrow
    return launch_nearest if dim <= _configs.WHOLE and row_alignment(row_arguments(x)) >= 4 else launch_staged


def nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """See :func:`fastvq.kernels.reference.nearest`.

    ``precision="fast"`` takes the best score of the float16 pieces as it is: it may return a code whose distance
    exceeds the least one by the rounding error of the score (about 2^-14 of |x - mu| |c - mu| at D = 64). Of 10 011
    rows of ``benchmarks.exactness triton --part 53``, under the interpreter, none differed of normal data, with or
    without an offset or codes that are means of rows, 0.9 % where integers tie, and 13 and 17 % where one code is a
    million times longer than the others or lengths range over 2^80.
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
                launch = launcher(x)
                unit = launch(x, codes, mask, indices, rivals, metric, precision)
                launch_resolve(x, codes, indices, rivals, distances, metric, unit)
    return indices.permute(2, 0, 1), distances.permute(2, 0, 1)
