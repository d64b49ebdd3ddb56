"""Sums of the rows of every code, the same bits on every run.

    sums_k = sum over the rows n with index k of x_n

and of what was left of the rows at each stage of a residual stack:

    sums_qk = sum over the rows n with index k at stage q of r_nq,   r_n1 = x_n,   r_n,q+1 = fl(r_nq - c_q,i_nq)

Rows are sorted by code, stably; the rows of a code are cut into pieces of PIECE rows, each summed by one program in
float64 in a fixed order; the pieces of a code are then added in order. A code that takes most rows is many pieces, so
it does not serialise, and nothing depends on the grid or on timing. Stages are sorted and summed side by side, by the
same launches; residuals are subtracted anew, as the search did it.

Bytes moved: x once; about 40 per row for the sort; 16 per entry of the pieces, of which there are at most
N / PIECE + K. Of a stack all this for each stage, and from L2 the codes of the stages before it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._tiles import row_arguments, row_offsets

PIECE = 256


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "depth", "D", "num_codes", "pieces"),
        *("stride_xg", "stride_x1", "stride_x2", "stride_xd"),
        *("stride_ig", "stride_i1", "stride_i2", "stride_iq"),
        *("stride_cg", "stride_cq", "stride_ck", "stride_cd"),
    ]
)
def piece_sum_kernel(
    x: tl.tensor,
    indices: tl.tensor,
    codebooks: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    piece_starts: tl.tensor,
    piece_codes: tl.tensor,
    partial: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    depth: tl.int32,
    D: tl.int32,
    num_codes: tl.int32,
    pieces: tl.int32,
    stride_xg: tl.int64,
    stride_x1: tl.int64,
    stride_x2: tl.int64,
    stride_xd: tl.int64,
    stride_ig: tl.int64,
    stride_i1: tl.int64,
    stride_i2: tl.int64,
    stride_iq: tl.int64,
    stride_cg: tl.int64,
    stride_cq: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    PIECE: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """partial (groups, depth, pieces, D) float64: the sum of one piece of one code's rows.

    starts (groups, depth, num_codes + 1) are places in order (groups, depth, rows); piece_starts (groups, depth,
    num_codes + 1) count pieces; piece_codes (groups, depth, pieces) hold num_codes beyond the last piece. Without
    codebooks depth is 1.
    """
    slices = tl.cdiv(D, BD)
    o_d = (tl.program_id(0) % slices) * BD + tl.arange(0, BD)
    m_d = o_d < D
    flat = (tl.program_id(0) // slices).to(tl.int64)  # (group * depth + stage) * pieces + piece
    book = flat // pieces
    group = book // depth
    code = tl.load(piece_codes + flat)
    if code < num_codes:
        o_code = book * (num_codes + 1) + code
        rank = flat - book * pieces - tl.load(piece_starts + o_code)
        first = tl.load(starts + o_code) + rank * PIECE
        last = tl.minimum(first + PIECE, tl.load(starts + o_code + 1))
        p_x = x + group * stride_xg + o_d.to(tl.int64)[None, :] * stride_xd
        b_sum = tl.zeros([BN, BD], tl.float64)
        for n0 in range(0, PIECE, BN):
            o_place = first + n0 + tl.arange(0, BN)
            m_place = o_place < last
            o_row = tl.load(order + book * rows + o_place, mask=m_place, other=0)
            o_x = row_offsets(o_row, inner, stride_x1, stride_x2)
            b_x = tl.load(p_x + o_x[:, None], mask=m_place[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
            if codebooks is not None:
                b_x = b_x.to(codebooks.dtype.element_ty)
                p_index = indices + group * stride_ig + row_offsets(o_row, inner, stride_i1, stride_i2)
                p_code = codebooks + group * stride_cg + o_d.to(tl.int64)[None, :] * stride_cd
                for stage in range((book % depth).to(tl.int32)):
                    b_index = tl.load(p_index + stage * stride_iq.to(tl.int64), mask=m_place, other=-1)
                    m_code = ((b_index >= 0) & (b_index < num_codes))[:, None] & m_d[None, :]
                    o_chosen = stage * stride_cq.to(tl.int64) + b_index * stride_ck
                    b_x = b_x - tl.load(p_code + o_chosen[:, None], mask=m_code, other=0.0)
            b_sum += b_x.to(tl.float64)
        tl.store(partial + flat * D + o_d, tl.sum(b_sum, 0), mask=m_d)


@triton.jit(do_not_specialize=["D", "num_codes", "pieces"])
def code_sum_kernel(
    partial: tl.tensor,
    piece_starts: tl.tensor,
    sums: tl.tensor,
    D: tl.int32,
    num_codes: tl.int32,
    pieces: tl.int32,
    BP: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """sums (groups, num_codes, D): the pieces of each code, added in a fixed order and rounded once."""
    slices = tl.cdiv(D, BD)
    o_d = (tl.program_id(0) % slices) * BD + tl.arange(0, BD)
    m_d = o_d < D
    flat = (tl.program_id(0) // slices).to(tl.int64)  # group * num_codes + code
    group = flat // num_codes
    first = tl.load(piece_starts + flat + group)
    count = (tl.load(piece_starts + flat + group + 1) - first).to(tl.int32)
    p_piece = partial + (group * pieces + first) * D + o_d[None, :]
    b_sum = tl.zeros([BP, BD], tl.float64)
    for p0 in range(0, count, BP):
        o_piece = p0 + tl.arange(0, BP)
        m_piece = (o_piece < count)[:, None] & m_d[None, :]
        b_sum += tl.load(p_piece + o_piece.to(tl.int64)[:, None] * D, mask=m_piece, other=0.0)
    tl.store(sums + flat * D + o_d, tl.sum(b_sum, 0).to(sums.dtype.element_ty), mask=m_d)


def launch_segment_sum(
    x: Tensor,
    indices: Tensor | None,
    codebooks: Tensor | None,
    order: Tensor,
    starts: Tensor,
    piece_starts: Tensor,
    piece_codes: Tensor,
    sums: Tensor,
) -> None:
    """Fills ``sums`` (G, Q, K, D) from rows in the order of their codes; see :func:`piece_sum_kernel`."""
    groups, depth, num_codes, dim = sums.shape
    pieces = piece_codes.shape[-1]
    config = _configs.segment(dim)
    partial = torch.empty((groups, depth, pieces, dim), dtype=torch.float64, device=x.device)
    slices = triton.cdiv(dim, config.depth)
    index_strides = (0, 0, 0, 0) if indices is None else indices.stride()
    code_strides = (0, 0, 0, 0) if codebooks is None else codebooks.stride()
    piece_sum_kernel[(groups * depth * pieces * slices,)](
        x=x,
        indices=indices,
        codebooks=codebooks,
        order=order,
        starts=starts,
        piece_starts=piece_starts,
        piece_codes=piece_codes,
        partial=partial,
        **row_arguments(x),
        **{f"stride_i{axis}": stride for axis, stride in zip("g12q", index_strides, strict=True)},
        **{f"stride_c{axis}": stride for axis, stride in zip("gqkd", code_strides, strict=True)},
        depth=depth,
        num_codes=num_codes,
        pieces=pieces,
        PIECE=PIECE,
        BN=config.rows,
        BD=config.depth,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )
    code_sum_kernel[(groups * depth * num_codes * slices,)](
        partial=partial,
        piece_starts=piece_starts,
        sums=sums,
        D=dim,
        num_codes=num_codes,
        pieces=pieces,
        BP=config.rows,
        BD=config.depth,
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )


def summed(x: Tensor, indices: Tensor, num_codes: int, codebooks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums (G, Q, K, D) and counts (G, Q, K) by the indices (G, R1, R2, Q); without codebooks Q is 1."""
    groups, outer, inner, dim = x.shape
    rows, depth = outer * inner, indices.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = torch.empty((groups, depth, num_codes, dim), dtype=dtype, device=x.device)
    keys = indices.permute(0, 3, 1, 2).reshape(groups, depth, rows)
    # Contiguous, for the sorted order inherits the storage of the keys.
    keys = torch.where(keys < 0, num_codes, keys.clamp_max(num_codes)).to(torch.int32).contiguous()
    keys, order = torch.sort(keys, dim=-1, stable=True)
    bounds = torch.arange(num_codes + 1, dtype=torch.int32, device=x.device).repeat(groups, depth, 1)
    starts = torch.searchsorted(keys, bounds)
    counts = starts.diff(dim=-1)
    piece_starts = torch.nn.functional.pad(((counts + PIECE - 1) // PIECE).cumsum(-1), (1, 0))
    places = torch.arange(triton.cdiv(rows, PIECE) + num_codes, device=x.device).repeat(groups, depth, 1)
    piece_codes = torch.searchsorted(piece_starts[..., 1:].contiguous(), places, right=True)
    with torch.cuda.device_of(x):
        launch_segment_sum(
            x,
            None if codebooks is None else indices,
            codebooks,
            order,
            starts,
            piece_starts,
            piece_codes,
            sums,
        )
    return sums, counts.to(dtype)


def segment_sum(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """See :func:`fastvq.kernels.reference.segment_sum`; rows with an index outside [0, num_codes) are left out."""
    sums, counts = summed(x, indices.unsqueeze(-1), num_codes, None)
    return sums.squeeze(1), counts.squeeze(1)


def residual_segment_sum(x: Tensor, indices: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`fastvq.kernels.reference.residual_segment_sum`; an index outside [0, K) is left out and subtracts
    nothing."""
    return summed(x, indices, codebooks.shape[2], codebooks)
