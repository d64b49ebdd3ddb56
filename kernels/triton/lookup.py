"""Chosen codes, summed over the stages of a stack.

    out_n = sum_q codebooks[q, index_nq], left to right in the codebooks' precision; an index of -1 adds nothing

Bytes moved: 8 per row and stage, the codes (from L2), the result once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs
from fastvq.kernels.triton._tiles import row_offsets


@triton.jit(
    do_not_specialize=[
        *("rows", "inner", "groups", "stages", "K", "D"),
        *("stride_ig", "stride_i1", "stride_i2", "stride_iq"),
        *("stride_cg", "stride_cq", "stride_ck", "stride_cd"),
    ]
)
def lookup_kernel(
    indices: tl.tensor,
    codebooks: tl.tensor,
    out: tl.tensor,
    rows: tl.int64,
    inner: tl.int64,
    groups: tl.int32,
    stages: tl.int32,
    K: tl.int32,
    D: tl.int32,
    stride_ig: tl.int64,
    stride_i1: tl.int64,
    stride_i2: tl.int64,
    stride_iq: tl.int64,
    stride_cg: tl.int64,
    stride_cq: tl.int64,
    stride_ck: tl.int64,
    stride_cd: tl.int64,
    BN: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """out (rows, groups, D). An index outside [0, K) is a hole."""
    slices = tl.cdiv(D, BD)
    o_d = (tl.program_id(0) % slices) * BD + tl.arange(0, BD)
    m_d = o_d < D
    block = tl.program_id(0) // slices
    group = (block % groups).to(tl.int64)
    o_row = (block // groups).to(tl.int64) * BN + tl.arange(0, BN)
    m_row = o_row < rows
    p_index = indices + group * stride_ig + row_offsets(o_row, inner, stride_i1, stride_i2)
    p_code = codebooks + group * stride_cg + o_d.to(tl.int64)[None, :] * stride_cd

    b_out = tl.zeros([BN, BD], out.dtype.element_ty)
    for stage in range(stages):
        b_index = tl.load(p_index + stage * stride_iq.to(tl.int64), mask=m_row, other=-1)
        m_code = (b_index >= 0) & (b_index < K)
        o_code = stage * stride_cq.to(tl.int64) + b_index * stride_ck
        # A hole loads zeros; adding zero keeps every bit, as the sum starts from +0 and is never -0.
        b_out += tl.load(p_code + o_code[:, None], mask=m_code[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
    p_out = out + (o_row * groups + group)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_out, mask=m_row[:, None] & m_d[None, :])


def lookup(indices: Tensor, codebooks: Tensor) -> Tensor:
    """See :func:`fastvq.kernels.reference.lookup`; an index outside [0, K) adds nothing."""
    groups, outer, inner, stages = indices.shape
    num_codes, dim = codebooks.shape[2:]
    out = torch.empty((outer, inner, groups, dim), dtype=codebooks.dtype, device=codebooks.device)
    config = _configs.lookup(dim)
    programs = triton.cdiv(outer * inner, config.rows) * groups * triton.cdiv(dim, config.depth)
    if programs:
        with torch.cuda.device_of(codebooks):
            lookup_kernel[(programs,)](
                indices=indices,
                codebooks=codebooks,
                out=out,
                rows=outer * inner,
                inner=inner,
                groups=groups,
                stages=stages,
                K=num_codes,
                D=dim,
                stride_ig=indices.stride(0),
                stride_i1=indices.stride(1),
                stride_i2=indices.stride(2),
                stride_iq=indices.stride(3),
                stride_cg=codebooks.stride(0),
                stride_cq=codebooks.stride(1),
                stride_ck=codebooks.stride(2),
                stride_cd=codebooks.stride(3),
                BN=config.rows,
                BD=config.depth,
                num_warps=config.num_warps,
                enable_fp_fusion=False,
            )
    return out.permute(2, 0, 1, 3)
