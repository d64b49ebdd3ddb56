"""The names, keywords, returns and state-dict keys of vector-quantize-pytorch (Wang, MIT), on fastvq's kernels."""

from .vector_quantize import LossBreakdown, VectorQuantize

__all__ = ["LossBreakdown", "VectorQuantize"]
