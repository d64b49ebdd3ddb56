"""Vector quantization for PyTorch, as single fused kernels under drop-in modules."""

from . import codes, functional, metrics, ops
from ._version import __version__
from .clustering import kmeans, kmeans_stream
from .codebook import Codebook
from .estimators import RotationTrick, StraightThrough
from .grouped import GroupedVQ, Quantized
from .residual import GroupedResidualVQ, ResidualVQ
from .residual_codebook import ResidualCodebook
from .rules import EMA, AbsoluteUsage, CodebookRules, Frozen, KMeansInit, RandomInit, RelativeUsage
from .vector_quantize import VectorQuantize

__all__ = [
    "EMA",
    "AbsoluteUsage",
    "Codebook",
    "CodebookRules",
    "Frozen",
    "GroupedResidualVQ",
    "GroupedVQ",
    "KMeansInit",
    "Quantized",
    "RandomInit",
    "RelativeUsage",
    "ResidualCodebook",
    "ResidualVQ",
    "RotationTrick",
    "StraightThrough",
    "VectorQuantize",
    "__version__",
    "codes",
    "functional",
    "kmeans",
    "kmeans_stream",
    "metrics",
    "ops",
]
