"""One exponential-moving-average step of a codebook, in place (VQ-VAE, van den Oord et al. 2017, appendix A.1).

    n <- decay n + (1 - decay) counts      m <- decay m + (1 - decay) sums      c = m / n'

with n' = n, or with Laplace smoothing n' = (n + eps) / (sum n + K eps) * sum n. Arithmetic is float64, rounded once
to the state's precision.

One launch, but for large groups whose sum n is asked for (by the smoothing, or by a threshold relative to it): sizes
change in place, so no program may add them up while another writes. A group of up to ``ALONE`` entries is one
program, which does both. Above that the sizes are a launch of their own: in one, each program of 8 codes would read
8 K bytes of old sizes and counts, for K = 8192 and D = 64 eight times the 128 D bytes that it works on, and the new
sizes would need a place beside the old ones and somebody to copy them.

Bytes moved: codebook written; embed_sum read and written; sums read (16 per entry); once or twice that per code for
sizes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.kernels.triton import _configs

# Entries of a group that one program takes: 256 KiB to move, about as long as another launch.
ALONE = 16384


@triton.jit
def new_size(
    cluster_size: tl.tensor,
    counts: tl.tensor,
    o_size: tl.tensor,
    m_code: tl.tensor,
    decay: tl.float64,
    fresh: tl.float64,
) -> tl.tensor:
    """The sizes after the step, rounded to the state's precision, from those before it."""
    b_size = tl.load(cluster_size + o_size, mask=m_code, other=0.0).to(tl.float64) * decay
    b_size += tl.load(counts + o_size, mask=m_code, other=0.0).to(tl.float64) * fresh
    return b_size.to(cluster_size.dtype.element_ty)


@triton.jit
def threshold_of(total: tl.float64, dead_below: tl.float64, K: tl.int32, RELATIVE: tl.constexpr) -> tl.float64:
    """The size below which a code is dead."""
    threshold = total * 0.0 + dead_below
    if RELATIVE:
        threshold = threshold * total / K
    return threshold


@triton.jit(do_not_specialize=["K"])
def ema_sizes_kernel(
    cluster_size: tl.tensor,
    counts: tl.tensor,
    totals: tl.tensor,
    dead: tl.tensor,
    K: tl.int32,
    decay: tl.float64,
    fresh: tl.float64,
    dead_below: tl.float64,
    RELATIVE: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """cluster_size (groups, K) in place; totals (groups,) float64; dead (groups, K) bytes."""
    group = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, BK)
    b_total = tl.zeros([BK], tl.float64)
    for k0 in range(0, K, BK):
        o_size = group * K + k0 + o_k
        m_code = k0 + o_k < K
        b_size = new_size(cluster_size, counts, o_size, m_code, decay, fresh)
        tl.store(cluster_size + o_size, b_size, mask=m_code)
        b_total += b_size.to(tl.float64)
    total = tl.sum(b_total, 0)
    tl.store(totals + group, total)

    threshold = threshold_of(total, dead_below, K, RELATIVE)
    tl.debug_barrier()  # the sizes just stored are read again, perhaps by other lanes
    for k0 in range(0, K, BK):
        o_size = group * K + k0 + o_k
        m_code = k0 + o_k < K
        b_size = tl.load(cluster_size + o_size, mask=m_code, other=0.0).to(tl.float64)
        tl.store(dead + o_size, (b_size < threshold).to(tl.uint8), mask=m_code)


