"""Vector quantization for PyTorch, as single fused kernels under drop-in modules."""

from . import checkpoints, codes, functional, losses, metrics, onnx, ops
from ._version import __version__
from .attention import AttentionVQ
from .clustering import kmeans, kmeans_stream
from .codebook import Codebook
from .dropout import QuantizeDropout
from .estimators import DiVeQ, GumbelSoftmax, RotationTrick, StraightThrough
from .finite_scalar import FSQ, GroupedResidualFSQ, ResidualFSQ
from .grouped import GroupedVQ, Quantized
from .lookup_free import LFQ, CodeEntropy, GroupedResidualLFQ, ResidualLFQ
from .projected import ProjectedResidualVQ
from .residual import GroupedResidualVQ, ResidualVQ
from .residual_attention import ResidualAttentionVQ
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
from .sim_vq import ResidualSimVQ, SimVQ
from .split import SplitResidualVQ
from .swapping import SwapReport, swap, unswap
from .vector_quantize import VectorQuantize

__all__ = [
    "EMA",
    "FSQ",
    "LFQ",
    "AbsoluteUsage",
    "AttentionVQ",
    "CodeEntropy",
    "Codebook",
    "CodebookRules",
    "DiVeQ",
    "FirstRowsInit",
    "Frozen",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "GroupedVQ",
    "GumbelSoftmax",
    "KMeansInit",
    "Learned",
    "ProjectedResidualVQ",
    "QuantizeDropout",
    "Quantized",
    "RandomInit",
    "RelativeUsage",
    "ResidualAttentionVQ",
    "ResidualCodebook",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "RotationTrick",
    "SimVQ",
    "SplitResidualVQ",
    "StraightThrough",
    "SwapReport",
    "VectorQuantize",
    "__version__",
    "checkpoints",
    "codes",
    "functional",
    "kmeans",
    "kmeans_stream",
    "losses",
    "metrics",
    "onnx",
    "ops",
    "swap",
    "unswap",
]
