"""Triton kernels for CUDA and ROCm devices; where Triton is missing, only the reason why is here."""

from fastvq.kernels.triton._availability import available, triton_installed, unavailable_reason

__all__ = ["available", "unavailable_reason"]

if triton_installed():
    from fastvq.kernels.triton.ema import ema_update_
    from fastvq.kernels.triton.lookup import lookup
    from fastvq.kernels.triton.nearest import nearest
    from fastvq.kernels.triton.residual import residual_nearest
    from fastvq.kernels.triton.segment import residual_segment_sum, segment_sum
    from fastvq.kernels.triton.topk import nearest_topk

    __all__ += [
        "ema_update_",
        "lookup",
        "nearest",
        "nearest_topk",
        "residual_nearest",
        "residual_segment_sum",
        "segment_sum",
    ]
