"""Vector quantization for PyTorch, as single fused kernels under drop-in modules."""

from . import codes, functional, losses, metrics, ops
from ._version import __version__
from .clustering import kmeans, kmeans_stream
from .codebook import Codebook
from .dropout import QuantizeDropout
from .estimators import DiVeQ, GumbelSoftmax, RotationTrick, StraightThrough
from .grouped import GroupedVQ, Quantized
from .residual import GroupedResidualVQ, ResidualVQ
from .residual_codebook import ResidualCodebook
from .rules import (
    EMA,
    AbsoluteUsage,
    CodebookRules,
    FirstRowsInit,
    Frozen,
    KMeansInit,
    Learned,
    RandomInit,
    RelativeUsage,
)
from .vector_quantize import VectorQuantize

__all__ = [
    "EMA",
    "AbsoluteUsage",
    "Codebook",
    "CodebookRules",
    "DiVeQ",
    "FirstRowsInit",
    "Frozen",
    "GroupedResidualVQ",
    "GroupedVQ",
    "GumbelSoftmax",
    "KMeansInit",
    "Learned",
    "QuantizeDropout",
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
    "losses",
    "metrics",
    "ops",
]
