"""Triton kernels for CUDA and ROCm devices; where Triton is missing, only the reason why is here."""

from fastvq.kernels.triton._availability import available, triton_installed, unavailable_reason

__all__ = ["available", "unavailable_reason"]

if triton_installed():
    from fastvq.kernels.triton.ema import ema_update_
    from fastvq.kernels.triton.lookup import lookup
    from fastvq.kernels.triton.nearest import nearest
    from fastvq.kernels.triton.segment import segment_sum

    __all__ += ["ema_update_", "lookup", "nearest", "segment_sum"]