@triton.jit(do_not_specialize=["K", "D", "span"])
def ema_codes_kernel(
    codebook: tl.tensor,
    embed_sum: tl.tensor,
    cluster_size: tl.tensor,
    sums: tl.tensor,
    counts: tl.tensor,
    totals: tl.tensor,
    dead: tl.tensor,
    K: tl.int32,
    D: tl.int32,
    span: tl.int32,
    decay: tl.float64,
    fresh: tl.float64,
    eps: tl.float64,
    tiny: tl.float64,
    dead_below: tl.float64,
    RELATIVE: tl.constexpr,
    LAPLACE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """codebook and embed_sum (groups, K, D) in place, ``span`` codes of a group a program.

    With totals (groups,), from sizes that ``ema_sizes_kernel`` has updated. Without, the sizes too, and dead (groups,
    K) bytes; span is then K where a total is needed.
    """
    blocks = tl.cdiv(K, span)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * span
    o_d = tl.arange(0, BD)
    total = eps * 0.0
    if totals is not None:
        total = tl.load(totals + group)
    elif LAPLACE or RELATIVE:
        b_total = tl.zeros([BT], tl.float64)
        for k0 in range(0, K, BT):
            o_code = k0 + tl.arange(0, BT)
            b_total += new_size(cluster_size, counts, group * K + o_code, o_code < K, decay, fresh).to(tl.float64)
        total = tl.sum(b_total, 0)
        tl.debug_barrier()  # sizes are stored below that other lanes have read here

    for k0 in range(first, tl.minimum(first + span, K), BK):
        o_code = k0 + tl.arange(0, BK)
        m_code = o_code < K
        o_size = group * K + o_code
        if totals is None:
            b_new = new_size(cluster_size, counts, o_size, m_code, decay, fresh)
            tl.debug_barrier()  # lanes that share a code have all read its size
            tl.store(cluster_size + o_size, b_new, mask=m_code)
            b_size = b_new.to(tl.float64)
            threshold = threshold_of(total, dead_below, K, RELATIVE)
            tl.store(dead + o_size, (b_size < threshold).to(tl.uint8), mask=m_code)
        else:
            b_size = tl.load(cluster_size + o_size, mask=m_code, other=0.0).to(tl.float64)
        if LAPLACE:
            b_size = (b_size + eps) / (total + K.to(tl.float64) * eps) * total
        m_filled = (b_size > 0)[:, None]
        b_divisor = tl.where(b_size > 0, b_size, 1.0)[:, None]

        b_square = tl.zeros([BK], tl.float64)
        for d0 in range(0, D, BD):
            m_tile = m_code[:, None] & (d0 + o_d < D)[None, :]
            o_tile = o_size[:, None] * D + (d0 + o_d)[None, :]  # [BK, BD]
            b_sum = tl.load(embed_sum + o_tile, mask=m_tile, other=0.0).to(tl.float64) * decay
            b_sum += tl.load(sums + o_tile, mask=m_tile, other=0.0).to(tl.float64) * fresh
            b_sum = b_sum.to(embed_sum.dtype.element_ty)
            tl.store(embed_sum + o_tile, b_sum, mask=m_tile)
            b_old = tl.load(codebook + o_tile, mask=m_tile & ~m_filled, other=0.0)
            b_code = tl.where(m_filled, (b_sum.to(tl.float64) / b_divisor).to(codebook.dtype.element_ty), b_old)
            tl.store(codebook + o_tile, b_code, mask=m_tile)
            if NORMALIZE:
                b_square += tl.sum(b_code.to(tl.float64) * b_code.to(tl.float64), 1)
        if NORMALIZE:
            b_norm = tl.maximum(tl.sqrt(b_square), tiny)[:, None]
            tl.debug_barrier()  # the codes just stored are read again, perhaps by other lanes
            for d0 in range(0, D, BD):
                m_tile = m_code[:, None] & (d0 + o_d < D)[None, :]
                o_tile = o_size[:, None] * D + (d0 + o_d)[None, :]
                b_code = tl.load(codebook + o_tile, mask=m_tile, other=0.0).to(tl.float64) / b_norm
                tl.store(codebook + o_tile, b_code.to(codebook.dtype.element_ty), mask=m_tile)


def ema_update_(
    codebook: Tensor,
    embed_sum: Tensor,
    cluster_size: Tensor,
    sums: Tensor,
    counts: Tensor,
    decay: float,
    eps: float,
    smoothing: str,
    normalize: bool,
    dead_below: float,
    relative: bool,
) -> Tensor:
    """See :func:`fastvq.kernels.reference.ema_update_`."""
    groups, num_codes, dim = codebook.shape
    dead = torch.empty((groups, num_codes), dtype=torch.bool, device=codebook.device)
    sizes, codes = _configs.EMA_SIZES, _configs.ema(dim)
    needs_total = relative or smoothing == "laplace"
    alone = num_codes * dim <= ALONE
    totals = None
    with torch.cuda.device_of(codebook):
        if needs_total and not alone:
            totals = torch.empty((groups,), dtype=torch.float64, device=codebook.device)
            ema_sizes_kernel[(groups,)](
                cluster_size=cluster_size,
                counts=counts,
                totals=totals,
                dead=dead.view(torch.uint8),
                K=num_codes,
                decay=decay,
                fresh=1 - decay,
                dead_below=dead_below,
                RELATIVE=relative,
                BK=sizes.codes,
                num_warps=sizes.num_warps,
                enable_fp_fusion=False,
            )
        span = num_codes if needs_total and alone else codes.codes
        ema_codes_kernel[(groups * triton.cdiv(num_codes, span),)](
            codebook=codebook,
            embed_sum=embed_sum,
            cluster_size=cluster_size,
            sums=sums,
            counts=counts,
            totals=totals,
            dead=dead.view(torch.uint8),
            K=num_codes,
            D=dim,
            span=span,
            decay=decay,
            fresh=1 - decay,
            eps=eps,
            tiny=torch.finfo(codebook.dtype).tiny,
            dead_below=dead_below,
            RELATIVE=relative,
            LAPLACE=smoothing == "laplace",
            NORMALIZE=normalize,
            BT=sizes.codes,
            BK=codes.codes,
            BD=codes.depth,
            num_warps=codes.num_warps,
            enable_fp_fusion=False,
        )
    return dead
