"""The public ops: validate, dispatch, wrap. Each is one kernel launch where a fused implementation exists.

Shapes: the leading group axis G may be left out of all operands together; R stands for one or two row axes, read
through their strides, so that (N, G*D) activations and (B, C, T) feature maps are searched in place. ``impl`` names
the implementation: ``"auto"`` takes Triton on CUDA, C++ on a CPU with a compiler, tiled torch otherwise; another
value is taken at its word or raises ``RuntimeError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops
from . import validation as check


class Nearest(NamedTuple):
    """Codes and how far they are: indices (G, *R[, k]) int64, distances (G, *R[, k]) float32 or float64."""

    indices: Tensor
    distances: Tensor


class ResidualNearest(NamedTuple):
    """Codes of a residual stack: indices (G, *R, Q) int64, their sum quantized (G, *R, D) in the rows' dtype, and
    errors (G, *R, Q), the squared distance that each stage leaves, float32 or float64."""

    indices: Tensor
    quantized: Tensor
    errors: Tensor


class SegmentSum(NamedTuple):
    """Rows summed by code: sums (G[, Q], K, D) and counts (G[, Q], K), float32 or float64."""

    sums: Tensor
    counts: Tensor


def nearest(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: str = "l2",
    topk: int | None = None,
    mask: Tensor | None = None,
    precision: str = "exact",
    impl: str = "auto",
) -> Nearest:
    """The nearest code of every row, or its ``topk`` nearest ones in order.

    ``precision="exact"`` returns the code with the smallest cost in float64 arithmetic on the inputs as given, the
    lowest index among equals, whatever the implementation (the oracle in ``kernels/reference.py``).
    ``precision="fast"`` skips the re-scoring of close calls: where two codes are closer together than the rounding
    of a float32 matrix product it may return the other.

    Args:
        x: (G, *R, D) or (*R, D) rows; float16, bfloat16, float32 or float64.
        codebook: (G, K, D) or (K, D); float64 exactly when x is.
        metric: "l2" (squared Euclidean distance), "cosine" (1 - cosine) or "dot" (score, larger wins).
        topk: None, or how many codes in [1, K] to return for each row.
        mask: bool, broadcasts to (G, *R) or (*R); False rows get index -1 and distance 0.
        precision: "exact" or "fast".
        impl: see the module.

    Returns:
        indices and distances, (G, *R) or (*R); with ``topk`` one more axis, nearest first. A row that is not finite
        gets index -1 and distance NaN, as do the last of ``topk`` where fewer codes are finite. Distances carry
        gradients to x and codebook.

    Raises:
        TypeError, ValueError: arguments that do not fit. RuntimeError: an ``impl`` that cannot run here.
    """
    check.floating("x", x)
    check.floating("codebook", codebook)
    check.codebook_shape(codebook)
    check.rows_shape(x, codebook)
    check.double_agrees(x, codebook)
    check.mask_shape(mask, x.shape[:-1])
    check.same_device(x=x, codebook=codebook, mask=mask)
    check.choice("metric", metric, check.METRICS)
    check.choice("precision", precision, check.PRECISIONS)
    if topk is not None:
        check.positive("topk", topk)
        if topk > codebook.shape[-2]:
            raise ValueError(f"topk must be at most the codebook's {codebook.shape[-2]} codes, got {topk}")

    shape = x.shape[:-1]
    if codebook.dim() == 2:
        x, codebook = x.unsqueeze(0), codebook.unsqueeze(0)
    if codebook.dtype in (torch.float16, torch.bfloat16):
        codebook = codebook.float()
    rows = x if x.dim() == 4 else x.unsqueeze(1)
    if mask is not None:
        mask = mask.expand(shape).reshape(rows.shape[:-1])
    if topk is None:
        indices, distances = ops.call(torch.ops.fastvq.nearest.default, rows, codebook, mask, metric, precision, impl)
        return Nearest(indices.view(*shape), distances.view(*shape))  # thrice as fast as view(shape)
    indices, distances = ops.call(
        torch.ops.fastvq.nearest_topk.default, rows, codebook, mask, topk, metric, precision, impl
    )
    return Nearest(indices.view(*shape, topk), distances.to(codebook.dtype).view(*shape, topk))


def residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    *,
    sizes: Sequence[int] | None = None,
    stages: Tensor | None = None,
    beam: int = 1,
    mask: Tensor | None = None,
    precision: str = "exact",
    impl: str = "auto",
) -> ResidualNearest:
    """Quantizes every row in Q stages, each of which takes the code nearest to what the stages before it left.

    r_1 = x in float32, r_{q+1} = r_q - c_q, quantized = c_1 + c_2 + ..., added as :func:`lookup` adds them. Each code
    is the one that :func:`nearest` returns for its residual. With ``beam`` above 1 the best ``beam`` choices of codes
    so far are kept from stage to stage, which leaves less error and takes about ``beam`` times as long.

    Args:
        x: (G, *R, D) or (*R, D) rows; float16, bfloat16, float32 or float64.
        codebooks: (G, Q, K, D) or (Q, K, D); float64 exactly when x is.
        sizes: Q ints in [1, K]: stage q has that many codes, and the rest of its K is padding. None: all have K.
        stages: int64, broadcasts to (*R): how many stages, from the first on, a row takes (clamped to [0, Q]).
            None: all.
        beam: choices that are kept.
        mask: bool, broadcasts to (G, *R) or (*R); False rows take no stage.
        precision: as for :func:`nearest`.
        impl: see the module.

    Returns:
        indices (G, *R, Q), quantized (G, *R, D) in x's dtype, and errors (G, *R, Q) with |r_{q+1}|^2, without G where
        the operands have none. Stages that a row does not take have index -1 and error 0; a row that takes none is
        quantized to 0. A row that is not finite has index -1 and error NaN, and is quantized to NaN.

        quantized carries gradients to the codebooks, errors to x and the codebooks.

    Raises:
        TypeError, ValueError: arguments that do not fit. RuntimeError: an ``impl`` that cannot run here.
    """
    check.floating("x", x)
    check.floating("codebooks", codebooks)
    check.codebooks_shape(codebooks)
    check.rows_shape(x, codebooks, stack=True)
    check.double_agrees(x, codebooks, "codebooks")
    grouped = codebooks.dim() == 4
    shape, depth = x.shape[:-1], codebooks.shape[-3]
    check.stage_sizes(sizes, depth, codebooks.shape[-2])
    check.stages_shape(stages, shape[grouped:])
    check.mask_shape(mask, shape)
    check.same_device(x=x, codebooks=codebooks, stages=stages, mask=mask)
    check.positive("beam", beam)
    check.choice("precision", precision, check.PRECISIONS)

    rows, codebooks = _stack(x, codebooks)
    if stages is not None:
        stages = stages.expand(shape[grouped:]).reshape(rows.shape[1:3])
    if mask is not None:
        mask = mask.expand(shape).reshape(rows.shape[:-1])
    sizes = None if sizes is None else list(sizes)
    if beam == 1:
        found = ops.call(
            torch.ops.fastvq.residual_nearest.default, rows, codebooks, sizes, stages, mask, precision, impl
        )
    else:
        found = ops.call(
            torch.ops.fastvq.residual_beam.default, rows, codebooks, sizes, stages, mask, beam, precision, impl
        )
    indices, quantized, errors = found
    return ResidualNearest(indices.view(*shape, depth), quantized.view(x.shape), errors.view(*shape, depth))


def segment_sum(x: Tensor, indices: Tensor, num_codes: int, *, impl: str = "auto") -> SegmentSum:
    """Sums and counts the rows of every code, in an order that depends on nothing but the rows.

    Args:
        x: (G, *R, D) or (*R, D) with one or two row axes.
        indices: (G, *R) or (*R) int64 in [-1, num_codes); -1 is left out.
        num_codes: K.
        impl: see the module.

    Returns:
        sums (G, K, D) and counts (G, K), without G where the operands had none: 2-D x has no G, 4-D x has one, and
        3-D x is (G, N, D); write (1, N1, N2, D) for two row axes without groups.

    Raises:
        IndexError: an index outside the range, on a CPU. TypeError, ValueError: arguments that do not fit.
    """
    check.floating("x", x)
    check.integer("indices", indices)
    check.positive("num_codes", num_codes)
    if x.dim() not in (2, 3, 4):
        raise ValueError(f"x must be (N, D), (G, N, D) or (G, N1, N2, D), got shape {tuple(x.shape)}")
    check.equal_shape("indices", indices, x.shape[:-1])
    check.same_device(x=x, indices=indices)
    grouped = x.dim() > 2
    if not grouped:
        x, indices = x.unsqueeze(0), indices.unsqueeze(0)
    if x.dim() == 3:
        x, indices = x.unsqueeze(1), indices.unsqueeze(1)
    sums, counts = ops.call(torch.ops.fastvq.segment_sum.default, x, indices, num_codes, impl)
    return SegmentSum(sums, counts) if grouped else SegmentSum(sums[0], counts[0])


def residual_segment_sum(x: Tensor, indices: Tensor, codebooks: Tensor, *, impl: str = "auto") -> SegmentSum:
    """Sums and counts, for every code of every stage, the residuals that :func:`residual_nearest` gave it.

    Residuals are computed again from x, indices and codebooks, exactly as the search computes them. Sums carry
    gradients to x and codebooks.

    Args:
        x: (G, *R, D) or (*R, D) with one or two row axes.
        indices: (G, *R, Q) or (*R, Q) int64 in [-1, K); -1 is left out and subtracts nothing.
        codebooks: (G, Q, K, D) or (Q, K, D); float64 exactly when x is.
        impl: see the module.

    Returns:
        sums (G, Q, K, D) and counts (G, Q, K), without G where the operands have none.

    Raises:
        IndexError: an index outside the range, on a CPU. TypeError, ValueError: arguments that do not fit.
    """
    check.floating("x", x)
    check.integer("indices", indices)
    check.floating("codebooks", codebooks)
    check.codebooks_shape(codebooks)
    check.rows_shape(x, codebooks, stack=True)
    check.double_agrees(x, codebooks, "codebooks")
    check.equal_shape("indices", indices, (*x.shape[:-1], codebooks.shape[-3]))
    check.same_device(x=x, indices=indices, codebooks=codebooks)
    grouped = codebooks.dim() == 4
    rows, codebooks = _stack(x, codebooks)
    indices = indices.view(*rows.shape[:-1], indices.shape[-1])
    sums, counts = ops.call(torch.ops.fastvq.residual_segment_sum.default, rows, indices, codebooks, impl)
    return SegmentSum(sums, counts) if grouped else SegmentSum(sums[0], counts[0])


def _stack(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (G, R1, R2, D) and codebooks (G, Q, K, D) in float32 or float64."""
    if codebooks.dim() == 3:
        x, codebooks = x.unsqueeze(0), codebooks.unsqueeze(0)
    if codebooks.dtype in (torch.float16, torch.bfloat16):
        codebooks = codebooks.float()
    return x if x.dim() == 4 else x.unsqueeze(1), codebooks


