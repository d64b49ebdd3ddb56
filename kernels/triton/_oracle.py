"""The oracle in Triton: float64 costs to the letter of ``fastvq.kernels.reference.oracle_cost``.

    l2: sum_d (x_d - c_d)^2      dot: -sum_d x_d c_d      cosine: dot of the unit rows, each rounded to x's precision

d ascending, one rounding per operation: every launch here passes ``enable_fp_fusion=False``, so that no product is
fused into a sum. Two kernels: ``resolve_kernel`` finishes what the search left open and writes distances;
``scan_kernel`` compares every row with every code, for float64 inputs.

Bytes moved by ``resolve_kernel``: x and the codes of the candidates once, 12 in and 12 out per row; a row with more
than two candidates reads the whole codebook of its group from L2.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._tiles import (
    code_arguments,
    is_finite,
    mask_arguments,
    row_arguments,
    row_offsets,
    row_programs,
)

# States in ``rivals``; a value of 0 or more is the second of two candidates.
SINGLE = tl.constexpr(-1)  # one candidate: it is the answer
MANY = tl.constexpr(-2)  # more than two, or no bound: scan all codes
MASKED = tl.constexpr(-3)


@triton.jit
def oracle_entry(b_x: tl.tensor, b_norm: tl.tensor, METRIC: tl.constexpr) -> tl.tensor:
    """Entries of rows in float64; for cosine those of the unit rows, rounded to the rows' own precision."""
    b_entry = b_x.to(tl.float64)
    if METRIC == "cosine":
        b_entry = tl.where(b_norm > 0, b_entry / b_norm, 0.0)
        if b_x.dtype != tl.float64:
            b_entry = b_entry.to(tl.float32).to(tl.float64)
    return b_entry


@triton.jit
def oracle_add(b_cost: tl.tensor, b_entry: tl.tensor, b_code: tl.tensor, METRIC: tl.constexpr) -> tl.tensor:
    """The cost with one more d in it."""
    if METRIC == "l2":
        b_gap = b_entry - b_code.to(tl.float64)
        return b_cost + b_gap * b_gap
    else:
        return b_cost - b_entry * b_code.to(tl.float64)


