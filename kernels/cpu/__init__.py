"""C++ kernels for CPU tensors, compiled at first use (see ``build``) and called through ``native``."""

from fastvq.kernels.cpu.native import (
    Kept,
    available,
    commitment_grad,
    ema_update_,
    isa,
    lookup,
    nearest,
    nearest_topk,
    residual_nearest,
    residual_segment_sum,
    segment_sum,
    select_isa,
    unavailable_reason,
)

__all__ = [
    "Kept",
    "available",
    "commitment_grad",
    "ema_update_",
    "isa",
    "lookup",
    "nearest",
    "nearest_topk",
    "residual_nearest",
    "residual_segment_sum",
    "segment_sum",
    "select_isa",
    "unavailable_reason",
]