def ema_update_(
    codebook: Tensor,
    embed_sum: Tensor,
    cluster_size: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    decay: float,
    eps: float = 1e-5,
    smoothing: str = "laplace",
    normalize: bool = False,
    dead_below: float = 0.0,
    relative: bool = False,
    impl: str = "auto",
) -> Tensor:
    """One exponential-moving-average step of a codebook, in place (van den Oord et al. 2017, appendix A.1).

    Args:
        codebook, embed_sum, sums: (G, K, D) or (K, D), contiguous, float32 or float64.
        cluster_size, counts: (G, K) or (K,), of the same dtype.
        decay: share of the old statistics that stays, in [0, 1].
        eps: of the Laplace smoothing of cluster sizes.
        smoothing: "laplace" or "none"; codes of size 0 keep their value.
        normalize: put codes on the unit sphere.
        dead_below: codes whose updated cluster size is below this are reported dead.
        relative: count ``dead_below`` in units of the group's mean cluster size.
        impl: see the module.

    Returns:
        dead, bool, shaped as cluster_size.

    Raises:
        TypeError, ValueError: arguments that do not fit.
    """
    check.floating("codebook", codebook)
    check.codebook_shape(codebook)
    if codebook.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"codebook must be float32 or float64, got {codebook.dtype}: statistics need the precision")
    state = {"embed_sum": embed_sum, "sums": sums, "cluster_size": cluster_size, "counts": counts}
    for name, tensor in state.items():
        check.equal_shape(name, tensor, codebook.shape if name in ("embed_sum", "sums") else codebook.shape[:-1])
        if tensor.dtype != codebook.dtype:
            raise TypeError(f"{name} must have the codebook's dtype {codebook.dtype}, got {tensor.dtype}")
    for name, tensor in (("codebook", codebook), ("embed_sum", embed_sum), ("cluster_size", cluster_size)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, because it is updated in place; call .contiguous() first")
    check.same_device(codebook=codebook, **state)
    check.unit_interval("decay", decay)
    check.choice("smoothing", smoothing, check.SMOOTHINGS)
    tensors = (codebook, embed_sum, cluster_size, sums, counts)
    if codebook.dim() == 2:
        tensors = tuple(t.unsqueeze(0) for t in tensors)  # type: ignore[assignment]
    dead: Tensor = torch.ops.fastvq.ema_update_(
        *tensors, decay, eps, smoothing, normalize, dead_below, relative, impl
    )
    if not torch.compiler.is_compiling() and not codebook.is_inference():
        # So that autograd refuses to go back through what was computed from the codes before.
        torch.autograd.graph.increment_version((codebook, embed_sum, cluster_size))
    return dead.view(cluster_size.shape)


def lookup(indices: Tensor, codebooks: Tensor, *, impl: str = "auto") -> Tensor:
    """The sum of the chosen codes over the stages, left to right in float32; -1 adds nothing.

    The gradient of a codebook is deterministic: each code gets the sum of its rows' gradients by
    :func:`segment_sum`.

    Args:
        indices: (G, *R, Q) or (*R, Q) int64 in [-1, K), one or two row axes.
        codebooks: (G, Q, K, D) or (Q, K, D), float32 or float64.
        impl: see the module.

    Returns:
        (G, *R, D) or (*R, D) in the codebooks' dtype.

    Raises:
        IndexError: an index outside the range, on a CPU. TypeError, ValueError: arguments that do not fit.
    """
    check.integer("indices", indices)
    check.floating("codebooks", codebooks)
    check.codebooks_shape(codebooks)
    if codebooks.dtype not in (torch.float32, torch.float64):
        codebooks = codebooks.float()
    grouped = codebooks.dim() == 4
    stages = codebooks.shape[-3]
    if indices.dim() - grouped not in (2, 3) or indices.shape[-1] != stages:
        form = "(G, N, Q) or (G, N1, N2, Q)" if grouped else "(N, Q) or (N1, N2, Q)"
        raise ValueError(f"indices must be {form} with Q = {stages}, got shape {tuple(indices.shape)}")
    if grouped and indices.shape[0] != codebooks.shape[0]:
        raise ValueError(
            f"indices must have the codebooks' {codebooks.shape[0]} groups first, got shape {tuple(indices.shape)}"
        )
    check.same_device(indices=indices, codebooks=codebooks)
    shape = (*indices.shape[:-1], codebooks.shape[-1])
    if not grouped:
        indices, codebooks = indices.unsqueeze(0), codebooks.unsqueeze(0)
    if indices.dim() == 3:
        indices = indices.unsqueeze(1)
    out: Tensor = ops.call(torch.ops.fastvq.lookup.default, indices, codebooks, impl)
    return out.view(shape)