@triton.jit
def quarters(b: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four entries of the last axis, in order."""
    if len(b.shape) == 2:
        b_even, b_odd = tl.split(tl.reshape(b, [b.shape[0], 2, 2]))
    else:
        b_even, b_odd = tl.split(tl.reshape(b, [b.shape[0], b.shape[1], 2, 2]))
    b_0, b_2 = tl.split(b_even)
    b_1, b_3 = tl.split(b_odd)
    return b_0, b_1, b_2, b_3


@triton.jit
def oracle_norm(p_x: tl.tensor, m_x: tl.tensor, D: tl.int32, stride_d: tl.int64) -> tl.tensor:
    """Norms of the rows at p_x, summed in float64 with d ascending."""
    b_square = tl.zeros(p_x.shape, tl.float64)
    for d in range(D):
        b_entry = tl.load(p_x + d * stride_d, mask=m_x, other=0.0).to(tl.float64)
        b_square = b_square + b_entry * b_entry
    return tl.sqrt(b_square)


@triton.jit
def row_piece(
    p_x: tl.tensor, m_x: tl.tensor, d0: tl.int32, D: tl.int32, stride_d: tl.int64, WIDE: tl.constexpr
) -> tl.tensor:
    """Entries d0 to d0 + 3 of the rows or codes at p_x, zeros beyond D. ``WIDE``: they lie side by side. [BN, 4]"""
    o_d = d0 + tl.arange(0, 4)
    o_x = o_d if WIDE else o_d.to(tl.int64) * stride_d
    return tl.load(p_x[:, None] + o_x[None, :], mask=m_x[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def oracle_unit(
    p_x: tl.tensor,
    m_x: tl.tensor,
    b_norm: tl.tensor,
    p_codes: tl.tensor,
    b_unit: tl.tensor,
    K: tl.int32,
    D: tl.int32,
    stride_xd: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    X_WIDE: tl.constexpr,
    C_WIDE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The least cost among the codes of a unit for the rows at p_x [BN], the lowest of its indices, and whether an
    entry of the row is not finite.

    Entries come in fours: one wide access where a code's entries are adjacent.
    """
    o_member = tl.arange(0, UNIT)
    b_code = b_unit[:, None] + (o_member % 2 + o_member // 2 * 8)[None, :]  # [BN, UNIT]
    m_code = m_x[:, None] & (b_code < K)
    p_code = p_codes + b_code * stride_ck
    b_cost = tl.zeros([p_x.shape[0], UNIT], tl.float64)
    b_broken = tl.zeros([p_x.shape[0], 4], tl.int32)
    for d0 in range(0, D, 4):
        o_d = d0 + tl.arange(0, 4)
        b_x = row_piece(p_x, m_x, d0, D, stride_xd, X_WIDE)
        b_broken = tl.where(is_finite(b_x), b_broken, 1)
        o_c = o_d if C_WIDE else o_d.to(tl.int64) * stride_cd
        m_c = m_code[:, :, None] & (o_d < D)[None, None, :]
        b_xs = quarters(b_x)
        b_cs = quarters(tl.load(p_code[:, :, None] + o_c[None, None, :], mask=m_c, other=0.0))
        # Beyond D this adds +0 to a cost that is not -0.
        for e in tl.static_range(4):
            b_cost = oracle_add(b_cost, oracle_entry(b_xs[e], b_norm, METRIC)[:, None], b_cs[e], METRIC)
    b_cost = tl.where(m_code & is_finite(b_cost), b_cost, float("inf"))
    b_least = tl.min(b_cost, 1)
    b_index = tl.min(tl.where(b_cost == b_least[:, None], b_code, K), 1)
    return b_least, b_index, tl.max(b_broken, 1)


@triton.jit
def oracle_scan(
    p_x: tl.tensor,
    m_x: tl.tensor,
    p_codes: tl.tensor,
    K: tl.int32,
    D: tl.int32,
    stride_xd: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    METRIC: tl.constexpr,
    BK: tl.constexpr,
    X_WIDE: tl.constexpr = False,
    C_WIDE: tl.constexpr = False,
) -> tuple[tl.tensor, tl.tensor]:
    """The least cost over all codes of the rows at p_x [BN], inf where no cost is finite, and its first index.

    Entries come in fours where those of rows or codes lie side by side (``X_WIDE``, ``C_WIDE``), else one by one.
    """
    o_k = tl.arange(0, BK)
    b_norm = tl.zeros(p_x.shape, tl.float64)
    if METRIC == "cosine":
        b_norm = oracle_norm(p_x, m_x, D, stride_xd)
    b_best = tl.full(p_x.shape, float("inf"), tl.float64)
    b_index = tl.zeros(p_x.shape, tl.int32)
    for k0 in range(0, K, BK):
        m_code = k0 + o_k < K
        p_code = p_codes + (k0 + o_k).to(tl.int64) * stride_ck
        b_cost = tl.zeros([p_x.shape[0], BK], tl.float64)
        if X_WIDE or C_WIDE:
            for d0 in range(0, D, 4):
                b_xs = quarters(row_piece(p_x, m_x, d0, D, stride_xd, X_WIDE))
                b_codes = quarters(row_piece(p_code, m_code, d0, D, stride_cd, C_WIDE))
                # Beyond D this adds +0 to a cost that is not -0.
                for e in tl.static_range(4):
                    b_entry = oracle_entry(b_xs[e], b_norm, METRIC)
                    b_cost = oracle_add(b_cost, b_entry[:, None], b_codes[e][None, :], METRIC)
        else:
            for d in range(D):
                b_entry = oracle_entry(tl.load(p_x + d * stride_xd, mask=m_x, other=0.0), b_norm, METRIC)
                b_code = tl.load(p_code + d * stride_cd, mask=m_code, other=0.0)
                b_cost = oracle_add(b_cost, b_entry[:, None], b_code[None, :], METRIC)
        b_cost = tl.where(m_code[None, :] & is_finite(b_cost), b_cost, float("inf"))
        b_tile_best = tl.min(b_cost, 1)
        b_tile_index = tl.min(tl.where(b_cost == b_tile_best[:, None], o_k[None, :], BK), 1) + k0
        m_better = b_tile_best < b_best
        b_index = tl.where(m_better, b_tile_index, b_index)
        b_best = tl.where(m_better, b_tile_best, b_best)
    return b_best, b_index


@triton.jit
def store_result(
    indices: tl.tensor,
    distances: tl.tensor,
    o_out: tl.tensor,
    m_row: tl.tensor,
    m_valid: tl.tensor,
    m_broken: tl.tensor,
    b_cost: tl.tensor,
    b_index: tl.tensor,
    METRIC: tl.constexpr,
) -> None:
    """Costs as distances; -1 and NaN for a row that has none, -1 and 0 for a masked one."""
    if METRIC == "l2":
        b_distance = b_cost
    elif METRIC == "dot":
        b_distance = -b_cost
    else:
        b_distance = 1.0 + b_cost
    m_usable = is_finite(b_cost) & (m_broken == 0)
    b_distance = tl.where(m_usable, b_distance, float("nan"))
    b_distance = tl.where(m_valid, b_distance, 0.0).to(distances.dtype.element_ty)
    b_index = tl.where(m_usable & m_valid, b_index, -1)
    tl.store(indices + o_out, b_index.to(tl.int64), mask=m_row)
    tl.store(distances + o_out, b_distance, mask=m_row)


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K", "D"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd", "stride_cg", "stride_ck", "stride_cd"),
    ]
)
def resolve_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    indices: tl.tensor,
    rivals: tl.tensor,
    distances: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    K: tl.int32,
    D: tl.int32,
    stride_xg: tl.int64,
    stride_x1: tl.int64,
    stride_x2: tl.int64,
    stride_xd: tl.int64,
    stride_cg: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    X_WIDE: tl.constexpr,
    C_WIDE: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Compares the codes of one or two candidates, scans all codes where there were more, and writes indices and
    distances.

    Lanes are rows and their candidates: the sums over d are sequential by contract.
    """
    group = (tl.program_id(0) % groups).to(tl.int64)
    o_lane = tl.arange(0, BN)
    first_row = (tl.program_id(0) // groups).to(tl.int64) * BN
    o_row = first_row + o_lane
    m_row = o_row < rows
    o_out = o_row * groups + group
    # No changes of value, here: they show the compiler what an unspecialised argument hides.
    if X_WIDE:
        stride_xg = stride_xg // 4 * 4
        stride_x1 = stride_x1 // 4 * 4
        stride_x2 = stride_x2 // 4 * 4
        D = D // 4 * 4
    if C_WIDE:
        stride_cg = stride_cg // 4 * 4
        stride_ck = stride_ck // 4 * 4
        D = D // 4 * 4
    stride_xd = stride_xd.to(tl.int64)
    stride_cd = stride_cd.to(tl.int64)
    p_x = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)
    p_codes = codes + group * stride_cg

    b_rival = tl.load(rivals + o_out, mask=m_row, other=MASKED)
    m_valid = b_rival != MASKED
    b_unit = tl.where(b_rival == MANY, 0, tl.load(indices + o_out, mask=m_valid, other=0))
    b_norm = tl.zeros([BN], tl.float64)
    if METRIC == "cosine":
        b_norm = oracle_norm(p_x, m_valid, D, stride_xd)
    b_cost, b_index, b_broken = oracle_unit(
        *(p_x, m_valid, b_norm, p_codes, b_unit, K, D, stride_xd, stride_ck, stride_cd),
        *(METRIC, UNIT, X_WIDE, C_WIDE),
    )
    m_pair = b_rival >= 0
    if tl.max(m_pair.to(tl.int32), 0) > 0:
        b_second, b_second_index, _ = oracle_unit(
            *(p_x, m_pair, b_norm, p_codes, b_rival.to(tl.int64), K, D, stride_xd, stride_ck, stride_cd),
            *(METRIC, UNIT, X_WIDE, C_WIDE),
        )
        m_second = (b_second < b_cost) | ((b_second == b_cost) & (b_second_index < b_index))
        b_cost = tl.where(m_pair & m_second, b_second, b_cost)
        b_index = tl.where(m_pair & m_second, b_second_index, b_index)

    # The rows still open, BR at a time in the order of their lanes.
    m_open = (b_rival == MANY) & (b_broken == 0)
    b_rank = tl.cumsum(m_open.to(tl.int32), 0)
    for done in range(0, tl.max(b_rank, 0), BR):
        o_rank = done + 1 + tl.arange(0, BR)
        m_slot = (b_rank[None, :] == o_rank[:, None]) & m_open[None, :]  # [BR, BN]
        b_lane = tl.max(tl.where(m_slot, o_lane[None, :], -1), 1)
        p_scan = x + group * stride_xg + row_offsets(first_row + b_lane, inner, stride_x1, stride_x2)
        b_best, b_scan = oracle_scan(
            *(p_scan, b_lane >= 0, p_codes, K, D, stride_xd, stride_ck, stride_cd),
            *(METRIC, BK, X_WIDE, C_WIDE),
        )
        m_lane = m_open & (b_rank > done) & (b_rank <= done + BR)
        b_cost = tl.where(m_lane, tl.sum(tl.where(m_slot, b_best[:, None], 0.0), 0), b_cost)
        b_scan = tl.sum(tl.where(m_slot, b_scan[:, None], 0), 0)
        b_index = tl.where(m_lane, b_scan.to(tl.int64), b_index)

    store_result(indices, distances, o_out, m_row, m_valid, b_broken, b_cost, b_index, METRIC)


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "K", "D", "stride_xg", "stride_x1", "stride_x2", "stride_xd"),
        *("stride_mg", "stride_m1", "stride_m2", "stride_cg", "stride_ck", "stride_cd"),
    ]
)
def scan_kernel(
    x: tl.tensor,
    mask: tl.tensor,
    codes: tl.tensor,
    indices: tl.tensor,
    distances: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    K: tl.int32,
    D: tl.int32,
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
    BK: tl.constexpr,
) -> None:
    """Every row against every code in float64."""
    group = (tl.program_id(0) % groups).to(tl.int64)
    o_row = (tl.program_id(0) // groups).to(tl.int64) * BN + tl.arange(0, BN)
    m_row = o_row < rows
    m_valid = m_row
    if mask is not None:
        p_mask = mask + group * stride_mg + row_offsets(o_row, inner, stride_m1, stride_m2)
        m_valid = tl.load(p_mask, mask=m_row, other=0) != 0
    stride_xd = stride_xd.to(tl.int64)
    stride_cd = stride_cd.to(tl.int64)
    p_x = x + group * stride_xg + row_offsets(o_row, inner, stride_x1, stride_x2)

    b_broken = tl.zeros([BN], tl.int32)
    for d in range(D):
        b_x = tl.load(p_x + d * stride_xd, mask=m_valid, other=0.0)
        b_broken = tl.where(is_finite(b_x), b_broken, 1)
    b_cost, b_index = oracle_scan(
        p_x, m_valid, codes + group * stride_cg, K, D, stride_xd, stride_ck, stride_cd, METRIC, BK
    )
    store_result(indices, distances, o_row * groups + group, m_row, m_valid, b_broken, b_cost, b_index, METRIC)


def wide(x: Tensor) -> bool:
    """Whether four entries of every row lie side by side at an aligned place."""
    return x.stride(-1) == 1 and all(size % 4 == 0 for size in (x.shape[-1], *x.stride()[:-1]))


def launch_resolve(
    x: Tensor, codes: Tensor, indices: Tensor, rivals: Tensor, distances: Tensor, metric: str, unit: int = 1
) -> None:
    """Settles ``indices`` and ``distances`` (R1, R2, G) from the search's ``indices`` and ``rivals``.

    Args:
        x: (G, R1, R2, D), any strides.
        codes: (G, K, D), any strides; for cosine the unit rows.
        unit: how many codes a candidate stands for, see ``_units``.
    """
    config, scan = _configs.RESOLVE, _configs.RESOLVE_SCAN
    resolve_kernel[(row_programs(x, config.rows),)](
        x=x,
        codes=codes,
        indices=indices,
        rivals=rivals,
        distances=distances,
        **row_arguments(x),
        **code_arguments(codes),
        METRIC=metric,
        UNIT=unit,
        X_WIDE=wide(x),
        C_WIDE=wide(codes),
        BN=config.rows,
        BR=scan.rows,
        BK=scan.codes,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
        **_configs.register_limit(x.device, unit),
    )


def launch_scan(
    x: Tensor, codes: Tensor, mask: Tensor | None, indices: Tensor, distances: Tensor, metric: str
) -> None:
    """Fills ``indices`` and ``distances`` (R1, R2, G) by comparing every row with every code."""
    config = _configs.SCAN
    scan_kernel[(row_programs(x, config.rows),)](
        x=x,
        codes=codes,
        indices=indices,
        distances=distances,
        **row_arguments(x),
        **code_arguments(codes),
        **mask_arguments(mask),
        METRIC=metric,
        BN=config.rows,
        BK=config.codes,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )
